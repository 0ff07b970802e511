"""Which examples were learned from at which step, for whoever has to account for them."""

import json
import os

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Int64

from darl_jax.monitoring.writers import AppendedFile

_FOLDER = "examples"


class ExampleLog:
    """Writes a line for each step: its number and the records of this process's part of the batch.

    The lines of process p of n go to `<workdir>/examples/process_<p>_of_<n>.jsonl`. Steps that a
    resumed run does again appear again; the records are the same, for they follow from the step.

    Args:
      workdir: a local folder; files in buckets cannot grow.
      process_index: which process this is.
      process_count: of how many.
      active: whether anything is written.

    Raises:
      ValueError: the workdir lies in a bucket.
      OSError: the file cannot be written (in `add`, too).
    """

    def __init__(
        self,
        workdir: os.PathLike | str,
        *,
        process_index: int = 0,
        process_count: int = 1,
        active: bool = True,
    ) -> None:
        self._active = active
        if not active:
            return
        if "://" in str(workdir):
            raise ValueError(
                f"log_examples=True needs a local --workdir, and {workdir} is a bucket"
            )
        folder = epath.Path(workdir) / _FOLDER
        self._file = AppendedFile(folder / f"process_{process_index}_of_{process_count}.jsonl")
        # What a killed run left unfinished stays apart.
        if not self._file.ends_with_newline:
            self._file.write(b"\n")

    def add(self, step: int, index: Int64[np.ndarray, " n"]) -> None:
        """Notes the records of a step; handed to the operating system at once."""
        if self._active:
            line = json.dumps({"step": step, "index": index.tolist()})
            self._file.write(line.encode() + b"\n")

    def close(self) -> None:
        """Ends the file."""
        if self._active:
            self._file.close()


def read_example_log(workdir: os.PathLike | str) -> dict[int, list[int]]:
    """The records of each step, in the order of the rows of the global batch.

    Raises:
      FileNotFoundError: there is no log.
      ValueError: a step was done more than once, with other records.
    """
    folder = epath.Path(workdir) / _FOLDER
    counts = {int(path.stem.rpartition("_")[2]) for path in folder.glob("process_0_of_*.jsonl")}
    if not counts:
        raise FileNotFoundError(f"no example log in {folder}; set config.log_examples=True")
    steps: dict[int, list[int]] = {}
    # Attempts may have had other numbers of processes: those of one number make a batch together.
    for count in sorted(counts):
        parts = [_read(folder / f"process_{i}_of_{count}.jsonl") for i in range(count)]
        # A step that some had not noted yet when they were killed was done again.
        for step in set.intersection(*(set(part) for part in parts)):
            index = [record for part in parts for record in part[step]]
            if steps.setdefault(step, index) != index:
                raise ValueError(f"{folder}: step {step} was done twice with other records")
    return steps


def _read(path: epath.Path) -> dict[int, list[int]]:
    steps: dict[int, list[int]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line) if line else None
        except ValueError:
            logging.warning("%s: a line is cut short and left out: %.40s", path, line)
            continue
        if record and steps.setdefault(record["step"], record["index"]) != record["index"]:
            raise ValueError(f"{path}: step {record['step']} was done twice with other records")
    return steps
