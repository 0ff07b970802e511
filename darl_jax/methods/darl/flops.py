"""FLOPs of DARL in training and in sampling, by the convention of nn/flops.py."""

from collections.abc import Sequence
from typing import Any

from darl_jax.nn.flops import backbone_flops, linear


def forward_flops(
    *,
    width: int,
    depth: int,
    mlp_dim: int,
    tokens: int,
    patch_dim: int,
    denoising: bool,
    decoder_kind: str = "mlp",
    decoder_layers: int = 0,
    condition_on_gamma: bool = False,
    noise_draws: int | Sequence[int] = 1,
    two_stream: bool = False,
) -> int:
    """FLOPs of one image's forward pass in pre-training.

    Args:
      width: of the backbone and the patch decoder, as is `mlp_dim`.
      tokens: sequence length, which is the number of patches: the start token and all patches but
        the last, each predicting one patch.
      denoising: whether the decoder takes a corrupted patch (diffusion).
      noise_draws: corrupted patches per output of the backbone, one number for all or one for each.
      two_stream: whether there is a query stream; it has no keys and values of its own.
    """
    mlp = 2 * linear(width, mlp_dim)
    backbone = backbone_flops(
        width=width, depth=depth, mlp_dim=mlp_dim, patches=tokens - 1, patch_dim=patch_dim
    )
    if two_stream:
        query = 2 * linear(width, width) + 2 * linear(width, tokens) + mlp
        backbone += depth * tokens * query
    to_pixels = linear(width, patch_dim)

    if not denoising:
        return backbone + tokens * (decoder_layers * mlp + to_pixels)

    draws = tokens * noise_draws if isinstance(noise_draws, int) else sum(noise_draws)
    each_draw = linear(patch_dim + int(condition_on_gamma), width) + to_pixels
    if decoder_kind == "mlp" or decoder_layers == 0:
        return backbone + draws * (each_draw + decoder_layers * mlp)
    once, blocks = _two_token_blocks(decoder_layers, width, mlp)
    return backbone + tokens * (linear(width, width) + once) + draws * (each_draw + blocks)


def sampling_flops(*, steps: Sequence[int], **shape: Any) -> int:
    """FLOPs of sampling one image with a KV cache, from the number of steps of each patch.

    They are a forward pass's: each token attends to the whole cache, positions that are still empty
    included. The other arguments are those of `forward_flops`.
    """
    return forward_flops(**shape, tokens=len(steps), denoising=True, noise_draws=steps)


def _two_token_blocks(layers: int, width: int, mlp: int) -> tuple[int, int]:
    """FLOPs of the denoising Transformer's blocks: per token of the backbone, and per draw."""
    projection = linear(width, width)
    whole_token = 4 * projection + mlp
    if layers == 1:  # only the key and value of z are used
        return 2 * projection, whole_token
    # In the first block z's query, key and value are common to all draws; in the last block only
    # its key and value are used.
    first = 2 * whole_token - 3 * projection
    between = (layers - 2) * 2 * whole_token
    last = whole_token + 2 * projection
    return 3 * projection, first + between + last
