"""A kind of data, a method and an evaluator as a user would add them: integers and their parity."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from darl_jax.data.base import DataConfig, Splits, fingerprint_of
from darl_jax.evaluators.base import Context, Evaluator, EvaluatorConfig
from darl_jax.methods.base import Features, Method, ObjectiveConfig, average

BITS = 6


# --- data ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class IntegersConfig(DataConfig):
    """The integers below `count`."""

    name: str = "integers"
    num_workers: int = 0
    count: int = 48

    @property
    def features(self) -> Features:
        return {"number": jax.ShapeDtypeStruct((), np.int32)}

    def open(self) -> Splits:
        return Splits(Integers("train", self.count), Integers("validation", self.count // 2))


@dataclasses.dataclass(frozen=True)
class Integers:
    split: str
    count: int
    dataset = "integers"
    class_names = ()
    in_memory = True

    def __len__(self):
        return self.count

    def fingerprint(self):
        return fingerprint_of(self.dataset, str(self.count))

    def train_examples(self, index, epoch, seed):
        del epoch, seed
        return {"number": index.astype(np.int32)}

    def eval_examples(self, index):
        return {"number": index.astype(np.int32)}

    def labels(self, index):
        return np.full(len(index), -1, np.int32)

    def describe(self, index):
        return f"integers {index.tolist()}"


# --- method --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DenseConfig:
    """One dense layer."""

    name: str = "dense"
    bits: int = BITS


@dataclasses.dataclass(frozen=True)
class ParityConfig(ObjectiveConfig):
    """Whether a number is odd."""

    name: str = "parity"


@dataclasses.dataclass(frozen=True)
class Parity(Method[nnx.Linear]):
    model: DenseConfig
    data: IntegersConfig

    @property
    def inputs(self):
        return {"number": jax.ShapeDtypeStruct((), np.int32)}

    def init(self, rngs):
        return nnx.Linear(self.model.bits, 1, rngs=rngs)

    def loss(self, model, batch, key):
        del key
        bits = (batch["number"][:, None] >> jnp.arange(self.model.bits)) & 1
        logits = model(bits.astype(jnp.float32))
        odd = (batch["number"] % 2)[:, None]
        loss = average(optax.sigmoid_binary_cross_entropy(logits, odd), batch["mask"])
        right = average(((logits > 0) == odd).astype(jnp.float32), batch["mask"])
        return loss.compute(), {"loss": loss, "accuracy": right}

    def flops(self):
        return 3 * 2 * self.model.bits


# --- evaluator -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LargestWeightConfig(EvaluatorConfig):
    """The bit that the model listens to most."""

    kind: str = "largest_weight"

    def build(self, context: Context) -> "LargestWeight":
        return LargestWeight(len(context.splits.train))


class LargestWeight(Evaluator):
    def __init__(self, records: int):
        self._records = records

    def run(self, params, step: int) -> Iterator[tuple[str, float | np.ndarray]]:
        del step
        kernel = np.asarray(params["kernel"])[:, 0]
        yield "bit", float(np.argmax(np.abs(kernel)))
        yield "records", float(self._records)
        yield "weights", np.zeros((8, 8, 3), np.uint8)
