"""Optimizers: AdamW for pre-training and transfer, LARS for linear probes (Tables 8, 9 and 13)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jaxtyping import Array, Float, PyTree

from darl_jax.methods.base import Method
from darl_jax.training.trained import Slice, Trains, only_trained, path_names, per_slice

# Path of a parameter -> its layer, or one for each entry of its first axis.
LayerOf = Callable[[tuple[str, ...]], int | tuple[int, ...]]

REFERENCE_BATCH_SIZE = 256


@dataclasses.dataclass(frozen=True)
class _OptimizerConfig:
    """Keys that all optimizers have."""

    name: str  # which optimizer
    # Peak learning rate for a batch of 256; the peak of a run is this times batch_size / 256.
    base_learning_rate: float | None
    # The peak itself, for any batch (Table 9's are of this kind), in place of base_learning_rate.
    learning_rate: float | None = None
    initial_learning_rate: float = 0.0  # where the warm-up begins
    final_learning_rate: float = 0.0  # where the schedule ends
    weight_decay: float = 0.0  # of the leaves named "kernel"
    clip_norm: float = 0.0  # largest global norm of the gradient; 0 leaves the gradient as it is
    warmup_epochs: float | None = 0.0  # length of the linear warm-up in epochs
    warmup_steps: int | None = None  # the same in steps, in place of warmup_epochs

    def __post_init__(self) -> None:
        for field in dataclasses.fields(_OptimizerConfig)[1:]:
            value = getattr(self, field.name)
            self._check(value is None or value >= 0, field.name, ">= 0")
        pairs = (("learning_rate", "base_learning_rate"), ("warmup_steps", "warmup_epochs"))
        for one, other in pairs:
            if getattr(self, one) is None and getattr(self, other) is None:
                raise ValueError(f"optimizer.{one} or config.optimizer.{other} must have a value")

    def _check(self, valid: bool, key: str, what: str) -> None:
        if not valid:
            raise ValueError(f"optimizer.{key} must be {what}, got {getattr(self, key)!r}")


@dataclasses.dataclass(frozen=True)
class AdamWConfig(_OptimizerConfig):
    """AdamW and its learning rate; the defaults are Table 8 of arXiv 2403.05196.

    Weight decay is decoupled and multiplied by the learning rate, as optax and torch do it.
    """

    name: str = "adamw"
    base_learning_rate: float | None = 1.5e-4
    weight_decay: float = 0.05
    warmup_epochs: float | None = 40.0
    b1: float = 0.9  # decay of the first moment
    b2: float = 0.95  # decay of the second moment
    # Added to the root of the second moment (settled here; the paper does not say).
    eps: float = 1e-8
    # Factor of the learning rate from each block to the one below it, see `layer_decay_scales`; 1
    # is the same rate everywhere (Table 9 has 0.75).
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("b1", "b2"):
            self._check(0 <= getattr(self, key) < 1, key, "in [0, 1)")
        self._check(self.eps > 0, "eps", "> 0")
        self._check(0 < self.layer_decay <= 1, "layer_decay", "in (0, 1]")


@dataclasses.dataclass(frozen=True)
class LarsConfig(_OptimizerConfig):
    """LARS and its learning rate; the defaults are the linear evaluation's (Table 13).

    Weight decay is added to the gradient before it is scaled.
    """

    name: str = "lars"
    base_learning_rate: float | None = 0.1
    warmup_epochs: float | None = 10.0
    momentum: float = 0.9  # decay of the sum of scaled gradients
    # Size of a kernel's step, before the learning rate, over the size of the kernel (settled here,
    # as in MAE; the paper does not say).
    trust_coefficient: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(0 <= self.momentum < 1, "momentum", "in [0, 1)")
        self._check(self.trust_coefficient > 0, "trust_coefficient", "> 0")


OptimizerConfig = AdamWConfig | LarsConfig

# optimizer.name -> its config
OPTIMIZERS: dict[str, type[AdamWConfig] | type[LarsConfig]] = {
    "adamw": AdamWConfig,
    "lars": LarsConfig,
}


def learning_rate_schedule(
    config: OptimizerConfig, batch_size: int, steps_per_epoch: float, total_steps: int
) -> optax.Schedule:
    """The learning rate at a step: linear warm-up, then half a cosine down (Table 8).

    The first update (step 0) has initial_learning_rate, step `warmup` has the peak, and
    total_steps, one past the last update, has final_learning_rate. A warm-up that is longer than
    the run is allowed, so that a few steps of a long config can be tried: the rate then rises to
    the end, as it would in the long run. The base rate is scaled by batch_size / 256; warmup_epochs
    is rounded to steps.
    """
    peak, source = config.learning_rate, "learning_rate"
    if peak is None:
        assert config.base_learning_rate is not None
        peak = config.base_learning_rate * batch_size / REFERENCE_BATCH_SIZE
        source = f"base_learning_rate={config.base_learning_rate:g} times batch_size / 256"
    initial, final = config.initial_learning_rate, config.final_learning_rate
    for key in ("initial_learning_rate", "final_learning_rate"):
        if (rate := getattr(config, key)) > peak:
            raise ValueError(
                f"optimizer.{key}={rate} must not be above the peak, which is {peak:g}"
            )
    warmup, key = config.warmup_steps, "warmup_steps"
    if warmup is None:
        assert config.warmup_epochs is not None
        warmup = round(config.warmup_epochs * steps_per_epoch)
        key = f"warmup_epochs={config.warmup_epochs:g}"
    logging.info("Learning rate: peak %g (%s), %d steps of warm-up (%s)", peak, source, warmup, key)
    if warmup >= total_steps:
        logging.warning(
            "The learning rate rises over %d steps and the run has %d: it ends at %.0f%% of its "
            "peak; lower config.optimizer.%s",
            *(warmup, total_steps, 100 * total_steps / warmup, key.split("=")[0]),
        )
    falling = optax.cosine_decay_schedule(
        peak, max(total_steps - warmup, 1), alpha=final / peak if peak else 0.0
    )
    if not warmup:
        return falling
    # Not optax.linear_schedule: it counts down from 1, which at step 1 of 12,480 is off by 2e-4.
    return optax.join_schedules(
        [lambda step: initial + (peak - initial) * step / warmup, falling], [warmup]
    )


def make_optimizer(
    config: OptimizerConfig,
    learning_rate: optax.ScalarOrSchedule,
    *,
    trains: Trains = lambda path: True,
    stacked: str | None = None,
    slices: Sequence[Slice] = (),
    layer_of: LayerOf | None = None,
    num_layers: int = 0,
) -> optax.GradientTransformation:
    """AdamW or LARS on the parameters that are trained.

    AdamW: clip (if asked), Adam, decoupled weight decay, layer decay (if asked), learning rate.
    LARS, as in MAE: clip (if asked), weight decay, trust ratio, momentum, learning rate. The rate
    multiplies the sum of the momentum and is no part of it, which differs where the rate changes.
    Gradients are clipped before they enter the moments. Weights that do not decay, and that LARS
    does not scale: all but the leaves named "kernel" (`weight_decay_mask`).

    Statistics of BatchNorm, leaves named "running_mean" and "running_var", are parameters to
    whoever lays out, saves or accumulates, but not to AdamW or LARS: they take a plain step of
    0.1 times their gradient. That is (running - batch's), see BatchNorm in
    methods/transfer/probe_model.py, so the step is torch's running average, over micro-batches too,
    and an update that is dropped leaves the statistics as they were.

    Args:
        config: the optimizer's settings.
        learning_rate: a number or a function of the step.
        trains: whether the parameter at a path is trained (`Method.trains`); one that is not has no
            state and no update.
        stacked: the first name on the path of modules that are stacked along a first dimension and
            trained side by side, each as if it were alone: clipping has a norm for each. All that
            is trained must be below it.
        slices: learning rate and weight decay of each module of the stack, in place of those above;
            empty where all have the same.
        layer_of: layer of a parameter (`Method.layer_of`), which layer decay needs.
        num_layers: number of layers.
    """
    layer_decay = []
    if isinstance(config, AdamWConfig) and config.layer_decay != 1.0:
        if layer_of is None:
            raise ValueError(f"optimizer.layer_decay={config.layer_decay} needs layer_of")
        scales = functools.partial(
            layer_decay_scales, decay=config.layer_decay, layer_of=layer_of, num_layers=num_layers
        )
        scale = optax.stateless(
            lambda updates, _: jax.tree.map(jnp.multiply, updates, scales(updates))
        )
        layer_decay = [("layer_decay", scale)]

    def chain(
        learning_rate: optax.ScalarOrSchedule, weight_decay: float | Array
    ) -> optax.GradientTransformation:
        # Named, for a checkpoint's paths are made of these names.
        clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
        decay = optax.add_decayed_weights(weight_decay, mask=weight_decay_mask)
        parts = [("clip", clip)]
        if isinstance(config, LarsConfig):
            parts += [
                ("decay", decay),
                ("trust_ratio", _scale_by_trust_ratio(config.trust_coefficient)),
                ("momentum", optax.trace(config.momentum)),
            ]
        else:
            adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
            parts += [("adam", adam), ("decay", decay), *layer_decay]
        return optax.named_chain(
            *parts, ("learning_rate", optax.scale_by_learning_rate(learning_rate))
        )

    if stacked is None:
        return only_trained(chain(learning_rate, config.weight_decay), trains)
    slices = slices or [(learning_rate, config.weight_decay)]
    return only_trained(per_slice(chain, stacked, slices), trains)


def build_optimizer(
    config: OptimizerConfig,
    learning_rate: optax.ScalarOrSchedule,
    method: Method,
    schedule: Callable[[OptimizerConfig], optax.Schedule] | None = None,
) -> optax.GradientTransformation:
    """The optimizer of a method: with its frozen and stacked parameters, and its layers.

    `schedule` gives the learning rates of the method's `variants`: `learning_rate_schedule` of a
    config with each one's rate.
    """
    peaks = sorted({each["learning_rate"] for each in method.variants if "learning_rate" in each})
    rates: dict[float | None, optax.ScalarOrSchedule] = {None: learning_rate}
    if schedule is not None:
        rates |= {peak: schedule(dataclasses.replace(config, learning_rate=peak)) for peak in peaks}
    slices = [
        (rates[each.get("learning_rate")], each.get("weight_decay", config.weight_decay))
        for each in method.variants
    ]
    return make_optimizer(
        config,
        learning_rate,
        trains=method.trains,
        stacked=method.stacked,
        slices=slices,
        layer_of=method.layer_of,
        num_layers=method.num_layers,
    )


def weight_decay_mask(params: PyTree) -> PyTree[bool]:
    """True for the leaves that decay: those whose own name is "kernel".

    By name and not by rank: blocks are stacked along a leading axis, which gives their biases and
    norm scales two dimensions. Settled here: the start-of-sequence token, query tokens and learned
    positions do not decay either.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path_names(path)[-1] == "kernel", params
    )


def layer_decay_scales(
    params: PyTree, *, decay: float, layer_of: LayerOf, num_layers: int
) -> PyTree:
    """Factor of each parameter's learning rate: decay^(num_layers - 1 - layer) (Table 9).

    It is an array where each entry of the parameter's first axis has a layer of its own.
    """

    def scale(path: tuple[Any, ...], leaf: Any) -> float | Float[np.ndarray, "stack ..."]:
        layer = layer_of(path_names(path))
        if isinstance(layer, int):
            return decay ** (num_layers - 1 - layer)
        exponents = (num_layers - 1) - np.asarray(layer).reshape(-1, *(1,) * (leaf.ndim - 1))
        return np.asarray(decay**exponents, np.float32)

    return jax.tree_util.tree_map_with_path(scale, params)


def _scale_by_trust_ratio(coefficient: float) -> optax.GradientTransformation:
    """Optax's trust ratio on kernels, which must be matrices: a stack would share one norm."""
    ratio = optax.masked(
        optax.scale_by_trust_ratio(trust_coefficient=coefficient), weight_decay_mask
    )

    def init(params: PyTree) -> optax.OptState:
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            names = path_names(path)
            if names[-1] == "kernel" and leaf.ndim != 2:
                raise ValueError(
                    f"config.optimizer.name='lars' scales whole matrices, and "
                    f"{'/'.join(names)} has {leaf.ndim} dimensions: it trains probes; use "
                    "'adamw'"
                )
        return ratio.init(params)

    return optax.GradientTransformation(init, ratio.update)
