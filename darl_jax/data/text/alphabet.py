"""Alphabets of text: bytes, or space and the letters a to z."""

import numpy as np
from jaxtyping import Int, UInt8

ALPHABETS = ("text8", "bytes")
LETTERS = b" abcdefghijklmnopqrstuvwxyz"


def levels_of(alphabet: str) -> int:
    """Number of characters."""
    return len(LETTERS) if alphabet == "text8" else 256


def encode(text: bytes, alphabet: str) -> UInt8[np.ndarray, " character"]:
    """Characters of a text as integers.

    text8 writes letters in lower case and every run of other bytes as one space (Mahoney, "About
    the test data", 2011; without its spelling of digits), and leaves text8 itself as it is.
    """
    raw = np.frombuffer(text, np.uint8)
    if alphabet == "bytes":
        return raw
    table = np.zeros(256, np.uint8)
    for number, letter in enumerate(LETTERS.decode()):
        table[ord(letter)] = table[ord(letter.upper())] = number
    letters = table[raw]
    begins = np.ones(len(raw), bool)
    begins[1:] = letters[:-1] != 0
    return letters[(letters != 0) | begins]


def decode(values: Int[np.ndarray, " character"], alphabet: str) -> str:
    """The text of integers; bytes that are no UTF-8 and values that are no character become "�"."""
    if alphabet == "bytes":
        known = np.where(values < 256, values, 0xFF)
        return known.astype(np.uint8).tobytes().decode(errors="replace")
    return "".join(LETTERS.decode()[i] if i < len(LETTERS) else "�" for i in values.tolist())
