from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest

from darl_jax.runtime import compilation


@pytest.fixture
def cache_folder() -> Iterator[None]:
    """Puts the session's cache folder back."""
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("cache_folder")
def test_compiled_programs_are_kept_in_the_workdir_unless_the_environment_names_a_folder(
    tmp_path, monkeypatch
):
    jax.config.update("jax_compilation_cache_dir", "of the environment")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "of the environment")
    compilation.keep_in(tmp_path)
    assert jax.config.jax_compilation_cache_dir == "of the environment"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    compilation.keep_in(tmp_path)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compilation_cache")


def test_memory_of_a_compiled_step_is_logged(caplog):
    x = jax.ShapeDtypeStruct((16384, 16384), jnp.int8)
    with caplog.at_level("INFO"):
        compilation.log_memory(jax.jit(lambda x: x + 1).lower(x).compile())
    assert "Each device holds 0.25 GiB of state and batch" in caplog.text
