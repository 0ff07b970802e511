"""Checksums of arrays and of JSON; Orbax has none of array bytes.

Arrays: the sum modulo 2^32 of a hash of each element's bits and position. The sum is exact in any
order, so it does not depend on how an array is split over devices, and it is the same in JAX and in
NumPy. The hash is MurmurHash3's finalizer (Austin Appleby, public domain), which maps no two words
to one: a change of a single element is always noticed, any other with probability 1 - 2^-32.

JSON: SHA-256 of the text with sorted keys.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32

_SPREAD = 0x9E3779B1  # odd, so that no two positions (modulo 2^32) get the same number
_MIX_1 = 0x85EBCA6B
_MIX_2 = 0xC2B2AE35
_CHUNK = 1 << 20  # elements that NumPy hashes at once, in the processor's caches


def checksums(arrays: Mapping[str, Any]) -> dict[str, int]:
    """Checksum of each array by its name; of global arrays, the same in every process.

    Arrays of JAX are summed on their devices, in one pass. A collective. Elements have 1, 2 or 4
    bytes.
    """
    # One after another: each is a collective, and on the CPU several of them that run at once wait
    # for each other's threads for ever. NumPy's arrays stay so, for JAX would change 64-bit types.
    return {
        name: int(jax.device_get(_sum_on_devices(array)))
        if isinstance(array, jax.Array)
        else numpy_checksum(array)
        for name, array in arrays.items()
    }


@jax.jit
def _sum_on_devices(array: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    width = _word_bits(array.dtype)
    if array.dtype == jnp.bool_:
        bits = array.astype(jnp.uint32)
    else:
        bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{width}")).astype(jnp.uint32)
    position = jnp.zeros(array.shape, jnp.uint32)
    for axis in range(array.ndim):
        stride = math.prod(array.shape[axis + 1 :]) % 2**32
        iota = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        position += iota * jnp.uint32(stride)
    return jnp.sum(_hash(bits, position), dtype=jnp.uint32)


def numpy_checksum(array: np.ndarray) -> int:
    """Checksum of an array in the host's memory, by NumPy; equals that of `checksums`."""
    width = _word_bits(array.dtype)
    bits = np.ravel(array).view(f"uint{width}")
    total = 0
    for start in range(0, bits.size, _CHUNK):
        part = bits[start : start + _CHUNK].astype(np.uint32)
        position = (np.arange(start, start + part.size, dtype=np.uint64) % 2**32).astype(np.uint32)
        total += int(np.sum(_hash(part, position), dtype=np.uint64))
    return total % 2**32


def json_checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content of a JSON file, for any spacing and order of keys."""
    return hashlib.sha256(json.dumps(dict(content), sort_keys=True).encode()).hexdigest()


def _hash(bits: Any, position: Any) -> Any:
    """Bijective hash of a word at a position, modulo 2^32; in JAX as in NumPy."""
    word = bits + position * np.uint32(_SPREAD)
    word = (word ^ (word >> np.uint32(16))) * np.uint32(_MIX_1)
    word = (word ^ (word >> np.uint32(13))) * np.uint32(_MIX_2)
    return word ^ (word >> np.uint32(16))


def _word_bits(dtype: Any) -> int:
    bits = np.dtype(dtype).itemsize * 8
    if bits > 32:
        raise ValueError(f"no checksum is known for arrays of {np.dtype(dtype).name}")
    return bits
