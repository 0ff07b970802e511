"""KV cache: a sequence one token at a time, with the keys and values of all earlier tokens.

Computes what `DARL.encode` does for whole images, while their patches are being generated.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from darl_jax.methods.darl.model import DARL
from darl_jax.nn import orders
from darl_jax.nn.attention import plain_attention
from darl_jax.nn.blocks import Angles
from darl_jax.nn.dtypes import DTYPES
from darl_jax.nn.mesh_axes import pin_batch
from darl_jax.nn.orders import Order
from darl_jax.nn.positions import Grid


class Cache(NamedTuple):
    """Keys and values of every block; positions of the sequence not reached yet hold 0."""

    keys: Float[Array, "depth batch token head channel"]
    values: Float[Array, "depth batch token head channel"]


class SequenceDecoder:
    """Runs a model along one order.

    Args:
      model: with its parameters.
      grid: (rows, columns) of patches.
      order: of the patches.
    """

    def __init__(self, model: DARL, grid: Grid, order: Order):
        self._model = model
        self._order = order
        backbone = model.backbone
        self._angles = backbone.angles(grid, order)
        self._table = backbone.position_table(grid)
        if self._table is not None:
            self._table = orders.take(self._table, order)

    def empty_cache(self, batch: int) -> Cache:
        """A cache for `batch` images."""
        config = self._model.backbone.config
        shape = (config.depth, batch, self._order.shape[-1], config.num_heads, config.head_dim)
        empty = pin_batch(jnp.zeros(shape, DTYPES[config.dtype]), batch_axis=1)
        return Cache(empty, empty)

    def __call__(
        self, cache: Cache, position: Int[Array, ""], previous: Float[Array, "batch pixel"]
    ) -> tuple[Cache, Float[Array, "batch width"]]:
        """z for the patch at one position of the sequence.

        Args:
          cache: of all positions before.
          position: of the patch to predict, from 0.
          previous: the patch before it; not read at position 0, which follows the start token.
        """
        model, backbone = self._model, self._model.backbone
        embedded = backbone.patch_embedding(previous) + self._embedding(position - 1)
        assert backbone.sos is not None  # DARLMethod asks for it.
        sos = jnp.broadcast_to(backbone.sos[...].astype(embedded.dtype), embedded.shape)
        content = jnp.where(position == 0, sos, embedded)[:, None]
        content_angles = self._angle(position)
        stream, queries, query_angles = model.query_stream, None, None
        if stream is not None:
            token = stream.token[...].astype(embedded.dtype) + self._embedding(position)
            queries = jnp.broadcast_to(token, embedded.shape)[:, None]
            query_angles = self._angle(position + 1)
        stacked_modules = (backbone.blocks, None if stream is None else stream.query)
        graphdef, stacked = nnx.split(stacked_modules)
        filled = (jnp.arange(self._order.shape[-1]) <= position)[None, None, None]

        def block(streams: Any, per_block: Any) -> tuple[Any, Cache]:
            content, queries = streams
            parameters, keys, values = per_block
            block, query = nnx.merge(graphdef, parameters)
            attention, normed = block.attention, block.norm_attention(content)
            new = attention.keys_values(normed, content_angles)
            keys, values = (
                jax.lax.dynamic_update_slice_in_dim(kept, one.astype(kept.dtype), position, axis=1)
                for kept, one in zip((keys, values), new, strict=True)
            )

            def attend(queries: Array) -> Array:
                attended = plain_attention(queries, keys, values, filled)
                return attention.out(attended.reshape(*attended.shape[:2], -1))

            if query is not None:
                own = attention.queries(block.norm_attention(queries), query_angles, query)
                queries = block.finish(queries, attend(own))
            content = block.finish(content, attend(attention.queries(normed, content_angles)))
            return (content, queries), Cache(keys, values)

        (content, queries), cache = jax.lax.scan(
            block,
            (content, queries),
            (stacked, *cache),
            unroll=min(backbone.config.unroll, backbone.config.depth),
        )
        z = backbone.final_norm(content if queries is None else queries)[:, 0]
        return cache, pin_batch(z)

    def _embedding(self, position: Int[Array, ""]) -> Float[Array, "*batch width"] | float:
        """Position embedding of the patch at a position; at -1, unused, that of position 0."""
        if self._table is None:
            return 0.0
        return jnp.asarray(self._table)[..., jnp.maximum(position, 0), :].astype(
            DTYPES[self._model.backbone.config.dtype]
        )

    def _angle(self, token: Int[Array, ""]) -> Angles:
        """Rotation angles of one token; the start token is number 0."""
        if self._angles is None:
            return None
        return jax.lax.dynamic_slice_in_dim(jnp.asarray(self._angles), token, 1, axis=-2)
