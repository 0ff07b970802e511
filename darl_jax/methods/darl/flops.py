"""FLOPs of DARL in training and in sampling, by the convention of nn/flops.py."""

from collections.abc import Sequence

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
    noise_draws: int = 1,
    two_stream: bool = False,
) -> int:
    """FLOPs of one image's forward pass in pre-training, by the convention of this module.

    Args:
        width: channels of the backbone and of the patch decoder.
        depth: blocks of the backbone.
        mlp_dim: hidden channels of an MLP, the decoder's included.
        tokens: length of the sequence, which is the number of patches: the start token and all
            patches but the last, each predicting one patch.
        patch_dim: values in a patch.
        denoising: whether the decoder takes a corrupted patch (diffusion).
        decoder_kind: "mlp" (residual layers), or where it is denoising "transformer" (two tokens).
        decoder_layers: layers or blocks of the patch decoder; 0 is a single linear layer.
        condition_on_gamma: whether gamma is one more channel of the corrupted patch.
        noise_draws: corrupted patches for each output of the backbone; 1 without denoising.
        two_stream: whether a query stream goes beside the content: no keys and values of its own.
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

    embedding = linear(patch_dim + int(condition_on_gamma), width)
    if decoder_kind == "mlp" or decoder_layers == 0:
        return backbone + tokens * noise_draws * (embedding + decoder_layers * mlp + to_pixels)
    once, each_draw = _two_token_blocks(decoder_layers, width, mlp)
    each_draw += embedding + to_pixels
    return backbone + tokens * (linear(width, width) + once + noise_draws * each_draw)


def sampling_flops(
    *,
    width: int,
    depth: int,
    mlp_dim: int,
    patch_dim: int,
    steps: Sequence[int],
    decoder_kind: str,
    decoder_layers: int,
    condition_on_gamma: bool,
) -> int:
    """FLOPs of making one image with keys and values kept, by the convention of this module.

    Args:
        width: channels of the backbone and of the patch decoder.
        depth: blocks of the backbone.
        mlp_dim: hidden channels of an MLP.
        patch_dim: values in a patch.
        steps: of the reverse process, for each patch.
        decoder_kind: "mlp" or "transformer".
        decoder_layers: layers or blocks of the patch decoder.
        condition_on_gamma: whether gamma is one more channel of the corrupted patch.
    """
    patches, mlp = len(steps), 2 * linear(width, mlp_dim)
    # Each token meets all of the cache, the places that are not reached yet included.
    backbone = backbone_flops(
        width=width, depth=depth, mlp_dim=mlp_dim, patches=patches - 1, patch_dim=patch_dim
    )
    step = linear(patch_dim + int(condition_on_gamma), width) + linear(width, patch_dim)
    if decoder_kind == "mlp" or decoder_layers == 0:
        return backbone + sum(steps) * (step + decoder_layers * mlp)
    once, each_draw = _two_token_blocks(decoder_layers, width, mlp)
    return backbone + patches * (linear(width, width) + once) + sum(steps) * (step + each_draw)


def _two_token_blocks(layers: int, width: int, mlp: int) -> tuple[int, int]:
    """FLOPs of the denoising Transformer's blocks: once a token of the backbone, and each draw."""
    projection = linear(width, width)
    whole_token = 4 * projection + mlp
    if layers == 1:  # z gives its key and value and is not read again
        return 2 * projection, whole_token
    # z's query, key and value in the first block are the same for every draw; what comes of z
    # later is not, and in the last block its key and value are all that is read.
    first = 2 * whole_token - 3 * projection
    between = (layers - 2) * 2 * whole_token
    last = whole_token + 2 * projection
    return 3 * projection, first + between + last
