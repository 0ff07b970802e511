"""Initial parameters of a run from a checkpoint, as far as it has them.

Parameters that were taken, are new or were dropped are logged. A checkpoint of another model is
refused with the key or the array that differs.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh
from jaxtyping import PyTree

from darl_jax.config import ConfigError, TrainConfig
from darl_jax.interchange.adapters import without_adapters
from darl_jax.interchange.described import MODEL_KEYS
from darl_jax.interchange.loading import LoadedModel, load_model
from darl_jax.methods.images import ImageMethod
from darl_jax.nn.lora import is_adapter
from darl_jax.nn.orders import OrderConfig
from darl_jax.nn.positions import sincos_2d
from darl_jax.runtime import cluster
from darl_jax.training.checkpoint.checksums import checksums
from darl_jax.training.checkpoint.reading import arrays_by_name, shortened
from darl_jax.training.state import TrainState, create_params

_BACKBONE = "backbone/"


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Parameters of a model, partly from a checkpoint, and their paths by origin."""

    params: dict[str, Any]  # nested; numpy arrays of the checkpoint in place of the model's
    taken: tuple[str, ...]  # from the checkpoint
    new: tuple[str, ...]  # that the checkpoint lacks
    dropped: tuple[str, ...]  # that the model lacks, or that `init.drop` names


def load_initial(config: TrainConfig) -> LoadedModel:
    """Loads and checks the checkpoint that `config.init` names. A collective.

    Raises:
      ConfigError: as `check_same_model`.
      ValueError: the file cannot be used, or processes have read different ones.
      FileNotFoundError: the file does not exist.
    """
    loaded = load_model(config.init.checkpoint, config.init.step)
    if not _adapts(config):
        params, _ = without_adapters(loaded.params, loaded.config or {})
        loaded = dataclasses.replace(loaded, params=params)
    loaded = with_learnable_positions(loaded, config)
    check_same_model(loaded, config)
    # Each process reads the file itself, and the newest step may have changed in between.
    sums = checksums(arrays_by_name(loaded.params))
    cluster.check_alike(sums, "parameters in config.init.checkpoint")
    return loaded


def with_learnable_positions(loaded: LoadedModel, config: TrainConfig) -> LoadedModel:
    """Lets learnable positions start at the fixed sine-cosine ones of a checkpoint.

    As MAE's fine-tuning, which goes on to train what was fixed in pre-training.
    """
    kinds = loaded.model.get("positions"), getattr(config.model, "positions", None)
    if kinds != ("sincos2d", "learnable") or not isinstance(config.method, ImageMethod):
        return loaded
    grid = config.method.trained_grid
    table = sincos_2d(grid, grid, config.model.width)
    logging.info("config.model.positions is 'learnable': training starts at the fixed 'sincos2d'")
    return dataclasses.replace(
        loaded,
        params=loaded.params | {"backbone": loaded.params["backbone"] | {"positions": table}},
        model=loaded.model | {"positions": "learnable"},
    )


def check_same_model(loaded: LoadedModel, config: TrainConfig) -> None:
    """Checks a checkpoint's backbone against the config's, or that a method without one made it.

    Raises:
      ConfigError: it is of another model, of other channels, or of images of another size than
        positions are counted on; the message names each key.
    """
    method = config.method
    if not isinstance(method, ImageMethod):
        # Its arrays are compared by whoever takes them.
        trained_by = (loaded.config or {}).get("objective", {}).get("name")
        if trained_by != method.name:
            raise ConfigError(
                f"config.init.checkpoint needs a method with a ViT on images, or a run of the "
                f"method itself, and config.objective.name={method.name!r} has none"
            )
        return
    differences = [
        f"config.model.{key} is {getattr(config.model, key)!r} and the checkpoint's is "
        f"{loaded.model[key]!r}"
        for key in MODEL_KEYS
        if key in loaded.model and _differ(key, loaded.model[key], getattr(config.model, key))
    ]
    if differences:
        raise ConfigError(f"{loaded.description} is of another model: {'; '.join(differences)}")
    trained, order = loaded.model.get("order"), config.model.order
    if trained is not None and order.name != "random" and _in_words(trained) != _in_words(order):
        logging.warning(
            "config.model.order is %s, and %s reads patches in the order %s",
            *(_in_words(order), loaded.description, _in_words(trained)),
        )
    channels = _channels(loaded)
    if channels not in (None, method.data.channels):
        raise ConfigError(
            f"config.data.channels is {method.data.channels}, and {loaded.description} was trained "
            f"on images of {channels}: set config.data.channels={channels}, with as many values in "
            "config.data.mean and config.data.std"
        )
    size = method.model.trained_image_size or method.data.image_size
    if loaded.trained_image_size not in (None, size):
        raise ConfigError(
            f"{loaded.description} was trained on images of {loaded.trained_image_size} pixels, "
            f"and here positions are counted on images of {size}: set "
            f"config.model.trained_image_size={loaded.trained_image_size}"
        )
    lacking = [] if loaded.standardized else ["the mean and std of its images"]
    lacking += [] if "num_heads" in loaded.model else ["its number of heads"]
    if lacking:
        logging.warning(
            "%s lacks %s: config.data.mean=%s, config.data.std=%s and config.model.num_heads=%d "
            "are taken",
            *(loaded.description, " and ".join(lacking), method.data.mean, method.data.std),
            config.model.num_heads,
        )
    for key, theirs in zip(("mean", "std"), loaded.standardized or (), strict=False):
        here = tuple(getattr(method.data, key))
        if not np.allclose(theirs, here):
            logging.warning(
                "config.data.%s is %s, and %s was trained with %s: its features suit images "
                "standardized by the latter",
                *(key, here, loaded.description, theirs),
            )


def transfer(params: PyTree, loaded: LoadedModel, *, drop: Sequence[str] = ()) -> Transfer:
    """Replaces a model's parameters by those of a checkpoint, where it has them.

    Args:
      params: nested dicts of arrays, or of their shapes.
      loaded: the checkpoint.
      drop: beginnings of paths to leave out.

    Raises:
      ConfigError: an array has another shape than the model's, or the backbones do not have the
        same arrays.
    """
    ours, theirs = arrays_by_name(params), arrays_by_name(loaded.params)
    unused = [name for name in drop if not any(_below(path, name) for path in theirs)]
    if unused:
        firsts = sorted({path.split("/")[0] for path in theirs})
        raise ConfigError(
            f"config.init.drop names {unused[0]!r}, and no parameter of {loaded.description} "
            f"begins like that; they begin with {', '.join(firsts)}"
        )
    kept = {p: leaf for p, leaf in theirs.items() if not any(_below(p, name) for name in drop)}
    both = ours.keys() & kept.keys()
    wrong = [
        f"{path}: {tuple(kept[path].shape)} in the checkpoint, {tuple(ours[path].shape)} here"
        for path in sorted(both)
        if tuple(kept[path].shape) != tuple(ours[path].shape)
    ]
    wrong += [
        f"{path}: {'absent' if path in ours else 'present'} in the checkpoint, "
        f"{'present' if path in ours else 'absent'} here"
        for path in sorted(ours.keys() ^ kept.keys())
        if path.startswith(_BACKBONE)
        and not any(_below(path, name) for name in drop)
        # Adapters may be new, and not lost.
        and not (path in ours and is_adapter(tuple(path.split("/"))))
    ]
    if wrong:
        advice = "\nTraining can start these anew: name them in config.init.drop, such as ('head',)"
        raise ConfigError(
            f"{loaded.description} does not fit the model; arrays that differ: {len(wrong)}\n  "
            + "\n  ".join(shortened(wrong))
            + ("" if any(line.startswith(_BACKBONE) for line in wrong) else advice)
        )
    merged = {path: kept.get(path, leaf) for path, leaf in ours.items()}
    return Transfer(
        unflatten_dict(merged, sep="/"),
        taken=tuple(sorted(both)),
        new=tuple(sorted(ours.keys() - kept.keys())),
        dropped=tuple(sorted(theirs.keys() - both)),
    )


def report(result: Transfer, loaded: LoadedModel) -> str:
    """Lists the parameters from the checkpoint, the new and the dropped ones, for the log."""
    leaves = arrays_by_name(result.params)
    count = sum(math.prod(leaves[path].shape) for path in result.taken)
    lines = [f"{len(result.taken)} arrays ({count:,} parameters) come from {loaded.description}"]
    for title, paths in (("new", result.new), ("dropped", result.dropped)):
        lines.append(f"  {title}: {', '.join(shortened(list(paths))) or 'none'}")
    return "\n".join(lines)


def initialize(state: TrainState, loaded: LoadedModel, *, drop: Sequence[str] = ()) -> TrainState:
    """Starts a state from a checkpoint's parameters, and logs their names. Raises as `transfer`."""
    result = transfer(state.params, loaded, drop=drop)
    logging.info("Parameters: %s", report(result, loaded))
    params = put_like(result.params, state.params)
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, ema=ema)


def restored_params(
    config: TrainConfig, loaded: LoadedModel, mesh: Mesh, *, backbone_only: bool = False
) -> PyTree:
    """Initializes a model's parameters and replaces them by a checkpoint's.

    With `backbone_only` all else stays as initialized; otherwise the checkpoint must have it.

    Raises:
      ConfigError: the checkpoint is of another model, or lacks parameters.
    """
    check_same_model(loaded, config)
    initial = create_params(config.method.init, jax.random.key(config.seed), mesh)
    behind = tuple(part for part in loaded.params if part != "backbone")
    result = transfer(initial, loaded, drop=behind if backbone_only else ())
    trained = (loaded.config or {}).get("objective", {})
    for key in ("mask", "pooling", "normalize_target") if not backbone_only else ():
        here = getattr(config.objective, key, None)
        if key in trained and here not in (None, trained[key]):
            logging.warning(
                "config.objective.%s is %r, and %s was trained with %r",
                *(key, here, loaded.description, trained[key]),
            )
    logging.info("Parameters: %s", report(result, loaded))
    if result.new and not backbone_only:
        raise ConfigError(
            f"{loaded.description} has no {result.new[0]}, which config.objective.name="
            f"{config.objective.name!r} needs; the evaluators knn and linear_probe read the "
            "backbone only"
        )
    return put_like(result.params, initial)


def _differ(key: str, theirs: Any, ours: Any) -> bool:
    """True where a key gives arrays another meaning; LayerScale's initial factor does not."""
    return bool(theirs) != bool(ours) if key == "layer_scale" else theirs != ours


def put_like(params: PyTree, like: PyTree) -> PyTree:
    """Lays out and casts arrays like those of another tree; arrays on devices stay as they are."""

    def put(value: Any, leaf: jax.Array) -> jax.Array:
        if isinstance(value, jax.Array):
            return value
        whole = np.asarray(value, leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: whole[index])

    return jax.tree.map(put, params, like)


def _adapts(config: TrainConfig) -> bool:
    """True for a run that trains adapters."""
    lora = getattr(config.objective, "lora", None)
    return lora is not None and bool(lora.names)


def _channels(loaded: LoadedModel) -> int | None:
    """Channels of the images that a checkpoint was trained on, from its patch embedding."""
    embedding = loaded.params.get("backbone", {}).get("patch_embedding", {})
    if "kernel" not in embedding or "patch_size" not in loaded.model:
        return None
    return int(embedding["kernel"].shape[0]) // loaded.model["patch_size"] ** 2


def _in_words(order: OrderConfig) -> str:
    return f"{order.title} of seed {order.seed}" if order.name == "permutation" else order.title


def _below(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name.rstrip('/')}/")
