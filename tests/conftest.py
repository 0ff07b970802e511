"""Fixtures for all tests: shapes are checked at run time, and real data is found or skipped.

What is set here, before JAX is imported, holds for the programs that tests start too.
"""

import atexit
import os
import pathlib
import shutil
import signal
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA compiles small models as long as large ones. Here it makes slower code in a sixth of the time,
# and nothing twice. Tests of its usual output ask for it (tests/test_plan.py, and
# tests/training/test_step.py, where a step has the same loss).
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if "XLA_FLAGS" not in os.environ:
    # A JAX that no longer knows one of them ends with an error: delete it then. The second
    # compiles a program in one piece, for the other core has a worker of its own.
    os.environ["XLA_FLAGS"] = (
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="darl_jax_compiled_")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Programs of this checkout, also where another one is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
)
# A shell has what it runs in the background ignore Ctrl-C, and Bash could not trap it any more.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jaxtyping

jaxtyping.install_import_hook("darl_jax", "beartype.beartype")

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the files that start processes first: the longest, which two workers then balance."""
    long = {item.path for item in items if item.get_closest_marker("process")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def tfds_dir() -> str:
    """A folder that holds `cifar10` and `imagenet2012` as TFDS prepares them (ArrayRecord)."""
    path = pathlib.Path(
        os.environ.get("DARL_TFDS_DIR", REPOSITORY.parent / "shared" / "data" / "tfds")
    )
    missing = [name for name in ("cifar10", "imagenet2012") if not (path / name).is_dir()]
    if missing:
        pytest.skip(f"no TFDS dataset {' or '.join(missing)} in {path}; set DARL_TFDS_DIR")
    return str(path)


def _finished(tmp_path_factory: pytest.TempPathFactory, name: str, **changes) -> pathlib.Path:
    from tests.tiny_runs import run, tiny

    workdir = tmp_path_factory.mktemp(name)
    assert run(tiny(**changes), workdir) == 0
    return workdir


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of a finished run of `tiny_runs.tiny()`; tests leave it as it is."""
    return _finished(tmp_path_factory, "tiny_run")


@pytest.fixture(scope="session")
def tiny_diffusion(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of diffusion, with samples and its likelihood in the end."""
    from tests.tiny_runs import DIFFUSION

    small: dict[str, dict[str, int]] = {
        "samples": {"number": 3, "completed": 2, "completions": 2},
        "likelihood": {"steps": 20, "levels": 5, "draws": 2, "images": 40, "train_images": 30},
    }
    changes = {
        f"evaluators__{kind}__{key}": value for kind in small for key, value in small[kind].items()
    }
    return _finished(tmp_path_factory, "tiny_diffusion", kinds=[*small], **DIFFUSION, **changes)


@pytest.fixture(scope="session")
def fine_tuned(tiny_run: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A classifier that starts from `tiny_run`."""
    from tests.tiny_runs import FINE_TUNING

    return _finished(tmp_path_factory, "fine_tuned", **FINE_TUNING, init__checkpoint=str(tiny_run))
