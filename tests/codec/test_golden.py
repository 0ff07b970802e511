"""A file of version 1, which every later program must read and write."""

import numpy as np
import pytest

from darl_jax.codec import compression
from darl_jax.codec.alternatives import Alternatives
from darl_jax.codec.file_format import Kind, parse
from darl_jax.codec.model import CodecModel
from darl_jax.codec.stream import Layout
from darl_jax.methods.ardm.stages import Stages

pytest.importorskip("constriction", reason="there is no wheel for this machine")

GOLDEN = (
    "8d415244011800010203040506070000000005034fd8870c02000301150200d96777aaebb3c056"
    "0200468d7be4bf3144f001004a27e0e66ed2f2774092798c198fce0e32bbab891aaf4c742811bb"
    "18cba6d572ba2c5f7a"
)


def by_formula(values, known, step, stage):
    """Logits of small rational numbers, on which all machines agree."""
    place = np.arange(values.shape[1])
    seen = np.where(known, values, 0).sum(axis=1, keepdims=True) + step[:, None] + 3 * place
    child = np.arange(4)
    return ((seen[..., None] * (child + 2) + 7 * stage * child) % 23) / -8.0


def test_the_golden_file_is_written_and_read_alike():
    values = (np.arange(24, dtype=np.int32).reshape(3, 8) * 7) % 27
    coded = np.ones((3, 8), bool)
    coded[2, 5:] = False
    twin = np.broadcast_to(np.minimum(np.arange(8), 4 + 4 * (np.arange(3) < 2)[:, None]), (3, 8))
    model = CodecModel(
        network=by_formula,
        alternatives=Alternatives(Stages(27, 4), "direct"),
        shape=(8, 1),
        hash=bytes(range(32)),
        losses=np.geomspace(4, 1, 24).reshape(3, 8),
    )
    layout = Layout(coded, twin.astype(np.int64))
    settings = compression.Settings(steps=3, seed=5, lanes=2)
    made = compression.compress(values, layout, Kind.TEXT, b"\x15", model, settings)
    assert made.data.hex() == GOLDEN
    content = parse(bytes.fromhex(GOLDEN), "golden")
    walk = compression.rebuilt_walk(content.header, "golden", model)
    found, right = compression.decompress(content, model, walk, layout, lanes=3)
    assert right.all()
    np.testing.assert_array_equal(found[coded], values[coded])
