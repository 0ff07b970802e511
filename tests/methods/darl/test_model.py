"""The whole model: its parameters' names, shapes and number."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx, traverse_util

from darl_jax.config import VIT_SIZES
from darl_jax.methods.darl.model import DARL
from darl_jax.methods.darl.patch_decoders import PatchDecoderConfig
from darl_jax.nn.vit import ViTConfig
from darl_jax.training.state import parameters

TINY = ViTConfig(width=8, depth=2, num_heads=2, mlp_dim=16, patch_size=2, dtype="float32")


def shapes(
    vit: ViTConfig, decoder: PatchDecoderConfig, *, denoising: bool, grid: tuple[int, int]
) -> dict[str, tuple[int, ...]]:
    """Path -> shape, with nothing allocated."""

    def build() -> Any:
        rngs = nnx.Rngs(0)
        return parameters(DARL(vit, decoder, denoising=denoising, grid=grid, channels=3, rngs=rngs))

    tree = traverse_util.flatten_dict(jax.eval_shape(build), sep="/")
    assert {leaf.dtype for leaf in tree.values()} == {jnp.dtype("float32")}
    return {name: leaf.shape for name, leaf in tree.items()}


def block_shapes(prefix: str, layers: int) -> dict[str, tuple[int, ...]]:
    kernels = {f"attention/{name}": (8, 8) for name in ("key", "out", "query", "value")}
    kernels |= {"mlp/up": (8, 16), "mlp/down": (16, 8)}
    names: dict[str, tuple[int, ...]] = {}
    for name, shape in kernels.items():
        names |= {f"{name}/kernel": shape, f"{name}/bias": shape[1:]}
    for name in ("norm_attention", "norm_mlp"):
        names |= {f"{name}/scale": (8,), f"{name}/bias": (8,)}
    return {f"{prefix}/{name}": (layers, *shape) for name, shape in names.items()}


BACKBONE = {
    "backbone/final_norm/bias": (8,),
    "backbone/final_norm/scale": (8,),
    "backbone/patch_embedding/bias": (8,),
    "backbone/patch_embedding/kernel": (12, 8),
    "backbone/sos": (8,),
    **block_shapes("backbone/blocks", 2),
}
TO_PIXELS = {"to_pixels/bias": (12,), "to_pixels/kernel": (8, 12)}


def below(prefix: str, tree: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}/{name}": shape for name, shape in tree.items()}


def test_names_and_shapes_of_the_squared_errors_parameters() -> None:
    """Checkpoints hold these names: changing one needs a new format version."""
    got = shapes(TINY, PatchDecoderConfig(), denoising=False, grid=(2, 3))
    assert got == BACKBONE | below("patch_decoder/head", TO_PIXELS)
    learnable = dataclasses.replace(TINY, positions="learnable")
    got = shapes(learnable, PatchDecoderConfig("mlp", 1), denoising=False, grid=(2, 3))
    decoder = below("patch_decoder/head", TO_PIXELS) | {
        "patch_decoder/head/norm/bias": (8,),
        "patch_decoder/head/norm/scale": (8,),
    }
    for name in ("mlp/down/bias", "mlp/down/kernel", "mlp/up/bias", "mlp/up/kernel"):
        decoder[f"patch_decoder/head/blocks/{name}"] = (
            1, *BACKBONE[f"backbone/blocks/{name}"][1:]
        )  # fmt: skip
    for leaf in ("bias", "scale"):
        decoder[f"patch_decoder/head/blocks/norm/{leaf}"] = (1, 8)
    assert got == BACKBONE | decoder | {"backbone/positions": (6, 8)}


def test_names_and_shapes_of_the_diffusion_parameters() -> None:
    got = shapes(TINY, PatchDecoderConfig("transformer", 1, True), denoising=True, grid=(2, 3))
    decoder = TO_PIXELS | {
        "embedding/bias": (8,),
        "embedding/kernel": (13, 8),  # a patch and gamma
        "from_backbone/bias": (8,),
        "from_backbone/kernel": (8, 8),
        "norm/bias": (8,),
        "norm/scale": (8,),
    }
    assert got == (
        BACKBONE | below("patch_decoder", decoder) | block_shapes("patch_decoder/blocks", 1)
    )


@pytest.mark.parametrize(
    ("size", "patch", "grid", "timm"),
    [
        # timm's vit_{small,base,large}_patch16_224 and vit_huge_patch14_224 with num_classes=0,
        # whose class token is our start token and whose learned positions we do not have.
        ("S", 16, 14, 21_665_664),
        ("B", 16, 14, 85_798_656),
        ("L", 16, 14, 303_301_632),
        ("H", 14, 16, 630_764_800),
    ],
)
def test_parameter_counts_are_those_of_vits(size: str, patch: int, grid: int, timm: int) -> None:
    vit = dataclasses.replace(VIT_SIZES[size], patch_size=patch)
    got = shapes(vit, PatchDecoderConfig(), denoising=False, grid=(grid, grid))
    count = sum(math.prod(shape) for name, shape in got.items() if name.startswith("backbone/"))
    assert count == timm - (grid**2 + 1) * vit.width


def test_initial_parameters_follow_from_the_key_alone() -> None:
    @jax.jit
    def build(key: jax.Array) -> Any:
        decoder = PatchDecoderConfig("transformer", 1)
        rngs = nnx.Rngs(key)
        return parameters(DARL(TINY, decoder, denoising=True, grid=(2, 3), channels=3, rngs=rngs))

    first, second, other = (build(jax.random.key(seed)) for seed in (0, 0, 1))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, second))
    kernels = first["backbone"]["patch_embedding"]["kernel"]
    assert not jnp.any(kernels == other["backbone"]["patch_embedding"]["kernel"])
    # Backbone and decoder draw from keys of their own.
    query = first["backbone"]["blocks"]["attention"]["query"]["kernel"]
    assert not jnp.any(query[0] == first["patch_decoder"]["blocks"]["attention"]["query"]["kernel"])
