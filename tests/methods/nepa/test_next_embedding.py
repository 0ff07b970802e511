"""Next-embedding prediction: masked examples, scaled coordinates, and collapse on digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from darl_jax.config.recipes import NEPA
from darl_jax.methods.nepa.next_embedding import NextEmbeddingConfig
from darl_jax.nn.orders import OrderConfig
from darl_jax.training.optimizers import AdamWConfig, make_optimizer
from darl_jax.training.state import graph_definition, init_state
from darl_jax.training.step import make_train_step
from tests.methods_on_images import images, method
from tests.random_modules import random_module
from tests.tiny_runs import tiny

KEY = jax.random.key(0)
RGB = images(8, (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
EXAMPLES = 4


def make_batch() -> dict[str, jax.Array]:
    """Images of 3 x 5 patches of 2 x 2 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (EXAMPLES, 6, 10, 3), np.uint8)
    return {"image": jnp.asarray(pixels), "mask": jnp.array([True, True, False, True])}


def test_examples_that_the_mask_leaves_out_count_nothing_in_any_metric():
    of = method(NextEmbeddingConfig(), data=RGB)
    model = random_module(of.init)
    batch = make_batch()
    changed = batch["image"].at[2].set(255 - batch["image"][2])
    for metrics_of in (lambda b: of.loss(model, b, KEY)[1], lambda b: of.validate(model, b, KEY)):
        metrics = jax.jit(metrics_of)
        first, second = metrics(batch), metrics({**batch, "image": changed})
        for name, value in first.items():
            np.testing.assert_array_equal(value.compute(), second[name].compute(), err_msg=name)
    seen = jax.jit(lambda b: of.validate(model, b, KEY))
    everything = seen({**batch, "mask": jnp.ones(EXAMPLES, bool)})
    assert float(everything["loss"].count) == EXAMPLES * 15
    assert abs(float(everything["loss"].compute() - seen(batch)["loss"].compute())) > 1e-4


def test_coordinates_are_scaled_in_training_and_not_in_validation():
    of = method(NextEmbeddingConfig(), data=RGB, **NEPA)
    model, batch, keys = random_module(of.init), make_batch(), jax.random.split(KEY)
    train, validation = (
        [float(metrics_of(key)["loss"].compute()) for key in keys]
        for metrics_of in (
            jax.jit(lambda key: of.loss(model, batch, key)[1]),
            jax.jit(lambda key: of.validate(model, batch, key)),
        )
    )
    assert abs(train[0] - train[1]) > 1e-5
    assert validation[0] == validation[1]


@pytest.mark.slow
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_targets_collapse_without_the_stopped_gradient_and_not_with_it(stop_gradient):
    """300 steps on digits; four pixels and a bias leave a rank of five at most."""
    config = tiny("next_embedding", model__patch_size=2, objective__stop_gradient=stop_gradient)
    of, splits = config.method, config.data.open()
    optimizer = make_optimizer(AdamWConfig(), 3e-3)
    step = jax.jit(make_train_step(graph_definition(of.init), of, optimizer), donate_argnums=0)
    state = jax.jit(lambda key: init_state(of.init, optimizer, key))(KEY)
    rng, values = np.random.default_rng(0), {}
    for number in range(300):
        index = rng.integers(len(splits.train), size=32)
        rows = splits.train.train_examples(index, np.full_like(index, number), 0)
        no = jnp.zeros(32, bool)
        flags = {"mask": ~no, "replaced": no, "stop": no}
        state, metrics = step(state, {"image": jnp.asarray(rows["image"])} | flags, KEY)
        values[number] = {name: float(each.compute()) for name, each in metrics.items()}
    model = nnx.merge(graph_definition(of.init), state.params)
    held_out = {"image": jnp.asarray(splits.validation.eval_examples(np.arange(200))["image"])}
    metrics = jax.jit(lambda b: of.validate(model, b, KEY))(
        held_out | {"mask": jnp.ones(200, bool)}
    )
    rank = float(metrics["target_rank"].compute())
    cosine, loss = values[299]["target_cosine"], values[299]["loss"]
    if stop_gradient:
        assert cosine < 0.2 and rank > 2.0, (cosine, rank)
        assert loss < -0.6, "nothing was learnt"
    else:
        assert cosine > 0.9 and rank < 1.3 and loss < -0.97, (cosine, rank, loss)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"start_token": "none"}, "start_token='none' leaves nothing"),
        ({"order": OrderConfig("random")}, "order.name='random'.*needs a fixed order"),
    ],
)
def test_what_the_first_or_next_patch_cannot_be_predicted_from_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        method(NextEmbeddingConfig(), data=RGB, **keys)
