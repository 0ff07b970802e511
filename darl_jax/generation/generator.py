"""Images from a model, patch after patch (Section 5, Appendix F).

One compiled function makes a whole batch of images: the backbone with its keys and values kept, and
for each patch the reverse process from noise. Nothing goes to the host in between.

An image's noise follows from the seed and its number alone, so it is the same image in a batch of
any size and on any number of devices, up to the order of float32 sums.
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

# (z, keys, which of the patches that are made) -> this patch for each image of the batch.
DrawPatch = Callable[
    [Float[Array, "batch width"], Key[Array, " batch"], Int[Array, ""]], Float[Array, "batch pixel"]
]


class Generator:
    """Makes images with a model.

    Args:
      graphdef: the model without its parameters.
      method: that the model was trained with.
      sampler: how patches are drawn; None for a model of the squared error, whose patches are the
        means that it predicts.
      order: in which patches are made; the model's own if not given.
      known: how many patches are given, the first ones of the order.
      error: for the analytic variance: from a number of steps to the denoiser's mean squared error
        at each of their levels.
      mesh: where the model is.

    Raises:
      ValueError: the model cannot make images, has no decoder for the sampler, knows its own order
        alone, or there are fewer patches than are given.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        method: DARLMethod,
        *,
        sampler: SamplerConfig | None,
        order: Int[np.ndarray, " place"] | None = None,
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
        tables = None
        if sampler is not None:
            tables = make_tables(sampler, sampler.counts(patches)[known:], error)

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
            made = _complete(
                SequenceDecoder(model, grid, sequence_order),
                orders.take(start, sequence_order)[:, :known],
                patch_drawer(model, method, sampler, tables),
                keys,
                patches,
            )
            made = orders.take(made, orders.inverse(sequence_order))
            return unstandardize(unpatchify(made, patch_size, grid), mean, std)

        # Whichever process writes the images has all of them.
        self._images = jax.jit(images, out_shardings=replicated(mesh))

    def __call__(
        self,
        params: PyTree,
        key: PRNGKeyArray,
        numbers: Int[np.ndarray, " rows"],
        given: UInt8[np.ndarray, "rows height width channel"],
    ) -> UInt8[Array, "batch height width channel"]:
        """A batch of images.

        Args:
          params: of the model.
          key: of all images.
          numbers: of these ones, which decide their noise; this process's rows of the batch.
          given: images whose first `known` patches are kept; nothing else of them is looked at.
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
    ) -> Iterator[UInt8[np.ndarray, "made height width channel"]]:
        """Any number of images, batch after batch; arguments are the same in all processes.

        Args:
          params: as in a call.
          key: as in a call.
          numbers: of all images.
          given: for all images.
          batch_size: a multiple of the devices that examples are split over.
        """
        rows = batch_size // jax.process_count()
        own = np.arange(rows) + jax.process_index() * rows
        for start in range(0, len(numbers), batch_size):
            # The last batch is filled up with images that are made already.
            index = (start + own) % len(numbers)
            made = self(params, key, numbers[index], given[index])
            yield np.asarray(made)[: len(numbers) - start]


class Tables(NamedTuple):
    """The steps of all patches that are made.

    Attributes:
      steps: tables one above the other, filled up to the longest.
      counts: how long each of them is.
      row: which of them each patch takes.
    """

    steps: Steps
    counts: Int[np.ndarray, " table"]
    row: Int[np.ndarray, " patch"]


def make_tables(
    sampler: SamplerConfig,
    counts: Sequence[int],
    error: Callable[[int], Float[np.ndarray, "step _"]] | None = None,
) -> Tables:
    """The steps of each patch, by their number."""
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
    """The method, if its models make images. Raises ValueError."""
    if not isinstance(method, DARLMethod):
        raise ValueError(
            f"config.objective.name={method.name!r} predicts no patches: it makes no images"
        )
    if isinstance(method, MSE) and method.objective.normalize_target:
        raise ValueError(
            "config.objective.normalize_target=True: the model predicts patches up to their own "
            "mean and variance, which an image that is not there does not give; it makes no images"
        )
    return method


def check_sampler(method: DARLMethod, sampler: SamplerConfig | None) -> None:
    """Whether the method's patch decoder suits a sampler. Raises ValueError."""
    if isinstance(method, Diffusion) != (sampler is not None):
        raise ValueError(
            f"a model of config.objective.name={method.name!r} has no denoising patch decoder, "
            f"which the sampler {sampler.name!r} needs: it gives its mean, without a sampler"
            if sampler is not None
            else f"a model of config.objective.name={method.name!r} needs a sampler"
        )


def check_order(method: DARLMethod, order: Int[np.ndarray, " position"] | None) -> None:
    """Whether a model makes patches in an order.

    Raises:
      ValueError: it knows its own alone.
    """
    own = method.model.order
    if order is None or method.objective.two_stream:
        return
    if np.array_equal(order, fixed_order(own, method.grid)):
        return
    raise ValueError(
        f"the model knows the order {own.name!r} alone; another one needs a model of two streams "
        "(config.objective.two_stream=True)"
    )


def pixel_bounds(
    method: DARLMethod,
) -> tuple[Float[np.ndarray, " pixel"], Float[np.ndarray, " pixel"]]:
    """The least and the greatest standardized value of each of a patch's pixels."""
    mean, std = (np.asarray(value, np.float32) for value in (method.data.mean, method.data.std))
    # A patch's values are (row, column, channel).
    low, high = (np.tile((value - mean) / std, method.model.patch_size**2) for value in (0.0, 1.0))
    return low, high


def patch_drawer(
    model: DARL, method: DARLMethod, sampler: SamplerConfig | None, tables: Tables | None
) -> DrawPatch:
    """A function that draws a patch for each image; without a sampler its predicted mean."""
    pixels, bounds = method.patch_dim, pixel_bounds(method)
    if not isinstance(method, Diffusion) or sampler is None or tables is None:
        return lambda z, keys, number: jnp.clip(model.patch_decoder(z).astype(jnp.float32), *bounds)
    steps = jax.tree.map(jnp.asarray, tables.steps)
    noisy = bool(np.any(tables.steps.of_noise))
    # A number of steps that is the same for all patches is told to the compiler.
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
    """The patches that are given, and then those that are drawn, in the order of the sequence."""
    batch, known, pixels = given.shape

    def read(state: Any, place_and_patch: Any) -> tuple[Any, None]:
        cache, previous = state
        place, patch = place_and_patch
        cache, _ = decoder(cache, place, previous)
        return (cache, patch), None

    def make(state: Any, place: Array) -> tuple[Any, Array]:
        cache, previous = state
        cache, z = decoder(cache, place, previous)
        own_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, place)
        patch = pin_batch(draw(z, own_keys, place - known))
        return (cache, patch), patch

    state = decoder.empty_cache(batch), pin_batch(jnp.zeros((batch, pixels), jnp.float32))
    state, _ = jax.lax.scan(read, state, (jnp.arange(known), given.swapaxes(0, 1)))
    _, made = jax.lax.scan(make, state, jnp.arange(known, patches))
    return jnp.concatenate([given, made.swapaxes(0, 1)], axis=1)
