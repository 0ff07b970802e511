"""Persistent compilation cache, and compilation of the train step with its log lines."""

import os
import time

import jax
from absl import logging
from etils import epath


def keep_in(workdir: os.PathLike | str) -> None:
    """Makes JAX keep compiled programs in `<workdir>/compilation_cache`, for the next start.

    JAX_COMPILATION_CACHE_DIR, where it is set, names one folder for all runs instead. Where the
    folder cannot be read or written, JAX warns and compiles without it.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = epath.Path(workdir) / "compilation_cache"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def compile_step(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles the train step, or reads it from the cache; logs the time and memory it takes."""
    logging.info("Compiling the train step; this can take a minute or more")
    began = time.monotonic()
    compiled = lowered.compile()
    logging.info("Compiled the train step in %.1f s", time.monotonic() - began)
    memory = compiled.memory_analysis()
    if memory is not None:
        logging.info(
            "Each device holds %.2f GiB of state and batch, and %.2f GiB of activations and other "
            "temporaries",
            memory.argument_size_in_bytes / 2**30,
            memory.temp_size_in_bytes / 2**30,
        )
    return compiled
