"""Numbers and rows of text tables."""

from collections.abc import Iterable, Sequence


def align(rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns a line for each row, with aligned columns."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def gib(number: float | int) -> str:
    """Formats bytes as GiB, or as MiB below 0.1 GiB."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 / 10 else f"{number / 2**20:.2f} MiB"


def milliseconds(seconds: float) -> str:
    """Formats seconds as milliseconds."""
    return f"{seconds * 1e3:.2f} ms"


def si(number: float | int) -> str:
    """Formats a number with 3 digits and a prefix: K, M, G, T, P, E, Z."""
    for prefix in ("", "K", "M", "G", "T", "P", "E"):
        if number < 999.5:
            return f"{number:.3g} {prefix}".rstrip()
        number /= 1000
    return f"{number:.3g} Z"


def digits(number: float | int) -> str:
    """Formats a number with 3 digits, or all before the decimal point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}" if number >= 0.01 else "< 0.01"
