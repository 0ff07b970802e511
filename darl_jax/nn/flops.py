"""Counted model FLOPs, for the utilisation that is logged.

The convention, so that a number can be compared with others:

- A multiply-add is 2 FLOPs. Only matrix multiplications with weights and attention's two products
  are counted: patch embedding, q / k / v / out, MLPs, the patch decoder's linear layers. Norms,
  softmax, GELU, biases, residuals, rotations, corruption and loss are not; neither is the attention
  of the denoising patch decoder over its two tokens, which is elementwise work of a few operations
  a channel.
- Causal attention counts as the full token x token square, as PaLM's model FLOPs utilisation does
  (arXiv 2204.02311, Appendix B), whether or not a kernel skips the masked half.
- Work that nobody reads is not counted: in the denoising Transformer's last block only the
  corrupted patch's token goes on, so z's query, out projection and MLP are absent. Work that is
  common to all noise draws is counted once: z's own linear layer and its query, key and value in
  the first block.
- A frozen backbone, under probes, has a forward pass alone.
- Backward = 2 x forward, and nothing for rematerialisation or the optimiser, so a step is
  3 x forward. This includes the gradients with respect to the pixels, which are never formed:
  one share of the patch embedding (and of the corrupted patch's), 0.04 to 0.4% of a step in the
  paper's configs.

In TFLOP for one image of 224 px in training, forward and backward (Tables 1, 5 and 15; diffusion
with one Transformer block in its decoder and one noise draw):

| | squared error | diffusion |
|---|---|---|
| ViT-B/16 | 0.106 | 0.117 |
| ViT-L/16 | 0.368 | 0.388 |
| ViT-H/14 | 1.001 | 1.040 |
"""

from collections.abc import Sequence

import jax

from darl_jax.runtime import chips

OBJECTIVES = ("mse", "diffusion")
DECODER_KINDS = ("mlp", "transformer")


def peak_flops(device: jax.Device) -> float | None:
    """Dense bfloat16 peak of a device in FLOP/s; None where it is not known, such as on a CPU."""
    return chips.PEAK_FLOPS.get(device.device_kind)


def forward_flops(
    *,
    width: int,
    depth: int,
    mlp_dim: int,
    tokens: int,
    patch_dim: int,
    objective: str,
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
        objective: "mse" or "diffusion".
        decoder_kind: "mlp" (residual layers), or for diffusion "transformer" (two tokens).
        decoder_layers: layers or blocks of the patch decoder; 0 is a single linear layer.
        condition_on_gamma: whether gamma is one more channel of the corrupted patch.
        noise_draws: corrupted patches for each output of the backbone; 1 for "mse".
        two_stream: whether a query stream goes beside the content: no keys and values of its own.

    Raises:
        ValueError: an unknown name, or a decoder that the squared error does not have.
    """
    if objective not in OBJECTIVES or decoder_kind not in DECODER_KINDS:
        raise ValueError(
            f"objective must be one of {OBJECTIVES} and decoder_kind one of {DECODER_KINDS}, "
            f"got {objective!r} and {decoder_kind!r}"
        )
    mlp = 2 * _linear(width, mlp_dim)
    backbone = backbone_flops(
        width=width, depth=depth, mlp_dim=mlp_dim, patches=tokens - 1, patch_dim=patch_dim
    )
    if two_stream:
        query = 2 * _linear(width, width) + 2 * _linear(width, tokens) + mlp
        backbone += depth * tokens * query
    to_pixels = _linear(width, patch_dim)

    if objective == "mse":
        if decoder_kind != "mlp" or condition_on_gamma or noise_draws != 1:
            raise ValueError(
                "objective 'mse' has decoder_kind 'mlp', no condition_on_gamma and 1 noise draw"
            )
        return backbone + tokens * (decoder_layers * mlp + to_pixels)

    embedding = _linear(patch_dim + int(condition_on_gamma), width)
    if decoder_kind == "mlp" or decoder_layers == 0:
        return backbone + tokens * noise_draws * (embedding + decoder_layers * mlp + to_pixels)
    once, each_draw = _two_token_blocks(decoder_layers, width, mlp)
    each_draw += embedding + to_pixels
    return backbone + tokens * (_linear(width, width) + once + noise_draws * each_draw)


def backbone_flops(*, width: int, depth: int, mlp_dim: int, patches: int, patch_dim: int) -> int:
    """FLOPs of the backbone's forward pass over the start token and `patches` patches."""
    tokens = patches + 1
    token = 4 * _linear(width, width) + 2 * _linear(width, tokens) + 2 * _linear(width, mlp_dim)
    return patches * _linear(patch_dim, width) + depth * tokens * token


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
    patches, mlp = len(steps), 2 * _linear(width, mlp_dim)
    # Each token meets all of the cache, the places that are not reached yet included.
    backbone = backbone_flops(
        width=width, depth=depth, mlp_dim=mlp_dim, patches=patches - 1, patch_dim=patch_dim
    )
    step = _linear(patch_dim + int(condition_on_gamma), width) + _linear(width, patch_dim)
    if decoder_kind == "mlp" or decoder_layers == 0:
        return backbone + sum(steps) * (step + decoder_layers * mlp)
    once, each_draw = _two_token_blocks(decoder_layers, width, mlp)
    return backbone + patches * (_linear(width, width) + once) + sum(steps) * (step + each_draw)


def probe_flops(*, kind: str, width: int, num_heads: int, patches: int, num_classes: int) -> int:
    """FLOPs of one probe's forward pass on an image.

    Args:
        kind: "linear", or "attentive": for each patch a score and a share of each head's mean, then
            the value of that mean; the query meets the key's matrix once for a batch.
        width: of the features.
        num_heads: of an attentive probe.
        patches: of an image.
        num_classes: of the linear classifier.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in ("linear", "attentive"):
        raise ValueError(f"kind must be 'linear' or 'attentive', got {kind!r}")
    classifier = _linear(width, num_classes)
    if kind == "linear":
        return classifier
    return patches * 2 * _linear(width, num_heads) + _linear(width, width) + classifier


def train_step_flops(forward: int, batch_size: int) -> int:
    """FLOPs of one update on a batch: three times the forward pass of each image."""
    return 3 * forward * batch_size


def _linear(fan_in: int, fan_out: int) -> int:
    return 2 * fan_in * fan_out


def _two_token_blocks(layers: int, width: int, mlp: int) -> tuple[int, int]:
    """FLOPs of the denoising Transformer's blocks: once a token of the backbone, and each draw."""
    projection = _linear(width, width)
    whole_token = 4 * projection + mlp
    if layers == 1:  # z gives its key and value and is not read again
        return 2 * projection, whole_token
    # z's query, key and value in the first block are the same for every draw; what comes of z
    # later is not, and in the last block its key and value are all that is read.
    first = 2 * whole_token - 3 * projection
    between = (layers - 2) * 2 * whole_token
    last = whole_token + 2 * projection
    return 3 * projection, first + between + last
