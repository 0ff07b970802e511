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
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jax.config.update("jax_compilation_cache_dir", "of the environment")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "of the environment")
    compilation.keep_in(tmp_path)
    assert jax.config.jax_compilation_cache_dir == "of the environment"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    compilation.keep_in(tmp_path)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compilation_cache")


def test_compilation_is_announced_before_it_begins_and_its_memory_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lowered = jax.jit(lambda x: x @ x).lower(jnp.ones((1024, 1024)))
    with caplog.at_level("INFO"):
        compiled = compilation.compile_step(lowered)
    assert compiled(jnp.ones((1024, 1024)))[0, 0] == 1024
    messages = [record.getMessage() for record in caplog.records]
    begins, ends, memory = (m for m in messages if "ompil" in m or "holds" in m)
    assert begins.startswith("Compiling the train step")
    assert ends.startswith("Compiled the train step in")
    assert "0.00 GiB of state and batch" in memory
