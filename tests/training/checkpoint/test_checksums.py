"""Checksums: one definition in JAX and NumPy, and no change of the bits that they miss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from darl_jax.training.checkpoint.checksums import checksums, json_checksum, numpy_checksum

TYPES = ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8", "bool"]


def murmur3_finalizer(word: int) -> int:
    word ^= word >> 16
    word = word * 0x85EBCA6B % 2**32
    word ^= word >> 13
    word = word * 0xC2B2AE35 % 2**32
    return word ^ (word >> 16)


def example(dtype: str, shape=(3, 5, 7)) -> np.ndarray:
    words = np.random.default_rng(0).integers(0, 2**32, shape, np.uint32)
    if dtype == "bool":
        return words % 2 == 0
    size = jnp.dtype(dtype).itemsize
    return words.astype(f"uint{8 * size}").view(jnp.dtype(dtype))


@pytest.mark.parametrize("dtype", TYPES)
def test_jax_and_numpy_give_the_sum_of_the_hashes_of_bits_and_position(dtype):
    array = example(dtype)
    words = array.reshape(-1).view(f"uint{8 * array.dtype.itemsize}").tolist()
    expected = sum(
        murmur3_finalizer((word + position * 0x9E3779B1) % 2**32)
        for position, word in enumerate(words)
    )
    assert numpy_checksum(array) == expected % 2**32
    both = {"a": jnp.asarray(array), "b": array}
    assert checksums(both) == dict.fromkeys(both, expected % 2**32)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (1 << 20,), (3, (1 << 19) + 1)])
def test_jax_and_numpy_agree_for_every_shape(shape):
    array = example("uint32", shape)
    assert checksums({"a": jnp.asarray(array)}) == {"a": numpy_checksum(array)}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool"])
def test_every_change_of_one_element_is_noticed(dtype):
    array = example(dtype, (6, 5))
    changed = []
    for position in range(array.size):
        for bit in range(1 if dtype == "bool" else 8 * array.dtype.itemsize):
            other = array.copy()
            words = other.reshape(-1).view(f"uint{8 * array.dtype.itemsize}")
            words[position] ^= words.dtype.type(1 << bit)
            changed.append(numpy_checksum(other))
    assert numpy_checksum(array) not in changed


def test_elements_and_blocks_at_other_positions_are_noticed():
    # Numbers with few bits set at distances of powers of two: what weighted sums miss.
    array = np.float32([1, 2, 4, 0.5, 0, -0.0, 1, 1]).repeat(256)
    seen = {numpy_checksum(array), numpy_checksum(array.reshape(2, -1)[::-1])}
    seen |= {numpy_checksum(np.roll(array, shift)) for shift in (1, 256, 512)}
    swapped = array.copy()
    swapped[[0, 256]] = swapped[[256, 0]]
    zeroed = array.copy()
    zeroed[1024:] = 0
    seen |= {numpy_checksum(swapped), numpy_checksum(zeroed), numpy_checksum(array[:-1])}
    assert len(seen) == 8


def test_not_a_number_keeps_its_bits():
    array = np.uint32([0x7FC00000, 0x7FC00001, 0xFFC00000, 0x7F800001]).view(np.float32)
    assert checksums({"a": jnp.asarray(array)}) == {"a": numpy_checksum(array)}
    assert len({numpy_checksum(array[i : i + 1]) for i in range(4)}) == 4


def test_types_of_eight_bytes_are_refused():
    with pytest.raises(ValueError, match="no checksum is known for arrays of float64"):
        numpy_checksum(np.ones(3))


def test_json_checksum_is_of_the_content_and_not_of_the_order():
    assert json_checksum({"a": 1, "b": [2.5, None]}) == json_checksum({"b": [2.5, None], "a": 1})
    assert json_checksum({"a": 1}) != json_checksum({"a": 1.0})


def test_checksum_does_not_depend_on_the_layout_in_memory():
    array = example("float32", (6, 5))
    assert numpy_checksum(np.asfortranarray(array)) == numpy_checksum(array)
    assert checksums({"a": jax.device_put(array.T).T}) == {"a": numpy_checksum(array)}
