"""Writes block.npz: a causal pre-norm transformer block with 2D RoPE in float64 PyTorch.

LayerNorm (eps 1e-6), q, k and v projected separately, rotary-embedding-torch's axial language RoPE
on q and k, torch's causal scaled-dot-product attention, out projection, residual; LayerNorm, exact
GELU MLP, residual. The sequence is a start token, which is not rotated, and the patches of a grid
of 3 rows and 4 columns in raster order; the first half of a head's channels rotates by x (the
column), the second by y. Run by hand, in an environment with torch and rotary-embedding-torch:

    python tests/golden/make_block.py

Width 32, 2 heads of 16 channels, MLP 64, batch 2, 13 tokens. Keys, all stored in float32 (what
goes in is exact, what comes out is rounded once); kernels are (in, out), and the heads of a
projection are its consecutive groups of 16 output channels:
    input, output, cotangent            (2, 13, 32)
    params/<name>                       the weights
    gradients/<name>, gradients/input   of sum(output * cotangent)
with <name> one of
    norm_attention/{scale,bias}         (32,)
    attention/{query,key,value,out}/{kernel,bias}   (32, 32), (32,)
    norm_mlp/{scale,bias}               (32,)
    mlp/up/{kernel,bias}                (32, 64), (64,)
    mlp/down/{kernel,bias}              (64, 32), (32,)
"""

import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from rotary_embedding_torch import RotaryEmbedding, apply_rotary_emb

WIDTH, HEADS, MLP_DIM, BATCH = 32, 2, 64, 2
ROWS, COLUMNS = 3, 4
HEAD_DIM = WIDTH // HEADS
TOKENS = 1 + ROWS * COLUMNS


def make_params() -> dict[str, torch.Tensor]:
    """Random weights, every one of them away from its usual initial value."""
    params = {}
    for norm in ("norm_attention", "norm_mlp"):
        params[f"{norm}/scale"] = 1.0 + 0.3 * torch.randn(WIDTH)
        params[f"{norm}/bias"] = 0.3 * torch.randn(WIDTH)
    shapes = {f"attention/{name}": (WIDTH, WIDTH) for name in ("query", "key", "value", "out")}
    shapes |= {"mlp/up": (WIDTH, MLP_DIM), "mlp/down": (MLP_DIM, WIDTH)}
    for name, (fan_in, fan_out) in shapes.items():
        params[f"{name}/kernel"] = 1.5 * torch.randn(fan_in, fan_out) / fan_in**0.5
        params[f"{name}/bias"] = 0.3 * torch.randn(fan_out)
    return {name: as_stored(value).requires_grad_() for name, value in params.items()}


def as_stored(x: torch.Tensor) -> torch.Tensor:
    """The float64 value of what the file holds."""
    return x.float().double()


def rotate(x: torch.Tensor) -> torch.Tensor:
    """(batch, heads, token, channel) with all tokens but the first rotated by their place."""
    rope = RotaryEmbedding(dim=HEAD_DIM // 2, freqs_for="lang", cache_if_possible=False).double()
    # The library computes its frequencies in float32; these are the same ones unrounded.
    i = torch.arange(0, HEAD_DIM // 2, 2, dtype=torch.float64)
    rope.freqs.data = 10_000.0 ** (-i / (HEAD_DIM // 2))
    grid = x[:, :, 1:].reshape(*x.shape[:2], ROWS, COLUMNS, HEAD_DIM).transpose(2, 3)
    grid = apply_rotary_emb(rope.get_axial_freqs(COLUMNS, ROWS), grid).transpose(2, 3)
    return torch.cat([x[:, :, :1], grid.flatten(2, 3)], dim=2)


def block(params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """One block on (batch, token, width)."""

    def linear(name: str, y: torch.Tensor) -> torch.Tensor:
        return F.linear(y, params[f"{name}/kernel"].T, params[f"{name}/bias"])

    def norm(name: str, y: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(y, (WIDTH,), params[f"{name}/scale"], params[f"{name}/bias"], 1e-6)

    def heads(name: str, y: torch.Tensor) -> torch.Tensor:
        return linear(f"attention/{name}", y).unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)

    y = norm("norm_attention", x)
    q, k, v = rotate(heads("query", y)), rotate(heads("key", y)), heads("value", y)
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + linear("attention/out", attended.transpose(1, 2).flatten(-2))
    y = F.gelu(linear("mlp/up", norm("norm_mlp", x)), approximate="none")
    return x + linear("mlp/down", y)


def main() -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    params = make_params()
    x = as_stored(torch.randn(BATCH, TOKENS, WIDTH)).requires_grad_()
    cotangent = as_stored(torch.randn(BATCH, TOKENS, WIDTH))
    output = block(params, x)
    gradients = torch.autograd.grad((output * cotangent).sum(), [x, *params.values()])

    arrays = {"input": x, "output": output, "cotangent": cotangent}
    arrays |= {f"params/{name}": value for name, value in params.items()}
    names = ["input", *params]
    arrays |= {f"gradients/{n}": g for n, g in zip(names, gradients, strict=True)}
    path = pathlib.Path(__file__).with_name("block.npz")
    np.savez_compressed(path, **{k: v.detach().float().numpy() for k, v in arrays.items()})


if __name__ == "__main__":
    main()
