"""A model card: README.md beside an export, with the config, the data and the numbers."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from darl_jax.interchange.described import model_of

# Metrics that say how good a model is, by the end of their names.
_TOLD = ("loss", "accuracy", "top1", "top5", "error")


@dataclasses.dataclass(frozen=True)
class Card:
    """What the card is about.

    Attributes:
        description: the group of keys that described.py makes.
        source: the run's folder and step.
        parameters: how many numbers were written.
        history: the run's metrics, as `read_metrics` gives them; empty where there are none.
        kept: what was written, in words.
        dropped: what was left out, in words.
        usage: how it is loaded, as code.
        notes: what a user has to know.
    """

    description: Mapping[str, Any]
    source: str
    parameters: int
    history: Sequence[Mapping[str, int | float]]
    kept: str
    dropped: str
    usage: str
    notes: Sequence[str] = ()


def model_card(card: Card) -> str:
    """The card as Markdown."""
    model, config = card.description["model"], card.description["darl_jax_config"]
    objective = config.get("objective", {}).get("name", "unknown")
    head = f"{model['num_classes']} classes" if model["num_classes"] else "none"
    rows = [
        ("learned by", objective),
        ("parameters", f"{card.parameters:,} in {card.kept}"),
        ("left out", card.dropped or "nothing"),
        ("width, depth, heads, MLP", _joined(model, "width", "depth", "num_heads", "mlp_dim")),
        ("patches", f"{model['patch_size']} pixels, trained on a grid of {_times(model['grid'])}"),
        ("positions", model["positions"]),
        ("order of the patches", model_of(config)["order"].title),
        ("attention", f"{model['mask']} in training"),
        ("head", head + (f", of the {model['pooling']} token(s)" if model["pooling"] else "")),
    ]
    parts = [
        f"# DARL ViT, width {model['width']}, depth {model['depth']}, patches of "
        f"{model['patch_size']}",
        f"A Vision Transformer trained by darl_jax: {card.source}.",
        _table(rows),
        "## Use",
        f"```python\n{card.usage.strip()}\n```",
        *card.notes,
        "## Data",
        _table(_data(config["data"], config.get("train_records"))),
        "## Numbers",
        _numbers(card.history, card.description["step"]),
        "## Config",
        f"```json\n{json.dumps(config, indent=1)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _data(data: Mapping[str, Any], records: str | None) -> list[tuple[str, str]]:
    rows = [
        ("dataset", f"{data.get('source', '')} {data.get('name', '')}".strip()),
        (
            "trained on",
            f"{data.get('train_split', 'unknown')}" + (f" ({records})" if records else ""),
        ),
        ("held out", str(data.get("validation_split", "unknown"))),
        ("images", f"{data['image_size']} pixels, {data['channels']} channels"),
        ("standardized by", f"mean {list(data['mean'])}, std {list(data['std'])}, of [0, 1]"),
    ]
    if "crop_scale" in data:
        flipped = ", flipped" if data.get("flip") else ""
        rows.append(("augmented by", f"random crops of {list(data['crop_scale'])}{flipped}"))
    return rows


def _numbers(history: Sequence[Mapping[str, int | float]], step: int | None) -> str:
    """The last value of each metric that tells of quality, up to the exported step."""
    last: dict[str, tuple[float, int]] = {}
    for line in history:
        if step is not None and line["step"] > step:
            continue
        for name, value in line.items():
            if name.endswith(_TOLD) and isinstance(value, int | float) and math.isfinite(value):
                last[name] = (float(value), int(line["step"]))
    if not last:
        return "The run's folder had no metrics when this was written."
    rows = [(name, f"{value:.5g}", f"step {at}") for name, (value, at) in sorted(last.items())]
    return _table(rows, ("metric", "value", "at"))


def _table(rows: Sequence[Sequence[str]], head: Sequence[str] = ("", "")) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines
    )


def _joined(model: Mapping[str, Any], *keys: str) -> str:
    return ", ".join(str(model[key]) for key in keys)


def _times(grid: Sequence[int]) -> str:
    return " x ".join(map(str, grid))
