"""Patches and pixel values against plain loops and NumPy in float64."""

import jax.numpy as jnp
import numpy as np

from darl_jax.nn import patches as patches_lib

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_patches_are_in_raster_order_with_pixels_as_row_column_channel() -> None:
    images = np.arange(2 * 6 * 9 * 3).reshape(2, 6, 9, 3)
    got = np.asarray(patches_lib.patchify(jnp.asarray(images), 3))
    assert got.shape == (2, 6, 27)
    for b in range(2):
        for row in range(2):
            for column in range(3):
                expected = [
                    images[b, row * 3 + p, column * 3 + q, c]
                    for p in range(3)
                    for q in range(3)
                    for c in range(3)
                ]
                assert got[b, row * 3 + column].tolist() == expected


def test_unpatchify_inverts_patchify_on_a_grid_that_is_not_square() -> None:
    images = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)
    patches = patches_lib.patchify(jnp.asarray(images), 4)
    np.testing.assert_array_equal(patches_lib.unpatchify(patches, 4, (2, 3)), images)


def test_all_8_bit_values_survive_standardizing_and_back() -> None:
    images = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), (1, 16, 16, 3))
    standardized = patches_lib.standardize(jnp.asarray(images), MEAN, STD)
    expected = (images.astype(np.float64) / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(standardized, expected, atol=1e-6)
    np.testing.assert_array_equal(patches_lib.unstandardize(standardized, MEAN, STD), images)


def test_unstandardize_clips_to_8_bits_where_a_prediction_leaves_them() -> None:
    images = jnp.array([-9.0, 9.0]).reshape(1, 1, 2, 1)
    got = patches_lib.unstandardize(images, (0.5,), (0.25,))
    assert got.dtype == jnp.uint8
    assert got.ravel().tolist() == [0, 255]


def test_normalized_patches_have_unbiased_variance_and_epsilon_inside_the_root() -> None:
    rng = np.random.default_rng(1)
    # Spreads from far above 1e-3 = sqrt(1e-6) to far below it, and a flat patch.
    spread = np.array([1.0, 1e-1, 1e-3, 1e-4, 0.0])[:, None]
    patches = (rng.normal(size=(2, 5, 12)) * spread + rng.normal(size=(2, 5, 1))).astype(np.float32)
    exact = patches.astype(np.float64)
    mean = exact.mean(-1, keepdims=True)
    variance = ((exact - mean) ** 2).sum(-1, keepdims=True) / (12 - 1)
    expected = (exact - mean) / np.sqrt(variance + 1e-6)
    # The mean's rounding, 1e-7, is divided by at least 1e-3.
    np.testing.assert_allclose(
        patches_lib.normalize_patches(jnp.asarray(patches)), expected, atol=3e-4
    )
    np.testing.assert_allclose(
        patches_lib.normalize_patches(jnp.asarray(patches))[:, :2], expected[:, :2], atol=1e-5
    )


def test_squared_error_of_a_bfloat16_prediction_is_taken_in_float32() -> None:
    rng = np.random.default_rng(2)
    predicted = jnp.asarray(rng.normal(size=(2, 3, 7)), jnp.bfloat16)
    target = rng.normal(size=(2, 3, 7)).astype(np.float32)
    got = patches_lib.squared_error(predicted, jnp.asarray(target))
    expected = ((np.asarray(predicted, np.float64) - target) ** 2).mean(-1)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)
