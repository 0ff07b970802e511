"""One step of training, pure: (state, batch, key) -> (state, metrics)."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu.metrics import Average
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from darl_jax.methods import Batch, Features, Method, Metrics
from darl_jax.methods.base import Observed
from darl_jax.nn.mesh_axes import pin_batch
from darl_jax.training.sharding import batch_sharding, global_array
from darl_jax.training.state import TrainState
from darl_jax.training.trained import join_trained, split_trained

LossAndGradient = Callable[[PyTree, Batch, PRNGKeyArray], tuple[PyTree, Metrics, Observed]]
TrainStep = Callable[[TrainState, Batch, PRNGKeyArray], tuple[TrainState, Metrics]]


def make_train_step(
    graphdef: nnx.GraphDef,
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    accumulation_steps: int = 1,
    ema_decay: float = 0.0,
) -> TrainStep:
    """The train step, to be compiled by the caller, who may donate the state.

    The gradient is taken in the parameters that the method trains. An update whose loss or gradient
    is not finite is dropped; of modules that are trained side by side (`Method.stacked`), each
    alone, by its own gradient.

    Gradients of micro-batches are averaged, each with the count of its loss. The squared error's
    result is then that of the whole batch; noise, masks and prefixes are drawn for each micro-batch
    by a key of its own, and mixing and batch normalization see one at a time.
    """

    def loss_and_gradient(
        params: PyTree, batch: Batch, key: PRNGKeyArray
    ) -> tuple[PyTree, Metrics, Observed]:
        trained, frozen = split_trained(params, method.trains)

        def loss_fn(trained: PyTree) -> tuple[Float[Array, ""], tuple[Metrics, Observed]]:
            model = nnx.merge(graphdef, join_trained(trained, frozen))
            loss, metrics, observed = method.observe(model, batch, key)
            return loss, (metrics, observed)

        gradient, (metrics, observed) = jax.grad(loss_fn, has_aux=True)(trained)
        return gradient, metrics, observed

    def train_step(
        state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        # Folded in here, so that a resumed run draws what the uninterrupted one would have drawn.
        step_key = jax.random.fold_in(key, state.step)
        if accumulation_steps == 1:
            gradient, metrics, observed = loss_and_gradient(state.params, batch, step_key)
        else:
            gradient, metrics, observed = _accumulate(
                loss_and_gradient, state.params, batch, step_key, accumulation_steps
            )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        trained, frozen = split_trained(state.params, method.trains)
        moved = method.track(join_trained(optax.apply_updates(trained, updates), frozen), observed)
        new_trained, new_frozen = split_trained(moved, method.trains)
        gradient_norm, finite = _norm_and_finite(gradient, metrics, method.stacked)
        trained = _keep(finite, new_trained, trained)
        frozen = _keep(jnp.any(finite), new_frozen, frozen)
        ema = state.ema
        if ema is not None:
            average, _ = split_trained(ema, method.trains)
            # Not decay * a + (1 - decay) * b: rounded, the two do not add up to 1.
            nearer = jax.tree.map(lambda a, b: a + (1.0 - ema_decay) * (b - a), average, trained)
            ema = join_trained(_keep(finite, nearer, average), frozen)

        new_state = TrainState(
            step=state.step + 1,
            params=join_trained(trained, frozen),
            opt_state=_keep(finite, opt_state, state.opt_state),
            dropped_updates=state.dropped_updates + ~jnp.all(finite),
            dropped_in_a_row=(state.dropped_in_a_row + 1) * ~jnp.any(finite),
            ema=ema,
        )
        metrics = metrics | {
            "gradient_norm": _single(gradient_norm),
            "parameter_norm": _single(optax.global_norm(new_state.params)),
            "dropped_updates": _single(new_state.dropped_updates),
            "dropped_in_a_row": _single(new_state.dropped_in_a_row),
        }
        metrics["replaced_records"] = _single(jnp.sum(batch["replaced"]))
        # Through the step itself all processes learn at the same step that one got a signal.
        metrics["stop_requested"] = _single(jnp.any(batch["stop"]))
        return new_state, metrics

    return train_step


def _accumulate(
    loss_and_gradient: LossAndGradient, params: PyTree, batch: Batch, key: PRNGKeyArray, steps: int
) -> tuple[PyTree, Metrics, Observed]:
    """The mean gradient and the merged metrics of a batch, one micro-batch after the other.

    A mean over all that counts in the batch: micro-batches weigh as much as their losses count.
    """

    # Every n-th example, so that each device keeps its own and none is sent.
    def micro_batches(x: Array) -> Array:
        cut = x.reshape(-1, steps, *x.shape[1:]).swapaxes(0, 1)
        return pin_batch(cut, batch_axis=1)

    def whole_batch(x: Array) -> Array:
        return pin_batch(x.swapaxes(0, 1).reshape(-1, *x.shape[2:]))

    def add(total: PyTree, xs: tuple[Batch, PRNGKeyArray]) -> tuple[PyTree, Observed]:
        gradient, metrics, observed = loss_and_gradient(params, *xs)
        count = metrics["loss"].count
        # Not a product where nothing counts: that mean is no number.
        weighted = jax.tree.map(
            lambda g: jnp.where(count > 0, g * count.astype(g.dtype), 0), gradient
        )
        return jax.tree.map(jnp.add, total, (weighted, metrics)), observed

    xs = jax.tree.map(micro_batches, dict(batch)), jax.random.split(key, steps)
    zero = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(loss_and_gradient, params, *jax.tree.map(lambda x: x[0], xs))[:2],
    )
    (gradient, metrics), observed = jax.lax.scan(add, zero, xs)
    count = metrics["loss"].count
    gradient = jax.tree.map(lambda g: g / count.astype(g.dtype), gradient)
    return gradient, metrics, jax.tree.map(whole_batch, observed)


# Beside the method's inputs, one of each for an example: whether it counts, whether its record was
# replaced, whether its process got a signal. The last rides on the batch's own layout, so that
# agreeing on it is a part of the step.
FLAGS = ("mask", "replaced", "stop")


def device_batch(
    rows: Mapping[str, np.ndarray], inputs: Features, mesh: Mesh, *, stop: bool
) -> PyTree:
    """This process's rows of a batch, and its flag `stop`, as global arrays that a step reads."""
    read = {name: rows[name] for name in (*inputs, "mask", "replaced")}
    return global_array(read | {"stop": np.full(len(rows["mask"]), stop)}, mesh)


def abstract_batch(inputs: Features, batch_size: int, mesh: Mesh) -> PyTree:
    """Shapes and shardings of `device_batch`, to compile before there is one."""
    features = {**inputs, **{flag: jax.ShapeDtypeStruct((), np.bool_) for flag in FLAGS}}
    return {
        name: jax.ShapeDtypeStruct(
            (batch_size, *feature.shape), feature.dtype, sharding=batch_sharding(mesh)
        )
        for name, feature in features.items()
    }


def lower_step(
    step: TrainStep, state: TrainState, batch: PyTree, key: PRNGKeyArray
) -> jax.stages.Lowered:
    """The step for arrays, or shapes with shardings; it reuses the old state's memory."""
    # Said here, for the compiler would choose other layouts for the new state than the old has.
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(layout, None)).lower(state, batch, key)


def _norm_and_finite(
    gradient: PyTree, metrics: Metrics, stacked: str | None
) -> tuple[Float[Array, ""], Bool[Array, "*module"]]:
    """The gradient's norm, and whether an update is finite: one, or one for each module."""
    if stacked is None:
        norm = optax.global_norm(gradient)
        return norm, jnp.isfinite(metrics["loss"].compute()) & jnp.isfinite(norm)
    # By their gradients alone: the loss is a mean over the modules.
    norms = jax.vmap(optax.global_norm)(gradient)
    return optax.global_norm(norms), jnp.isfinite(norms)


def _keep(finite: Bool[Array, "*module"], new: PyTree, old: PyTree) -> PyTree:
    """The new leaves where an update is finite: whole ones, or their slices for each module."""

    def keep(a: Array, b: Array) -> Array:
        return jnp.where(finite.reshape(finite.shape + (1,) * (a.ndim - finite.ndim)), a, b)

    return jax.tree.map(keep, new, old)


def _single(value: Array) -> Average:
    return Average(total=jnp.asarray(value, jnp.float32), count=jnp.ones((), jnp.float32))
