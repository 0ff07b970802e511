"""A run of a small model with random parameters, and the numbers of golden/interchange.npz."""

import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from darl_jax import config as config_lib
from darl_jax.interchange.described import model_of
from darl_jax.interchange.exporting import Source
from darl_jax.interchange.loading import LoadedModel
from darl_jax.nn.patches import patchify
from darl_jax.nn.vit import ViT
from darl_jax.training.checkpoint import Checkpointer
from darl_jax.training.state import parameters
from tests.random_modules import random_module

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "interchange.npz"
# The shape of the golden models.
GOLDEN_MODEL = {
    "width": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 32,
    "patch_size": 2,
    "channels": 3,
    "grid": [4, 4],
    "rope_max_wavelength": 100.0,
    "rope_y_first": False,
    "num_classes": None,
    "pooling": None,
    "mask": "causal",
}
# float32 with other orders of summation; values are of size 1 to 10.
TOLERANCE = 2e-5


@functools.cache
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def golden_weights(kind: str) -> dict[str, np.ndarray]:
    prefix = f"{kind}/weights/"
    return {n.removeprefix(prefix): x.copy() for n, x in golden().items() if n.startswith(prefix)}


def block_features(backbone: ViT, images: np.ndarray, mask: str) -> np.ndarray:
    """(block, batch, token, width) of standardized images."""
    size = backbone.config.patch_size
    grid = (images.shape[1] // size, images.shape[2] // size)
    patches = patchify(jnp.asarray(images), size)
    with jax.disable_jit():  # what is compiled are single operations, once for all tests
        return np.asarray(backbone(patches, mask=mask, grid=grid).blocks)


def make_config(
    *, objective: str = "mse", two_stream: bool = False, **model: Any
) -> config_lib.TrainConfig:
    config = config_lib.default_config(size="Ti", objective=objective)
    if objective == "mse":
        config.objective.two_stream = two_stream
    else:
        config.objective.num_classes = 5
    small = {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "patch_size": 2}
    with config.unlocked():
        config.model.update(small | {"dtype": "float32"} | model)
    config.data.image_size = 8
    config.data.source = "digits"
    return config_lib.load(config)


def make_source(config: config_lib.TrainConfig | None = None, classes: int = 0) -> Source:
    """Step 3 of a run: of a classifier where there are classes, of pre-training otherwise."""
    config = config or make_config()
    params = parameters(random_module(config.method.init))
    saved = config_lib.to_dict(config)
    if classes:
        rng = np.random.default_rng(1)
        kernel = rng.normal(size=(config.model.width, classes)).astype(np.float32)
        head = {"kernel": kernel, "bias": rng.normal(size=classes).astype(np.float32)}
        params = {"backbone": params["backbone"], "head": head}
        saved["objective"] = {"name": "classification", "pooling": "mean", "mask": "full"}
    params = jax.tree.map(np.asarray, params)
    # As checkpoints keep it: tuples are lists.
    return Source(params, json.loads(json.dumps(saved)), 3, "step 3 of the run digits")


def as_loaded(source: Source) -> LoadedModel:
    """What loading the run would give."""
    config = dict(source.config)
    return LoadedModel(
        params=dict(source.params),
        config=config,
        model=model_of(config),
        trained_image_size=config["data"]["image_size"],
        description=source.description,
        step=source.step,
    )


def save_run(workdir: pathlib.Path, classes: int = 0) -> dict[str, Any]:
    """Saves step 3 of a run with an optimizer's state, and returns its parameters."""
    source = make_source(classes=classes)
    checkpointer = Checkpointer(workdir, keep_last=1, keep_every=0)
    state = {"params": source.params, "opt_state": {"count": np.zeros((), np.int32)}}
    checkpointer.save(source.step, state, source.config)
    checkpointer.wait()
    checkpointer.close()
    return dict(source.params)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Whether nested parameters have the same names and the same bits."""
    flat, wanted = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (found, expected))
    assert flat.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_array_equal(flat[path], value, err_msg=str(path))
