"""What every question asked of a model has in common.

All processes ask together, for the model may be spread over them, and all get the same answer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from jaxtyping import PRNGKeyArray, PyTree

# One pass over records in fixed order: a new iterator for each call, every record in it once, rows
# that do not count with `mask` False. Each process yields its own rows of each batch.
HostBatches = Callable[[], Iterable[Mapping[str, Any]]]


class Evaluator(Protocol):
    """Made once with everything that it needs, then run on any parameters."""

    def run(self, params: PyTree, key: PRNGKeyArray) -> Iterator[tuple[str, float]]:
        """Yields (name, value); the same key gives the same values for the same parameters."""
        ...
