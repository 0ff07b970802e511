"""Split of the parameters into those that are trained and those that stay as they are."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import PyTree

# Path of a parameter -> whether it is trained (`Method.trains`).
Trains = Callable[[tuple[str, ...]], bool]


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
