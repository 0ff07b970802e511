"""From a run to a folder of images: its content, and the message of each wrong flag."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from darl_jax.config import load
from darl_jax.evaluators.samples import held_out
from darl_jax.interchange.saved_config import get_config
from tests.programs import call, finish, refusal, start


def make(workdir, output: pathlib.Path, *arguments: str) -> dict[str, np.ndarray]:
    assert call("sample", f"--checkpoint={workdir}", f"--output={output}", *arguments) == 0
    with np.load(output / "samples.npz") as arrays:
        return dict(arrays)


def settings(output: pathlib.Path) -> dict:
    return json.loads((output / "settings.json").read_text())


def test_a_run_ends_with_samples_and_completions(tiny_diffusion):
    cell = 72  # 8 pixels, magnified by 8, and a gap around
    folder = tiny_diffusion / "pictures"
    sizes = {
        name: Image.open(folder / f"{name}_00000012.png").size
        for name in ("samples", "completions")
    }
    assert sizes == {"samples": (2 * cell, 2 * cell), "completions": (3 * cell, 2 * cell)}


def test_images_do_not_depend_on_the_batch_size(tiny_diffusion, tmp_path):
    one = make(tiny_diffusion, tmp_path / "one", "--number=5", "--batch_size=5")["images"]
    other = make(tiny_diffusion, tmp_path / "other", "--number=5", "--batch_size=2")["images"]
    assert one.shape == (5, 8, 8, 1)
    assert np.abs(one.astype(int) - other).max() <= 1


def test_completions_keep_half_of_the_held_out_images(tiny_diffusion, tmp_path):
    made = make(tiny_diffusion, tmp_path / "out", "--validation_images=3", "--completions=2")
    config = load(get_config(str(tiny_diffusion)))
    originals = held_out(config.data.open().validation, 3)
    np.testing.assert_array_equal(made["originals"], originals)
    assert (made["images"][:, :, :4] == originals[:, None, :4]).all()
    assert (made["images"][:, :, 4:] != originals[:, None, 4:]).any()
    assert settings(tmp_path / "out")["known"] == 8
    assert settings(tmp_path / "out")["sampler"]["steps"] == 4


def test_photos_of_any_size_are_cropped_and_resized_and_the_log_says_so(
    tiny_diffusion, tmp_path, caplog
):
    photos = tmp_path / "photos"
    photos.mkdir()
    # Its sides are outside the central square.
    photo = np.full((30, 50, 3), 200, np.uint8)
    photo[:, :10] = photo[:, 40:] = 0
    Image.fromarray(photo).save(photos / "wide.jpg", quality=100)
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(photos / "exact.png")
    caplog.set_level("INFO")
    made = make(
        tiny_diffusion, tmp_path / "out", f"--images={photos}", "--known=1", "--completions=1"
    )
    assert made["names"].tolist() == ["exact", "wide"]
    exact, wide = made["originals"][..., 0]
    assert (exact == 90).all()
    assert wide.min() > 150  # the filter sees a pixel beyond the border
    assert (made["images"][0, 0, :2, :2] == 90).all()  # the patch that is known
    assert (made["images"][0, 0] != 90).any()
    assert (tmp_path / "out" / "wide_0000.png").exists()
    assert "1 of 2 images are cropped and resized to 8 x 8 pixels" in caplog.text


def test_the_squared_error_makes_images_without_a_sampler(tiny_run, tmp_path):
    made = make(tiny_run, tmp_path / "out", "--number=2")["images"]
    np.testing.assert_array_equal(made[0], made[1])
    assert settings(tmp_path / "out")["sampler"] is None


def test_keys_of_the_checkpoints_own_config_can_be_overridden(tiny_diffusion, tmp_path):
    """The analytic variance is measured on training images, here at twice the run's steps."""
    analytic = make(
        tiny_diffusion, tmp_path / "analytic", "--number=2",
        "--config.objective.sampler.variance=analytic", "--config.objective.sampler.steps=8",
    )["images"]  # fmt: skip
    sampler = settings(tmp_path / "analytic")["sampler"]
    assert (sampler["steps"], sampler["variance"]) == (8, "analytic")
    assert (analytic[0] != analytic[1]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--validation_images=1", "--known=16"], "16 patches are given, "),
        (["--region=0,2,0,2"], "--region and --known keep patches of images"),
        (["--images=a", "--validation_images=1"], "give --images or --validation_images"),
        (["--region=0,2,0,2", "--known=2", "--validation_images=1"], "leave --known out"),
        (["--region=0,2,0,2", "--validation_images=1"], "the model knows the order 'raster' alone"),
        (["--validation_images=1", "--completions=0"], "--completions=0 must be at least 1"),
        (["--config.model.order.name=spiral"], "the model knows the order 'raster' alone"),
        (["--config.objective.sampler.steps=0"], "config.objective.sampler.steps=0"),
        (["--config.model.width=64"], "config.model.width is 64 and the checkpoint's is 32"),
        (["--images=nowhere.png"], "there is no file or folder nowhere.png"),
    ],
)
def test_a_wrong_flag_is_one_line_and_leaves_no_folder(
    tiny_diffusion, tmp_path, capsys, arguments, message
):
    flags = f"--checkpoint={tiny_diffusion}", f"--output={tmp_path / 'out'}"
    assert message in refusal(capsys, "sample", *flags, *arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(tiny_diffusion, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    flags = f"--checkpoint={tiny_diffusion}", f"--output={tmp_path}"
    assert "exists and is not empty; name a new folder" in refusal(capsys, "sample", *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
@pytest.mark.process
def test_four_devices_make_the_images_of_one(tiny_diffusion, tmp_path):
    flags = f"--checkpoint={tiny_diffusion}", f"--output={tmp_path / 'four'}"
    flags += "--number=8", "--batch_size=8"
    finish(start("-m", "darl_jax.sample", *flags, JAX_NUM_CPU_DEVICES="4"))
    one = make(tiny_diffusion, tmp_path / "one", "--number=8")["images"]
    with np.load(tmp_path / "four" / "samples.npz") as arrays:
        assert np.abs(arrays["images"].astype(int) - one).max() <= 1
