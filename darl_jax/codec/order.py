"""Orders of generation, groups of positions that one network call codes, and their fingerprints."""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64

from darl_jax.data.order import STREAM_ARDM_ORDER, hash_of

Starts = Sequence[Sequence[int]]  # for each stage the first rank of each call


def ranks(seed: int, stage: int, positions: int) -> Int64[np.ndarray, " position"]:
    """σ, the rank at which each position of a stage is generated.

    A stable sort of 64-bit hashes: integers alone, so that every version of every library has the
    same order.
    """
    keys = hash_of(STREAM_ARDM_ORDER, seed, stage, np.arange(positions))
    return _inverse(np.argsort(keys, kind="stable"))


def ranks_of_coded(
    order: Int64[np.ndarray, " position"], coded: Bool[np.ndarray, "row position"]
) -> Int64[np.ndarray, "row position"]:
    """Ranks for items with positions that are not coded: these come last, in order of position.

    The model never learns of them, which costs no bits and needs no values.
    """
    keys = np.where(coded, order, coded.shape[1] + np.arange(coded.shape[1]))
    return np.stack([_inverse(np.argsort(row, kind="stable")) for row in keys])


def _inverse(order: Int64[np.ndarray, " position"]) -> Int64[np.ndarray, " position"]:
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank


def policy_hash(starts: Starts) -> bytes:
    """First 4 bytes of SHA-256 over the start ranks of all stages, as 32-bit integers."""
    whole = np.concatenate([np.asarray(stage, "<i4") for stage in starts])
    return hashlib.sha256(whole.tobytes()).digest()[:4]
