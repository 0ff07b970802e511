"""What is asked for, and the messages for what cannot be."""

import pytest
from PIL import Image

from darl_jax.generation.request import from_nothing, named_order, read_images, region_order


def save(path, height, width, mode="RGB"):
    Image.new(mode, (width, height), 100 if mode == "L" else (100, 100, 100)).save(path)
    return str(path)


def test_a_region_comes_last_and_what_is_around_it_in_raster_order_before():
    order, known = region_order("1:3,0:2", (3, 3))
    assert order.tolist() == [0, 1, 2, 5, 8, 3, 4, 6, 7]
    assert known == 5


@pytest.mark.parametrize(
    "region", ["", "1:1,0:2", "0:4,0:2", "0:2", "0:2,1:4", "a:b,c:d", "-1:2,0:1"]
)
def test_a_region_that_is_not_in_the_grid_is_an_error_with_an_example(region):
    with pytest.raises(ValueError, match=f"--region={region} is no region .*3 x 3.*1:3,0:3"):
        region_order(region, (3, 3))


def test_orders_by_name():
    assert named_order("raster", (2, 2)).tolist() == [0, 1, 2, 3]
    assert named_order("round_robin:2", (4, 4))[:4].tolist() == [0, 2, 8, 10]
    seeds = [named_order(f"permutation:{seed}", (4, 4)).tolist() for seed in (1, 2)]
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zigzag", "--order=zigzag: model.order.name='zigzag' is unknown"),
        ("nested_raster:3", "--order=nested_raster:3: model.order.block=3 must divide the grid"),
        ("nested_raster:two", "'two' is no number; for example nested_raster:2"),
        ("random", "--order=random: .*is no order that all images have"),
    ],
)
def test_orders_that_there_are_not(text, message):
    with pytest.raises(ValueError, match=message):
        named_order(text, (4, 4))


def test_images_of_files_and_folders_have_the_model_s_channels(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    save(folder / "b.png", 8, 8)
    save(folder / "a.png", 8, 8, "L")
    (folder / "notes.txt").write_text("no image")
    single = save(tmp_path / "single.png", 8, 8)
    images, names = read_images([single, str(folder)], 8, 1)
    assert names == ["single", "a", "b"]
    assert images.shape == (3, 8, 8, 1)
    assert (images == 100).all()


def test_an_image_of_another_size_is_named_with_both_sizes(tmp_path):
    path = save(tmp_path / "wide.png", 8, 12)
    with pytest.raises(ValueError, match=f"{path} has 8 x 12 pixels, and the model makes .* 8 x 8"):
        read_images([path], 8, 3)


def test_files_that_are_missing_or_no_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder .*missing\.png"):
        read_images([str(tmp_path / "missing.png")], 8, 3)
    with pytest.raises(FileNotFoundError, match="holds no image"):
        read_images([str(tmp_path)], 8, 3)
    (tmp_path / "broken.png").write_bytes(b"not a png")
    with pytest.raises(ValueError, match=r"broken\.png cannot be decoded"):
        read_images([str(tmp_path / "broken.png")], 8, 3)


def test_no_images_are_no_request():
    assert from_nothing(3, (4, 4, 1)).each == 3
    with pytest.raises(ValueError, match="--number=0 must be at least 1"):
        from_nothing(0, (4, 4, 1))


def test_two_files_of_one_name_keep_both(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "same.png", 8, 8)
    _, names = read_images([str(tmp_path / "one"), str(tmp_path / "two")], 8, 3)
    assert len(set(names)) == 2
