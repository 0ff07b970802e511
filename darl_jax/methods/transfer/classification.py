"""Classification: fine-tuning (Tables 3 and 9) and supervised training (Tables 1 and 10)."""

import dataclasses
import math
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from darl_jax.methods.base import Batch, Metrics, average
from darl_jax.methods.transfer.classifier import Classifier
from darl_jax.methods.transfer.labels import MASKS, LabelConfig, LabelMethod, labeled
from darl_jax.methods.transfer.mixing import MixingConfig, augment, soft_labels
from darl_jax.nn.attention import Mask
from darl_jax.nn.flops import linear
from darl_jax.nn.lora import add_adapters
from darl_jax.nn.patches import patchify, standardize
from darl_jax.nn.readout import POOLINGS


@dataclasses.dataclass(frozen=True)
class ClassificationConfig(LabelConfig):
    """Config of classification; the defaults are Table 9's without mixing of images.

    Attributes:
      mask: attention, 'full' or 'causal' (Table 3).
      pooling: readout of the 'last' token or the 'mean' over the patches (Table 3).
      norm_after_pooling: a new LayerNorm after the readout in place of the backbone's final norm
        (MAE).
      mixing: Mixup, CutMix and random erasing in training.
      freeze_patch_embedding: leave the patch embedding as it is (NEPA, arXiv 2512.16922).
    """

    name: str = "classification"
    mask: str = "full"
    pooling: str = "last"
    norm_after_pooling: bool = False
    mixing: MixingConfig = dataclasses.field(default_factory=MixingConfig)
    freeze_patch_embedding: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, valid in (("mask", MASKS), ("pooling", POOLINGS)):
            value = getattr(self, key)
            if value not in valid:
                raise ValueError(f"objective.{key}={value!r} is unknown; choose from {valid}")


@dataclasses.dataclass(frozen=True)
class Classification(LabelMethod[Classifier]):
    """Mean cross-entropy of soft labels in training; top-1 and top-5 accuracy in validation.

    Examples without a label (-1) are ignored.
    """

    objective: ClassificationConfig

    def init(self, rngs: nnx.Rngs) -> Classifier:
        model = Classifier(
            self.model,
            num_classes=self.num_classes,
            grid=self.trained_grid,
            channels=self.data.channels,
            norm_after_pooling=self.objective.norm_after_pooling,
            rngs=rngs,
        )
        add_adapters(model.backbone, self.objective.lora, rngs)
        return model

    def trains(self, path: tuple[str, ...]) -> bool:
        if self.objective.freeze_patch_embedding and path[:2] == ("backbone", "patch_embedding"):
            return False
        return super().trains(path)

    def flops(self) -> int:
        """Three forward passes, less the backward passes of parameters that are frozen."""
        head = linear(self.model.width, self.num_classes)
        if self.objective.lora.names:
            return self.adapted_step_flops(self.model.depth) + 3 * head
        frozen = 0
        if self.objective.freeze_patch_embedding:
            frozen = math.prod(self.grid) * linear(self.patch_dim, self.model.width)
        return 3 * (self.backbone_flops() + head) - 2 * frozen

    def loss(
        self, model: Classifier, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """Applies label smoothing, random erasing, mixup, CutMix and drop path."""
        augment_key, drop_key = jax.random.split(key)
        images = standardize(batch["image"], self.data.mean, self.data.std)
        targets = soft_labels(batch["label"], self.num_classes, self.objective.label_smoothing)
        images, targets = augment(augment_key, images, targets, self.objective.mixing)
        patches = patchify(images, self.model.patch_size)
        logits = self.logits(model, patches, batch, drop_key)
        loss = average(cross_entropy(logits, targets)[:, None], labeled(batch))
        return loss.compute(), {"loss": loss}

    def validate(self, model: Classifier, batch: Batch, key: PRNGKeyArray) -> Metrics:
        """Cross-entropy without smoothing, accuracy, and (with many classes) top-5 accuracy."""
        del key
        logits = self.logits(model, self.patches(batch), batch, None)
        return classification_metrics(logits, batch)

    def logits(
        self, model: Classifier, patches: Array, batch: Batch, key: PRNGKeyArray | None
    ) -> Float[Array, "batch class"]:
        """Logits of a batch with augmented patches; `key` is drop path's, None in validation."""
        return model(
            patches,
            mask=cast(Mask, self.objective.mask),
            pooling=self.objective.pooling,
            grid=self.batch_grid(batch),
            key=key,
        )


def cross_entropy(
    logits: Float[Array, "*shape class"], targets: Float[Array, "*shape class"]
) -> Float[Array, "*shape"]:
    """-sum_c targets_c log softmax(logits)_c, in float32."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def correct_within(
    logits: Float[Array, "*shape batch class"], labels: Int[Array, " batch"], k: int
) -> Float[Array, "*shape batch"]:
    """1 if fewer than k other classes have a logit not below the label's, else 0.

    Ties and NaN logits count against the model.
    """
    index = jnp.broadcast_to(jnp.maximum(labels, 0), logits.shape[:-1])[..., None]
    own = jnp.take_along_axis(logits, index, axis=-1)
    not_below = jnp.sum(~(logits < own), axis=-1)  # the label's own logit is one of them
    return (not_below <= k).astype(jnp.float32)


def classification_metrics(logits: Float[Array, "batch class"], batch: Batch) -> Metrics:
    """Loss, top-1 and (with more than 5 classes) top-5 accuracy of the labeled examples."""
    labels, counts = batch["label"], labeled(batch)
    targets = soft_labels(labels, logits.shape[-1], 0.0)
    metrics = {
        "loss": average(cross_entropy(logits, targets)[:, None], counts),
        "accuracy": average(correct_within(logits, labels, 1)[:, None], counts),
    }
    if logits.shape[-1] > 5:
        metrics["top5_accuracy"] = average(correct_within(logits, labels, 5)[:, None], counts)
    return metrics
