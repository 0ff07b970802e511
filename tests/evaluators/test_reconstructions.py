import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from darl_jax.evaluators.reconstructions import Reconstructions, draw_reconstructions
from darl_jax.methods.mae.method import MAEConfig
from darl_jax.methods.mae.model import DecoderConfig
from darl_jax.training.sharding import MeshConfig, make_mesh
from darl_jax.training.state import parameters
from tests.evaluators.tiny import VIT, make_batches, random_images
from tests.methods_on_images import method

DECODER = DecoderConfig(width=8, depth=1, num_heads=2, mlp_dim=16)


def make(images: np.ndarray, batch_size: int, number: int, **objective):
    vit = dataclasses.replace(VIT, positions="sincos2d", depth=1)
    of = method(MAEConfig(decoder=DECODER, **objective), vit)
    model = of.init(nnx.Rngs(0))

    batches = make_batches(images, batch_size, padding=9)
    evaluator = Reconstructions(
        nnx.split(model)[0],
        of,
        batches,
        number=number,
        key=jax.random.key(0),
        mesh=make_mesh(MeshConfig()),
    )
    return evaluator, parameters(model)


@pytest.mark.parametrize("normalize", [False, True])
def test_kept_patches_are_the_images_own_and_the_others_gray_or_predicted(normalize) -> None:
    images = random_images(3)
    evaluator, params = make(images, batch_size=4, number=8, normalize_target=normalize)
    found = evaluator.reconstruct(params)
    np.testing.assert_array_equal(found.original, images)
    np.testing.assert_array_equal(found.record, np.arange(3))
    kept = (found.masked == images).reshape(3, 4, 2, 4, 2).all(axis=(2, 4))
    np.testing.assert_array_equal(kept.sum(axis=(1, 2)), 4)
    is_kept = kept.repeat(2, axis=1).repeat(2, axis=2)[..., None]
    np.testing.assert_array_equal(found.masked, np.where(is_kept, images, 128))
    same = found.reconstructed == images
    assert same[is_kept].all()
    assert same[~is_kept].mean() < 0.2


def test_masks_are_the_same_each_time_and_the_picture_holds_every_row() -> None:
    evaluator, params = make(random_images(3), batch_size=3, number=2)
    first, second = (evaluator.reconstruct(params) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    [(name, picture)] = evaluator.run(params, 7)
    assert name == "reconstructions"
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, draw_reconstructions(first, 7))
    side = 8 * 14  # magnified without smoothing
    left = picture.shape[1] - 16 - 2 * side - 8
    labels = picture[72:, :left]
    written = np.flatnonzero((labels < 255).any(axis=(0, 2)))
    assert 14 <= written[0] <= 20, "as far from the edge as the images are on the right"
    assert 8 <= left - written[-1] <= 12
    for row, images in enumerate(first[:3]):
        y, x = 72 + row * (side + 8), left
        shown = picture[y : y + side, x : x + side][::14, ::14]
        np.testing.assert_array_equal(shown, np.broadcast_to(images[0], shown.shape))


def test_no_image_is_an_error() -> None:
    with pytest.raises(ValueError, match="holds no image"):
        make(random_images(0), batch_size=1, number=1)
