import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from darl_jax.evaluators.validation_loss import ValidationLoss
from darl_jax.methods.darl.mse import MSE
from tests.evaluators.tiny import make_batches, random_images, tiny_model

KEY = jax.random.key(3)


def run(tiny, method, batches):
    context = dataclasses.replace(tiny.context(key=KEY), method=method)
    evaluator = ValidationLoss(context, batches)
    return dict(evaluator.run(tiny.params, 0))


def mean_loss(tiny, images):
    """Each image on its own, averaged in float64."""
    model = nnx.merge(tiny.graphdef, tiny.params)
    loss = jax.jit(
        lambda image: tiny.method.loss(
            model, {"image": image[None], "mask": jnp.ones(1, bool)}, KEY
        )[0]
    )
    return np.mean([np.float64(loss(image)) for image in images])


@pytest.mark.parametrize(("batch_size", "padding"), [(4, 255), (11, 0)])
def test_every_example_counts_once_whatever_the_batch_size(tiny, batch_size, padding):
    images = random_images(11)
    batches = make_batches(images, batch_size, padding=padding)
    # float32 sums of 16 numbers: a few parts in 10^7.
    expected = mean_loss(tiny, images)
    assert run(tiny, tiny.method, batches)["loss"] == pytest.approx(expected, rel=2e-6)


@dataclasses.dataclass(frozen=True)
class NanOnBlack(MSE):
    """Gives NaN for black images, as a model may for what it never saw."""

    def predict(self, model, batch, key):
        prediction = super().predict(model, batch, key)
        black = jnp.all(batch["image"] == 0, axis=(1, 2, 3))
        return prediction._replace(error=jnp.where(black[:, None], jnp.nan, prediction.error))


def test_a_padded_row_that_is_not_finite_does_not_leak(tiny):
    images = random_images(5)
    method = NanOnBlack(**vars(tiny.method))
    loss = run(tiny, method, make_batches(images, 4))["loss"]
    assert loss == pytest.approx(mean_loss(tiny, images), rel=2e-6)


def test_the_same_key_draws_the_same_noise_each_time_and_other_noise_for_each_batch():
    tiny = tiny_model(denoising=True)
    one_image = np.repeat(random_images(1), 4, axis=0)
    with jax.set_mesh(tiny.mesh):
        whole = run(tiny, tiny.method, make_batches(one_image, 2))
        assert run(tiny, tiny.method, make_batches(one_image, 2)) == whole
        first = run(tiny, tiny.method, make_batches(one_image[:2], 2))
        assert first["loss"] != whole["loss"]


def test_metrics_without_a_value_are_left_out_and_the_rest_average_to_the_loss():
    tiny = tiny_model(denoising=True)
    with jax.set_mesh(tiny.mesh):
        metrics = run(tiny, tiny.method, make_batches(random_images(1), 1))
    deciles = {name for name in metrics if name.startswith("loss_by_gamma/")}
    assert set(metrics) == deciles | {"loss"}
    assert 0 < len(deciles) < 10  # 16 draws do not fall into all ten, with this key
    assert all(np.isfinite(list(metrics.values())))


def test_no_example_is_an_error(tiny):
    with pytest.raises(ValueError, match="holds no example"):
        run(tiny, tiny.method, list)
    nothing = make_batches(random_images(1), 2)

    def masked():
        for batch in nothing():
            yield batch | {"mask": np.zeros(2, bool)}

    with pytest.raises(ValueError, match="holds no example"):
        run(tiny, tiny.method, masked)
