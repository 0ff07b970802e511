"""What every question asked of a model has in common.

All processes ask together, for the model may be spread over them, and all get the same answer.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

# One pass over records in fixed order: a new iterator for each call, every record in it once, rows
# that do not count with `mask` False. Each process yields its own rows of each batch.
HostBatches = Callable[[], Iterable[Mapping[str, Any]]]
