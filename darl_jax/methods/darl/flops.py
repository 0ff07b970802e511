"""FLOPs of DARL, by the convention of nn/flops.py."""

from collections.abc import Sequence

from darl_jax.methods.darl.patch_decoders import PatchDecoderConfig
from darl_jax.nn.flops import backbone_flops, linear, mlp_flops
from darl_jax.nn.vit import ViTConfig


def forward_flops(
    model: ViTConfig,
    decoder: PatchDecoderConfig,
    *,
    tokens: int,
    patch_dim: int,
    denoising: bool,
    draws: int | Sequence[int] = 1,
    two_stream: bool = False,
) -> int:
    """FLOPs of one image's forward pass in pre-training.

    Sampling an image with a KV cache takes those of as many draws as a patch has steps: each token
    attends to the whole cache, positions that are still empty included.

    Args:
      model: the backbone.
      decoder: the patch decoder.
      tokens: sequence length, which is the number of patches: the start token and all patches but
        the last, each predicting one patch.
      patch_dim: values in a patch.
      denoising: whether the decoder takes a corrupted patch (diffusion).
      draws: corrupted patches per output of the backbone, one number for all or one for each.
      two_stream: whether there is a query stream; it has no keys and values of its own.
    """
    width, mlp = model.width, mlp_flops(model)
    backbone = backbone_flops(model, patches=tokens - 1, patch_dim=patch_dim)
    if two_stream:
        query = 2 * linear(width, width) + 2 * linear(width, tokens) + mlp
        backbone += model.depth * tokens * query
    to_pixels = linear(width, patch_dim)

    if not denoising:
        return backbone + tokens * (decoder.layers * mlp + to_pixels)

    total = tokens * draws if isinstance(draws, int) else sum(draws)
    each_draw = linear(patch_dim + int(decoder.condition_on_gamma), width) + to_pixels
    if decoder.kind == "mlp" or decoder.layers == 0:
        return backbone + total * (each_draw + decoder.layers * mlp)
    once, blocks = _two_token_blocks(decoder.layers, width, mlp)
    return backbone + tokens * (linear(width, width) + once) + total * (each_draw + blocks)


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
