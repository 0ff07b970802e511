"""The door: an ml_collections ConfigDict becomes frozen dataclasses, or one clear error.

A config file starts from `default_config()`, which holds every key there is, and changes some:

    from darl_jax.config import default_config

    def get_config():
        config = default_config(objective="diffusion")
        config.model.width = 1024
        return config

Nothing behind this module sees a ConfigDict.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from darl_jax.data import DATA
from darl_jax.data.images.config import ImagesConfig
from darl_jax.evaluators.knn import KnnConfig
from darl_jax.evaluators.likelihood import LikelihoodConfig, check_objective
from darl_jax.evaluators.linear_probe import ProbeConfig
from darl_jax.evaluators.samples import SamplesConfig
from darl_jax.methods import OBJECTIVES, ObjectiveConfig, PatchObjective
from darl_jax.methods.darl.patch_decoders import PatchDecoderConfig
from darl_jax.methods.darl.samplers import SamplerConfig
from darl_jax.nn.positions import Grid
from darl_jax.nn.vit import ViTConfig
from darl_jax.training.optimizers import OPTIMIZERS, AdamWConfig, OptimizerConfig
from darl_jax.training.sharding import MeshConfig

VIT_SIZES = {
    "Ti": ViTConfig(width=192, depth=12, num_heads=3, mlp_dim=768),
    "S": ViTConfig(width=384, depth=12, num_heads=6, mlp_dim=1536),
    "B": ViTConfig(width=768, depth=12, num_heads=12, mlp_dim=3072),
    "L": ViTConfig(width=1024, depth=24, num_heads=16, mlp_dim=4096),
    "H": ViTConfig(width=1280, depth=32, num_heads=16, mlp_dim=5120),
}


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key and what would be right."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When a checkpoint is written (at the end of a run, too) and which are kept."""

    every_steps: int = 1000
    keep_last: int = 3
    keep_every: int = 0  # steps; checkpoints at multiples of it are never removed; 0 = none
    timeout_seconds: int = 1800  # a save that takes longer ends the run with an error


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is asked of the model while it trains and at the end; every_steps = 0 is never."""

    loss_every_steps: int = 5000
    pictures_every_steps: int = 5000
    probe_every_steps: int = 0
    knn_every_steps: int = 0
    likelihood_every_steps: int = 0
    samples_every_steps: int = 0
    num_pictures: int = 8
    probe: ProbeConfig = dataclasses.field(default_factory=ProbeConfig)
    knn: KnnConfig = dataclasses.field(default_factory=KnnConfig)
    likelihood: LikelihoodConfig = dataclasses.field(default_factory=LikelihoodConfig)
    samples: SamplesConfig = dataclasses.field(default_factory=SamplesConfig)


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Which checkpoint a new run's parameters come from (interchange/loading.py says which kinds).

    Attributes:
      checkpoint: a run's workdir, an export, or another framework's file; empty for none.
      step: of a run's checkpoints; None for the newest.
      drop: beginnings of paths that are not taken from it, such as 'head'.
    """

    checkpoint: str = ""
    step: int | None = None
    drop: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Which steps are traced by the profiler."""

    first_step: int = 0  # 0 = none
    num_steps: int = 5


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One run. The defaults are pre-training by Table 8 with a ViT-B/16."""

    seed: int = 0
    batch_size: int = 4096  # examples of a step, over all devices
    total_epochs: float = 800.0
    total_steps: int | None = None  # where it is given, total_epochs is not read
    accumulation_steps: int = 1  # micro-batches of a step
    max_dropped_in_a_row: int = 10  # non-finite updates after which the run stops
    log_every_steps: int = 50
    log_examples: bool = False  # write the records of each step to <workdir>/examples
    ema_decay: float = 0.0  # of an average of the parameters, which is evaluated; 0 keeps none
    init: InitConfig = dataclasses.field(default_factory=InitConfig)
    model: ViTConfig = dataclasses.field(default_factory=ViTConfig)
    patch_decoder: PatchDecoderConfig = dataclasses.field(default_factory=PatchDecoderConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=OBJECTIVES["mse"][0])
    sampler: SamplerConfig = dataclasses.field(default_factory=SamplerConfig)
    data: ImagesConfig = dataclasses.field(default_factory=ImagesConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=AdamWConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)

    def __post_init__(self) -> None:
        positive = {
            "batch_size": self.batch_size,
            "accumulation_steps": self.accumulation_steps,
            "max_dropped_in_a_row": self.max_dropped_in_a_row,
            "log_every_steps": self.log_every_steps,
            "checkpoint.every_steps": self.checkpoint.every_steps,
            "checkpoint.keep_last": self.checkpoint.keep_last,
            "checkpoint.timeout_seconds": self.checkpoint.timeout_seconds,
            "evaluation.num_pictures": self.evaluation.num_pictures,
            "profile.num_steps": self.profile.num_steps,
        }
        for key, value in positive.items():
            if value < 1:
                raise ConfigError(f"config.{key}={value} must be at least 1")
        not_negative = {
            "checkpoint.keep_every": self.checkpoint.keep_every,
            "evaluation.loss_every_steps": self.evaluation.loss_every_steps,
            "evaluation.pictures_every_steps": self.evaluation.pictures_every_steps,
            "evaluation.probe_every_steps": self.evaluation.probe_every_steps,
            "evaluation.knn_every_steps": self.evaluation.knn_every_steps,
            "evaluation.likelihood_every_steps": self.evaluation.likelihood_every_steps,
            "evaluation.samples_every_steps": self.evaluation.samples_every_steps,
            "profile.first_step": self.profile.first_step,
        }
        for key, value in not_negative.items():
            if value < 0:
                raise ConfigError(f"config.{key}={value} must not be negative; 0 is never")
        if self.total_steps is not None and self.total_steps < 1:
            raise ConfigError(f"config.total_steps={self.total_steps} must be at least 1")
        if self.total_steps is None and self.total_epochs <= 0:
            raise ConfigError(f"config.total_epochs={self.total_epochs} must be positive")
        if self.data.image_size % self.model.patch_size:
            raise ConfigError(
                f"config.model.patch_size={self.model.patch_size} must divide "
                f"config.data.image_size={self.data.image_size}"
            )
        for grid in (self.grid, self.trained_grid):
            self.model.order.check(grid)
        if self.model.two_stream and not self.predicts_patches:
            raise ConfigError(
                "config.model.two_stream must be False with config.objective.name="
                f"{self.objective.name!r}: the query stream asks for patches, and transfer takes "
                "the content stream alone (in raster order: config.model.order.name='raster')"
            )
        if not 0.0 <= self.ema_decay < 1.0:
            raise ConfigError(f"config.ema_decay={self.ema_decay} must be in [0, 1)")
        for name in ("pictures", "samples"):
            every = getattr(self.evaluation, f"{name}_every_steps")
            if every and not self.predicts_patches:
                raise ConfigError(
                    f"config.evaluation.{name}_every_steps={every} must be 0 with "
                    f"config.objective.name={self.objective.name!r}: the pictures are of predicted "
                    "patches"
                )
        if self.evaluation.samples_every_steps and getattr(
            self.objective, "normalise_target", False
        ):
            raise ConfigError(
                f"config.evaluation.samples_every_steps={self.evaluation.samples_every_steps} must "
                "be 0 with config.objective.normalise_target=True: patches are predicted up to "
                "their own mean and variance, which an image that is not there does not tell"
            )
        if self.evaluation.likelihood_every_steps:
            try:
                check_objective(self.objective)
            except ValueError as error:
                raise ConfigError(
                    "config.evaluation.likelihood_every_steps="
                    f"{self.evaluation.likelihood_every_steps} must be 0 where config.{error}"
                ) from error

    @property
    def grid(self) -> Grid:
        """(rows, columns) of an image's patches."""
        side = self.data.image_size // self.model.patch_size
        return side, side

    @property
    def trained_grid(self) -> Grid:
        """(rows, columns) of patches of the images that positions are counted on."""
        side = (self.model.trained_image_size or self.data.image_size) // self.model.patch_size
        return side, side

    @property
    def tokens(self) -> int:
        """Length of the sequence: the start token, and all patches but a last one to predict."""
        return math.prod(self.grid) + (0 if self.predicts_patches else 1)

    @property
    def predicts_patches(self) -> bool:
        """Whether patches are learnt, and not labels."""
        return issubclass(OBJECTIVES[self.objective.name][1], PatchObjective)


# Keys that a resumed run may have otherwise than its checkpoint: they say where it runs, how fast
# and how long, and what is watched, not what is learnt from which examples in which order.
MAY_CHANGE_ON_RESUME = (
    "total_steps",
    "total_epochs",
    "max_dropped_in_a_row",
    "log_every_steps",
    "log_examples",
    "mesh",
    "checkpoint",
    "evaluation",
    "sampler",
    "profile",
    "data.data_dir",
    "data.num_workers",
    "data.worker_timeout_seconds",
    "data.on_bad_record",
    "model.attention",
    "model.remat",
    "model.unroll",
)


def default_config(
    objective: str = "mse", size: str = "B", optimizer: str = "adamw"
) -> ml_collections.ConfigDict:
    """Every key with its default, for a config file to change.

    Args:
      objective: a name in OBJECTIVES, which decides the keys under `config.objective`.
      size: a name in VIT_SIZES.
      optimizer: a name in OPTIMIZERS, which decides the keys under `config.optimizer`.
    """
    objective_config, cls = OBJECTIVES[objective]
    evaluation = EvaluationConfig()
    if not issubclass(cls, PatchObjective):
        evaluation = dataclasses.replace(evaluation, pictures_every_steps=0)
    config = TrainConfig(
        model=VIT_SIZES[size],
        objective=objective_config(),
        optimizer=OPTIMIZERS[optimizer](),
        evaluation=evaluation,
    )
    return _to_config_dict(config)


def _to_config_dict(value: Any) -> ml_collections.ConfigDict:
    entries = {}
    types_of = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        entry = getattr(value, field.name)
        if dataclasses.is_dataclass(entry):
            entry = _to_config_dict(entry)
        elif entry is None:  # A placeholder knows the type that the key may get.
            entry = config_dict.placeholder(typing.get_args(types_of[field.name])[0])
        entries[field.name] = entry
    return ml_collections.ConfigDict(entries)


def load(config: ml_collections.ConfigDict, *, begins: bool = True) -> TrainConfig:
    """The run that a config describes.

    Args:
      config: from a config file.
      begins: whether a run may begin with it; if not, `init.checkpoint` need not have a value.

    Raises:
      ConfigError: a key is unknown, missing or of the wrong type, or a value is out of its range.
    """
    values = config.to_dict()
    if not begins and isinstance(values.get("init"), dict):
        values["init"]["checkpoint"] = values["init"].get("checkpoint") or ""
    classes = {
        "objective": _named(
            values, "objective", {key: each[0] for key, each in OBJECTIVES.items()}
        ),
        "data": _named(values, "data", DATA),
        "optimizer": _named(values, "optimizer", OPTIMIZERS),
    }
    try:
        return _from_mapping(TrainConfig, values, "config", classes)
    except ConfigError:
        raise
    except ValueError as error:
        # The dataclasses behind the door name their keys without the prefix.
        raise ConfigError(f"config.{error}") from error


def _named(values: Mapping[str, Any], group: str, classes: Mapping[str, type]) -> type:
    """The class that a group's key `name` stands for. Raises ConfigError."""
    entries = values.get(group, {})
    if not isinstance(entries, Mapping):
        raise ConfigError(f"config.{group}={entries!r} must be a group of keys")
    name = str(entries.get("name"))
    if name not in classes:
        raise ConfigError(f"config.{group}.name={name!r} is unknown; choose from {[*classes]}")
    return classes[name]


def _from_mapping(
    cls: type, values: Mapping[str, Any], path: str, classes: Mapping[str, type] = {}
) -> Any:
    """`values` as the dataclass `cls`; `classes` decides between several for a key."""
    types_of = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, sorted(fields), n=1, cutoff=0.0)
            raise ConfigError(f"{path}.{key} is no key; did you mean {path}.{near[0]}?")
    for key in sorted(fields - set(values)):
        raise ConfigError(f"{path}.{key} is missing; start from darl_jax.config.default_config()")
    entries = {}
    for key, value in values.items():
        expected = classes.get(key, types_of[key])
        where = f"{path}.{key}"
        if dataclasses.is_dataclass(expected):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}={value!r} must be a group of keys")
            entries[key] = _from_mapping(typing.cast(type, expected), value, where)
        else:
            entries[key] = _checked(expected, value, where)
    return cls(**entries)


def _checked(expected: Any, value: Any, where: str) -> Any:
    """`value` if it has the expected type; whole numbers serve as floats, lists as tuples."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if value is None and type(None) not in arguments:
        raise ConfigError(f"{where} has no value: give --{where}=...")
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where}={value!r} is unknown; choose from {list(arguments)}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _checked(arguments[0], value, where)
    if origin is tuple and isinstance(value, (tuple, list)):
        if arguments[-1] is not ... and len(value) != len(arguments):
            raise ConfigError(f"{where}={value!r} must have {len(arguments)} entries")
        return tuple(_checked(arguments[0], entry, where) for entry in value)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is tuple or type(value) is not expected:
        name = expected.__name__ if isinstance(expected, type) else str(expected)
        raise ConfigError(f"{where}={value!r} is a {type(value).__name__}; it must be a {name}")
    return value


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """A config as nested dicts of JSON values, as checkpoints keep it."""
    return dataclasses.asdict(config)
