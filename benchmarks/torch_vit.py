"""A ViT of equal work in PyTorch; started by train_step.py in an environment with PyTorch.

    /path/to/torch/bin/python benchmarks/torch_vit.py '{"width": 384, ...}'

Decoder-only, causal attention with rotary embedding, squared error on patches, AdamW: parameter for
parameter and matrix product for matrix product what darl_jax trains, in PyTorch's own fast way:
torch.compile, autocast to bfloat16, fused AdamW, one matrix for query, key and value, and the
fastest backend that `scaled_dot_product_attention` has here for these shapes.

It prints a line of JSON about itself once it is ready. For each line on its standard input, a
number of steps, it takes them and prints a line with their seconds.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch  # type: ignore[import-not-found]
import torch.nn.functional as F  # type: ignore[import-not-found]
from torch.nn.attention import SDPBackend, sdpa_kernel  # type: ignore[import-not-found]
from torch.utils.flop_counter import FlopCounterMode  # type: ignore[import-not-found]

BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MEMORY_SHARE = 0.5  # of the GPU; train_step.py leaves that much
LAYER_NORM_EPSILON = 1e-6


def rotation(shape: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, (token, 1, pair): half of the pairs rotate by x, half by y; SOS does not."""
    side = shape["image_size"] // shape["patch_size"]
    pairs = shape["width"] // shape["num_heads"] // 4
    frequency = shape["max_wavelength"] ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angle = torch.cat([torch.outer(axis.flatten(), frequency) for axis in (x, y)], dim=-1)
    angle = F.pad(angle[:-1], (0, 0, 1, 0))[:, None]
    return angle.cos().float(), angle.sin().float()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.float().chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return rotated.to(x.dtype)


class Block(torch.nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_dim: int):
        super().__init__()
        self.heads = heads
        self.norm_attention = torch.nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.norm_mlp = torch.nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.out = torch.nn.Linear(width, width)
        self.up = torch.nn.Linear(width, mlp_dim)
        self.down = torch.nn.Linear(mlp_dim, width)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """(batch, token, width) to the same."""
        qkv = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.unbind(2)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        y = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), is_causal=True
        )
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


class Model(torch.nn.Module):
    """Loss of 8-bit images."""

    def __init__(self, shape: dict[str, Any]):
        super().__init__()
        width, self.patch = shape["width"], shape["patch_size"]
        patch_dim = self.patch**2 * shape["channels"]
        self.embedding = torch.nn.Linear(patch_dim, width)
        self.sos = torch.nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = torch.nn.ModuleList(
            Block(width, shape["num_heads"], shape["mlp_dim"]) for _ in range(shape["depth"])
        )
        self.norm = torch.nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.to_pixels = torch.nn.Linear(width, patch_dim)
        cos, sin = rotation(shape)
        for name, value in (("cos", cos), ("sin", sin)):
            self.register_buffer(name, value)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(shape[name]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The loss of uint8 (batch, height, width, channel)."""
        pixels = (images.float() / 255 - self.mean) / self.std
        size = self.patch
        rows = pixels.unflatten(2, (-1, size)).unflatten(1, (-1, size))
        patches = rows.transpose(2, 3).flatten(3).flatten(1, 2)
        x = self.embedding(patches[:, :-1])
        # In x's type, so that the residual stream is bfloat16 under autocast, as ours is.
        x = torch.cat([self.sos.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return ((self.to_pixels(self.norm(x)).float() - patches) ** 2).mean()


def forward_flops(shape: dict[str, Any]) -> int:
    """FLOPs of one image's forward pass, as PyTorch counts matrix products; computes nothing."""
    side = shape["image_size"]
    with torch.device("meta"):
        model = Model(shape)
        image = torch.empty(1, side, side, shape["channels"], dtype=torch.uint8)
    # The other backends are counted by shape too, but not on every device.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.to("meta")(image)
    return int(counter.get_total_flops())


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(function: Callable[[], None], repeats: int, device: str) -> float:
    """Seconds of `repeats` calls one after the other, to their end on the device."""
    synchronize(device)
    began = time.perf_counter()
    for _ in range(repeats):
        function()
    synchronize(device)
    return time.perf_counter() - began


def fastest_attention(shape: dict[str, Any], device: str, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of attention, forward and backward, by each backend that runs; the fastest first."""
    heads, tokens = shape["num_heads"], (shape["image_size"] // shape["patch_size"]) ** 2
    size = (shape["batch_size"], heads, tokens, shape["width"] // heads)
    query, key, value = (
        torch.randn(size, device=device, dtype=dtype, requires_grad=True) for _ in range(3)
    )

    def attend() -> None:
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        torch.autograd.grad(out, (query, key, value), torch.ones_like(out))

    seconds = {}
    for backend in BACKENDS:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            try:
                attend()
            except RuntimeError:  # PyTorch's way to refuse a backend
                continue
            seconds[backend] = min(timed(attend, 1, device) for _ in range(5))
    return dict(sorted(seconds.items(), key=lambda item: item[1]))


def make_step(shape: dict[str, Any], model: Model, device: str) -> Callable[[], None]:
    """One update on one batch of random images."""
    kernels = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": kernels, "weight_decay": shape["weight_decay"]}, {"params": others}],
        lr=1e-4,
        betas=(shape["b1"], shape["b2"]),
        eps=shape["eps"],
        weight_decay=0.0,
        fused=True,
    )
    size = (shape["batch_size"], shape["image_size"], shape["image_size"], shape["channels"])
    images = torch.randint(0, 256, size, dtype=torch.uint8, device=device)
    compiled = torch.compile(model)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=shape["dtype"] == "bfloat16"):
            loss = compiled(images)
        loss.backward()
        optimizer.step()

    return step


def rounds(shape: dict[str, Any], requests: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yields the lines to print: a description, then the seconds of each requested round."""
    device = shape["device"]
    if device == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError(f"PyTorch {torch.__version__} finds no GPU; install it with CUDA")
        torch.cuda.set_per_process_memory_fraction(MEMORY_SHARE)
        torch.set_float32_matmul_precision("high")  # TF32, as XLA does by default
    attention = fastest_attention(shape, device, DTYPES[shape["dtype"]])
    backend = next(iter(attention))
    model = Model(shape).to(device)
    step = make_step(shape, model, device)
    with sdpa_kernel(getattr(SDPBackend, backend)):
        began = time.perf_counter()
        timed(step, 2, device)
        yield {
            "version": torch.__version__,
            "attention": backend,
            "attention_seconds": attention,
            "parameters": sum(p.numel() for p in model.parameters()),
            "forward_flops": forward_flops(shape),
            "compile_seconds": time.perf_counter() - began,
        }
        for request in requests:
            yield {"seconds": timed(step, int(request), device)}


def main() -> None:
    # Output of libraries goes to standard error; standard output has only the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        for answer in rounds(json.loads(sys.argv[1]), iter(sys.stdin)):
            print(json.dumps(answer), file=answers, flush=True)
    except RuntimeError as error:  # out of memory is one of them
        print(json.dumps({"error": str(error).strip().splitlines()[0]}), file=answers, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
