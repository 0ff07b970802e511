"""Probes on blocks of a frozen backbone (Figure 8b), one or a grid of them on each."""

import dataclasses
import math
from collections.abc import Iterator, Mapping

import jax.numpy as jnp
from absl import logging
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from darl_jax.methods.base import Batch, Metrics, average
from darl_jax.methods.transfer.classification import correct_within, cross_entropy
from darl_jax.methods.transfer.flops import probe_flops
from darl_jax.methods.transfer.labels import LabelMethod, labeled
from darl_jax.methods.transfer.mixing import soft_labels
from darl_jax.methods.transfer.probe_model import Probes, ProbesConfig
from darl_jax.nn.lora import add_adapters, is_adapter

__all__ = ["ProbeMethod", "ProbesConfig", "block_name"]


def block_name(metric: str, block: int) -> str:
    """Name of a block's metric; blocks are counted from 1."""
    return f"{metric}/block_{block:02d}"


def variant_name(variant: Mapping[str, float]) -> str:
    """End of a metric's name for a probe of a grid; empty without one."""
    short = {"learning_rate": "lr", "weight_decay": "wd"}
    words = [f"{short[key]}_{value:g}" for key, value in variant.items()]
    return f"/{'_'.join(words)}" if words else ""


@dataclasses.dataclass(frozen=True)
class ProbeMethod(LabelMethod[Probes]):
    """Cross-entropy of all probes in training; accuracy of each in validation.

    The loss is the sum over probes, so that each has the gradient it would have alone; the metric
    is the mean. Examples without a label (-1) are ignored, in batch normalization too.
    """

    objective: ProbesConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if max(self.objective.blocks, default=0) > self.model.depth:
            raise ValueError(
                f"objective.blocks={self.objective.blocks} must be blocks of the backbone, which "
                f"has config.model.depth={self.model.depth}"
            )
        if self.objective.lora.names and len(self.blocks) * len(self.objective.variants) > 1:
            raise ValueError(
                "objective.lora trains adapters for one probe: name one block in "
                "config.objective.blocks, and leave learning_rates and weight_decays empty"
            )

    @property
    def stacked(self) -> str | None:
        return None if self.objective.lora.names else "probes"

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks with a probe, counted from 1."""
        return self.objective.read_blocks(self.model.depth)

    @property
    def variants(self) -> tuple[Mapping[str, float], ...]:
        variants = self.objective.variants
        return len(self.blocks) * variants if any(variants) else ()

    def init(self, rngs: nnx.Rngs) -> Probes:
        model = Probes(
            self.model,
            self.objective,
            num_classes=self.num_classes,
            grid=self.trained_grid,
            channels=self.data.channels,
            rngs=rngs,
        )
        add_adapters(model.backbone, self.objective.lora, rngs)
        return model

    def trains(self, path: tuple[str, ...]) -> bool:
        return path[0] != "backbone" or is_adapter(path)

    def flops(self) -> int:
        """Forward pass of the blocks to the last that is read, and three times the probes'."""
        probe = probe_flops(
            kind=self.objective.kind,
            width=self.model.width,
            num_heads=self.model.num_heads,
            patches=math.prod(self.grid),
            num_classes=self.num_classes,
        )
        probes = len(self.blocks) * len(self.objective.variants)
        depth = max(self.blocks)
        adapted = bool(self.objective.lora.names)
        backbone = self.adapted_step_flops(depth) if adapted else self.backbone_flops(depth)
        return backbone + 3 * probes * probe

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
        """Loss (without smoothing) and accuracy by probe, with running statistics; mean loss."""
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
        for metric, value in values.items():
            for name, of_probe in zip(self._names(metric), value, strict=True):
                metrics[name] = average(of_probe[:, None], counts)
        return metrics

    def conclude(self, values: Mapping[str, float]) -> dict[str, float]:
        """Accuracy, rate and decay of the best probe of a grid on each block.

        Logs a warning where that is the first or last of three rates or more, or of decays.
        """
        best: dict[str, float] = {}
        for block in self.blocks if any(self.objective.variants) else ():
            name = block_name("accuracy", block)
            chosen = max(
                self.objective.variants, key=lambda each: values[name + variant_name(each)]
            )
            best[name] = values[name + variant_name(chosen)]
            for key, value in chosen.items():
                best[block_name(f"best_{key}", block)] = value
                tried = getattr(self.objective, f"{key}s")
                if len(tried) > 2 and value in (tried[0], tried[-1]):
                    logging.warning(
                        "Block %d: the best %s, %g, lies at the edge of config.objective.%ss",
                        *(block, key.replace("_", " "), value, key),
                    )
        return best

    def _names(self, metric: str) -> Iterator[str]:
        for block in self.blocks:
            for variant in self.objective.variants:
                yield block_name(metric, block) + variant_name(variant)


def _losses(
    logits: Float[Array, "probe batch class"], batch: Batch, smoothing: float
) -> Float[Array, "probe batch"]:
    targets = soft_labels(batch["label"], logits.shape[-1], smoothing)
    return cross_entropy(logits, jnp.broadcast_to(targets, logits.shape))
