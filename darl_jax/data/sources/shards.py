"""Checks that all files of a dataset are present and whole, before a run begins."""

from collections.abc import Mapping
from concurrent import futures

from absl import logging
from array_record.python import array_record_module
from etils import epath

from darl_jax.data.sources.base import as_names

_THREADS = 16
_NAMED_SHARDS = 3


def check_shards(
    what: str, directory: epath.Path, records: Mapping[str, int], *, skip_bad: bool
) -> None:
    """Raises ValueError for files that are missing, cut off, or of another dataset.

    The folder is listed once, and of each file the end is read, where ArrayRecord keeps the places
    of all records: it is missing from a file whose copying or writing was cut short. Damage in the
    middle of a file shows when the record is read.

    Args:
      what: names the dataset and the split, for the message.
      directory: the folder that holds them.
      records: number that the dataset's metadata expects in each file, by its name.
      skip_bad: logs what is wrong instead.
    """
    there = {path.name for path in directory.iterdir()}

    def damage(name: str) -> str:
        return _damage(directory / name, records[name]) if name in there else "it is missing"

    with futures.ThreadPoolExecutor(_THREADS) as pool:
        reasons = zip(records, pool.map(damage, records), strict=True)
    damaged = [f"{name} ({reason})" for name, reason in reasons if reason]
    if not damaged:
        return
    message = (
        f"{what}: {len(damaged)} of {len(records)} shards in {directory} cannot be used: "
        f"{as_names(damaged, _NAMED_SHARDS)}"
    )
    if not skip_bad:
        raise ValueError(
            f"{message}; copy them again from where the dataset was prepared, or prepare it again; "
            "data.on_bad_record='skip' trains with substitutes for their records"
        )
    logging.warning("%s; their records are replaced by others", message)


def _damage(path: epath.Path, expected: int) -> str:
    try:
        # Without readahead only the file's end is read.
        reader = array_record_module.ArrayRecordReader(str(path), options="readahead_buffer_size:0")
        found = reader.num_records()
        reader.close()
    except Exception as error:  # ArrayRecord's readers raise types of C++'s own.
        reason = " ".join(str(error).split())[:200]
        return f"its end cannot be read, so it may be cut off: {reason or type(error).__name__}"
    if found != expected:
        return f"it holds {found} records, and dataset_info.json says {expected}"
    return ""
