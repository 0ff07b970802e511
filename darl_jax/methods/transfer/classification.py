"""Classification: fine-tuning (Tables 3 and 9) and supervised training (Tables 1 and 10)."""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from darl_jax.methods.base import Batch, Metrics, Objective, average
from darl_jax.methods.transfer.classifier import Classifier
from darl_jax.methods.transfer.mixing import MixingConfig, augment, soft_labels
from darl_jax.nn.attention import Mask
from darl_jax.nn.patches import patchify, standardise
from darl_jax.nn.readout import POOLINGS

MASKS = ("causal", "full")


@dataclasses.dataclass(frozen=True)
class ClassificationConfig:
    """How an image becomes a label; the defaults are Table 9's without its mixing of images."""

    name: str = "classification"
    num_classes: int | None = None  # None: as many as the training split has
    mask: str = "full"  # attention: 'full' or 'causal' (Table 3)
    pooling: str = "last"  # 'last' token or 'mean' over the patches (Table 3)
    label_smoothing: float = 0.1
    mixing: MixingConfig = dataclasses.field(default_factory=MixingConfig)

    def __post_init__(self) -> None:
        for key, valid in (("mask", MASKS), ("pooling", POOLINGS)):
            value = getattr(self, key)
            if value not in valid:
                raise ValueError(f"objective.{key}={value!r} is unknown; choose from {valid}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"objective.label_smoothing={self.label_smoothing} must be in [0, 1)")
        if self.num_classes is not None and self.num_classes < 2:
            raise ValueError(f"objective.num_classes={self.num_classes} must be at least 2")


@dataclasses.dataclass(frozen=True)
class Classification(Objective[Classifier]):
    """Mean cross-entropy of soft labels in training; top-1 and top-5 accuracy in validation.

    Examples without a label (-1) count nothing.
    """

    config: ClassificationConfig

    def __call__(
        self, model: Classifier, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """Smooths the labels, erases, mixes and drops paths, as the config says."""
        augment_key, drop_key = jax.random.split(key)
        images = standardise(batch["image"], self.mean, self.std)
        classes = model.head.out_features
        targets = soft_labels(batch["label"], classes, self.config.label_smoothing)
        images, targets = augment(augment_key, images, targets, self.config.mixing)
        logits = self._logits(model, patchify(images, self.patch_size), batch, drop_key)
        loss = average(cross_entropy(logits, targets)[:, None], labelled(batch))
        return loss.compute(), {"loss": loss}

    def validate(self, model: Classifier, batch: Batch, key: PRNGKeyArray) -> Metrics:
        """Cross-entropy of the labels themselves, accuracy, and top-5 accuracy of many classes."""
        del key
        logits = self._logits(model, self.patches(batch), batch, None)
        return classification_metrics(logits, batch)

    def _logits(
        self, model: Classifier, patches: Array, batch: Batch, key: PRNGKeyArray | None
    ) -> Float[Array, "batch class"]:
        return model(
            patches,
            mask=cast(Mask, self.config.mask),
            pooling=self.config.pooling,
            grid=self.grid(batch),
            key=key,
        )


def labelled(batch: Batch) -> Bool[Array, " batch"]:
    """Which examples count: those that are no padding and have a label."""
    return batch["mask"] & (batch["label"] >= 0)


def cross_entropy(
    logits: Float[Array, "*shape class"], targets: Float[Array, "*shape class"]
) -> Float[Array, "*shape"]:
    """-sum_c targets_c log softmax(logits)_c, in float32."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def correct_within(
    logits: Float[Array, "*shape batch class"], labels: Int[Array, " batch"], k: int
) -> Float[Array, "*shape batch"]:
    """1 where fewer than k other classes have a logit that is not below the label's, else 0.

    Ties count against the model, and so do logits that are not numbers.
    """
    index = jnp.broadcast_to(jnp.maximum(labels, 0), logits.shape[:-1])[..., None]
    own = jnp.take_along_axis(logits, index, axis=-1)
    not_below = jnp.sum(~(logits < own), axis=-1)  # the label's own logit is one of them
    return (not_below <= k).astype(jnp.float32)


def classification_metrics(logits: Float[Array, "batch class"], batch: Batch) -> Metrics:
    """Loss, top-1 and (with more than 5 classes) top-5 accuracy of the labelled examples."""
    labels, counts = batch["label"], labelled(batch)
    targets = soft_labels(labels, logits.shape[-1], 0.0)
    metrics = {
        "loss": average(cross_entropy(logits, targets)[:, None], counts),
        "accuracy": average(correct_within(logits, labels, 1)[:, None], counts),
    }
    if logits.shape[-1] > 5:
        metrics["top5_accuracy"] = average(correct_within(logits, labels, 5)[:, None], counts)
    return metrics
