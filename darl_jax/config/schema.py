"""One run as frozen dataclasses."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from darl_jax.data.base import DataConfig, Split
from darl_jax.data.images.config import ImagesConfig
from darl_jax.evaluators import EvaluatorConfig
from darl_jax.evaluators.pictures import PicturesConfig
from darl_jax.evaluators.validation_loss import ValidationLossConfig
from darl_jax.methods import METHODS, Method, ObjectiveConfig
from darl_jax.methods.darl.mse import MSEConfig
from darl_jax.nn.vit import ViTConfig
from darl_jax.training.optimizers import AdamWConfig, OptimizerConfig
from darl_jax.training.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints: when one is written (at the end of a run, too) and which are kept."""

    every_steps: int = 1000  # steps between two checkpoints
    keep_last: int = 3  # newest checkpoints that are kept
    # Steps; checkpoints at multiples of it are never removed; 0 keeps none for ever.
    keep_every: int = 0
    timeout_seconds: int = 1800  # a save that takes longer ends the run with an error

    def __post_init__(self) -> None:
        _at_least(self, "checkpoint", every_steps=1, keep_last=1, keep_every=0, timeout_seconds=1)


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Initial parameters of a new run (interchange/loading.py lists the kinds of files)."""

    checkpoint: str = ""  # a run's workdir, an export, or another framework's file; empty for none
    step: int | None = None  # of a run's checkpoints; None for the newest
    drop: tuple[str, ...] = ()  # beginnings of paths that are not taken from it, such as 'head'


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Steps that the profiler traces."""

    first_step: int = 0  # first of them; 0 traces none
    num_steps: int = 5  # number of them

    def __post_init__(self) -> None:
        _at_least(self, "profile", first_step=0, num_steps=1)


def default_evaluators() -> dict[str, EvaluatorConfig]:
    """Validation loss and pictures of predictions."""
    return {"validation": ValidationLossConfig(), "pictures": PicturesConfig()}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One run. The defaults are pre-training by Table 8 with a ViT-B/16."""

    seed: int = 0  # of the parameters, the order of the data, and the noise
    batch_size: int = 4096  # examples of a step, over all devices
    total_epochs: float | None = 800.0  # length of the run; not read where total_steps is given
    total_steps: int | None = None  # length of the run in steps
    accumulation_steps: int = 1  # micro-batches of a step
    max_dropped_in_a_row: int = 10  # non-finite updates in a row after which the run stops
    log_every_steps: int = 50  # steps between two lines of metrics
    ema_decay: float = 0.0  # of an average of the parameters, which is evaluated; 0 keeps none
    init: InitConfig = dataclasses.field(default_factory=InitConfig)
    model: Any = dataclasses.field(default_factory=ViTConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=MSEConfig)
    data: DataConfig = dataclasses.field(default_factory=ImagesConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=AdamWConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    # By a name of one's own.
    evaluators: Mapping[str, EvaluatorConfig] = dataclasses.field(
        default_factory=default_evaluators
    )
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)

    def __post_init__(self) -> None:
        least = ("batch_size", "accumulation_steps", "max_dropped_in_a_row", "log_every_steps")
        _at_least(self, "", total_steps=1, **dict.fromkeys(least, 1))
        if self.total_steps is None and self.total_epochs is None:
            raise ValueError("total_epochs or config.total_steps must have a value")
        if self.total_epochs is not None and self.total_epochs <= 0:
            raise ValueError(f"total_epochs={self.total_epochs} must be positive")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay={self.ema_decay} must be in [0, 1)")
        _ = self.method  # checks that the groups fit each other

    @cached_property
    def method(self) -> Method:
        """The method that the groups objective, model and data describe."""
        return METHODS[self.objective.name][1](self.objective, self.model, self.data)

    def resolved(self, train: Split) -> "TrainConfig":
        """The config with every key that the training split decides."""
        return dataclasses.replace(self, objective=self.objective.resolved(train))

    def steps(self, records: int) -> int:
        """Length of a run over a training split of so many records."""
        if self.total_steps is not None:
            return self.total_steps
        assert self.total_epochs is not None
        return max(1, round(self.total_epochs * records / self.batch_size))


def _at_least(config: Any, group: str, **least: int) -> None:
    for key, value in least.items():
        given = getattr(config, key)
        if given is not None and given < value:
            name = f"{group}.{key}" if group else key
            raise ValueError(f"{name}={given} must be at least {value}")


# Keys that a resumed run may have otherwise than its checkpoint: they decide where it runs, how
# fast and how long, and the evaluators, but not the parameters of any step.
MAY_CHANGE_ON_RESUME = (
    "total_steps",
    "total_epochs",
    "max_dropped_in_a_row",
    "log_every_steps",
    "mesh",
    "checkpoint",
    "evaluators",
    "objective.sampler",
    "profile",
    "data.data_dir",
    "data.path",
    "data.num_workers",
    "data.worker_timeout_seconds",
    "data.on_bad_record",
    "model.attention",
    "model.remat",
    "model.unroll",
)
