"""Two streams: what a target's output may depend on, and the same in plain NumPy."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from darl_jax.methods.darl.model import DARL
from darl_jax.nn import orders, positions
from darl_jax.nn.orders import OrderConfig
from darl_jax.nn.readout import readout
from darl_jax.nn.vit import ViT, ViTConfig
from darl_jax.training.state import parameters
from tests.float64 import dense, layer_norm
from tests.random_modules import random_darl, random_module

GRID = (2, 4)
PATCHES, PIXELS, WIDTH = 8, 12, 16
CONFIG = ViTConfig(
    width=WIDTH, depth=2, num_heads=2, mlp_dim=24, patch_size=2, dtype="float32"
)  # fmt: skip


def make_darl(*, two_stream: bool = False, **changes: Any) -> DARL:
    return random_darl(dataclasses.replace(CONFIG, **changes), grid=GRID, two_stream=two_stream)


def two_streams(encoding: str = "rope2d", order: str = "random") -> DARL:
    return make_darl(positions=encoding, two_stream=True, order=OrderConfig(order))


def images(number: int = 2, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (number, PATCHES, PIXELS))


@pytest.mark.parametrize("encoding", positions.ABSOLUTE)
def test_a_target_s_output_sees_all_patches_before_it_and_no_other(encoding):
    model = two_streams(encoding)
    patches = images(1)
    order = model.draw_order(jax.random.key(3), 1, GRID)
    encode = jax.jit(lambda patches: model.encode(patches, GRID, order))
    base = np.asarray(encode(patches))[0]
    sequence = np.asarray(order)[0]
    for place, patch in enumerate(sequence):
        changed = np.asarray(encode(patches.at[:, patch].add(1.0)))[0]
        not_after = sequence[: place + 1]
        np.testing.assert_array_equal(changed[not_after], base[not_after])
        moved = np.abs(changed - base).max(axis=-1) > 1e-5
        assert moved[sequence[place + 1 :]].all()


@pytest.mark.parametrize("encoding", positions.ABSOLUTE)
def test_an_output_knows_the_position_of_its_target(encoding):
    """The same patch has been seen, and the next one is to be another each time."""
    model, patches, found = two_streams(encoding), images(1), []
    encode = jax.jit(lambda order: model.encode(patches, GRID, order))
    for target in range(1, PATCHES):
        rest = [patch for patch in range(1, PATCHES) if patch != target]
        found.append(np.asarray(encode(jnp.array([[0, target, *rest]])))[0, target])
    distances = np.abs(np.array(found)[:, None] - np.array(found)).max(axis=-1)
    assert (distances[~np.eye(len(found), dtype=bool)] > 1e-5).all()


# --- in plain NumPy ------------------------------------------------------------------------------


def turned(x: np.ndarray, angles: np.ndarray | None) -> np.ndarray:
    """RoPE of (token, head, channel), with the two halves of a head as one complex number."""
    if angles is None:
        return x
    real, imaginary = np.split(x, 2, axis=-1)
    pairs = (real + 1j * imaginary) * np.exp(1j * angles)[:, None]
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def plain(model: DARL, patches: np.ndarray, order: np.ndarray) -> np.ndarray:
    """z of one image's patches as they stand in the sequence, token by token in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters(model))
    backbone, stream = params["backbone"], params["query_stream"]
    config, table, angles = model.backbone.config, np.zeros((PATCHES, WIDTH)), None
    if config.positions.startswith("sincos2d"):
        table = positions.sincos_2d(GRID, GRID, WIDTH)
    if config.positions == "learnable":
        table = backbone["positions"]
    content = dense(backbone["patch_embedding"], patches[order[:-1]]) + table[order[:-1]]
    content = np.concatenate([backbone["sos"][None], content])
    queries = stream["token"] + table[order]
    of_content = of_queries = None
    if config.positions.startswith("rope"):
        angles = positions.rope_angles(config.positions, GRID, GRID, config.head_dim)
        of_content, of_queries = angles[np.append(0, 1 + order[:-1])], angles[1 + order]

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), config.num_heads, -1)

    for i in range(config.depth):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], backbone["blocks"])
        own_query = jax.tree.map(lambda leaf, i=i: leaf[i], stream["query"])
        attention, normed = block["attention"], layer_norm(block["norm_attention"], content)
        key = turned(heads(dense(attention["key"], normed)), of_content)
        value = heads(dense(attention["value"], normed))
        looking = {
            "content": turned(heads(dense(attention["query"], normed)), of_content),
            "queries": turned(
                heads(dense(own_query, layer_norm(block["norm_attention"], queries))), of_queries
            ),
        }
        streams = {"content": content, "queries": queries}
        for name, query in looking.items():
            seen = np.zeros_like(query)
            for t in range(PATCHES):
                for head in range(config.num_heads):
                    # Content t is the patch before target t, so a target sees up to its place.
                    logits = key[: t + 1, head] @ query[t, head] / np.sqrt(config.head_dim)
                    weights = np.exp(logits - logits.max())
                    seen[t, head] = weights / weights.sum() @ value[: t + 1, head]
            x = streams[name] + dense(attention["out"], seen.reshape(PATCHES, -1))
            hidden = dense(block["mlp"]["up"], layer_norm(block["norm_mlp"], x))
            hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
            streams[name] = x + dense(block["mlp"]["down"], hidden)
        content, queries = streams["content"], streams["queries"]
    return layer_norm(backbone["final_norm"], queries)


@pytest.mark.parametrize(
    ("encoding", "name"),
    [*((encoding, "random") for encoding in positions.ABSOLUTE), ("rope2d", "raster")],
)
def test_outputs_are_those_of_plain_numpy_in_float64(encoding, name):
    model, patches = two_streams(encoding, name), images(2)
    order = model.draw_order(jax.random.key(5), 2, GRID)
    z = orders.take(model.encode(patches, GRID, order), order)
    for image, sequence in enumerate(np.broadcast_to(order, (2, PATCHES))):
        expected = plain(model, np.asarray(patches[image], np.float64), sequence)
        np.testing.assert_allclose(z[image], expected, atol=2e-5)


# --- one stream in other orders ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("nested_raster", "rope2d"),
        ("round_robin", "rope1d"),
        ("spiral", "learnable"),
        ("checkerboard", "rope2d"),
        ("permutation", "rope1d"),
    ],
)
def test_one_stream_in_an_order_sees_the_patches_before_a_patch_and_no_other(name, encoding):
    model = make_darl(positions=encoding, order=OrderConfig(name))
    patches, sequence = images(1), orders.fixed_order(OrderConfig(name), GRID)
    encode = jax.jit(model.encode)
    base = np.asarray(encode(patches))[0]
    for place in range(PATCHES):
        changed = np.asarray(encode(patches.at[:, sequence[place]].add(1.0)))[0]
        moved = np.abs(changed - base).max(axis=-1)
        assert (moved[sequence[: place + 1]] == 0).all()
        assert (moved[sequence[place + 1 :]] > 1e-5).all()


def test_what_counts_places_in_the_sequence_is_raster_order_of_a_permuted_image():
    encoding = "rope1d"
    spiral = orders.fixed_order(OrderConfig("spiral"), GRID)
    model = make_darl(positions=encoding, order=OrderConfig("spiral"))
    raster = make_darl(positions=encoding)  # the same parameters
    patches = images()
    expected = raster.encode(patches[:, spiral])
    np.testing.assert_allclose(model.encode(patches)[:, spiral], expected, atol=1e-6)


@pytest.mark.parametrize("encoding", positions.ABSOLUTE)
def test_with_full_attention_and_places_in_the_image_the_order_does_not_matter(encoding):
    def features(name: str) -> tuple[np.ndarray, np.ndarray]:
        config = dataclasses.replace(CONFIG, positions=encoding, order=OrderConfig(name))
        vit = random_module(lambda rngs: ViT(config, patch_dim=PIXELS, grid=GRID, rngs=rngs))
        tokens = vit(images(), mask="full").tokens
        patches = orders.take(tokens[:, 1:], orders.inverse(vit.order(GRID)))
        return np.asarray(patches), np.asarray(readout(tokens, "mean"))

    for spiral, raster in zip(features("spiral"), features("raster"), strict=True):
        np.testing.assert_allclose(spiral, raster, atol=1e-5)


def test_a_model_of_random_orders_reads_in_raster_order():
    assert two_streams().backbone.order(GRID).tolist() == list(range(PATCHES))


def test_parameters_of_the_query_stream_are_a_token_and_a_query_for_each_block():
    shapes = jax.tree.map(jnp.shape, parameters(two_streams())["query_stream"])
    assert shapes == {
        "token": (WIDTH,),
        "query": {"kernel": (2, WIDTH, WIDTH), "bias": (2, WIDTH)},
    }
