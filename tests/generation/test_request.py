"""Requests for images, and the messages for those that cannot be."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from darl_jax.data.images.config import ImagesConfig
from darl_jax.generation.request import (
    file_names,
    from_nothing,
    image_files,
    read_images,
    region_order,
)


def save(path, height, width, mode="RGB"):
    Image.new(mode, (width, height), 100 if mode == "L" else (100, 100, 100)).save(path)
    return str(path)


def test_a_region_comes_last_and_what_is_around_it_in_raster_order_before():
    order, known = region_order(["1", "3", "0", "2"], (3, 3))
    assert order.tolist() == [0, 1, 2, 5, 8, 3, 4, 6, 7]
    assert known == 5


@pytest.mark.parametrize("region", ["", "1,1,0,2", "0,4,0,2", "0,2", "a,b,c,d", "-1,2,0,1"])
def test_a_region_that_is_not_in_the_grid_is_an_error_with_an_example(region):
    with pytest.raises(ValueError, match=f"--region={region} is no region .*3 x 3.*1,3,0,3"):
        region_order(region.split(","), (3, 3))


GRAY = ImagesConfig(source="digits", image_size=8, channels=1, mean=(0.5,), std=(0.5,))


def test_images_of_files_and_folders_have_the_model_s_channels(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    save(folder / "b.png", 8, 8)
    save(folder / "a.png", 8, 8, "L")
    (folder / "notes.txt").write_text("no image")
    files = image_files([save(tmp_path / "single.png", 8, 8), str(folder)], "--images")
    assert file_names(files) == ["single", "a", "b"]
    images = read_images(files, GRAY)
    assert images.shape == (3, 8, 8, 1)
    assert (images == 100).all()


def test_an_image_of_another_size_is_cropped_and_resized_as_in_evaluation(tmp_path):
    pixels = np.zeros((20, 40), np.uint8)
    pixels[:, 10:30] = 200  # the central square
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    (image,) = read_images([tmp_path / "wide.png"], dataclasses.replace(GRAY, eval_crop=1.0))
    assert image.min() > 150  # the filter sees a pixel beyond the border
    (image,) = read_images([tmp_path / "wide.png"], dataclasses.replace(GRAY, eval_crop=0.5))
    assert (image == 200).all()


def test_files_that_are_missing_or_no_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--images: there is no file or .*missing\.png"):
        image_files([str(tmp_path / "missing.png")], "--images")
    with pytest.raises(FileNotFoundError, match="holds no image"):
        image_files([str(tmp_path)], "--images")
    (tmp_path / "broken.png").write_bytes(b"not a png")
    with pytest.raises(ValueError, match=r"broken\.png cannot be decoded"):
        read_images([tmp_path / "broken.png"], GRAY)


def test_no_images_are_no_request():
    assert from_nothing(3, (4, 4, 1)).each == 3
    with pytest.raises(ValueError, match="--number=0 must be at least 1"):
        from_nothing(0, (4, 4, 1))


def test_two_files_of_one_name_keep_both():
    assert len(set(file_names([Path("one/same.png"), Path("two/same.png")]))) == 2
