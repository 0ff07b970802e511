"""Parameters that are trained and that stay as they are, and optimizers for some of them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

RUNNING_STATISTICS = ("running_mean", "running_var")  # the names of these leaves
RUNNING_RATE = 0.1  # torch's default `momentum` of BatchNorm

# Path of a parameter -> whether it is trained (`Method.trains`).
Trains = Callable[[tuple[str, ...]], bool]
# Learning rate and weight decay of one of the modules that are trained side by side.
Slice = tuple[optax.ScalarOrSchedule, float]


def path_names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Names along a path of JAX's."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def split_trained(params: PyTree, trains: Trains) -> tuple[PyTree, PyTree]:
    """Trained and frozen parameters, each with `optax.MaskedNode` in the others' places."""

    def where(trained: bool) -> PyTree:
        def keep(path: tuple[Any, ...], leaf: Any) -> Any:
            return leaf if trains(path_names(path)) == trained else optax.MaskedNode()

        return jax.tree_util.tree_map_with_path(keep, params)

    return where(True), where(False)


def join_trained(trained: PyTree, frozen: PyTree) -> PyTree:
    """The inverse of `split_trained`."""

    def masked(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    return jax.tree.map(lambda a, b: b if masked(a) else a, trained, frozen, is_leaf=masked)


def per_slice(
    make: Callable[[Any, Any], optax.GradientTransformation], stacked: str, slices: Sequence[Slice]
) -> optax.GradientTransformation:
    """Optimizers for the slices along the parameters' first dimension.

    Args:
        make: makes one of a learning rate and a weight decay.
        stacked: first name on the path of all parameters.
        slices: rate and decay of each slice; one for all if all have the same.
    """
    rates = [*dict.fromkeys(rate for rate, _ in slices)]

    def init(params: PyTree) -> optax.OptState:
        for path, _ in jax.tree_util.tree_leaves_with_path(params):
            names = path_names(path)
            if names[0] != stacked:
                raise ValueError(
                    f"the parameter {'/'.join(names)} is trained and is not below "
                    f"'{stacked}', where each optimizer has its slice; freeze it"
                )
        return jax.vmap(make(*slices[0]).init)(params)

    def update(
        updates: PyTree, state: optax.OptState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.OptState]:
        if len(slices) == 1:
            return jax.vmap(make(*slices[0]).update)(updates, state, params)

        def update_one(
            which: Int[Array, ""], decay: Float[Array, ""], *arguments: PyTree
        ) -> tuple[PyTree, optax.OptState]:
            def rate_at(step: Int[Array, ""]) -> Float[Array, ""]:
                return jnp.stack([rate(step) if callable(rate) else rate for rate in rates])[which]

            rate = rate_at if len(rates) > 1 else rates[0]
            return make(rate, decay).update(*arguments)

        which = jnp.array([rates.index(rate) for rate, _ in slices])
        decays = jnp.array([decay for _, decay in slices], jnp.float32)
        return jax.vmap(update_one)(which, decays, updates, state, params)

    return optax.GradientTransformation(init, update)


def only_trained(
    optimizer: optax.GradientTransformation, trains: Trains
) -> optax.GradientTransformation:
    """The optimizer on trained parameters; running statistics step alone, frozen ones stay."""

    def running(path: tuple[str, ...]) -> bool:
        return path[-1] in RUNNING_STATISTICS

    def optimized(tree: PyTree) -> PyTree:
        # Nodes without leaves in the others' places: the state has the parameters' own paths.
        return split_trained(tree, lambda path: trains(path) and not running(path))[0]

    def init(params: PyTree) -> optax.OptState:
        return optimizer.init(optimized(params))

    def update(
        updates: PyTree, state: optax.OptState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.OptState]:
        steps, state = optimizer.update(optimized(updates), state, optimized(params))

        def step(path: tuple[Any, ...], gradient: Array, optimized_step: Any) -> Array:
            names = path_names(path)
            if not trains(names):
                return jnp.zeros_like(gradient)
            return -RUNNING_RATE * gradient if running(names) else optimized_step

        return jax.tree_util.tree_map_with_path(step, updates, steps), state

    return optax.GradientTransformation(init, update)
