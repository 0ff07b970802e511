"""Counted model FLOPs, for the utilization that is logged.

The convention, so that a number can be compared with others:

- A multiply-add is 2 FLOPs. Only matrix multiplications with weights and attention's two products
  are counted: patch embedding, q / k / v / out, MLPs, the patch decoder's linear layers. Norms,
  softmax, GELU, biases, residuals, rotations, corruption and loss are not; neither is the attention
  of the denoising patch decoder over its two tokens, which is elementwise work of a few operations
  a channel.
- Causal attention counts as the full token x token square, as PaLM's model FLOPs utilization does
  (arXiv 2204.02311, Appendix B), whether or not a kernel skips the masked half.
- Work that nobody reads is not counted: in the denoising Transformer's last block only the
  corrupted patch's token goes on, so z's query, out projection and MLP are absent. Work that is
  common to all noise draws is counted once: z's own linear layer and its query, key and value in
  the first block.
- A frozen backbone, under probes, has a forward pass alone; with adapters (LoRA) it has a backward
  pass too, in which frozen weights have no gradient.
- Backward = 2 x forward, and nothing for rematerialization or the optimizer, so a step is
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

from darl_jax.nn.blocks import TransformerConfig
from darl_jax.nn.lora import LoRAConfig, layer_sizes
from darl_jax.nn.vit import ViTConfig


def backbone_flops(
    model: ViTConfig, *, patches: int, patch_dim: int, depth: int | None = None
) -> int:
    """FLOPs of the backbone's forward pass over the start token, if any, and `patches` patches.

    `depth` counts the blocks that run, all of them by default.
    """
    tokens = patches + model.start_tokens
    blocks = model.depth if depth is None else depth
    return patches * linear(patch_dim, model.width) + blocks * block_flops(model, tokens)


def adapted_step_flops(
    model: ViTConfig, lora: LoRAConfig, *, patches: int, patch_dim: int, depth: int
) -> int:
    """FLOPs of a step through `depth` blocks of which adapters alone are trained.

    Frozen weights multiply their outputs' gradients, and no inputs; the patch embedding has no
    backward pass.
    """
    tokens = patches + model.start_tokens
    sizes = layer_sizes(model)
    adapters = sum(sum(sizes[name]) * 2 * lora.rank for name in lora.names)
    products = 2 * linear(model.width, tokens)  # of attention
    weights = block_flops(model, tokens) // tokens - products
    block = tokens * (2 * weights + 3 * products + 3 * adapters)
    return patches * linear(patch_dim, model.width) + depth * block


def block_flops(model: TransformerConfig, tokens: int) -> int:
    """FLOPs of a block on a sequence."""
    attention = 4 * linear(model.width, model.width) + 2 * linear(model.width, tokens)
    return tokens * (attention + mlp_flops(model))


def mlp_flops(model: TransformerConfig) -> int:
    """FLOPs of a block's MLP on a token; SwiGLU has three matrices."""
    return (3 if model.mlp == "swiglu" else 2) * linear(model.width, model.mlp_dim)


def linear(fan_in: int, fan_out: int) -> int:
    """FLOPs of a dense layer on one vector."""
    return 2 * fan_in * fan_out
