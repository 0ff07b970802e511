"""The contract between a training run and a method.

A method owns a model, its inputs (features of an example) and its loss. A run knows nothing else
about it: `train.py` builds the method from the config, compiles `loss` into a step and calls
`validate` on held-out examples.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from clu.metrics import Average
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree, Shaped

from darl_jax.data.base import Features, Split
from darl_jax.nn.dtypes import at_least_float32

# Parameters are sharded by the table in training/sharding.py, not by Flax at initialization.
nnx.use_eager_sharding(False)

Batch = Mapping[str, Shaped[Array, "batch ..."]]
Metrics = dict[str, Average]
Observed = dict[str, Shaped[Array, "batch ..."]]
Model = TypeVar("Model", bound=nnx.Module)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Base of the configs of `config.objective`; `name` decides the method."""

    name: str = ""

    def resolved(self, train: Split) -> "ObjectiveConfig":
        """Fills in the keys that the training split decides, such as the number of classes.

        Raises:
          ValueError: the split does not suit the objective.
        """
        del train
        return self


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC, Generic[Model]):
    """A training method: a model, its inputs and its loss.

    Attributes:
      objective, model, data: the config's groups of these names.

    Raises:
      ValueError: the groups do not fit each other; the message names the key.
    """

    objective: Any
    model: Any
    data: Any

    # Name in MODELS that `default_config` begins with where none is given.
    default_model: ClassVar[str] = "vit"
    # Keys of config.model that are the method's own, which `default_config` begins with.
    model_defaults: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        check_inputs(self.inputs, self.data.features, f"config.objective.name={self.name!r}")

    @property
    def name(self) -> str:
        """The method's name in METHODS."""
        return self.objective.name

    @property
    @abc.abstractmethod
    def inputs(self) -> Features:
        """Features of one example that `loss` reads."""

    @abc.abstractmethod
    def init(self, rngs: nnx.Rngs) -> Model:
        """Builds a model with initial parameters. Raises ValueError if the config is incomplete."""

    @abc.abstractmethod
    def loss(
        self, model: Model, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """Training loss, a mean over the examples with `batch['mask']`, and metrics.

        `metrics['loss']` is the loss as a mergeable mean, and its count the loss's weight where
        batches are put together: examples, or targets that differ in number from batch to batch.
        """

    def observe(
        self, model: Model, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics, Observed]:
        """Loss and metrics of a training step, and what `track` reads of each example.

        `loss` and nothing unless overridden; the method then follows statistics of the examples.
        """
        return *self.loss(model, batch, key), {}

    def track(self, params: PyTree, observed: Observed) -> PyTree:
        """Parameters after a step with its statistics brought up to date, in untrained ones.

        Being parameters they are in every checkpoint, and as they are not trained they are neither
        stepped nor averaged over time. `observed` has the examples of the whole batch in order.
        """
        del observed
        return params

    def validate(self, model: Model, batch: Batch, key: PRNGKeyArray) -> Metrics:
        """Metrics of held-out examples: those of training unless overridden.

        Methods that train on augmented examples or smoothed labels measure on the originals.
        """
        return self.loss(model, batch, key)[1]

    def conclude(self, values: Mapping[str, float]) -> Mapping[str, float]:
        """Further numbers from `validate`'s means over a whole split."""
        del values
        return {}

    @abc.abstractmethod
    def flops(self) -> int:
        """Model FLOPs of one example in a training step, by the convention of nn/flops.py."""

    def trains(self, path: tuple[str, ...]) -> bool:
        """True if the parameter at a path is trained; the others stay as they are."""
        del path
        return True

    @property
    def stacked(self) -> str | None:
        """First name of parameters whose leading axis counts models trained side by side."""
        return None

    @property
    def variants(self) -> Sequence[Mapping[str, float]]:
        """Optimizer's keys `learning_rate` and `weight_decay` of each slice of the stack.

        A key that is not there has the optimizer's own value; empty where no slice changes any.
        """
        return ()

    @property
    def num_layers(self) -> int:
        """Layers that layer-wise decay distinguishes, the last one without decay; 0 for none."""
        return 0

    def layer_of(self, path: tuple[str, ...]) -> int | tuple[int, ...]:
        """Layer of a parameter, from 0 to num_layers - 1, or of each entry of its first axis.

        Raises:
          ValueError: the method has no layers.
        """
        del path
        raise ValueError(f"config.objective.name={self.name!r} has no layers to decay over")

    def check_mesh(self, mesh: Mesh) -> None:
        """Checks that the model can be split over a mesh. Raises ValueError if it cannot."""
        del mesh

    def kernels(self, device: jax.Device) -> Mapping[str, str]:
        """Kernels that run on a device, by operation, for the log.

        Raises:
          ValueError: a kernel that the config names does not run there.
        """
        del device
        return {}


def check_inputs(inputs: Features, features: Features, reader: str) -> None:
    """Checks that a kind of data provides all inputs.

    Raises:
      ValueError: a feature is missing, or has another shape or dtype; `reader` begins the message.
    """
    for name, wanted in inputs.items():
        found = features.get(name)
        if found is None:
            raise ValueError(
                f"{reader} reads the feature {name!r}, and config.data makes {', '.join(features)}"
            )
        if (found.shape, np.dtype(found.dtype)) != (wanted.shape, np.dtype(wanted.dtype)):
            raise ValueError(
                f"{reader} reads {name!r} as {wanted.dtype}{list(wanted.shape)}, and config.data "
                f"makes {found.dtype}{list(found.shape)}"
            )


def average(
    values: Float[Array, "*shape batch item"],
    mask: Bool[Array, " batch"],
    where: Bool[Array, "*shape batch item"] | None = None,
) -> Average:
    """Mergeable mean over items (such as patches) of the unmasked examples."""
    weight = jnp.broadcast_to(mask[:, None], values.shape)
    if where is not None:
        weight = weight & where
    # `where`, not a product: padding may give non-finite values.
    total = jnp.sum(jnp.where(weight, at_least_float32(values), 0.0))
    return Average(total=total, count=jnp.sum(weight, dtype=total.dtype))
