"""Probes at every depth: how much each block of a frozen backbone knows of the labels (Fig. 8b)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from darl_jax.methods.base import Batch, Metrics, Objective, average
from darl_jax.methods.transfer.classification import correct_within, cross_entropy, labelled
from darl_jax.methods.transfer.mixing import soft_labels
from darl_jax.methods.transfer.probe_model import Probes, ProbesConfig

__all__ = ["ProbeObjective", "ProbesConfig", "block_name"]


def block_name(metric: str, block: int) -> str:
    """What a block's metric is called; blocks are counted from 1."""
    return f"{metric}/block_{block:02d}"


@dataclasses.dataclass(frozen=True)
class ProbeObjective(Objective[Probes]):
    """Cross-entropy of all probes in training; accuracy of each in validation.

    The loss is the sum over probes of their means over examples, so that each has the gradient that
    it would have alone. Reported is the mean over probes. Examples without a label (-1) count
    nothing, nor in the statistics of batch normalisation.
    """

    frozen: ClassVar[tuple[str, ...]] = ("backbone",)
    stacked: ClassVar[str | None] = "probes"

    config: ProbesConfig

    def __call__(
        self, model: Probes, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss of smoothed labels; nothing is random, so the key is not used."""
        del key
        counts = labelled(batch)
        logits, term = model(
            self.patches(batch), mask=self.config.mask, grid=self.grid(batch), counts=counts
        )
        losses = _losses(logits, batch, self.config.label_smoothing)
        loss = average(losses[..., None], counts)
        accuracy = average(correct_within(logits, batch["label"], 1)[..., None], counts)
        return len(logits) * loss.compute() + term, {"loss": loss, "accuracy": accuracy}

    def validate(self, model: Probes, batch: Batch, key: PRNGKeyArray) -> Metrics:
        """Loss of the labels themselves, and accuracy, by block, with the running statistics.

        Of the loss there is a mean over blocks too. Which block is best is not told here: it is
        known when all examples have been counted.
        """
        del key
        counts, labels = labelled(batch), batch["label"]
        logits, _ = model(self.patches(batch), mask=self.config.mask, grid=self.grid(batch))
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
