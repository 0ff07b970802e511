"""Range coding by constriction: its framing, and the words that the format is made of."""

import numpy as np
import pytest

from darl_jax.codec import tables

pytest.importorskip("constriction", reason="there is no wheel for this machine")

from darl_jax.codec.coder import Decoder, Encoder


def message(n: int, alternatives: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tables, and symbols drawn from them."""
    rng = np.random.default_rng(seed)
    shares = tables.frequencies(rng.normal(0, 2, (n, alternatives, 1)), 0)
    ends = np.cumsum(shares + 1, axis=1) / tables.TOTAL
    symbols = (rng.random((n, 1)) > ends).sum(axis=1).astype(np.int32)
    return shares, symbols


@pytest.mark.parametrize("alternatives", [2, 17, 256])
def test_streams_cost_what_the_tables_say_and_one_word_at_most(alternatives):
    for seed in range(20):
        shares, symbols = message(300, alternatives, seed)
        encoder = Encoder()
        for part in (slice(0, 1), slice(1, 1), slice(1, 170), slice(170, 300)):
            encoder.encode(symbols[part], shares[part])
        words = encoder.words()
        assert words.dtype == np.uint32
        surplus = 32 * len(words) - tables.table_bits(shares, symbols).sum()
        assert 0 <= surplus <= 33
        decoder = Decoder(words)
        parts = [decoder.decode(shares[:200]), decoder.decode(shares[200:])]
        np.testing.assert_array_equal(np.concatenate(parts), symbols)
        assert decoder.ended()


def test_an_empty_message_has_no_words_and_left_over_words_are_noticed():
    assert len(Encoder().words()) == 0
    assert Decoder(np.zeros(0, np.uint32)).ended()
    shares, symbols = message(50, 4)
    encoder = Encoder()
    encoder.encode(symbols, shares)
    decoder = Decoder(np.append(encoder.words(), np.array([5, 6, 7], np.uint32)))
    decoder.decode(shares)
    assert not decoder.ended()


def test_the_words_are_those_of_version_1():
    """Every version of constriction that setup.py allows is to write them."""
    shares = np.array([[2.0**24 - 5, 1.0, 1.0], [5.0, 2.0**24 - 8, 0.0], [2.0**23, 2.0**23 - 3, 0]])
    encoder = Encoder()
    encoder.encode(np.array([2, 2, 1], np.int32), shares)
    assert [f"{word:08x}" for word in encoder.words()] == ["ffffffff", "fdff0003"]
