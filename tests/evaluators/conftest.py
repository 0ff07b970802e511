from collections.abc import Iterator

import jax
import pytest

from tests.evaluators.tiny import Tiny, tiny_model


@pytest.fixture
def tiny() -> Iterator[Tiny]:
    model = tiny_model()
    with jax.set_mesh(model.mesh):
        yield model
