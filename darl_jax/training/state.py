"""State of a training run between two steps."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from darl_jax.training.sharding import tree_shardings

BuildModel = Callable[[nnx.Rngs], nnx.Module]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and writes; a checkpoint holds this and nothing else.

    `step` counts the batches consumed, so the data's place follows from it. Updates with a
    non-finite loss or gradient are dropped: `dropped_updates` counts the steps with one,
    `dropped_in_a_row` the last ones of which nothing was kept. `ema` is the exponential moving
    average of the parameters, None in a run that keeps none.
    """

    step: Any  # int32 scalar; Any, for trees of shapes and of shardings have this structure too
    params: Any
    opt_state: Any
    dropped_updates: Any
    dropped_in_a_row: Any
    ema: Any = None

    @property
    def evaluated_params(self) -> Any:
        """Parameters to evaluate and hand on: their average where there is one."""
        return self.params if self.ema is None else self.ema


def parameters(model: nnx.Module) -> Any:
    """A model's parameters as a nested dict of arrays with plain names."""
    return nnx.to_pure_dict(nnx.split(model)[1])


def init_state(
    build_model: BuildModel,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    *,
    ema: bool = False,
) -> TrainState:
    """Step 0, with parameters that depend on the key alone, however they are laid out."""
    params = parameters(build_model(nnx.Rngs(key)))
    # A buffer each: the state is donated to the step, which cannot take one buffer twice.
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        dropped_updates=jnp.zeros((), jnp.int32),
        dropped_in_a_row=jnp.zeros((), jnp.int32),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
    )


def abstract_state(
    build_model: BuildModel,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema: bool = False,
) -> TrainState:
    """Shapes, types and shardings of a state, with nothing allocated."""
    # The key is made inside, for the mesh may be one of devices that are not here.
    shapes = jax.eval_shape(lambda: init_state(build_model, optimizer, jax.random.key(0), ema=ema))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        tree_shardings(shapes, mesh),
    )


def create_state(
    build_model: BuildModel,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    mesh: Mesh,
    *,
    ema: bool = False,
) -> TrainState:
    """A new state, each device making only its part."""
    shardings = jax.tree.map(
        lambda leaf: leaf.sharding, abstract_state(build_model, optimizer, mesh, ema=ema)
    )

    def init(key: PRNGKeyArray) -> TrainState:
        return init_state(build_model, optimizer, key, ema=ema)

    return jax.jit(init, out_shardings=shardings)(key)


def create_params(build_model: BuildModel, key: PRNGKeyArray, mesh: Mesh) -> Any:
    """The parameters of `create_state` alone."""

    def init(key: PRNGKeyArray) -> Any:
        return parameters(build_model(nnx.Rngs(key)))

    return jax.jit(init, out_shardings=tree_shardings(jax.eval_shape(init, key), mesh))(key)


def graph_definition(build_model: BuildModel) -> nnx.GraphDef:
    """The model without its parameters; `nnx.merge` with a nested dict of them makes it whole."""
    return nnx.split(nnx.eval_shape(lambda: build_model(nnx.Rngs(0))))[0]
