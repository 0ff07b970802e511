"""The objective against enumeration of every example, order and step, in float64."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from darl_jax.methods.ardm.method import Draw, antithetic
from tests.float64 import log_softmax
from tests.methods.ardm.toy_table import (
    ORDERS,
    POSITIONS,
    SHAPE,
    TableConfig,
    TernaryConfig,
    all_examples,
    table_method,
)

KINDS = [
    {},
    {"branching": 2},
    {"branching": 2, "parametrization": "direct"},
    {"branching": 3, "levels": 5},
    {"branching": 3, "levels": 5, "parametrization": "direct"},
]


class Exact:
    """The model in plain loops: probabilities of single positions from the table."""

    def __init__(self, method, model):
        self.method, self.table = method, np.float64(model.network.table[...])
        self.levels, self.b = method.levels, method.branching
        self.stages = math.ceil(math.log(self.levels) / math.log(self.b) - 1e-9) if self.b else 1

    def ends(self, x, stage):
        """Of each value what the stage begins with and what it makes."""
        if not self.b:
            return [self.levels // 2] * len(x), list(x)
        r = self.stages - 1 - stage
        return [v // self.b ** (r + 1) * self.b ** (r + 1) for v in x], [
            v // self.b**r * self.b**r for v in x
        ]

    def log_probs(self, x, known, stage):
        """Log probability of the right alternative of each position, given the known ones."""
        past, future = self.ends(x, stage)
        seen = [f if k else p for p, f, k in zip(past, future, known, strict=True)]
        number = sum(v * self.levels**i for i, v in enumerate(seen))
        mask = sum(int(k) * 2**i for i, k in enumerate(known))
        result = []
        for position, raw in enumerate(self.table[number, mask, stage]):
            if not self.b:
                result.append(log_softmax(raw)[x[position]])
                continue
            width = self.b ** (self.stages - 1 - stage)
            begins = [past[position] + j * width for j in range(self.b)]
            if self.method.objective.parametrization == "direct":
                raw = raw.reshape(self.stages, self.b)[stage]
                mass = [math.exp(raw[j]) if v < self.levels else 0.0 for j, v in enumerate(begins)]
            else:
                mass = [sum(math.exp(q) for q in raw[v : v + width]) for v in begins]
            result.append(math.log(mass[begins.index(future[position])] / sum(mass)))
        return result

    def in_order(self, x, order, stage, starts=range(POSITIONS)):
        """log p of an example's stage for one order, generated from the steps `starts` on."""
        total, starts = 0.0, [*starts]
        for begin, end in zip(starts, [*starts[1:], POSITIONS], strict=True):
            log_probs = self.log_probs(x, order < begin, stage)
            total += sum(log_probs[i] for i in range(POSITIONS) if begin <= order[i] < end)
        return total


def made(kind):
    method = table_method(**kind)
    model = method.init(nnx.Rngs(0))
    return method, model, Exact(method, model)


def every_draw(stages: int) -> Draw:
    """Each order with each step and stage."""
    rows = [*itertools.product(range(stages), range(POSITIONS), ORDERS)]
    return Draw(
        jnp.array([order for _, _, order in rows]),
        jnp.array([step for _, step, _ in rows]),
        jnp.array([stage for stage, _, _ in rows]),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_estimator_has_the_exact_bound_for_its_mean_and_each_order_is_a_distribution(kind):
    method, model, exact = made(kind)
    assert method.num_stages == exact.stages
    draw = every_draw(method.num_stages)
    x = all_examples(method.levels)[7]
    values = jnp.broadcast_to(x, (len(draw.step), *SHAPE))
    mask = jnp.ones(len(values), bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(method), "draw", lambda *_: draw)
        metrics = method.validate(model, {"value": values, "mask": mask}, jax.random.key(0))
    bound = np.mean(
        [
            sum(exact.in_order(x[:, 0], order, stage) for stage in range(exact.stages))
            for order in ORDERS
        ]
    )
    found = float(metrics["bits_per_dim"].compute())
    assert found == pytest.approx(-bound / (POSITIONS * math.log(2)), rel=2e-6)
    order = ORDERS[5]
    total = sum(
        math.exp(sum(exact.in_order(each[:, 0], order, stage) for stage in range(exact.stages)))
        for each in all_examples(method.levels)
    )
    assert total == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_position_bits_are_the_models_probabilities_and_logits_give_them_too(kind):
    method, model, exact = made(kind)
    examples = all_examples(method.levels)[::7][:12]
    rng = np.random.default_rng(1)
    order = rng.permuted(np.tile(np.arange(POSITIONS), (len(examples), 1)), axis=1)
    step = rng.integers(0, POSITIONS, len(examples))
    for stage in range(method.num_stages):
        every = np.full(len(examples), stage)
        draw = Draw(*map(jnp.asarray, (order, step, every)))
        bits = method.position_bits(model, jnp.asarray(examples), draw)
        want = [
            exact.log_probs(x[:, 0], o < t, stage)
            for x, o, t in zip(examples, order, step, strict=True)
        ]
        np.testing.assert_allclose(
            bits, np.array(want) / (-POSITIONS * math.log(2)), rtol=2e-5, atol=1e-6
        )
        known = (order < step[:, None])[..., None]
        logits = method.logits(
            model, jnp.asarray(examples), jnp.asarray(known),
            jnp.asarray(step + stage * POSITIONS), stage,
        )  # fmt: skip
        children = method.stages.children(method.stages.past(examples, stage), stage)
        choice = method.stages.choice(examples, stage)
        np.testing.assert_array_equal(
            np.take_along_axis(children.values, choice[..., None], -1)[..., 0],
            method.stages.future(examples, stage),
        )
        if method.branching and method.objective.parametrization == "data":
            width = method.branching ** (method.num_stages - 1 - stage)
            q = np.exp(np.float64(logits))
            q = np.concatenate([q, np.zeros((*q.shape[:-1], 64))], -1)
            begins = children.values[..., None] + np.arange(width)
            mass = np.take_along_axis(q[..., None, :], begins, -1).sum(-1)
        else:
            mass = np.where(children.legal, np.exp(np.float64(logits)), 0.0)
        chosen = np.take_along_axis(mass, choice[..., None], -1)[..., 0]
        log_p = np.log(chosen / mass.sum(-1))
        np.testing.assert_allclose(log_p[..., 0], want, rtol=2e-5, atol=1e-5)


def test_positions_that_are_not_known_are_exchangeable():
    """Equation 3: E log p of position sigma(t + k) given those before t is L_t for each k >= 0."""
    method, model, _ = made({})
    x = all_examples()[50]
    draw = every_draw(1)
    bits = method.position_bits(model, jnp.broadcast_to(x, (len(draw.step), *SHAPE)), draw)
    for t in range(POSITIONS):
        rows = np.asarray(draw.step) == t
        by_step = [
            np.mean(np.asarray(bits)[rows][np.asarray(draw.order)[rows] == step])
            for step in range(t, POSITIONS)
        ]
        np.testing.assert_allclose(by_step, by_step[0], rtol=1e-5)


def test_masked_examples_count_nothing_and_the_cross_entropy_has_two_scales():
    values = jnp.asarray(all_examples()[[3, 60]])
    batch = {"value": values, "mask": jnp.array([True, False])}
    key = jax.random.key(3)
    losses = {}
    for scale in ("code", "paper"):
        method, model, _ = made({"cross_entropy_weight": 0.5, "cross_entropy_scale": scale})
        loss, metrics = method.loss(model, batch, key)
        draw = method.draw(jax.random.split(key)[0], 2)
        unknown = method.unknown_bits(model, values, draw)[0]
        bound = POSITIONS * unknown / (POSITIONS - draw.step[0])
        factor = POSITIONS if scale == "paper" else 1
        want = float(bound + 0.5 * factor * unknown)
        losses[scale] = float(loss)
        assert losses[scale] == pytest.approx(want, rel=1e-6)
        assert float(metrics["bits_per_dim"].compute()) == pytest.approx(float(bound), rel=1e-6)
    assert losses["code"] < losses["paper"]


def test_antithetic_draws_are_even_over_the_batch():
    """64 steps for a batch of 24: 8 of them apart, three times; and over batches each step."""
    drawn = [np.asarray(antithetic(jax.random.key(i), (24,), 0, 64)) for i in range(40)]
    for each in drawn:
        assert sorted(np.bincount(each // 8, minlength=8)) == [3] * 8
        assert {*np.bincount(each % 8)[np.unique(each % 8)] % 8} == {0}
    assert len({*np.concatenate(drawn)}) == 64


def test_upscaling_refuses_a_network_that_does_not_see_what_is_known():
    from darl_jax.methods.ardm.method import ARDM, ARDMConfig

    class Blind(TableConfig):
        reads_side = False

    with pytest.raises(ValueError, match=r"objective\.branching=2 must be 0"):
        ARDM(ARDMConfig(branching=2), Blind(), TernaryConfig())
