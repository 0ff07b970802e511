"""Fixtures for all tests: shapes are checked at run time, and real data is found or skipped."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jaxtyping

jaxtyping.install_import_hook("darl_jax", "beartype.beartype")

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


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
