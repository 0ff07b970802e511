"""Writes rope2d.npz: rotary embeddings as rotary-embedding-torch computes them.

The library that the paper names in Section 3.4, with its language frequencies
(10000^(-2i/d)) on integer positions. Run by hand, in an environment with torch and
rotary-embedding-torch (0.9.1 wrote the file that is here):

    python tests/golden/make_rope.py

Keys, all float32; a grid of 5 rows and 7 columns, heads of 16 channels, adjacent channel pairs:
    q2d          (2, 3, 5, 7, 16)  batch, heads, rows (y), columns (x), channels: the input
    q2d_y_first  the same rotated by the library as it comes: channels 0-7 by y, 8-15 by x
    q2d_x_first  the same rotated with channels 0-7 by x, 8-15 by y (the paper's matrix)
    q1d          (2, 3, 11, 16)    batch, heads, positions 0..10, channels: the input
    q1d_rotated  the same rotated over all 16 channels by the position
"""

import pathlib

import numpy as np
import torch
from rotary_embedding_torch import RotaryEmbedding, apply_rotary_emb

HEAD_DIM = 16
ROWS, COLUMNS = 5, 7


def main() -> None:
    torch.manual_seed(0)
    q2d = torch.randn(2, 3, ROWS, COLUMNS, HEAD_DIM)
    axial = RotaryEmbedding(dim=HEAD_DIM // 2, freqs_for="lang", cache_if_possible=False)
    y_first = apply_rotary_emb(axial.get_axial_freqs(ROWS, COLUMNS), q2d)
    # The library gives the first half of the channels to the first axis that it is told of, so x
    # comes first when it sees the transposed grid.
    transposed = apply_rotary_emb(axial.get_axial_freqs(COLUMNS, ROWS), q2d.transpose(2, 3))
    x_first = transposed.transpose(2, 3)

    q1d = torch.randn(2, 3, 11, HEAD_DIM)
    sequential = RotaryEmbedding(dim=HEAD_DIM, freqs_for="lang", cache_if_possible=False)
    arrays = {
        "q2d": q2d,
        "q2d_y_first": y_first,
        "q2d_x_first": x_first,
        "q1d": q1d,
        "q1d_rotated": sequential.rotate_queries_or_keys(q1d),
    }
    path = pathlib.Path(__file__).with_name("rope2d.npz")
    np.savez_compressed(path, **{k: v.numpy().astype(np.float32) for k, v in arrays.items()})
    for name, value in arrays.items():
        print(name, tuple(value.shape))
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
