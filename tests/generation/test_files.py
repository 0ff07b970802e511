"""The folder that images go to, and their picture."""

import json

import numpy as np
from PIL import Image

from darl_jax.generation.files import SampleFolder
from darl_jax.generation.image_grid import image_grid
from darl_jax.generation.request import Request, from_nothing


def numbered(number: int, side: int = 4, channels: int = 3) -> np.ndarray:
    """Images whose every pixel is their number."""
    each = np.arange(1, number + 1, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(each, (number, side, side, channels)).copy()


def test_images_from_nothing_are_files_as_they_come_and_arrays_in_the_end(tmp_path):
    folder = SampleFolder(tmp_path, from_nothing(5, (4, 4, 3)), '{"seed": 7}')
    images = numbered(5)
    folder.add(images[:2])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0000.png", "0001.png", "settings.json",
    ]  # fmt: skip
    folder.add(images[2:])
    path = folder.finish()
    np.testing.assert_array_equal(np.asarray(Image.open(path / "0003.png")), images[3])
    np.testing.assert_array_equal(np.load(path / "samples.npz")["images"], images)
    assert json.loads((path / "settings.json").read_text()) == {"seed": 7}
    assert (path / "grid.png").exists()


def test_completions_stand_beside_their_original(tmp_path):
    originals, made = numbered(2, channels=1) + 100, numbered(6, channels=1)
    request = Request(originals, ["cat", "dog"], 3, 5, None)
    folder = SampleFolder(tmp_path, request, "{}")
    folder.add(made)
    folder.finish()
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "dog_0001.png")), made[4, ..., 0]
    )
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "cat_original.png")), originals[0, ..., 0]
    )
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["images"].shape == (2, 3, 4, 4, 1)
        np.testing.assert_array_equal(arrays["originals"], originals)
        assert arrays["names"].tolist() == ["cat", "dog"]
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    rows, columns = 2, 4
    height, width = grid.shape[0] // rows, grid.shape[1] // columns
    middle = grid[height // 2 :: height, width // 2 :: width, 0]
    assert middle.tolist() == [[101, 1, 2, 3], [102, 4, 5, 6]]


def test_only_the_first_image_of_each_row_is_framed():
    grid = image_grid(numbered(6, side=64).reshape(2, 3, 64, 64, 3), frame_first=True)
    red = (grid == (214, 39, 40)).all(axis=-1)
    assert red[:, :72].any()
    assert not red[:, 72:].any()
    assert (red[:72, :72].sum(), red[72:, :72].sum()) == (70**2 - 64**2,) * 2
    assert not (image_grid(numbered(1, side=64)[None]) == (214, 39, 40)).all(axis=-1).any()
