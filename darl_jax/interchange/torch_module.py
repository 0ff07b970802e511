"""A darl_jax backbone in PyTorch: the features of every block, causal or full.

This file needs only PyTorch. It belongs beside `config.json` and `model.safetensors`:

    import torch
    from darl_vit import load

    model = load()                                   # the folder of this file
    images = torch.rand(2, 224, 224, 3)              # RGB in [0, 1], rows, columns, channels
    features = model(model.standardize(images), mask="causal")
    features.blocks[-1]                              # (2, 1 + patches, width), before any norm
    features.tokens                                  # the same after the final norm

The first token is the start of the sequence, unless the model has none; one for each patch follows,
in raster order or, where config.json has a `sequence`, in the model's own. Images of another
resolution than the trained one work if patches fill them and the order is raster order.
"""

import json
import math
import os
import struct
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

FORMAT, FORMAT_VERSION = "darl_jax.vit", 2
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Features(NamedTuple):
    """Outputs of the backbone."""

    tokens: torch.Tensor  # (batch, token, width), the last block's output after the final norm
    blocks: list[torch.Tensor]  # each block's output: (batch, token, width), before any norm


def load(folder: str | os.PathLike | None = None) -> "ViT":
    """Loads the model of an exported folder, in evaluation mode.

    Args:
        folder: has config.json and model.safetensors; the folder of this file if not given.

    Raises:
        ValueError: another format or version, a truncated file, arrays that do not fit the config.
    """
    folder = os.fspath(folder or os.path.dirname(os.path.abspath(__file__)))
    path = os.path.join(folder, "config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    found = config.get("format"), config.get("format_version")
    if found != (FORMAT, FORMAT_VERSION):
        raise ValueError(
            f"{path} is of format {found[0]!r}, version {found[1]!r}; this file reads "
            f"{FORMAT!r}, version {FORMAT_VERSION}"
        )
    model = ViT(**config["model"], mean=config["data"]["mean"], std=config["data"]["std"])
    path = os.path.join(folder, "model.safetensors")
    try:
        model.load_state_dict(read_safetensors(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} does not fit its config; export it again. {reason}") from error
    model.class_names = config["class_names"]
    return model.eval()


def read_safetensors(path: str) -> dict[str, torch.Tensor]:
    """Reads all arrays of a safetensors file: a length, a header in JSON, then the arrays."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise ValueError(f"{path} is truncated in its header, or no safetensors file")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max(entry["data_offsets"][1] for entry in header.values())
        if end > size:
            raise ValueError(
                f"{path} is truncated: its header says {end} bytes, and the file has {size}"
            )
        arrays = {}
        for name, entry in header.items():
            begin, stop = entry["data_offsets"]
            file.seek(8 + length + begin)
            flat = torch.frombuffer(
                bytearray(file.read(stop - begin)), dtype=DTYPES[entry["dtype"]]
            )
            arrays[name] = flat.reshape(entry["shape"])
    return arrays


class ViT(nn.Module):
    """[SOS, p_1 .. p_n] -> features of every block.

    Args:
        width, depth, num_heads, mlp_dim: sizes of the Transformer.
        patch_size: rows and columns of a patch.
        channels: of an image.
        positions: "none", "sincos2d", "sincos2d_native", "learnable", "rope1d", "rope2d" or
            "rope_dinov3".
        grid: (rows, columns) of patches of the images on whose grid positions are counted.
        rope_max_wavelength: base of RoPE's frequencies.
        rope_y_first: whether the first half of a head's channel pairs rotates by the row.
        sequence: raster number of the patch at each position; None for raster order.
        num_classes: of the head; None without one.
        pooling: input of the head: "mean" over the patches' tokens, the "last" one or the "start".
        pooled_norm: whether the head reads tokens before the final norm, and norms what is pooled.
        mask: attention that the head was trained with: "causal" or "full".
        mean, std: of each channel, of images in [0, 1].
        norm, norm_epsilon: "layer" or "rms".
        mlp, mlp_bias: "gelu", or the gated "swiglu".
        attention_bias: of all four projections.
        qk_norm: "none", or a norm of each head's queries and keys: "plain", or with a "scale".
        layer_scale: not 0 where each branch is multiplied by a learned vector.
        patch_norm: of embedded patches: "none", "layer" or "rms".
        start_token: "learned" or "none".
    """

    mean: torch.Tensor
    std: torch.Tensor
    class_names: list[str] | None = None  # of the head's classes, in order

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        patch_size: int,
        channels: int,
        positions: str,
        grid: tuple[int, int],
        rope_max_wavelength: float,
        rope_y_first: bool,
        sequence: list[int] | None,
        num_classes: int | None,
        pooling: str | None,
        mask: str,
        mean: list[float],
        std: list[float],
        pooled_norm: bool = False,
        norm: str = "layer",
        norm_epsilon: float = 1e-6,
        mlp: str = "gelu",
        mlp_bias: bool = True,
        attention_bias: bool = True,
        qk_norm: str = "none",
        layer_scale: float = 0.0,
        patch_norm: str = "none",
        start_token: str = "learned",
    ):
        super().__init__()
        self.width, self.num_heads, self.patch_size = width, num_heads, patch_size
        self.encoding, self.grid = positions, (int(grid[0]), int(grid[1]))
        self.rope_max_wavelength, self.rope_y_first = rope_max_wavelength, rope_y_first
        self.pooling, self.mask, self.sequence = pooling, mask, sequence
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        self.patch_embedding = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        has_norm = patch_norm != "none"
        self.patch_norm = make_norm(patch_norm, width, norm_epsilon) if has_norm else None
        self.start_tokens = int(start_token == "learned")
        if self.start_tokens:
            self.sos = nn.Parameter(0.02 * torch.randn(width))
        if positions == "learnable":
            self.positions = nn.Parameter(0.02 * torch.randn(math.prod(self.grid), width))
        self.blocks = nn.ModuleList(
            Block(
                *(width, num_heads, mlp_dim, norm, norm_epsilon, mlp, mlp_bias),
                attention_bias=attention_bias,
                qk_norm=qk_norm,
                layer_scale=layer_scale,
            )
            for _ in range(depth)
        )
        self.final_norm = make_norm(norm, width, norm_epsilon)
        self.pooled_norm = make_norm("layer", width, norm_epsilon) if pooled_norm else None
        self.head = None if num_classes is None else nn.Linear(width, num_classes)

    def standardize(self, images: torch.Tensor) -> torch.Tensor:
        """Converts (batch, row, column, channel), uint8 or in [0, 1], to `forward`'s input."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return ((images - self.mean) / self.std).permute(0, 3, 1, 2)

    def forward(self, images: torch.Tensor, mask: str | None = None) -> Features:
        """Features of standardized images (batch, channel, row, column).

        The mask is "causal" or "full"; the head's if not given.

        Raises:
            ValueError: patches do not fill the images, the mask is unknown, or the order of the
                patches is not known for images of this size.
        """
        mask = mask or self.mask
        rows, columns = images.shape[-2:]
        if rows % self.patch_size or columns % self.patch_size:
            raise ValueError(
                f"images of {rows} x {columns} are not filled by patches of {self.patch_size}"
            )
        if mask not in ("causal", "full"):
            raise ValueError(f"mask={mask!r} is unknown; choose 'causal' or 'full'")
        grid = (rows // self.patch_size, columns // self.patch_size)
        if self.sequence is not None and grid != self.grid:
            raise ValueError(
                f"the order of the patches is known for a grid of {self.grid}, and these images "
                f"have one of {grid}"
            )
        x = self.patch_embedding(images).flatten(2).transpose(1, 2)
        if self.patch_norm is not None:
            x = self.patch_norm(x)
        if self.encoding.startswith("sincos2d"):
            trained = grid if self.encoding == "sincos2d_native" else self.grid
            x = x + sincos_2d(grid, trained, self.width).to(x)
        elif self.encoding == "learnable":
            x = x + resample_positions(self.positions, self.grid, grid).to(x)
        if self.sequence is not None:
            x = x[:, self.sequence]
        if self.start_tokens:
            x = torch.cat([self.sos.to(x).expand(len(x), 1, -1), x], dim=1)
        rotation = self._rotation(grid, x.device)
        blocks = []
        for block in self.blocks:
            x = block(x, rotation, mask == "causal")
            blocks.append(x)
        return Features(self.final_norm(x), blocks)

    def logits(self, images: torch.Tensor, mask: str | None = None) -> torch.Tensor:
        """(batch, class) for standardized images. Raises ValueError where there is no head."""
        if self.head is None:
            raise ValueError("this model was exported without a head; it only has features")
        features = self(images, mask)
        tokens = features.tokens if self.pooled_norm is None else features.blocks[-1]
        if self.pooling == "mean":
            pooled = tokens[:, self.start_tokens :].mean(dim=1)
        else:
            pooled = tokens[:, 0 if self.pooling == "start" else -1]
        return self.head(pooled if self.pooled_norm is None else self.pooled_norm(pooled))

    def _rotation(
        self, grid: tuple[int, int], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """cos and sin (token, pair) of RoPE; SOS comes first and is not rotated."""
        if not self.encoding.startswith("rope"):
            return None
        if self.encoding == "rope1d":
            patches = math.prod(grid)
            position = torch.arange(1, patches + 1, dtype=torch.float64)
            axes = [position * (math.prod(self.grid) / patches)]
        elif self.encoding == "rope_dinov3":
            centers = [2 * math.pi * (2 * (torch.arange(n).double() + 0.5) / n - 1) for n in grid]
            axes = [axis.flatten() for axis in torch.meshgrid(*centers, indexing="ij")]
        else:
            axes = coordinates(grid, self.grid)
            axes = axes[::-1] if self.rope_y_first else axes
        channels = self.width // self.num_heads // len(axes)
        exponents = torch.arange(0, channels, 2, dtype=torch.float64) / channels
        frequencies = self.rope_max_wavelength**-exponents
        angles = torch.cat([torch.outer(axis, frequencies) for axis in axes], dim=-1)
        if self.sequence is not None and self.encoding != "rope1d":
            angles = angles[self.sequence]
        angles = F.pad(angles, (0, 0, self.start_tokens, 0)).float().to(device)
        return angles.cos(), angles.sin()


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight, in float32."""

    def __init__(self, width: int, epsilon: float):
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(width)), epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) to the same."""
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.epsilon)
        return (y * self.weight.float()).to(x.dtype)


def make_norm(kind: str, width: int, epsilon: float) -> nn.Module:
    """A norm of kind "layer" or "rms"."""
    return RMSNorm(width, epsilon) if kind == "rms" else nn.LayerNorm(width, eps=epsilon)


def make_head_norm(kind: str, channels: int, epsilon: float) -> nn.Module | None:
    """A LayerNorm of a head's channels, "plain" or with a "scale"; None for "none"."""
    if kind == "none":
        return None
    return nn.LayerNorm(channels, eps=epsilon, elementwise_affine=kind == "scale", bias=False)


class Block(nn.Module):
    """Pre-norm Transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_dim: int,
        norm: str,
        norm_epsilon: float,
        mlp: str,
        mlp_bias: bool,
        *,
        attention_bias: bool,
        qk_norm: str,
        layer_scale: float,
    ):
        super().__init__()
        self.norm_attention = make_norm(norm, width, norm_epsilon)
        self.attention = Attention(width, num_heads, attention_bias, qk_norm, norm_epsilon)
        self.norm_mlp = make_norm(norm, width, norm_epsilon)
        self.mlp = Mlp(width, mlp_dim, mlp, mlp_bias)
        scales = nn.Parameter(torch.full((2, width), layer_scale)) if layer_scale else None
        self.layer_scale = scales

    def forward(
        self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor] | None, causal: bool
    ) -> torch.Tensor:
        """(batch, token, width) to the same."""
        x = x + self._scaled(self.attention(self.norm_attention(x), rotation, causal), 0)
        return x + self._scaled(self.mlp(self.norm_mlp(x)), 1)

    def _scaled(self, branch: torch.Tensor, index: int) -> torch.Tensor:
        return branch if self.layer_scale is None else branch * self.layer_scale[index]


class Attention(nn.Module):
    """Multi-head self-attention with separate query, key, value and output projections."""

    def __init__(self, width: int, num_heads: int, bias: bool, qk_norm: str, epsilon: float):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.query_norm = make_head_norm(qk_norm, width // num_heads, epsilon)
        self.key_norm = make_head_norm(qk_norm, width // num_heads, epsilon)

    def forward(
        self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor] | None, causal: bool
    ) -> torch.Tensor:
        """(batch, token, width) to the same."""

        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        query, key, value = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self.out(y.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """width -> mlp_dim -> exact GELU -> width, or SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, mlp_dim: int, kind: str, bias: bool):
        super().__init__()
        self.gate = nn.Linear(width, mlp_dim, bias=bias) if kind == "swiglu" else None
        self.up = nn.Linear(width, mlp_dim, bias=bias)
        self.down = nn.Linear(mlp_dim, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, token, width) to the same."""
        if self.gate is None:
            return self.down(F.gelu(self.up(x)))
        return self.down(F.silu(self.gate(x)) * self.up(x))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the channel pairs (i, i + d/2) of (batch, head, token, channel), in float32."""
    first, second = x.float().chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return rotated.to(x.dtype)


def coordinates(grid: tuple[int, int], trained: tuple[int, int]) -> list[torch.Tensor]:
    """x (column) and y (row) of each patch in raster order, in patches of the trained grid."""
    y, x = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64) * (trained[0] / grid[0]),
        torch.arange(grid[1], dtype=torch.float64) * (trained[1] / grid[1]),
        indexing="ij",
    )
    return [x.flatten(), y.flatten()]


def sincos_2d(grid: tuple[int, int], trained: tuple[int, int], width: int) -> torch.Tensor:
    """(patch, width): sines and cosines of x in the first half, of y in the second."""
    frequencies = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = [torch.outer(axis, frequencies) for axis in coordinates(grid, trained)]
    return torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=-1)


def resample_positions(
    table: torch.Tensor, trained: tuple[int, int], grid: tuple[int, int]
) -> torch.Tensor:
    """Resamples learned positions (patch, width) of the trained grid onto another, bicubically.

    Like jax.image.resize: `antialias` also chooses Keys' cubic with a = -0.5.
    """
    if grid == trained:
        return table
    image = table.float().unflatten(0, trained).permute(2, 0, 1)[None]
    resized = F.interpolate(image, grid, mode="bicubic", antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).flatten(0, 1)
