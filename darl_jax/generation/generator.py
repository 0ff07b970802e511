"""Image generation patch by patch (Section 5, Appendix F).

One compiled function generates a batch of images: the backbone with a KV cache, and for each patch
the reverse process from noise. Nothing is transferred to the host in between.

Noise is a function of the seed and the image's number, so an image is the same for any batch size
and number of devices, up to the order of float32 sums.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree, UInt8

from darl_jax.methods.base import Method
from darl_jax.methods.darl.base import DARLMethod
from darl_jax.methods.darl.diffusion import Diffusion
from darl_jax.methods.darl.kv_cache import SequenceDecoder
from darl_jax.methods.darl.model import DARL
from darl_jax.methods.darl.mse import MSE
from darl_jax.methods.darl.samplers import SamplerConfig, Steps, make_steps, run_steps
from darl_jax.nn import orders
from darl_jax.nn.mesh_axes import pin_batch
from darl_jax.nn.orders import fixed_order
from darl_jax.nn.patches import patchify, standardize, unpatchify, unstandardize
from darl_jax.training.sharding import global_array, replicated

# (z, keys, index among the generated patches) -> this patch of each image of the batch.
DrawPatch = Callable[
    [Float[Array, "batch width"], Key[Array, " batch"], Int[Array, ""]], Float[Array, "batch pixel"]
]


class Generator:
    """Generates images with a model.

    Args:
      graphdef: the model without parameters.
      method: training method of the model.
      sampler: None for a model of the squared error, whose patches are predicted means.
      order: order of generation; the model's own by default.
      known: number of given patches, the first ones of the order.
      error: for the analytic variance: maps a number of steps to the denoiser's mean squared error
        at each of their levels.

    Raises:
      ValueError: the sampler or the order does not suit the model, or all patches are given.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        method: DARLMethod,
        *,
        sampler: SamplerConfig | None,
        order: Int[np.ndarray, " position"] | None = None,
        known: int = 0,
        error: Callable[[int], np.ndarray] | None = None,
        mesh: Mesh,
    ):
        check_sampler(method, sampler)
        check_order(method, order)
        grid, patch_size = method.grid, method.model.patch_size
        patches = math.prod(grid)
        if not 0 <= known < patches:
            raise ValueError(
                f"{known} patches are given, and the model's grid of {grid[0]} x {grid[1]} has "
                f"{patches}: give 0 to {patches - 1}, so that there is one to make"
            )
        self._mesh = mesh
        mean, std = method.data.mean, method.data.std
        tables = (
            None
            if sampler is None
            else make_tables(sampler, sampler.counts(patches)[known:], error)
        )

        def images(
            params: PyTree,
            key: PRNGKeyArray,
            numbers: Int[Array, " batch"],
            given: UInt8[Array, "batch height width channel"],
        ) -> UInt8[Array, "batch height width channel"]:
            model = nnx.merge(graphdef, params)
            sequence_order = model.backbone.order(grid) if order is None else order
            start = patchify(standardize(given, mean, std), patch_size)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
            generated = _complete(
                SequenceDecoder(model, grid, sequence_order),
                orders.take(start, sequence_order)[:, :known],
                patch_drawer(model, method, sampler, tables),
                keys,
                patches,
            )
            generated = orders.take(generated, orders.inverse(sequence_order))
            return unstandardize(unpatchify(generated, patch_size, grid), mean, std)

        # Replicated: any process can write the images.
        self._images = jax.jit(images, out_shardings=replicated(mesh))

    def __call__(
        self,
        params: PyTree,
        key: PRNGKeyArray,
        numbers: Int[np.ndarray, " rows"],
        given: UInt8[np.ndarray, "rows height width channel"],
    ) -> UInt8[Array, "batch height width channel"]:
        """Generates a batch of images.

        Args:
          key: sampling key of all images.
          numbers: of this process's rows of the batch; they decide the noise.
          given: images whose first `known` patches are kept; the rest is ignored.
        """
        rows = global_array({"numbers": numbers, "given": given}, self._mesh)
        return self._images(params, key, rows["numbers"], rows["given"])

    def batches(
        self,
        params: PyTree,
        key: PRNGKeyArray,
        numbers: Int[np.ndarray, " image"],
        given: UInt8[np.ndarray, "image height width channel"],
        *,
        batch_size: int,
    ) -> Iterator[UInt8[np.ndarray, "_ height width channel"]]:
        """Yields any number of images in batches; arguments are the same in all processes.

        `batch_size` is a multiple of the devices that the batch is sharded over.
        """
        rows = batch_size // jax.process_count()
        own = np.arange(rows) + jax.process_index() * rows
        for start in range(0, len(numbers), batch_size):
            # The last batch is filled up with repetitions.
            index = (start + own) % len(numbers)
            images = self(params, key, numbers[index], given[index])
            yield np.asarray(images)[: len(numbers) - start]


class Tables(NamedTuple):
    """Sampler tables of all generated patches."""

    steps: Steps  # stacked tables, padded to the longest
    counts: Int[np.ndarray, " table"]  # length of each table
    row: Int[np.ndarray, " patch"]  # table of each patch


def make_tables(
    sampler: SamplerConfig,
    counts: Sequence[int],
    error: Callable[[int], Float[np.ndarray, "step _"]] | None = None,
) -> Tables:
    """Tables for patches of `counts` steps each."""
    different, row = np.unique(counts, return_inverse=True)
    each = [make_steps(sampler, int(count), error) for count in different]

    def stack(*columns: np.ndarray) -> Float[np.ndarray, "table step *pixel"]:
        longest = max(map(len, columns))
        rest = [((0, longest - len(c)), *((0, 0),) * (c.ndim - 1)) for c in columns]
        padded = [np.pad(c, width) for c, width in zip(columns, rest, strict=True)]
        return np.stack(padded).astype(np.float32)

    steps = Steps(*(stack(*columns) for columns in zip(*each, strict=True)))
    return Tables(steps, different, row)


def generating_method(method: Method) -> DARLMethod:
    """Checks that a method's models generate images. Raises ValueError."""
    if not isinstance(method, DARLMethod):
        raise ValueError(
            f"config.objective.name={method.name!r} makes no images; 'mse' and 'diffusion' do"
        )
    if isinstance(method, MSE) and method.objective.normalize_target:
        raise ValueError(
            "config.objective.normalize_target=True: the model predicts patches up to their own "
            "mean and variance, which an image that is not there does not give; it makes no images"
        )
    return method


def check_sampler(method: DARLMethod, sampler: SamplerConfig | None) -> None:
    """Checks that the method's patch decoder suits a sampler. Raises ValueError."""
    if isinstance(method, Diffusion) != (sampler is not None):
        raise ValueError(
            f"a model of config.objective.name={method.name!r} has no denoising patch decoder, "
            f"which the sampler {sampler.name!r} needs: it gives its mean, without a sampler"
            if sampler is not None
            else f"a model of config.objective.name={method.name!r} needs a sampler"
        )


def check_order(method: DARLMethod, order: Int[np.ndarray, " position"] | None) -> None:
    """Checks an order of generation, without two streams the model's own. Raises ValueError."""
    own = method.model.order
    if order is None or method.objective.two_stream:
        return
    if not np.array_equal(order, fixed_order(own, method.grid)):
        raise ValueError(
            f"the model knows the order {own.name!r} alone; another one needs a model of two "
            "streams (config.objective.two_stream=True)"
        )


def pixel_bounds(
    method: DARLMethod,
) -> tuple[Float[np.ndarray, " pixel"], Float[np.ndarray, " pixel"]]:
    """Smallest and largest standardized value of each pixel of a patch."""
    mean, std = (np.asarray(value, np.float32) for value in (method.data.mean, method.data.std))
    # A patch's values are (row, column, channel).
    low, high = (np.tile((value - mean) / std, method.model.patch_size**2) for value in (0.0, 1.0))
    return low, high


def patch_drawer(
    model: DARL, method: DARLMethod, sampler: SamplerConfig | None, tables: Tables | None
) -> DrawPatch:
    """Function that draws a patch of each image; without a sampler the predicted mean."""
    pixels, bounds = method.patch_dim, pixel_bounds(method)
    if not isinstance(method, Diffusion) or sampler is None or tables is None:
        return lambda z, keys, number: jnp.clip(model.patch_decoder(z).astype(jnp.float32), *bounds)
    steps = jax.tree.map(jnp.asarray, tables.steps)
    noisy = bool(np.any(tables.steps.of_noise))
    # A common number of steps is a constant of the compiled program.
    same = int(tables.counts[0]) if len(tables.counts) == 1 else None

    def draw(
        z: Float[Array, "batch width"], keys: Key[Array, " batch"], number: Int[Array, ""]
    ) -> Float[Array, "batch pixel"]:
        denoise = method.denoiser(model, z[:, None])
        row = jnp.asarray(tables.row)[number]

        def one_level(x: Array, gamma: Array) -> Float[Array, "batch pixel"]:
            return denoise(x[None, :, None], jnp.full((1, len(x), 1, 1), gamma))[0, :, 0]

        return run_steps(
            one_level,
            jax.tree.map(lambda column: column[row], steps),
            jnp.asarray(tables.counts)[row] if same is None else same,
            keys,
            pixels,
            bounds if sampler.clip else None,
            noisy=noisy,
        )

    return draw


def _complete(
    decoder: SequenceDecoder,
    given: Float[Array, "batch known pixel"],
    draw: DrawPatch,
    keys: Key[Array, " batch"],
    patches: int,
) -> Float[Array, "batch patch pixel"]:
    """Given patches and then drawn ones, in sequence order."""
    batch, known, pixels = given.shape

    def read(state: Any, position_and_patch: Any) -> tuple[Any, None]:
        cache, previous = state
        position, patch = position_and_patch
        cache, _ = decoder(cache, position, previous)
        return (cache, patch), None

    def generate(state: Any, position: Array) -> tuple[Any, Array]:
        cache, previous = state
        cache, z = decoder(cache, position, previous)
        own_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
        patch = pin_batch(draw(z, own_keys, position - known))
        return (cache, patch), patch

    state = decoder.empty_cache(batch), pin_batch(jnp.zeros((batch, pixels), jnp.float32))
    state, _ = jax.lax.scan(read, state, (jnp.arange(known), given.swapaxes(0, 1)))
    _, generated = jax.lax.scan(generate, state, jnp.arange(known, patches))
    return jnp.concatenate([given, generated.swapaxes(0, 1)], axis=1)
