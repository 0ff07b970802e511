"""Values between stages, and distributions over children, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darl_jax.methods.ardm.stages import Stages, data_log_probs, direct_log_probs


@pytest.mark.parametrize(
    ("levels", "branching", "number"),
    [
        (256, 2, 8), (256, 4, 4), (256, 16, 2), (256, 256, 1), (65536, 2, 16), (65536, 4, 8),
        (65536, 16, 4), (65536, 256, 2), (27, 2, 5), (28, 4, 3), (27, 16, 2), (125, 5, 3),
        (17, 2, 5), (17, 4, 3), (2, 2, 1), (300, 0, 1),
    ],
)  # fmt: skip
def test_there_are_as_few_stages_as_make_every_value(levels, branching, number):
    assert Stages(levels, branching).number == number


@pytest.mark.parametrize(("levels", "branching"), [(17, 2), (17, 4), (27, 3), (256, 16)])
def test_stages_lead_from_nothing_to_the_value_by_legal_children(levels, branching):
    stages = Stages(levels, branching)
    x = np.arange(levels, dtype=np.int32)
    now = np.zeros_like(x)
    for stage in range(stages.number):
        np.testing.assert_array_equal(stages.past(x, stage), now)
        children = stages.children(now, stage)
        choice = stages.choice(x, stage)
        now = stages.future(x, stage)
        np.testing.assert_array_equal(children.values[np.arange(levels), choice], now)
        assert children.legal[np.arange(levels), choice].all()
        # A child is legal where a value of the data is below it.
        width = branching ** (stages.number - 1 - stage)
        leaves = children.values[..., None] + np.arange(width)
        np.testing.assert_array_equal(children.legal, (leaves < levels).any(-1))
        each = jnp.full((levels,), stage)
        np.testing.assert_array_equal(stages.future(jnp.asarray(x), each), now)
        np.testing.assert_array_equal(stages.children(jnp.asarray(x), each).legal, (
            stages.children(x, stage).legal
        ))  # fmt: skip
    np.testing.assert_array_equal(now, x)


def test_mixed_stages_of_a_batch_are_those_of_each_example():
    stages = Stages(17, 4)
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(6, 5, 17)) * 3, jnp.float32)
    x = jnp.asarray(rng.integers(0, 17, (6, 5)), jnp.int32)
    which = jnp.array([0, 1, 2, 2, 1, 0])
    mixed = data_log_probs(logits, stages.past(x, which), which, stages)
    for row, stage in enumerate(which.tolist()):
        past = stages.past(x[row : row + 1], stage)
        alone = data_log_probs(logits[row : row + 1], past, stage, stages)
        np.testing.assert_allclose(mixed[row], alone[0], rtol=1e-6, atol=1e-6)
        want = []
        for position in range(5):
            q = np.exp(np.float64(logits[row, position]))
            q = np.append(q, np.zeros(64 - 17))
            width = 4 ** (2 - stage)
            begin = int(past[0, position])
            mass = np.array(
                [q[begin + j * width : begin + (j + 1) * width].sum() for j in range(4)]
            )
            with np.errstate(divide="ignore"):
                want.append(np.log(mass / mass.sum()))
        finite = np.isfinite(want)
        np.testing.assert_allclose(
            np.asarray(mixed[row])[finite], np.array(want)[finite], rtol=2e-5, atol=1e-6
        )
        assert (np.exp(np.asarray(mixed[row])[~finite]) == 0.0).all()


def test_children_of_a_parent_without_mass_keep_their_ratio():
    """Far below 1e-10, where the published code's floor makes them uniform."""
    logits = np.zeros((1, 16), np.float32)
    logits[0, :4] = -60.0 + np.log([1, 2, 3, 4])
    log_probs = data_log_probs(jnp.asarray(logits), jnp.array([0]), 1, Stages(16, 4))
    np.testing.assert_allclose(np.exp(log_probs[0]), [0.1, 0.2, 0.3, 0.4], rtol=1e-5)


@pytest.mark.parametrize("parametrization", ["data", "direct"])
def test_children_outside_the_data_have_no_mass_and_leave_the_gradient_finite(parametrization):
    stages, past = Stages(17, 4), jnp.array([16])
    number = 17 if parametrization == "data" else 4

    def log_prob(logits):
        if parametrization == "data":
            return data_log_probs(logits, past, 2, stages)[0, 0]
        return direct_log_probs(logits, stages.children(past, 2).legal)[0, 0]

    logits = jnp.linspace(-1.0, 1.0, number)[None]
    assert log_prob(logits) == 0.0  # 16 is the only value below 16.
    np.testing.assert_array_equal(jax.grad(log_prob)(logits), 0.0)
