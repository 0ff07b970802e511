"""Base of the methods that learn labels of images."""

import dataclasses
import math

import jax
import numpy as np
from jaxtyping import Array, Bool

from darl_jax.data.base import Features, Split
from darl_jax.methods.base import Batch, Model, ObjectiveConfig
from darl_jax.methods.images import ImageMethod
from darl_jax.nn.flops import adapted_step_flops
from darl_jax.nn.lora import LoRAConfig, check_names, is_adapter

MASKS = ("causal", "full")


@dataclasses.dataclass(frozen=True)
class LabelConfig(ObjectiveConfig):
    """Keys about labels.

    Attributes:
      num_classes: number of classes; None counts those of the training split.
      class_names: names of the classes in order; empty takes those of the training split.
      label_smoothing: share of the target spread over all classes in training.
      lora: adapters that are trained in place of the backbone's own parameters.
    """

    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    label_smoothing: float = 0.1
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"objective.label_smoothing={self.label_smoothing} must be in [0, 1)")
        if self.num_classes is not None and self.num_classes < 2:
            raise ValueError(f"objective.num_classes={self.num_classes} must be at least 2")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"objective.class_names has {len(self.class_names)} names and "
                f"config.objective.num_classes is {self.num_classes}"
            )

    def resolved(self, train: Split) -> "LabelConfig":
        """Fills in the number and the names of the split's classes."""
        names = tuple(train.class_names)
        if not names:
            raise ValueError(
                f"{train.dataset} has no labels, which config.objective.name={self.name!r} learns"
            )
        if len(names) == 1:
            raise ValueError(
                f"{train.dataset} has the one class {names[0]!r}, and config.objective.name="
                f"{self.name!r} needs at least 2: a folder of images has a sub-folder for each"
            )
        if self.num_classes not in (None, len(names)):
            raise ValueError(
                f"config.objective.num_classes={self.num_classes}, and {train.dataset} has "
                f"{len(names)}; None counts them"
            )
        if self.class_names and names != self.class_names:
            first = next(i for i in range(len(names)) if names[i] != self.class_names[i])
            raise ValueError(
                f"class {first} is {names[first]!r} in {train.dataset} and "
                f"{self.class_names[first]!r} in the config; config.objective.class_names=() "
                "takes labels by their numbers"
            )
        return dataclasses.replace(self, num_classes=len(names), class_names=names)


@dataclasses.dataclass(frozen=True)
class LabelMethod(ImageMethod[Model]):
    """Method on labeled images."""

    objective: LabelConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        check_names(self.objective.lora, self.model)

    @property
    def inputs(self) -> Features:
        """Images, and labels as class numbers (-1 for none)."""
        return {**super().inputs, "label": jax.ShapeDtypeStruct((), np.int32)}

    def trains(self, path: tuple[str, ...]) -> bool:
        frozen = path[0] == "backbone" and bool(self.objective.lora.names)
        return not frozen or is_adapter(path)

    def adapted_step_flops(self, depth: int) -> int:
        """FLOPs of a step through `depth` blocks of the backbone, whose adapters are trained."""
        return adapted_step_flops(
            self.model,
            self.objective.lora,
            patches=math.prod(self.grid),
            patch_dim=self.patch_dim,
            depth=depth,
        )

    @property
    def num_classes(self) -> int:
        """Number of classes. Raises ValueError if it is not known yet."""
        if self.objective.num_classes is None:
            raise ValueError(
                "config.objective.num_classes is not given, and no dataset is here to count them"
            )
        return self.objective.num_classes


def labeled(batch: Batch) -> Bool[Array, " batch"]:
    """Mask of the examples that have a label and are not padding."""
    return batch["mask"] & (batch["label"] >= 0)
