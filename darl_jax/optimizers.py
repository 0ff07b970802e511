"""The pre-training optimiser: AdamW with warm-up and a cosine schedule (Table 8)."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

REFERENCE_BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning rate; the defaults are Table 8 of arXiv 2403.05196.

    Attributes:
        base_learning_rate: peak learning rate for a batch of 256; the peak of a run is this times
            batch_size / 256.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment (settled here; the paper does not say).
        weight_decay: decoupled, multiplied by the learning rate as optax and torch do it.
        clip_norm: largest global norm of the gradient; 0 leaves the gradient as it is.
        warmup_epochs: length of the linear warm-up in epochs.
        warmup_steps: the same in steps; where it is given, warmup_epochs is not read.

    Raises:
        ValueError: a value is out of its range.
    """

    base_learning_rate: float = 1.5e-4
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip_norm: float = 0.0
    warmup_epochs: float = 40.0
    warmup_steps: int | None = None

    def __post_init__(self) -> None:
        for key in ("base_learning_rate", "weight_decay", "clip_norm", "warmup_epochs"):
            if not getattr(self, key) >= 0:
                raise ValueError(f"optimizer.{key} must be >= 0, got {getattr(self, key)!r}")
        for key in ("b1", "b2"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"optimizer.{key} must be in [0, 1), got {getattr(self, key)!r}")
        if not self.eps > 0:
            raise ValueError(f"optimizer.eps must be > 0, got {self.eps!r}")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ValueError(f"optimizer.warmup_steps must be >= 0, got {self.warmup_steps!r}")


def learning_rate_schedule(
    config: OptimizerConfig, *, batch_size: int, steps_per_epoch: float, total_steps: int
) -> Callable[[int | Int[Array, ""]], Float[Array, ""]]:
    """The learning rate at a step: linear warm-up from 0, then half a cosine down to 0 (Table 8).

    The first update (step 0) has rate 0, step `warmup` has the peak, and total_steps, one past the
    last update, has 0 again. A warm-up that is longer than the run is allowed, so that a few steps
    of a long config can be tried: the rate then rises to the end, as it would in the long run.

    Args:
        config: the base rate and the length of the warm-up.
        batch_size: global batch, which scales the base rate by batch_size / 256.
        steps_per_epoch: turns warmup_epochs into steps (rounded); need not be whole.
        total_steps: length of the run.
    """
    peak = config.base_learning_rate * batch_size / REFERENCE_BATCH_SIZE
    if config.warmup_steps is None:
        warmup = round(config.warmup_epochs * steps_per_epoch)
    else:
        warmup = config.warmup_steps

    def learning_rate(step: int | Int[Array, ""]) -> Float[Array, ""]:
        rising = step / max(warmup, 1)
        progress = jnp.clip((step - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
        falling = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return peak * jnp.where(step < warmup, rising, falling)

    return learning_rate


def make_optimizer(
    config: OptimizerConfig, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """AdamW as in Table 8: clip (if asked), Adam, decoupled weight decay, learning rate.

    Gradients are clipped before they enter the moments. Parameters that do not decay: all but the
    leaves named "kernel" (`weight_decay_mask`).
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    # Named, for a checkpoint's paths are made of these names.
    return optax.named_chain(
        ("clip", clip),
        ("adam", optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)),
        ("decay", optax.add_decayed_weights(config.weight_decay, mask=weight_decay_mask)),
        ("learning_rate", optax.scale_by_learning_rate(learning_rate)),
    )


def weight_decay_mask(params: PyTree) -> PyTree[bool]:
    """True for the leaves that decay: those whose own name is "kernel".

    By name and not by rank: blocks are stacked along a leading axis, which gives their biases and
    norm scales two dimensions. Settled here: the start-of-sequence token, query tokens and learned
    positions do not decay either.
    """

    def is_kernel(path: tuple[object, ...], _: object) -> bool:
        return jax.tree_util.keystr(path[-1:], simple=True) == "kernel"

    return jax.tree_util.tree_map_with_path(is_kernel, params)
