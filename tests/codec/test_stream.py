"""Streams of items: round trips, their length, and another machine's rounding."""

import numpy as np
import pytest

from darl_jax.codec import tables
from darl_jax.codec.alternatives import Alternatives
from darl_jax.codec.coder import Decoder
from darl_jax.codec.grid import Grid
from darl_jax.codec.stream import Layout, Walk, decode, encode
from darl_jax.codec.tables import frequencies
from darl_jax.methods.ardm.policies import even_policy
from darl_jax.methods.ardm.stages import Stages
from tests.codec.fake_network import FakeNetwork

pytest.importorskip("constriction", reason="there is no wheel for this machine")

POSITIONS = 12


def walk(levels, branching, parametrization, calls=5, **network) -> Walk:
    stages = Stages(levels, branching, 0 if branching else levels // 2)
    direct = branching and parametrization == "direct"
    net = FakeNetwork(POSITIONS, branching if direct else levels, **network)
    starts = [even_policy(POSITIONS, calls).tolist()] * stages.number
    return Walk(net, Alternatives(stages, parametrization), 3, starts)


def decoded(walk, streams, layout):
    return decode(walk, [s.words for s in streams], [s.dither for s in streams], layout)


@pytest.mark.parametrize(
    ("levels", "branching", "parametrization"),
    [
        *((levels, 0, "data") for levels in (2, 27, 256)),
        *((levels, b, "data") for levels, b in ((2, 2), (27, 2), (27, 4), (27, 16), (256, 4))),
        *((levels, b, "direct") for levels, b in ((27, 4), (27, 256), (256, 2), (65536, 16))),
    ],
)
def test_what_is_decoded_is_what_was_encoded(levels, branching, parametrization):
    encoder = walk(levels, branching, parametrization)
    rng = np.random.default_rng(levels)
    values = rng.integers(0, levels, (4, POSITIONS), np.int32)
    values[0], values[1] = levels - 1, 0
    layout = Layout.whole(3, POSITIONS).rows(0, 4)  # the last row only fills up
    streams = encode(encoder, values, layout, guarded=True)
    assert len(streams[3].words) == 0 and streams[3].bits == 0
    for stream in streams:
        assert -1e-6 <= 32 * len(stream.words) - stream.bits <= 33
        assert stream.halvings == 0
    found, ended = decoded(walk(levels, branching, parametrization), streams, layout)
    np.testing.assert_array_equal(found[:3], values[:3])
    assert all(ended)
    assert encoder.network.calls == 5 * encoder.alternatives.stages.number == encoder.calls(12)


def test_the_stream_has_the_models_bits():
    """-log2 p, by float64 softmaxes over leaves, one position after another."""
    encoder = walk(27, 4, "data", calls=POSITIONS)
    values = np.random.default_rng(0).integers(0, 27, (1, POSITIONS), np.int32)
    layout = Layout.whole(1, POSITIONS)
    bits = 0.0

    def code(row, relevant, positions, stage):
        nonlocal bits
        b, unit = 4, 4 ** (2 - stage)
        leaf = values[0, positions[0]]
        logits = encoder.network.last[0, positions[0]]
        parent = leaf // (b * unit) * (b * unit)
        q = np.exp(logits - logits.max())
        child = leaf // unit * unit
        bits -= np.log2(q[child : child + unit].sum() / q[parent : parent + b * unit].sum())
        return ((leaf % (b * unit)) // unit)[None].astype(np.int32)

    class Last(FakeNetwork):
        def __call__(self, *arguments):
            self.last = super().__call__(*arguments)
            return self.last

    encoder = Walk(Last(POSITIONS, 27), encoder.alternatives, encoder.seed, encoder.starts)
    np.testing.assert_array_equal(encoder(layout, code), values)
    (stream,) = encode(encoder, values, layout, guarded=True)
    # A symbol's logarithm is rounded by 1/128 bits at most, in either direction.
    assert abs(stream.bits - bits) < 0.1


def test_another_machines_rounding_changes_nothing():
    """4e-12 nats are 1000 times the difference of float64 between machines."""
    values = np.random.default_rng(0).integers(0, 256, (8, POSITIONS), np.int32)
    layout = Layout.whole(8, POSITIONS)
    for kind in ("data", "direct"):
        streams = encode(walk(256, 4, kind), values, layout, guarded=True)
        found, ended = decoded(walk(256, 4, kind, noise=4e-12), streams, layout)
        np.testing.assert_array_equal(found, values)
        assert all(ended)


def test_a_dither_other_than_0_is_taken_where_a_logit_lies_at_a_boundary(monkeypatch):
    values = np.random.default_rng(0).integers(0, 4, (1, POSITIONS), np.int32)
    planted = walk(4, 0, "data")
    logits = np.tile(np.array([0.0, -10.5 / tables.SCALE, -1.0, -2.0]), (1, POSITIONS, 1))
    monkeypatch.setattr(FakeNetwork, "__call__", lambda *_: logits)
    layout = Layout.whole(1, POSITIONS)
    (stream,) = encode(planted, values, layout, guarded=True)
    assert stream.dither > 0
    (fast,) = encode(planted, values, layout, guarded=False)
    assert fast.dither == 0
    monkeypatch.setattr(tables, "unsafe_dithers", lambda *_: np.ones(256, bool))
    with pytest.raises(ValueError, match="none of 256 dithers"):
        encode(planted, values, layout, guarded=True)


@pytest.mark.parametrize(("branching", "kind"), [(0, "data"), (4, "data"), (4, "direct")])
def test_what_fills_up_an_item_is_not_coded_and_does_not_matter(branching, kind):
    grid = Grid((5, 3), (2, 3, 2))
    original = np.random.default_rng(0).integers(0, 27, (5, 3, 2), np.int32)
    values, layout = grid.cut(original), grid.layout()
    assert layout.coded.sum() == original.size and len(grid) == 3
    encoder = walk(27, branching, kind, calls=6)
    other = np.where(layout.coded, values, 5)
    streams = encode(encoder, values, layout, guarded=True)
    for a, b in zip(streams, encode(encoder, other, layout, guarded=True), strict=True):
        np.testing.assert_array_equal(a.words, b.words)
    assert streams[2].bits < 0.8 * streams[1].bits
    found, _ = decoded(encoder, streams, layout)
    np.testing.assert_array_equal(grid.join(found), original)
    np.testing.assert_array_equal(found[2].reshape(2, 3, 2)[1], original[4])  # repeats the last row
    alone, _ = decoded(encoder, streams[2:], layout.rows(2, 1))
    np.testing.assert_array_equal(alone[0], found[2])


def test_decoding_noise_gives_values_of_the_data():
    words = np.random.default_rng(0).integers(0, 2**32, 60).astype(np.uint32)
    for branching, kind in ((0, "data"), (4, "data"), (4, "direct")):
        decoder = walk(27, branching, kind)
        found, ended = decode(decoder, [words], [0], Layout.whole(1, POSITIONS))
        assert found.min() >= 0 and found.max() < 27
        assert ended == [False]


def test_random_words_decode_to_samples_of_the_model():
    """A value of probability p in one call comes from a share p of all words."""
    rows = 400
    words = np.random.default_rng(0).integers(0, 2**32, (rows, 2)).astype(np.uint32)
    decoder = Decoder(words.ravel())
    logits = np.random.default_rng(1).normal(0, 2, (1, 5, 1))
    p = np.exp(logits[0, :, 0]) / np.exp(logits).sum()
    found = decoder.decode(np.repeat(frequencies(logits, 0), rows, axis=0))
    share = np.bincount(found, minlength=5) / rows
    assert (np.abs(share - p) < 4 * np.sqrt(p * (1 - p) / rows)).all()


def test_models_with_too_many_alternatives_are_refused():
    with pytest.raises(ValueError, match="65536 alternatives"):
        Alternatives(Stages(65536, 4), "data")
    assert Alternatives(Stages(65536, 256), "direct").unit(0) == 256
