"""Low-rank adapters of a frozen backbone's kernels (LoRA; Hu et al. 2021, arXiv 2106.09685).

An adapted layer computes x W + (alpha / rank) (x A) B. W has no gradient, so no product of the size
of W is formed for it, and the optimizer's state holds A and B alone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from darl_jax.nn.blocks import TransformerConfig, linear, stack_blocks
from darl_jax.nn.vit import ViT

ADAPTER = "lora"  # name of an adapter below its layer


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Config of adapters; without names there are none, and the backbone is not frozen for them.

    Attributes:
      names: adapted layers of each block: 'query', 'key', 'value', 'out', 'up', 'gate', 'down'; AIM
        adapts query, value and out.
      rank: columns of A and rows of B.
      alpha: the update is (alpha / rank) A B; loralib's default is 1.
    """

    names: tuple[str, ...] = ()
    rank: int = 8
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if len({*self.names}) < len(self.names):
            raise ValueError(f"objective.lora.names={self.names} must differ from each other")
        if self.rank < 1:
            raise ValueError(f"objective.lora.rank={self.rank} must be at least 1")
        if self.alpha <= 0:
            raise ValueError(f"objective.lora.alpha={self.alpha} must be positive")

    @property
    def scale(self) -> float:
        """Factor of A B."""
        return self.alpha / self.rank


def layer_sizes(model: TransformerConfig) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the layers of a block that can have adapters."""
    width, hidden = model.width, model.mlp_dim
    sizes = dict.fromkeys(("query", "key", "value", "out"), (width, width))
    sizes |= {"up": (width, hidden), "gate": (width, hidden), "down": (hidden, width)}
    if model.mlp != "swiglu":
        del sizes["gate"]
    return sizes


def check_names(config: LoRAConfig, model: TransformerConfig) -> None:
    """Raises ValueError where blocks do not have a layer that the config names."""
    valid = layer_sizes(model)
    for name in config.names:
        if name not in valid:
            raise ValueError(f"objective.lora.names: {name!r} is unknown; choose from {[*valid]}")


class Adapter(nnx.Module):
    """x A B, with A from U(-1, 1) / sqrt(inputs) and B = 0.

    That is loralib's Kaiming-uniform initialization with a = sqrt(5).
    """

    def __init__(self, inputs: int, outputs: int, rank: int, *, dtype: str, rngs: nnx.Rngs):
        uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        options: dict[str, Any] = {"use_bias": False, "dtype": dtype, "rngs": rngs}
        self.a = linear(inputs, rank, kernel_init=uniform, **options)
        self.b = linear(rank, outputs, kernel_init=nnx.initializers.zeros, **options)

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        return self.b(self.a(x))


class AdaptedLinear(nnx.Linear):
    """Linear layer with an adapter beside it; kernel and bias are those of another layer."""

    def __init__(self, layer: nnx.Linear, adapter: Adapter, scale: float, *, rngs: nnx.Rngs):
        super().__init__(
            layer.in_features,
            layer.out_features,
            use_bias=layer.use_bias,
            dtype=layer.dtype,
            kernel_init=nnx.initializers.zeros,
            dot_general=layer.dot_general,
            rngs=rngs,
        )
        self.kernel = layer.kernel
        if layer.bias is not None:
            self.bias = layer.bias
        self.lora = adapter
        self.scale = scale

    def __call__(self, inputs: Float[Array, "*batch in"], out_sharding: Any = None) -> Array:
        y: Array = super().__call__(inputs, out_sharding)
        return y + self.scale * self.lora(inputs)


def add_adapters(backbone: ViT, config: LoRAConfig, rngs: nnx.Rngs) -> None:
    """Gives the layers that the config names adapters, in each of the stacked blocks."""
    model, sizes = backbone.config, layer_sizes(backbone.config)

    def stacked(inputs: int, outputs: int) -> Any:
        def adapter(key: PRNGKeyArray) -> Adapter:
            return Adapter(inputs, outputs, config.rank, dtype=model.dtype, rngs=nnx.Rngs(key))

        return stack_blocks(adapter, model.depth, rngs.params())

    for name in config.names:
        in_mlp = name in ("up", "gate", "down")
        parent = backbone.blocks.mlp if in_mlp else backbone.blocks.attention
        adapter = stacked(*sizes[name])
        layer = AdaptedLinear(getattr(parent, name), adapter, config.scale, rngs=rngs)
        setattr(parent, name, layer)


def is_adapter(path: tuple[str, ...]) -> bool:
    """True for the path of an adapter's parameter."""
    return ADAPTER in path


def merged(params: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Parameters on the host with W + scale A B in place of each adapted kernel."""
    found = {
        name: merged(value, scale) if isinstance(value, Mapping) else value
        for name, value in params.items()
        if name != ADAPTER
    }
    if ADAPTER in params:
        a, b = (np.asarray(params[ADAPTER][name]["kernel"]) for name in "ab")
        kernel = np.asarray(found["kernel"])
        found["kernel"] = kernel + (scale * np.matmul(a, b)).astype(kernel.dtype)
    return found
