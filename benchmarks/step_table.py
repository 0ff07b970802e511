"""The table of train_step.py: rates and ratios from the seconds of each turn."""

from collections.abc import Mapping
from typing import Any

import numpy as np

_COLUMNS = "{:24} {:24} {:>5} {:>17} {:>17} {:>13} {:>8} {:>6} {:>8}"

HEADER = "\n".join(
    _COLUMNS.format(*titles).rstrip()
    for titles in (
        ("", "", "", "ms", "examples/s", "of matmul", "of first", "memory", "compiled"),
        ("model", "step", "batch", *("best / median",) * 3, "median", "GiB", "s"),
    )
)


def with_rates(row: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """Adds rates, best and median, relative to the matrix product and to the first row.

    Args:
      row: `seconds` for a step and `matmul_seconds` for a product, a value for each round;
        `batch_size`, `step_flops` and `matmul_flops`.
      first: the row of the step as training takes it, of the same rounds.
    """
    values: dict[str, Any] = {}
    for name, reduce in (("best", np.min), ("median", np.median)):
        seconds = float(reduce(row["seconds"]))
        matmul = row["matmul_flops"] / float(reduce(row["matmul_seconds"]))
        values[f"examples_per_second_{name}"] = row["batch_size"] / seconds
        values[f"flops_per_second_{name}"] = row["step_flops"] / seconds
        values[f"matmul_flops_per_second_{name}"] = matmul
        values[f"fraction_of_matmul_{name}"] = row["step_flops"] / seconds / matmul
    # Round by round, because other load slows all turns of a round.
    ratios = np.asarray(first["seconds"]) / np.asarray(row["seconds"])
    return {**row, **values, "images_of_first": float(np.median(ratios))}


def line(row: Mapping[str, Any]) -> str:
    """Formats a row."""
    best, median = 1e3 * min(row["seconds"]), 1e3 * float(np.median(row["seconds"]))
    return _COLUMNS.format(
        f"{row['model']} {row['objective']}",
        row["step"],
        row["batch_size"],
        f"{best:.1f} / {median:.1f}",
        f"{row['examples_per_second_best']:.1f} / {row['examples_per_second_median']:.1f}",
        f"{row['fraction_of_matmul_best']:.3f} / {row['fraction_of_matmul_median']:.3f}",
        f"{row['images_of_first']:.3f}",
        f"{row['memory_bytes'] / 2**30:.2f}" if "memory_bytes" in row else "-",
        f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else "-",
    ).rstrip()


def rates_line(row: Mapping[str, Any]) -> str:
    """Summarizes a case's first row: counted work and the device's rates."""
    return (
        f"{row['model']} {row['objective']}: {row['step_flops'] / row['batch_size'] / 1e9:.2f} "
        f"GFLOP an image, counted; best step {row['flops_per_second_best'] / 1e12:.3f} TFLOP/s, "
        f"best matrix product {row['matmul_flops_per_second_best'] / 1e12:.3f} TFLOP/s"
    )


def peer_line(row: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """Ratio of the first row's examples/s to those of PyTorch's row."""
    best = min(row["seconds"]) / min(first["seconds"])
    return (
        f"{row['model']} {row['objective']}: {best:.2f} times the examples/s of {row['step']}, "
        f"best against best; {1 / row['images_of_first']:.2f} times in the median round"
    )
