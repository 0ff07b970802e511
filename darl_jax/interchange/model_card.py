"""Model card: README.md of an export, with the config, the data and the metrics."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from darl_jax.interchange.described import PLAIN_VIT, model_of
from darl_jax.interchange.names import listed

# Endings of the names of metrics of quality.
_QUALITY = ("loss", "accuracy", "top1", "top5", "error")


def model_card(
    description: Mapping[str, Any],
    *,
    source: str,
    parameters: int,
    history: Sequence[Mapping[str, int | float]],
    records: str,
    kept: str,
    dropped: str,
    usage: str,
    notes: Sequence[str] = (),
) -> str:
    """The card as Markdown.

    Args:
        description: config.json of the export (described.py).
        source: the run's folder and step.
        parameters: count of the numbers written.
        history: the run's metrics, as `read_metrics` gives them; may be empty.
        records: number and fingerprint of the training records; empty if unknown.
        kept: the files written.
        dropped: the parts left out, in words.
        usage: Python that loads the export.
        notes: further remarks for users.
    """
    model, config = description["model"], description["darl_jax_config"]
    objective = config.get("objective", {}).get("name", "unknown")
    head = f"{model['num_classes']} classes" if model["num_classes"] else "none"
    sizes = [str(model[key]) for key in ("width", "depth", "num_heads", "mlp_dim")]
    grid = " x ".join(map(str, model["grid"]))
    rows = [
        ("objective", objective),
        ("parameters", f"{parameters:,} in {kept}"),
        ("left out", dropped or "nothing"),
        ("width, depth, heads, MLP", ", ".join(sizes)),
        ("patches", f"{model['patch_size']} pixels, trained on a grid of {grid}"),
        ("positions", model["positions"]),
        ("unlike a plain ViT", _unlike_plain(model) or "nothing"),
        ("order of the patches", model_of(config)["order"].title),
        ("attention", f"{model['mask']} in training"),
        ("head", head + (f", of the {model['pooling']} token(s)" if model["pooling"] else "")),
    ]
    if names := description["class_names"]:
        rows.append(("classes", listed(names)))
    parts = [
        f"# DARL ViT, width {model['width']}, depth {model['depth']}, patches of "
        f"{model['patch_size']}",
        f"A Vision Transformer trained by darl_jax: {source}.",
        _table(rows),
        "## Use",
        f"```python\n{usage.strip()}\n```",
        *notes,
        "## Data",
        _table(_data(config["data"], records)),
        "## Numbers",
        _numbers(history, description["step"]),
        "## Config",
        f"```json\n{json.dumps(config, indent=1)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _unlike_plain(model: Mapping[str, Any]) -> str:
    """Keys of config.model with other values than a plain ViT's."""
    differ = [f"{key}={model[key]}" for key, plain in PLAIN_VIT.items() if model[key] != plain]
    return ", ".join(differ)


def _data(data: Mapping[str, Any], records: str) -> list[tuple[str, str]]:
    rows = [
        ("dataset", f"{data.get('source', '')} {data.get('dataset') or ''}".strip()),
        ("trained on", data.get("train_split", "unknown") + (f" ({records})" if records else "")),
        ("held out", str(data.get("validation_split", "unknown"))),
        ("images", f"{data['image_size']} pixels, {data['channels']} channels"),
        ("standardized by", f"mean {list(data['mean'])}, std {list(data['std'])}, of [0, 1]"),
    ]
    if "crop_scale" in data:
        flipped = ", flipped" if data.get("flip") else ""
        rows.append(("augmented by", f"random crops of {list(data['crop_scale'])}{flipped}"))
    return rows


def _numbers(history: Sequence[Mapping[str, int | float]], step: int | None) -> str:
    """The last value of each metric of quality, up to the exported step."""
    last: dict[str, tuple[float, int]] = {}
    for line in history:
        if step is not None and line["step"] > step:
            continue
        for name, value in line.items():
            if name.endswith(_QUALITY) and isinstance(value, int | float) and math.isfinite(value):
                last[name] = (float(value), int(line["step"]))
    if not last:
        return "The run's folder had no metrics at export."
    rows = [(name, f"{value:.5g}", f"step {at}") for name, (value, at) in sorted(last.items())]
    return _table(rows, ("metric", "value", "at"))


def _table(rows: Sequence[Sequence[str]], head: Sequence[str] = ("", "")) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines
    )
