"""What every question asked of a model has in common.

All processes ask together, for the model may be spread over them, and all get the same answer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Array, Float

from darl_jax.methods import Batch
from darl_jax.nn.attention import Mask
from darl_jax.nn.patches import patchify, standardise
from darl_jax.nn.vit import ViT

# One pass over records in fixed order: a new iterator for each call, every record in it once, rows
# that do not count with `mask` False. Each process yields its own rows of each batch.
HostBatches = Callable[[], Iterable[Mapping[str, Any]]]


def block_outputs(
    backbone: ViT, batch: Batch, *, mean: Sequence[float], std: Sequence[float], mask: Mask
) -> Float[Array, "depth batch token width"]:
    """Every block's output for whole images, whose every patch is an input.

    Args:
      backbone: of any model.
      batch: with `image`.
      mean: of each channel, as the model was trained.
      std: of each channel, as the model was trained.
      mask: the attention.
    """
    images, size = standardise(batch["image"], mean, std), backbone.config.patch_size
    grid = images.shape[1] // size, images.shape[2] // size
    return backbone(patchify(images, size), mask=mask, grid=grid).blocks
