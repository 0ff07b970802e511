"""Linear classifier on frozen features, compared with the same features before training.

As in the paper's linear evaluation (Table 13) the backbone sees the whole image under its causal
mask, and features are standardized without a learned scale. Here few labels of each class are used,
without augmentation, and the classifier is solved to convergence: within seconds it shows whether
pre-training works, but the number is not comparable with the paper's.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Array, Float, Int, PyTree

from darl_jax.data.base import Split, Subset
from darl_jax.evaluators.base import (
    Context,
    Evaluator,
    EvaluatorConfig,
    HostBatches,
    image_method,
    labeled,
)
from darl_jax.evaluators.features import Features, pooled_blocks, reader
from darl_jax.methods.base import Batch
from darl_jax.nn.patches import standardize
from darl_jax.nn.readout import POOLINGS

BASELINES = ("random", "pixels")

_MAX_ITERATIONS = 2000
_RECORDS_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class LinearProbeConfig(EvaluatorConfig):
    """Config of the linear probe.

    Attributes:
      labels_per_class: training examples of each class.
      seeds: number of disjoint training sets.
      pooling: of the tokens, one of readout.POOLINGS.
      mask: the backbone's attention, 'causal' or 'full'.
      relative_depth: depth of the block to read, 1 for the last one. Settled here: the middle one,
        near the peak of Figure 8b.
      l2: weight decay of the classifier, relative to the sum of the examples' losses.
      baselines: 'random', the backbone before training; 'pixels', the raw pixels of small images.
    """

    backbone_only: ClassVar[bool] = True

    kind: str = "linear_probe"
    labels_per_class: int = 10
    seeds: int = 5
    pooling: str = "mean"
    mask: Literal["causal", "full"] = "causal"
    relative_depth: float = 0.5
    l2: float = 1.0
    baselines: tuple[str, ...] = BASELINES

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(labels_per_class=1, seeds=1)
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling={self.pooling!r} is unknown; choose from {POOLINGS}")
        if not 0.0 < self.relative_depth <= 1.0:
            raise ValueError(f"relative_depth={self.relative_depth} must be in (0, 1]")
        if self.l2 <= 0.0:
            raise ValueError(f"l2={self.l2} must be positive")
        for name in self.baselines:
            if name not in BASELINES:
                raise ValueError(f"baselines has {name!r}; choose from {BASELINES}")

    def build(self, context: Context) -> "LinearProbe":
        """Chooses the training records by their labels."""
        image_method(context.method, self.kind)
        chosen = training_records(labeled(context.splits.train), self)
        held_out = labeled(context.splits.validation)
        return LinearProbe(
            self, context, training=context.batches(chosen), test=context.batches(held_out)
        )


def block_index(relative_depth: float, depth: int) -> int:
    """Index of the block at a relative depth in (0, 1], rounded up."""
    return math.ceil(relative_depth * depth) - 1


def training_records(split: Split, config: LinearProbeConfig) -> Split:
    """The first labels_per_class * seeds records of each class, in a fixed random order.

    Labels are read until each class has enough, which is a small part of a large dataset, and
    images are not decoded. Unreadable records are skipped.

    Raises:
      ValueError: the split has too few records of a class.
    """
    needed = config.labels_per_class * config.seeds
    found = np.zeros(len(split.class_names), np.int64)
    chosen: list[int] = []
    order = np.random.default_rng(0).permutation(len(split))
    read = 0
    while read < len(order) and found.min() < needed:
        some = order[read : read + _RECORDS_AT_ONCE]
        read += len(some)
        for number, label in zip(some.tolist(), split.labels(some).tolist(), strict=True):
            if label >= 0 and found[label] < needed:
                found[label] += 1
                chosen.append(number)
    if found.min() < needed:
        raise ValueError(
            f"{split.dataset}, split '{split.split}', has {found.min()} records of class "
            f"{found.argmin()}, and labels_per_class={config.labels_per_class} with seeds="
            f"{config.seeds} needs {needed} of each class"
        )
    logging.info("Linear probe: %d training records, %d labels read", len(chosen), read)
    return Subset(split, np.array(chosen, np.int64))


class Examples(NamedTuple):
    """Features and labels, in order of the records."""

    features: Float[np.ndarray, "example width"]
    labels: Int[np.ndarray, " example"]


class LinearProbe(Evaluator):
    """Accuracy of logistic regression on a backbone's features, over several training sets."""

    def __init__(
        self,
        config: LinearProbeConfig,
        context: Context,
        *,
        training: HostBatches,
        test: HostBatches,
    ):
        data = image_method(context.method, config.kind).data
        blocks = pooled_blocks(context, config.kind, pooling=config.pooling, mask=config.mask)

        def backbone(params: PyTree, batch: Batch) -> Float[Array, "1 batch width"]:
            found = blocks(params, batch)
            return found[block_index(config.relative_depth, len(found))][None]

        def pixels(params: None, batch: Batch) -> Float[Array, "1 batch pixel"]:
            del params
            images = standardize(batch["image"], data.mean, data.std)
            return images.reshape(1, len(images), -1)

        self._config = config
        self._read_backbone, self._read_pixels = reader(context, backbone), reader(context, pixels)
        self._initial_params = context.initial_params
        self._training, self._test = training, test
        self._baselines: dict[str, float] | None = None

    def run(self, params: PyTree, step: int) -> Iterator[tuple[str, float]]:
        """Yields {pretrained,random,pixels}/accuracy_{mean,std} over the training sets.

        Baselines are computed by the first call.

        Raises:
          ValueError: there is no example to train or test on.
        """
        del step
        yield from self._score("pretrained", self._read_backbone, params).items()
        if self._baselines is None:
            self._baselines = {}
            if "random" in self._config.baselines:
                initial = self._initial_params()
                self._baselines |= self._score("random", self._read_backbone, initial)
            if "pixels" in self._config.baselines:
                self._baselines |= self._score("pixels", self._read_pixels, None)
        yield from self._baselines.items()

    def summary(self, values: Mapping[str, float]) -> str:
        """Accuracies of the model and the baselines."""
        scores = "   ".join(
            f"{name} {values[f'{name}/accuracy_mean']:.3f} ± {values[f'{name}/accuracy_std']:.3f}"
            for name in ("pretrained", *self._config.baselines)
        )
        return (
            f"accuracy with {self._config.labels_per_class} labels a class, mean ± standard "
            f"deviation over {self._config.seeds} training sets:   {scores}"
        )

    def _score(
        self, name: str, read: Callable[[Any, HostBatches], Features], params: Any
    ) -> dict[str, float]:
        train, test = (
            Examples(found.block(0), found.labels)
            for found in (read(params, self._training), read(params, self._test))
        )
        accuracies = probe_accuracies(train, test, self._config)
        return {
            f"{name}/accuracy_mean": float(np.mean(accuracies)),
            f"{name}/accuracy_std": float(np.std(accuracies)),
        }


def probe_accuracies(train: Examples, test: Examples, config: LinearProbeConfig) -> list[float]:
    """Test accuracy of one classifier per training set.

    Training sets are disjoint and hold labels_per_class examples of each class, fewer if a record
    cannot be decoded. A classifier that does not converge counts, with a warning in the log.
    """
    # Imported here: it takes a second.
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    members = [np.flatnonzero(train.labels == label) for label in np.unique(train.labels)]
    accuracies = []
    for seed in range(config.seeds):
        rows = [of_class[seed :: config.seeds][: config.labels_per_class] for of_class in members]
        chosen = np.concatenate(rows)
        features = train.features[chosen].astype(np.float64)
        scaler = StandardScaler().fit(features)
        classifier = LogisticRegression(C=1.0 / config.l2, max_iter=_MAX_ITERATIONS)
        classifier.fit(scaler.transform(features), train.labels[chosen])
        if classifier.n_iter_.max() >= _MAX_ITERATIONS:
            logging.warning(
                "The linear probe did not converge in %d iterations; increase l2 from %g",
                _MAX_ITERATIONS,
                config.l2,
            )
        predicted = classifier.predict(scaler.transform(test.features.astype(np.float64)))
        accuracies.append(float(np.mean(predicted == test.labels)))
    return accuracies
