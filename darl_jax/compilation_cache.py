"""Compiled programs are kept, so that a run which starts again need not compile again."""

import os

import jax
from etils import epath


def use(workdir: os.PathLike | str) -> None:
    """Keeps compiled programs in `<workdir>/compilation_cache`.

    JAX_COMPILATION_CACHE_DIR, where it is set, names a folder for all runs instead. What the cache
    cannot read or write is compiled and kept in memory alone, with a warning.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = epath.Path(workdir) / "compilation_cache"
        jax.config.update("jax_compilation_cache_dir", str(folder))
