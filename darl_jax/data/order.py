"""Order of the records, and their random numbers: pure functions of integers.

Nothing here keeps state, so that any step of a run is reached at once: the order of an epoch is a
Feistel permutation that is evaluated only at the positions that somebody asks for, and a random
number is a hash of (seed, epoch, record, how many numbers were drawn before it).
"""

import numpy as np
from jaxtyping import Float64, Int64, UInt64

# Which use a stream of random numbers is for: two uses never see the same numbers.
STREAM_ORDER = 1
STREAM_AUGMENT = 2
STREAM_REPLACE = 3
STREAM_FILES = 4
STREAM_DIGITS = 5
STREAM_RANDAUGMENT = 6
STREAM_ARDM_ORDER = 7  # of generation in compressed files, whose format fixes it

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FEISTEL_ROUNDS = 8


def mix(x: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """The finalizer of SplitMix64: a bijection of 64 bits in which each bit depends on all.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
    """
    x = x ^ (x >> np.uint64(30))
    x = x * np.uint64(0xBF58476D1CE4E5B9)
    x = x ^ (x >> np.uint64(27))
    x = x * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_of(*parts: int | np.ndarray) -> UInt64[np.ndarray, "*shape"]:
    """A 64-bit hash of a tuple of integers (modulo 2^64), for arrays elementwise."""
    state = np.zeros((1,), np.uint64)
    for part in parts:
        if isinstance(part, np.ndarray):
            word = part.astype(np.uint64)
        else:
            word = np.array([part & 0xFFFFFFFFFFFFFFFF], np.uint64)
        state = mix((state ^ word) + _GOLDEN)
    return state


def uniforms(
    seed: int,
    epoch: Int64[np.ndarray, " n"],
    index: Int64[np.ndarray, " n"],
    count: int,
    *,
    stream: int = STREAM_AUGMENT,
) -> Float64[np.ndarray, "n {count}"]:
    """`count` numbers in [0, 1) for each record, with 53 random bits each.

    They depend on (stream, seed, epoch, index) alone, not on which records are asked for together.
    """
    key = hash_of(stream, seed, epoch, index)
    draws = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
    bits = mix(key[:, None] + draws[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(
    position: Int64[np.ndarray, " n"],
    length: int,
    *key: int | np.ndarray,
) -> Int64[np.ndarray, " n"]:
    """Image of each position under a keyed pseudo-random permutation of 0 .. length-1.

    A Feistel network over Z_a x Z_b with a*b just above `length`; what lands outside is sent
    through again until it lands inside (Black and Rogaway, "Ciphers with arbitrary finite
    domains", 2002), which keeps it a bijection. Memory and time are those of `position`, whatever
    the length. An array in the key gives each position a permutation of its own.
    """
    if length == 1:
        return np.zeros_like(position)
    rows = int(np.ceil(np.sqrt(length)))
    columns = -(-length // rows)
    base = np.broadcast_to(hash_of(STREAM_ORDER, *key), position.shape)
    result = position.astype(np.int64)
    todo = np.arange(len(result))
    while todo.size:
        result[todo] = _feistel(result[todo], base[todo], rows, columns)
        todo = todo[result[todo] >= length]
    return result


def _feistel(
    value: Int64[np.ndarray, " n"], key: UInt64[np.ndarray, " n"], rows: int, columns: int
) -> Int64[np.ndarray, " n"]:
    rounds = np.arange(1, _FEISTEL_ROUNDS + 1, dtype=np.uint64) * _GOLDEN
    left, right = np.divmod(value.astype(np.uint64), np.uint64(columns))
    for round_index in range(_FEISTEL_ROUNDS):
        round_key = key + rounds[round_index]
        if round_index % 2 == 0:
            left = (left + mix(mix(right + round_key)) % np.uint64(rows)) % np.uint64(rows)
        else:
            right = (right + mix(mix(left + round_key)) % np.uint64(columns)) % np.uint64(columns)
    return (left * np.uint64(columns) + right).astype(np.int64)
