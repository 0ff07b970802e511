"""Norms, MLPs, biases and positions of other backbones, in float64 against PyTorch."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from darl_jax.nn.positions import random_scale
from darl_jax.nn.vit import ViT, ViTConfig

torch = pytest.importorskip("torch")

BATCH, PATCH_DIM, GRID = 2, 5, (3, 5)
SIZES: dict[str, Any] = {
    "width": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 24,
    "dtype": "float64",
}
# Model keys, mask, and the trained grid.
AIM = {
    "positions": "sincos2d",
    "start_token": "none",
    "patch_norm": "layer",
    "attention_bias": False,
    "mlp_bias": False,
    "norm_epsilon": 1e-6,
}
AIM_V2 = {
    "positions": "sincos2d_native",
    "start_token": "none",
    "patch_norm": "rms",
    "norm": "rms",
    "norm_epsilon": 1e-5,
    "mlp": "swiglu",
    "attention_bias": False,
    "mlp_bias": False,
}
NEPA = {
    "positions": "rope_dinov3",
    "rope_max_wavelength": 100.0,
    "norm_epsilon": 1e-12,
    "layer_scale": 1e-5,
    "qk_norm": "plain",
}


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def sincos(grid: tuple[int, int], width: int) -> np.ndarray:
    """Channels [sin x, cos x, sin y, cos y], written out for each entry."""
    quarter = width // 4
    table = np.zeros((grid[0] * grid[1], width))
    for row in range(grid[0]):
        for column in range(grid[1]):
            for i in range(quarter):
                rate = 10_000.0 ** (-i / quarter)
                at = table[row * grid[1] + column]
                at[i], at[quarter + i] = np.sin(column * rate), np.cos(column * rate)
                at[2 * quarter + i], at[3 * quarter + i] = np.sin(row * rate), np.cos(row * rate)
    return table


def dinov3_rotation(x: Any, grid: tuple[int, int], base: float) -> Any:
    """rotate_half with tiled angles, on the patches and not on the start token before them."""
    channels = x.shape[-1]
    y, x_ = np.meshgrid(*((2 * (np.arange(n) + 0.5) / n - 1) for n in grid), indexing="ij")
    rates = base ** (-4 * np.arange(channels // 4) / channels)
    angles = np.stack([y.ravel(), x_.ravel()], 1)[:, :, None] * rates * 2 * np.pi
    angles = torch.tensor(np.tile(angles.reshape(len(angles), -1), 2))
    patches = x[:, :, 1:]
    first, second = patches.chunk(2, -1)
    turned = patches * angles.cos() + torch.cat([-second, first], -1) * angles.sin()
    return torch.cat([x[:, :, :1], turned], 2)


def norm(x: Any, kind: str, epsilon: float, scale: Any = None, bias: Any = None) -> Any:
    if kind == "rms":
        return x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * scale
    centered = x - x.mean(-1, keepdim=True)
    y = centered * (centered.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    y = y if scale is None else y * scale
    return y if bias is None else y + bias


def reference(
    config: ViTConfig, params: dict[str, Any], patches: Any, visible: Any, table: Any
) -> Any:
    """The final norm's output, from parameters by path."""

    def dense(name: str, x: Any, i: int | None = None) -> Any:
        def part(kind: str) -> Any:
            array = params.get(f"{name}/{kind}")
            return array if array is None or i is None else array[i]

        return x @ part("kernel") + (0.0 if part("bias") is None else part("bias"))

    def normed(name: str, x: Any, i: int | None = None, kind: str = config.norm) -> Any:
        scale, bias = (params.get(f"{name}/{part}") for part in ("scale", "bias"))
        if i is not None:
            scale, bias = (each if each is None else each[i] for each in (scale, bias))
        return norm(x, kind, config.norm_epsilon, scale, bias)

    def scaled(x: Any, i: int, branch: int) -> Any:
        scales = params.get("blocks/layer_scale")
        return x if scales is None else x * scales[i, branch]

    x = dense("patch_embedding", patches)
    if config.patch_norm != "none":
        x = normed("patch_norm", x, kind=config.patch_norm)
    if table is not None:
        x = x + table
    if config.start_token == "learned":
        x = torch.cat([params["sos"].expand(len(x), 1, -1), x], 1)
    for i in range(config.depth):
        y = normed("blocks/norm_attention", x, i)
        q, k, v = (
            dense(f"blocks/attention/{name}", y, i)
            .unflatten(-1, (config.num_heads, -1))
            .transpose(1, 2)
            for name in ("query", "key", "value")
        )
        if config.qk_norm != "none":
            q = normed("blocks/attention/query_norm", q, i, kind="layer")
            k = normed("blocks/attention/key_norm", k, i, kind="layer")
        if config.positions == "rope_dinov3":
            q, k = (dinov3_rotation(each, GRID, config.rope_max_wavelength) for each in (q, k))
        logits = q @ k.transpose(-1, -2) / config.head_dim**0.5
        weights = logits.masked_fill(~visible, -torch.inf).softmax(-1)
        y = (weights @ v).transpose(1, 2).flatten(2)
        x = x + scaled(dense("blocks/attention/out", y, i), i, 0)
        y = normed("blocks/norm_mlp", x, i)
        hidden = dense("blocks/mlp/up", y, i)
        if config.mlp == "swiglu":
            gate = dense("blocks/mlp/gate", y, i)
            hidden = gate / (1 + torch.exp(-gate)) * hidden
        else:
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + scaled(dense("blocks/mlp/down", hidden, i), i, 1)
    return normed("final_norm", x)


@pytest.mark.parametrize(
    ("keys", "mask", "trained_grid"),
    [
        (AIM, "prefix", GRID),
        (AIM | {"positions": "none"}, "full", GRID),
        (AIM_V2, "full", (4, 4)),
        (NEPA, "causal", (4, 4)),
        (NEPA | {"qk_norm": "scale", "layer_scale": 0.0}, "full", GRID),
    ],
)
def test_outputs_and_gradients_equal_pytorch_in_float64(keys, mask, trained_grid) -> None:
    config = ViTConfig(**SIZES | keys)
    make = lambda: ViT(config, patch_dim=PATCH_DIM, grid=trained_grid, rngs=nnx.Rngs(0))  # noqa: E731
    graphdef, shapes = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)
    flat = {
        path: rng.normal(0.5 if path[-1] == "scale" else 0.0, 0.4, leaf.shape)
        for path, leaf in traverse_util.flatten_dict(nnx.to_pure_dict(shapes)).items()
    }
    patches = rng.normal(size=(BATCH, 15, PATCH_DIM))
    cotangent = rng.normal(size=(BATCH, 15 + config.start_tokens, config.width))
    prefix = np.array([1, 9])

    @jax.jit
    def ours(params: Any, patches: Any) -> Any:
        tokens = nnx.merge(graphdef, params)(
            patches, mask=jnp.asarray(prefix) if mask == "prefix" else mask, grid=GRID
        ).tokens
        return jnp.sum(tokens * cotangent), tokens

    nested = traverse_util.unflatten_dict(flat)
    (_, tokens), gradients = jax.value_and_grad(ours, has_aux=True)(nested, patches)
    assert tokens.dtype == jnp.float64

    params = {"/".join(path): torch.tensor(each, requires_grad=True) for path, each in flat.items()}
    count = tokens.shape[1]
    key, query = np.arange(count)[None, :], np.arange(count)[:, None]
    causal = key <= query
    visible = {
        "full": np.ones_like(causal),
        "causal": causal,
        "prefix": (key < prefix[:, None, None, None]) | causal,
    }[mask]
    table = torch.tensor(sincos(GRID, config.width)) if "sincos" in config.positions else None
    expected = reference(config, params, torch.tensor(patches), torch.tensor(visible), table)
    (expected * torch.tensor(cotangent)).sum().backward()

    np.testing.assert_allclose(tokens, expected.detach().numpy(), rtol=0, atol=1e-12)
    flat_gradients = traverse_util.flatten_dict(gradients, sep="/")
    largest = max(np.abs(each).max() for each in flat_gradients.values())
    for name, each in params.items():
        np.testing.assert_allclose(
            flat_gradients[name], each.grad.numpy(), rtol=0, atol=1e-12 * largest, err_msg=name
        )


def test_a_depth_stops_after_that_many_blocks() -> None:
    config = ViTConfig(**SIZES | AIM)
    vit = ViT(config, patch_dim=PATCH_DIM, grid=GRID, rngs=nnx.Rngs(0))
    patches = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, 15, PATCH_DIM)))
    whole, first = vit(patches, mask="full"), vit(patches, mask="full", depth=1)
    assert first.blocks.shape[0] == 1
    np.testing.assert_array_equal(first.blocks[0], whole.blocks[0])


def test_one_random_scale_of_coordinates_is_log_uniform_and_only_in_training() -> None:
    config = ViTConfig(**SIZES | NEPA | {"rope_rescale": 2.0})
    vit = ViT(config, patch_dim=PATCH_DIM, grid=GRID, rngs=nnx.Rngs(0))
    patches = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, 15, PATCH_DIM)))
    plain, again = (vit(patches, mask="causal").tokens for _ in range(2))
    np.testing.assert_array_equal(plain, again)
    drawn = vit(patches, mask="causal", key=jax.random.key(0)).tokens
    assert np.abs(drawn - plain).max() > 0
    keys = jax.random.split(jax.random.key(1), 4000)
    scales = np.log2(jax.vmap(lambda key: random_scale(key, 2.0))(keys))
    assert np.abs(scales).max() <= 1 and abs(scales.mean()) < 0.04
    assert scales.std() == pytest.approx(2 / 12**0.5, rel=0.05)
