"""Networks: the published sizes, and forward passes against plain NumPy in float64."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from darl_jax.methods.ardm.mixture import LogisticMixture
from darl_jax.methods.ardm.networks.base import Problem
from darl_jax.methods.ardm.networks.diffwave import DiffWaveConfig
from darl_jax.methods.ardm.networks.transformer import TextTransformerConfig
from darl_jax.methods.ardm.networks.unet import UNetConfig
from darl_jax.methods.ardm.stages import Stages
from darl_jax.planning.matmul_flops import matmul_flops
from tests.float64 import dense, layer_norm, log_softmax
from tests.random_modules import random_module

CIFAR10, SOUND = (32, 32, 3), (16000, 1)
EVERYWHERE, MIDDLE = UNetConfig(), UNetConfig(attention_sizes=())


def parameters(config: Any, *problem: Any) -> int:
    """Number of parameters; nothing is allocated."""
    state = jax.eval_shape(lambda: nnx.split(config.build(Problem(*problem), nnx.Rngs(0)))[1])
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("config", "problem", "number"),
    [
        (EVERYWHERE, (CIFAR10, 256, 1, 768), 141_060_736),
        (MIDDLE, (CIFAR10, 256, 1, 768), 123_921_536),
        (EVERYWHERE, (CIFAR10, 256, 4, 768), 141_067_648),
        (MIDDLE, (CIFAR10, 256, 4, 768), 123_928_448),
        (EVERYWHERE, (CIFAR10, 256, 8, 768), 141_074_560),
        (EVERYWHERE, (CIFAR10, 256, 2, 768), 141_064_192),
        (EVERYWHERE, (CIFAR10, 256, 8, 3 * 8 * 2), 139_414_960),
        (EVERYWHERE, (CIFAR10, 256, 4, 3 * 4 * 4), 139_408_048),
        (EVERYWHERE, (CIFAR10, 256, 2, 3 * 2 * 16), 139_515_232),
        (TextTransformerConfig(), ((250, 1), 29, 1, 28), 85_062_940),
        (TextTransformerConfig(), ((250, 1), 258, 1, 257), 85_414_913),
        (DiffWaveConfig(), (SOUND, 65536, 1, 90), 33_959_130),
        (DiffWaveConfig(), (SOUND, 65536, 16, 32), 33_953_440),
        (DiffWaveConfig(), (SOUND, 65536, 8, 32), 33_948_832),
        (DiffWaveConfig(), (SOUND, 65536, 4, 64), 33_954_752),
        (DiffWaveConfig(), (SOUND, 65536, 2, 512), 34_068_736),
    ],
)
def test_published_networks_have_the_published_number_of_parameters(config, problem, number):
    assert parameters(config, *problem) == number


# --- layers in NumPy -----------------------------------------------------------------------------


def silu(x):
    return x / (1 + np.exp(-x))


def group_norm(params, x, groups):
    parts = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    mean = parts.mean((1, 3), keepdims=True)
    normal = (parts - mean) / np.sqrt(parts.var((1, 3), keepdims=True) + 1e-6)
    return normal.reshape(x.shape) * np.float64(params["scale"]) + np.float64(params["bias"])


def conv3x3(params, x, stride=1):
    pad = (1, 1) if stride == 1 else (0, 1)
    padded = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    rows, columns = x.shape[1] // stride, x.shape[2] // stride
    out = np.zeros((len(x), rows, columns, params["bias"].shape[0]))
    for i in range(3):
        for j in range(3):
            seen = padded[:, i : i + x.shape[1] : stride, j : j + x.shape[2] : stride]
            out += seen[:, :rows, :columns] @ np.float64(params["kernel"][i, j])
    return out + np.float64(params["bias"])


def wave(angle, width):
    frequency = np.exp(-np.arange(width // 2) * math.log(10_000) / (width // 2 - 1))
    return np.concatenate(
        [np.sin(angle[:, None] * frequency), np.cos(angle[:, None] * frequency)], 1
    )


def time_embedding(params, step, steps, width):
    waves = wave(step * 1000 / steps, width)
    return dense(params["out"], silu(dense(params["up"], waves)))


def softmax(x):
    return np.exp(log_softmax(x))


def heads_of(x, heads):
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def attend(query, key, value, heads):
    q, k, v = (heads_of(x, heads) for x in (query, key, value))
    weights = softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]))
    return (weights @ v).transpose(0, 2, 1, 3).reshape(query.shape)


def numpy_unet(config, p, values, side, step, problem):
    groups = config.groups

    def block(p, x, time):
        y = conv3x3(p["conv_in"], silu(group_norm(p["norm_in"], x, groups)))
        y = y + dense(p["time"], silu(time))[:, None, None]
        y = conv3x3(p["conv_out"], silu(group_norm(p["norm_out"], y, groups)))
        return y + (dense(p["shortcut"], x) if p.get("shortcut") else x)

    def step_of(p, x, time):
        x = block(p["block"], x, time)
        if not p.get("attention"):
            return x
        p = p["attention"]
        h = group_norm(p["norm"], x, groups).reshape(len(x), -1, x.shape[-1])
        mixed = attend(*(dense(p[name], h) for name in ("query", "key", "value")), config.num_heads)
        return x + dense(p["out"], mixed).reshape(x.shape)

    def level(p, x, time):
        skips = [x]
        for i in range(config.blocks):
            x = step_of(jax.tree.map(lambda leaf, i=i: leaf[i], p["down"]), x, time)
            skips.append(x)
        if p.get("below"):
            x = level(p["below"], conv3x3(p["downsample"], x, 2), time)
            x = conv3x3(p["upsample"], x.repeat(2, 1).repeat(2, 2))
        else:
            x = block(p["middle_end"], step_of(p["middle"], x, time), time)
        for i in range(config.blocks + 1):
            x = np.concatenate([x, skips.pop()], -1)
            x = step_of(jax.tree.map(lambda leaf, i=i: leaf[i], p["up"]), x, time)
        return x

    x = np.concatenate([values * 2 / problem.levels - 1, side], -1)
    x = conv3x3(p["conv_in"], x)
    embedded = np.float64(p["embedding"]["embedding"])[values].reshape(*values.shape[:-1], -1)
    x = np.concatenate([x, dense(p["embedding_projection"], embedded)], -1)
    x = level(p["trunk"], x, time_embedding(p["time"], step, problem.steps, config.width))
    return conv3x3(p["conv_out"], silu(group_norm(p["norm_out"], x, groups)))


def numpy_transformer(config, p, values, side, step, problem):
    table = np.float64(p["embedding"]["embedding"])
    x = table[values[..., 0]] + wave(np.arange(values.shape[1]), config.width)
    for i in range(config.depth):
        each = jax.tree.map(lambda leaf, i=i: np.float64(leaf[i]), p["blocks"])
        y = layer_norm(each["norm_attention"], x)
        qkv = (y @ each["attention"][name]["kernel"] for name in ("query", "key", "value"))
        x = x + attend(*qkv, config.num_heads) @ each["attention"]["out"]["kernel"]
        y = dense(each["mlp"]["up"], layer_norm(each["norm_mlp"], x))
        y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
        x = x + dense(each["mlp"]["down"], y)
    return dense(p["out"], layer_norm(p["final_norm"], x))


def numpy_diffwave(config, p, values, side, step, problem):
    def conv(p, x, dilation):
        kernel = np.float64(p["kernel"]).reshape(3, x.shape[-1], -1)
        out = np.zeros((*x.shape[:2], kernel.shape[-1]))
        for tap in range(3):
            for position in range(x.shape[1]):
                seen = position + (tap - 1) * dilation
                if 0 <= seen < x.shape[1]:
                    out[:, position] += x[:, seen] @ kernel[tap]
        return out + np.float64(p["bias"])

    x = conv(p["conv_in"], np.concatenate([values * 2 / problem.levels - 1, side], -1), 1)
    embedded = np.float64(p["embedding"]["embedding"])[values].reshape(*values.shape[:-1], -1)
    x = np.maximum(np.concatenate([x, dense(p["embedding_projection"], embedded)], -1), 0)
    time = time_embedding(p["time"], step, problem.steps, config.width)
    skips = 0
    for i in range(config.blocks):
        each = jax.tree.map(lambda leaf, i=i: leaf[i], p["blocks"])
        h, dilation = x + dense(each["time"], silu(time))[:, None], 2 ** (i % config.cycle)
        gate = 1 / (1 + np.exp(-conv(each["gate"], h, dilation)))
        y = np.tanh(conv(each["filter"], h, dilation)) * gate
        x, skips = (x + dense(each["residual"], y)) / math.sqrt(2), skips + dense(each["skip"], y)
    hidden = np.maximum(dense(p["hidden_out"], skips / math.sqrt(config.blocks)), 0)
    return dense(p["out"], hidden)


UNET = UNetConfig(
    width=8, embedding_width=4, blocks=1, resolutions=2, attention_sizes=(2,), num_heads=2, groups=4
)
TINY = [
    (UNET, ((4, 4, 2), 6, 2, 10), numpy_unet),
    (TextTransformerConfig(width=8, depth=2, num_heads=2, mlp_dim=12), ((5, 1), 6, 1, 5), (
        numpy_transformer
    )),
    (DiffWaveConfig(width=8, embedding_width=4, blocks=3, cycle=2), ((7, 2), 6, 2, 5), (
        numpy_diffwave
    )),
]  # fmt: skip


@pytest.mark.parametrize(("config", "sizes", "reference"), TINY)
def test_forward_pass_is_that_of_plain_numpy_and_its_flops_are_counted(config, sizes, reference):
    problem = Problem(*sizes)
    network = random_module(lambda rngs: config.build(problem, rngs))
    rng = np.random.default_rng(0)
    values = rng.integers(0, problem.levels, (3, *problem.shape)).astype(np.int32)
    side = rng.integers(0, 2, (3, *problem.shape[:-1], problem.side_channels)).astype(np.float32)
    step = rng.integers(0, problem.steps, 3).astype(np.int32)
    inputs = jnp.asarray(values), jnp.asarray(side), jnp.asarray(step)
    pure = nnx.to_pure_dict(nnx.split(network)[1])
    want = reference(config, jax.tree.map(np.asarray, pure), values, side, step, problem)
    found = jax.jit(lambda network, *args: network(*args))(network, *inputs)
    assert np.std(want) > 0.1
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=3e-5)
    graphdef, state = nnx.split(network)
    counted = matmul_flops(lambda state, *x: nnx.merge(graphdef, state)(*x), state, *inputs)
    assert counted == 3 * config.flops(problem)


def test_dropout_is_drawn_where_there_is_a_key():
    problem = Problem((4, 4, 1), 6, 1, 6)
    config = UNetConfig(width=8, embedding_width=4, blocks=1, groups=4, dropout=0.5)
    network = random_module(lambda rngs: config.build(problem, rngs))
    inputs = jnp.zeros((1, 4, 4, 1), jnp.int32), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1, jnp.int32)

    @jax.jit
    def outputs(key):
        return network(*inputs, key)

    first, second = outputs(jax.random.key(0)), outputs(jax.random.key(1))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, outputs(jax.random.key(0)))


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (UNetConfig(resolutions=3), (30, 30, 3), "multiples of 4"),
        (TextTransformerConfig(), (32, 32, 3), r"shape \(length, 1\)"),
        (DiffWaveConfig(), (32, 32, 3), r"shape \(length, channels\)"),
    ],
)
def test_data_of_another_shape_are_refused(config, shape, message):
    with pytest.raises(ValueError, match=message):
        config.check(shape)


# --- mixture of logistics ------------------------------------------------------------------------


def test_mixture_of_logistics_is_a_distribution_with_the_formulas_of_the_paper():
    """Against differences of logistic functions in float64."""
    levels, components, channels = 11, 3, 2
    mixture = LogisticMixture(Stages(levels), channels, components)
    outputs = np.random.default_rng(0).normal(size=(2, 3, mixture.number)).astype(np.float32)
    found = np.asarray(mixture.logits(jnp.asarray(outputs), 0))
    assert found.shape == (2, 3, channels, levels)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1.0, rtol=1e-5)
    y, g = np.arange(levels) / (levels - 1) * 2 - 1, 1 / (levels - 1)
    for channel in range(channels):
        weights = softmax(outputs[..., :components])
        begin = components * (1 + 2 * channel)
        means = np.float64(outputs[..., begin : begin + components])
        means = means + np.linspace(-1 + 1 / components, 1 - 1 / components, components)
        scales = np.float64(outputs[..., begin + components : begin + 2 * components])
        scales = np.exp(np.maximum(scales - math.log(components), -7))
        cdf = [1 / (1 + np.exp(-(edge - means) / scales)) for edge in [*(y - g), y[-1] + g]]
        cdf[0], cdf[-1] = np.zeros_like(cdf[0]), np.ones_like(cdf[-1])
        want = [np.log((weights * (cdf[x + 1] - cdf[x])).sum(-1)) for x in range(levels)]
        np.testing.assert_allclose(found[..., channel, :], np.stack(want, -1), rtol=1e-5, atol=1e-5)


def test_mixture_of_16_bits_is_near_uniform_at_first_and_exact_at_the_edges():
    mixture = LogisticMixture(Stages(65536), 1, 30)
    outputs = jnp.zeros((1, 1, mixture.number))
    log_probs = mixture.logits(outputs, 0)[0, 0, 0]
    assert float(jnp.sum(jnp.exp(log_probs))) == pytest.approx(1.0, abs=1e-4)
    inside = np.asarray(log_probs)[4000:-4000]
    assert np.abs(inside + math.log(65536)).max() < 0.1
    # One value alone has each tail.
    assert log_probs[0] > log_probs[1] + 3 and abs(log_probs[1] - log_probs[2]) < 1e-3
    gradient = jax.grad(lambda x: mixture.log_prob(x, jnp.array([[[7]]]), 0).sum())
    for far in (-50.0, 50.0, 120.0):
        assert np.isfinite(gradient(jnp.full((1, 1, mixture.number), far))).all()


def test_samples_of_a_mixture_have_its_distribution():
    mixture = LogisticMixture(Stages(7), 1, 2)
    outputs = jnp.array([[[0.5, -0.5, 0.2, 0.1, -1.0, -0.7]]])
    drawn = mixture.sample(
        jnp.broadcast_to(outputs, (1, 20_000, 6)),
        jnp.zeros((1, 20_000, 1), jnp.int32), 0, jax.random.key(0),
    )  # fmt: skip
    share = np.bincount(np.asarray(drawn).ravel(), minlength=7) / 20_000
    np.testing.assert_allclose(share, np.exp(mixture.logits(outputs, 0))[0, 0, 0], atol=0.012)
