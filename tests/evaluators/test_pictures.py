import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from darl_jax.evaluators import pictures as pictures_lib
from darl_jax.evaluators.pictures import (
    Pictures,
    draw_predictions,
    mean_errors,
)
from darl_jax.methods.darl.mse import MSE
from darl_jax.methods.images import Prediction
from darl_jax.monitoring.drawing import magnify
from tests.evaluators.tiny import STD, make_batches, random_images


def make_pictures(tiny, images, *, batch_size, number, method=None, **kwargs):
    context = dataclasses.replace(tiny.context(), method=method or tiny.method)
    return Pictures(context, make_batches(images, batch_size, **kwargs), number=number)


def test_prediction_and_errors_are_the_objectives(tiny):
    """A prediction that is known: each pixel 0.1 of its range too bright."""

    @dataclasses.dataclass(frozen=True)
    class TooBright(MSE):
        def predict(self, model, batch, key):
            del model, key
            target = self.patches(batch)
            error = jnp.arange(16.0) + batch["index"][:, None]
            return Prediction(target, target + 0.1 / STD[0], error, np.arange(16)[::-1])

    images = random_images(3) // 2
    method = TooBright(**vars(tiny.method))
    comparison = make_pictures(tiny, images, batch_size=3, number=3, method=method).compare(
        tiny.params
    )
    np.testing.assert_allclose(comparison.predicted, images + 25.5, atol=0.51)
    np.testing.assert_allclose(comparison.difference, 0.1, atol=1e-5)
    # Records 0, 1, 2 have errors 0 .. 15, 1 .. 16, 2 .. 17, in raster order.
    np.testing.assert_allclose(comparison.error, 1 + np.arange(16.0).reshape(4, 4), rtol=1e-6)
    # The last patch is the first of its sequence.
    np.testing.assert_allclose(comparison.in_sequence, 1 + np.arange(16.0)[::-1], rtol=1e-6)


def test_errors_of_orders_of_each_images_own_are_averaged_by_place_and_by_patch():
    """The first two images' errors are their places in the sequence; the third is padding."""
    order = jnp.array([[2, 0, 1], [0, 1, 2], [1, 2, 0]])
    error = jnp.array([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0], [jnp.nan] * 3])
    in_image, in_sequence = mean_errors(error, order, jnp.array([True, True, False]))
    np.testing.assert_array_equal(in_sequence, [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(in_image, [0.5, 1.5, 1.0])


def test_padding_is_not_shown_and_not_averaged(tiny):
    images = random_images(3)
    whole = make_pictures(tiny, images, batch_size=3, number=2).compare(tiny.params)
    padded = make_pictures(tiny, images, batch_size=8, number=8, padding=99).compare(tiny.params)
    assert len(padded.target) == padded.examples == 3
    np.testing.assert_array_equal(padded.target, images)
    np.testing.assert_array_equal(padded.record, np.arange(3))
    np.testing.assert_array_equal(whole.target, images[:2])
    np.testing.assert_allclose(padded.error, whole.error, rtol=1e-5)


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (130, 3)])
def test_the_picture_holds_every_image_magnified_without_smoothing(tiny, side, channels):
    rng = np.random.default_rng(0)
    target, predicted = rng.integers(0, 256, (2, 3, side, side, channels), np.uint8)
    comparison = pictures_lib.Comparison(
        target, predicted, rng.random((3, side, side)), np.arange(3), np.ones((2, 2)), np.ones(4), 3
    )
    picture = draw_predictions(comparison, 100)
    assert picture.dtype == np.uint8
    factor = {8: 14, 130: 1}[side]
    cell = side * factor + 8
    for row, images in enumerate((target, predicted)):
        for column, image in enumerate(images):
            y, x = 72 + row * cell, 96 + column * cell
            there = picture[y : y + cell - 8, x : x + cell - 8]
            expected = np.broadcast_to(magnify(image, factor), there.shape)
            np.testing.assert_array_equal(there, expected)


def test_run_gives_both_pictures_in_color(tiny):
    pictures = dict(
        make_pictures(tiny, random_images(4), batch_size=4, number=2).run(tiny.params, 7)
    )
    assert set(pictures) == {"predictions", "error_by_position"}
    for picture in pictures.values():
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[-1] == 3


def test_no_image_is_an_error(tiny):
    with pytest.raises(ValueError, match="holds no image"):
        make_pictures(tiny, random_images(0), batch_size=1, number=1)
