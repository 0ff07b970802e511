"""Classifiers on blocks of a frozen backbone, side by side (Figure 8b, Table 13)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from darl_jax.methods.transfer.labels import LabelConfig
from darl_jax.nn.attention import Mask
from darl_jax.nn.blocks import TOKEN_STDDEV
from darl_jax.nn.dtypes import at_least_float32
from darl_jax.nn.positions import Grid
from darl_jax.nn.readout import POOLINGS, readout
from darl_jax.nn.vit import ViT, ViTConfig

KINDS = ("linear", "attentive")
BATCH_NORM_EPSILON = 1e-6  # as in MAE's linear evaluation and AIM's attentive one


@dataclasses.dataclass(frozen=True)
class ProbesConfig(LabelConfig):
    """Config of probes; the defaults are the linear evaluation's at every depth (Table 13).

    Attributes:
      kind: 'linear' on pooled tokens, or 'attentive' on all patches' tokens (AIM).
      blocks: blocks with a probe, counted from 1; empty for all. The backbone runs to the last of
        them.
      mask: the backbone's attention, 'causal' or 'full'.
      pooling: of tokens before a linear probe, one of readout.POOLINGS.
      final_norm: whether probes read a block's output through the backbone's final norm, as MAE's
        linear evaluation reads the last block's; not together with average_blocks.
      average_blocks: number of blocks' outputs that a probe reads the mean of, its own and those
        below it (as many as there are); AIM has 6.
      classifier_bias: bias of a probe's last layer; ml-aim has none, ml-l3m has one.
      learning_rates: peaks that are tried on each block, in place of the optimizer's.
      weight_decays: decays that are tried, each with each rate.
    """

    name: str = "probes"
    kind: str = "linear"
    blocks: tuple[int, ...] = ()
    mask: Literal["causal", "full"] = "causal"
    pooling: str = "mean"
    final_norm: bool = False
    average_blocks: int = 1
    classifier_bias: bool = True
    learning_rates: tuple[float, ...] = ()
    weight_decays: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, valid in (("kind", KINDS), ("pooling", POOLINGS)):
            value = getattr(self, key)
            if value not in valid:
                raise ValueError(f"objective.{key}={value!r} is unknown; choose from {valid}")
        if self.average_blocks < 1:
            raise ValueError(f"objective.average_blocks={self.average_blocks} must be at least 1")
        for key, least in (("blocks", 1), ("learning_rates", 0.0), ("weight_decays", 0.0)):
            values = getattr(self, key)
            if list(values) != sorted({*values}) or min(values, default=least) < least:
                raise ValueError(f"objective.{key}={values} must rise, from {least:g} or more")
        if self.final_norm and self.average_blocks > 1:
            raise ValueError(
                f"objective.average_blocks={self.average_blocks} must be 1 with "
                "config.objective.final_norm=True"
            )

    @property
    def variants(self) -> tuple[Mapping[str, float], ...]:
        """The grid's changes of the optimizer's keys, rate by rate; {} alone without a grid."""
        rates = [{"learning_rate": value} for value in self.learning_rates] or [{}]
        decays = [{"weight_decay": value} for value in self.weight_decays] or [{}]
        return tuple(rate | decay for rate in rates for decay in decays)

    def read_blocks(self, depth: int) -> tuple[int, ...]:
        """Blocks with a probe, of a backbone of `depth` blocks, counted from 1."""
        return self.blocks or tuple(range(1, depth + 1))


class BatchNorm(nnx.Module):
    """Batch normalization without scale and bias.

    Running statistics are parameters, so that a step carries no other state. They are updated by a
    term of the loss, 0.5 |running - batch's|^2, of value 0 and without other gradients: its
    gradient is (running - batch's), and the SGD step of 0.1 times that in
    `optimizers.make_optimizer` is torch's running average with its default momentum.

    Training uses the statistics of the global batch (or micro-batch), for any number of devices.
    The running variance is unbiased, as torch's.
    """

    def __init__(self, width: int):
        self.running_mean = nnx.Param(jnp.zeros(width, jnp.float32))
        self.running_var = nnx.Param(jnp.ones(width, jnp.float32))

    def __call__(
        self,
        x: Float[Array, "batch *token width"],
        counts: Bool[Array, " batch"] | None,
    ) -> tuple[Float[Array, "batch *token width"], Float[Array, ""]]:
        """Normalized features, and the term of the loss, which is 0.

        `counts` is the mask of examples in training, where masked features become 0; None
        normalizes by the running statistics. Batch statistics are over examples and tokens.
        """
        running = jnp.stack([self.running_mean[...], self.running_var[...]])
        if counts is None:
            mean, variance = running
            return (x - mean) * jax.lax.rsqrt(variance + BATCH_NORM_EPSILON), jnp.zeros((), x.dtype)
        axes = tuple(range(x.ndim - 1))
        there = counts.reshape(-1, *(1,) * (x.ndim - 1))
        number = jnp.sum(counts, dtype=x.dtype) * math.prod(x.shape[1:-1])
        # `where`, not a product: padding may be non-finite.
        mean = jnp.sum(jnp.where(there, x, 0.0), axis=axes) / jnp.maximum(number, 1.0)
        centered = jnp.where(there, x - mean, 0.0)
        squares = jnp.sum(jnp.square(centered), axis=axes)
        variance = squares / jnp.maximum(number, 1.0)
        batch = jnp.stack([mean, squares / jnp.maximum(number - 1.0, 1.0)])
        distance = running - jax.lax.stop_gradient(jnp.where(number > 0, batch, running))
        term = 0.5 * jnp.sum(jnp.square(distance))
        normalized = centered * jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)
        return normalized, term - jax.lax.stop_gradient(term)


class LinearProbe(nnx.Module):
    """Batch normalization and a linear layer on a vector for each image (Table 13)."""

    def __init__(self, width: int, num_classes: int, *, bias: bool = True, rngs: nnx.Rngs):
        self.norm = BatchNorm(width)
        init = nnx.initializers.normal(0.01)  # as in MAE's linear evaluation
        self.classifier = nnx.Linear(width, num_classes, use_bias=bias, kernel_init=init, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch width"], counts: Bool[Array, " batch"] | None
    ) -> tuple[Float[Array, "batch class"], Float[Array, ""]]:
        x, term = self.norm(x, counts)
        return self.classifier(x), term


class AttentiveProbe(nnx.Module):
    """AIM's probe: one learned query attends to all tokens (arXiv 2401.08541, Section 4).

    Batch normalization, multi-head attention of an unprojected query to keys and values without
    bias, and a linear layer; no output projection. The query starts as N(0, 0.02), matrices start
    Xavier-uniform, as in ml-l3m. Without the classifier's bias it has 2 width^2 + width +
    classes * width parameters.

    The query is the same for all images, so q'(K x) = (K'q)' x and sum_t a_t (V x_t) =
    V (sum_t a_t x_t): no key or value of a token is computed, which takes width x heads
    multiplications per token instead of 2 width^2.
    """

    def __init__(
        self, width: int, num_heads: int, num_classes: int, *, bias: bool = True, rngs: nnx.Rngs
    ):
        self.num_heads = num_heads
        self.norm = BatchNorm(width)
        self.query = nnx.Param(
            nnx.initializers.normal(TOKEN_STDDEV)(rngs.params(), (width,), jnp.float32)
        )
        xavier = nnx.initializers.xavier_uniform()
        self.key, self.value = (
            nnx.Linear(width, width, use_bias=False, kernel_init=xavier, rngs=rngs)
            for _ in range(2)
        )
        self.classifier = nnx.Linear(
            width, num_classes, use_bias=bias, kernel_init=xavier, rngs=rngs
        )

    def __call__(
        self, x: Float[Array, "batch token width"], counts: Bool[Array, " batch"] | None
    ) -> tuple[Float[Array, "batch class"], Float[Array, ""]]:
        x, term = self.norm(x, counts)
        width = x.shape[-1]
        query = self.query[...].reshape(self.num_heads, -1)
        key, value = (
            layer.kernel[...].reshape(width, self.num_heads, -1) for layer in (self.key, self.value)
        )
        query = jnp.einsum("hc,whc->wh", query, key) * query.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.einsum("btw,wh->bht", x, query), axis=-1)
        pooled = jnp.einsum("bht,btw->bhw", weights, x)
        attended = jnp.einsum("bhw,whc->bhc", pooled, value)
        return self.classifier(attended.reshape(-1, width)), term


class Probes(nnx.Module):
    """Frozen backbone with probes on its blocks' outputs.

    A step has one forward pass of the backbone, to the last block that is read, and no backward
    pass but to adapters (`config.lora`). Probes read outputs before any norm and compute in float32
    (float64 where the backbone does). Blocks' outputs, in the backbone's dtype, are held at once,
    as they leave its scan; blocks' probes run one after another, those of a grid on one block
    together. The parameters are stacked by block, then by the config's `variants`. `grid` is the
    trained (rows, columns).
    """

    def __init__(
        self,
        vit: ViTConfig,
        config: ProbesConfig,
        *,
        num_classes: int,
        grid: Grid,
        channels: int,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.backbone = ViT(vit, patch_dim=vit.patch_size**2 * channels, grid=grid, rngs=rngs)

        def probe(key: Array) -> LinearProbe | AttentiveProbe:
            last: dict[str, Any] = {"bias": config.classifier_bias, "rngs": nnx.Rngs(key)}
            if config.kind == "linear":
                return LinearProbe(vit.width, num_classes, **last)
            # As many heads as the backbone has, as in ml-aim.
            return AttentiveProbe(vit.width, vit.num_heads, num_classes, **last)

        # A probe starts the same whichever others there are.
        keys = jax.random.split(rngs.params(), vit.depth)
        blocks = np.repeat(config.read_blocks(vit.depth), len(config.variants)) - 1
        self.probes = nnx.vmap(probe, in_axes=0, out_axes=0)(keys[blocks])

    def __call__(
        self,
        patches: Float[Array, "batch patch pixel"],
        *,
        mask: Mask,
        grid: Grid,
        counts: Bool[Array, " batch"] | None = None,
    ) -> tuple[Float[Array, "probe batch class"], Float[Array, ""]]:
        """Logits of every probe, and the term of the loss of their `BatchNorm`s, which is 0.

        Args:
          patches: standardized, of whole images, in raster order.
          mask: 'causal' or 'full' attention of the backbone.
          grid: (rows, columns) of patches.
          counts: mask of examples in training; None outside training.
        """
        backbone = self.backbone
        if not self.config.lora.names:
            graphdef, frozen = nnx.split(backbone)
            # On the parameters and not on the outputs: nothing is stored for a backward pass.
            backbone = nnx.merge(graphdef, jax.lax.stop_gradient(frozen))
        vit = backbone.config
        read = self.config.read_blocks(vit.depth)
        blocks = backbone(patches, mask=mask, grid=grid, depth=max(read)).blocks
        if self.config.final_norm:
            blocks = backbone.final_norm(blocks)
        start_tokens = vit.start_tokens
        if self.config.kind == "linear":
            inputs = readout(blocks, self.config.pooling, start_tokens=start_tokens)
        else:
            inputs = blocks[:, :, start_tokens:]
        probe_graphdef, stacked = nnx.split(self.probes)
        by_block = jax.tree.map(lambda leaf: leaf.reshape(len(read), -1, *leaf.shape[1:]), stacked)

        # Checkpointed: only the probes' input, which is in memory anyway, is stored.
        @jax.checkpoint
        def probes(of_block: tuple[Array, nnx.State]) -> tuple[Array, Array]:
            index, parameters = of_block
            x = _mean_of_last(inputs, index, self.config.average_blocks)
            return jax.vmap(lambda own: nnx.merge(probe_graphdef, own)(x, counts))(parameters)

        logits, terms = jax.lax.map(probes, (jnp.array(read) - 1, by_block))
        return logits.reshape(-1, *logits.shape[2:]), jnp.sum(terms)


def _mean_of_last(
    blocks: Float[Array, "depth batch *token width"], index: Int[Array, ""], number: int
) -> Float[Array, "batch *token width"]:
    """Mean of block `index` and those below it, `number` at most."""
    total = at_least_float32(blocks[index])
    for below in range(1, number):
        block = at_least_float32(blocks[jnp.maximum(index - below, 0)])
        total = total + jnp.where(index >= below, block, 0.0)
    return total / jnp.minimum(index + 1, number).astype(total.dtype)
