"""Probes at every depth of a frozen backbone (Figure 8b)."""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from darl_jax.methods.base import Batch, Metrics, average
from darl_jax.methods.transfer.classification import correct_within, cross_entropy
from darl_jax.methods.transfer.flops import probe_flops
from darl_jax.methods.transfer.labels import LabelMethod, labeled
from darl_jax.methods.transfer.mixing import soft_labels
from darl_jax.methods.transfer.probe_model import Probes, ProbesConfig

__all__ = ["ProbeMethod", "ProbesConfig", "block_name"]


def block_name(metric: str, block: int) -> str:
    """Name of a block's metric; blocks are counted from 1."""
    return f"{metric}/block_{block:02d}"


@dataclasses.dataclass(frozen=True)
class ProbeMethod(LabelMethod[Probes]):
    """Cross-entropy of all probes in training; accuracy of each in validation.

    The loss is the sum over probes, so that each has the gradient it would have alone; the metric
    is the mean. Examples without a label (-1) are ignored, in batch normalization too.
    """

    stacked: ClassVar[str | None] = "probes"

    objective: ProbesConfig

    def init(self, rngs: nnx.Rngs) -> Probes:
        return Probes(
            self.model,
            self.objective,
            num_classes=self.num_classes,
            grid=self.trained_grid,
            channels=self.data.channels,
            rngs=rngs,
        )

    def trains(self, path: tuple[str, ...]) -> bool:
        return path[0] != "backbone"

    def flops(self) -> int:
        """Forward pass of the backbone, and three times those of the probes."""
        probe = probe_flops(
            kind=self.objective.kind,
            width=self.model.width,
            num_heads=self.model.num_heads,
            patches=math.prod(self.grid),
            num_classes=self.num_classes,
        )
        return self.backbone_flops() + 3 * self.model.depth * probe

    def loss(
        self, model: Probes, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss of smoothed labels; nothing is random."""
        del key
        counts = labeled(batch)
        logits, term = model(
            self.patches(batch),
            mask=self.objective.mask,
            grid=self.batch_grid(batch),
            counts=counts,
        )
        losses = _losses(logits, batch, self.objective.label_smoothing)
        loss = average(losses[..., None], counts)
        accuracy = average(correct_within(logits, batch["label"], 1)[..., None], counts)
        return len(logits) * loss.compute() + term, {"loss": loss, "accuracy": accuracy}

    def validate(self, model: Probes, batch: Batch, key: PRNGKeyArray) -> Metrics:
        """Loss (without smoothing) and accuracy by block, with running statistics; mean loss."""
        del key
        counts, labels = labeled(batch), batch["label"]
        logits, _ = model(
            self.patches(batch), mask=self.objective.mask, grid=self.batch_grid(batch)
        )
        values = {
            "loss": _losses(logits, batch, 0.0),
            "accuracy": correct_within(logits, labels, 1),
        }
        if logits.shape[-1] > 5:
            values["top5_accuracy"] = correct_within(logits, labels, 5)
        metrics = {"loss": average(values["loss"][..., None], counts)}
        for name, value in values.items():
            for i, of_block in enumerate(value, start=1):
                metrics[block_name(name, i)] = average(of_block[:, None], counts)
        return metrics


def _losses(
    logits: Float[Array, "depth batch class"], batch: Batch, smoothing: float
) -> Float[Array, "depth batch"]:
    targets = soft_labels(batch["label"], logits.shape[-1], smoothing)
    return cross_entropy(logits, jnp.broadcast_to(targets, logits.shape))
