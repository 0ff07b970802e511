"""Two-stream backbone: predicts patches at given positions (Section 4.4, Appendix A.5).

XLNet's scheme (Yang et al. 2020, arXiv 1906.08237). The content stream is the causal backbone. The
query stream has a token for each patch to predict, with the patch's position but not its content;
it attends to the content stream strictly before itself, the start token included. So any patch can
be the next one, and each image can have its own order.

RoPE encodes relative positions only: the first query of a sequence, which sees the start token
alone, has no information on its position.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from darl_jax.nn import orders
from darl_jax.nn.blocks import TOKEN_STDDEV, Angles, linear, scan_blocks, stack_blocks
from darl_jax.nn.dtypes import DTYPES
from darl_jax.nn.mesh_axes import pin_batch
from darl_jax.nn.orders import Order
from darl_jax.nn.positions import Grid
from darl_jax.nn.vit import ViT, ViTConfig


class QueryStream(nnx.Module):
    """Query stream; its parameters are a token and a query projection for each block.

    Settled here: one learned token for all positions, to which the target's position is added or by
    which it is rotated, as the content is; its own query projection in each block ("an additional
    query head"); everything else, norms and output projections included, is the backbone's.
    """

    def __init__(self, vit: ViTConfig, *, rngs: nnx.Rngs):
        token = nnx.initializers.normal(TOKEN_STDDEV)
        self.token = nnx.Param(token(rngs.params(), (vit.width,), jnp.float32))
        self.query = stack_blocks(
            lambda key: linear(vit.width, vit.width, dtype=vit.dtype, rngs=nnx.Rngs(key)),
            vit.depth,
            rngs.params(),
        )

    def __call__(
        self,
        backbone: ViT,
        patches: Float[Array, "batch patch pixel"],
        *,
        grid: Grid,
        order: Order,
    ) -> Float[Array, "batch patch width"]:
        """z_t = f(x_{<t}, position of x_t) for all patches, in sequence order.

        `backbone` is the content stream; `patches` are standardized, of whole images, in raster
        order.
        """
        content, content_angles = backbone.sequence(patches, grid, order, without_last=True)
        queries, query_angles = self.queries(backbone, len(patches), grid, order)
        graphdef, stacked = nnx.split((backbone.blocks, self.query))

        def block(streams: tuple[Array, Array], parameters: nnx.State) -> tuple[Any, None]:
            content, queries = streams
            block, query = nnx.merge(graphdef, parameters)
            attention, normed = block.attention, block.norm_attention(content)
            targets = attention.queries(block.norm_attention(queries), query_angles, query)
            # The start token shifts the content by one: "strictly before" is the causal mask.
            keys, values = attention.keys_values(normed, content_angles)
            attended = attention.attend(targets, keys, values, mask="causal")
            own = attention.attend(
                attention.queries(normed, content_angles), keys, values, mask="causal"
            )
            streams = block.finish(content, own), block.finish(queries, attended)
            return jax.tree.map(pin_batch, streams), None

        (_, queries), _ = scan_blocks(block, (content, queries), stacked, backbone.config)
        return backbone.final_norm(queries)

    def queries(
        self, backbone: ViT, batch: int, grid: Grid, order: Order
    ) -> tuple[Float[Array, "batch patch width"], Angles]:
        """Query tokens in sequence order, and their RoPE angles."""
        token = self.token[...].astype(DTYPES[backbone.config.dtype])
        queries = jnp.broadcast_to(token, (batch, order.shape[-1], len(token)))
        table = backbone.position_table(grid)
        if table is not None:
            queries = queries + orders.take(table, order).astype(queries.dtype)
        angles = backbone.angles(grid, order)
        return pin_batch(queries), None if angles is None else angles[..., 1:, :]
