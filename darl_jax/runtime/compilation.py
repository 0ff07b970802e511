"""Persistent compilation cache, and the memory of a compiled step."""

import os

import jax
from absl import logging
from etils import epath

FOLDER = "compilation_cache"  # in the workdir


def keep_in(workdir: os.PathLike | str) -> None:
    """Makes JAX keep compiled programs in `<workdir>/compilation_cache`, for the next start.

    JAX_COMPILATION_CACHE_DIR, where it is set, names one folder for all runs instead. Where the
    folder cannot be read or written, JAX warns and compiles without it.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = epath.Path(workdir) / FOLDER
        jax.config.update("jax_compilation_cache_dir", str(folder))


def log_memory(compiled: jax.stages.Compiled) -> None:
    """Logs the memory of a compiled step on each device, where the compiler reports it."""
    memory = compiled.memory_analysis()
    if memory is not None:
        logging.info(
            "Each device holds %.2f GiB of state and batch, and %.2f GiB of activations and other "
            "temporaries",
            memory.argument_size_in_bytes / 2**30,
            memory.temp_size_in_bytes / 2**30,
        )
