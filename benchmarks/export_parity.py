"""Compares the features of exported models in PyTorch and timm with JAX's, at full size.

    .venv/bin/python benchmarks/export_parity.py --torch_python=/path/to/torch/bin/python

Models with random parameters, biases and norms included, are exported as safetensors and for timm.
Every block's output and the normed tokens are compared in float32, causal and full, at the trained
size of 224 px and near 384 px: a size that patches do not fill is rounded down to one that they do.
PyTorch (and timm, if importable) runs in another environment, that of --torch_python. Exit codes: 0
all within the tolerance; 1 not; 2 a wrong flag.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from darl_jax import config as config_lib
from darl_jax.interchange.exporting import Source, export
from darl_jax.nn.patches import patchify
from darl_jax.runtime import cli
from darl_jax.training.state import parameters

_USAGE = "benchmarks/export_parity.py --torch_python=/path/to/torch/bin/python"
_TORCH_PYTHON = flags.DEFINE_string("torch_python", None, "Python of an environment with PyTorch.")
_MODELS = flags.DEFINE_list("models", ["B/16", "H/14"], "Sizes and patches, such as L/16.")
_IMAGE_SIZES = flags.DEFINE_list("image_sizes", ["224", "384"], "Sizes of images in pixels.")
_BATCH = flags.DEFINE_integer("batch", 1, "Number of images.")

_TRAINED_SIZE = 224
TOLERANCE = 1e-4  # absolute, on features of size 1 to 50
MASKS: tuple[Literal["causal", "full"], ...] = ("causal", "full")
PEER = pathlib.Path(__file__).with_name("torch_features.py")


def make_config(name: str) -> config_lib.TrainConfig:
    """The config of a model such as B/16. Raises ValueError."""
    size, slash, patch = name.partition("/")
    if size not in config_lib.VIT_SIZES or not slash or not patch.isdigit():
        sizes = ", ".join(config_lib.VIT_SIZES)
        raise ValueError(f"--models={name}: a model is one of {sizes}, a slash and its patch size")
    config = config_lib.default_config(size=size)
    config.model.patch_size = int(patch)
    config.model.dtype = "float32"
    config.model.attention = "xla"
    config.data.image_size = _TRAINED_SIZE
    return config_lib.load(config)


def random_params(config: config_lib.TrainConfig) -> dict[str, Any]:
    """Every parameter random: kernels N(0, 1/in), the rest 0.3 around its usual value."""
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        scale = leaf.shape[-2] ** -0.5 if name.endswith("kernel") else 0.3
        values = rng.standard_normal(leaf.shape, np.float32) * np.float32(scale)
        return values + np.float32(name.endswith("scale"))

    create = config.method.init
    shapes = nnx.eval_shape(lambda: parameters(create(nnx.Rngs(0))))
    return dict(jax.tree_util.tree_map_with_path(draw, shapes))


def write_features(params: dict, config: config_lib.TrainConfig, folder: pathlib.Path) -> None:
    """Writes JAX's features of random images, a file for each size and mask."""
    patch = config.model.patch_size
    create: Any = config.method.init
    graphdef = nnx.split(nnx.eval_shape(lambda: create(nnx.Rngs(0)).backbone))[0]
    backbone = jax.device_put(params["backbone"])
    for size in {int(size) // patch * patch for size in _IMAGE_SIZES.value}:
        shape = (_BATCH.value, size, size, 3)
        images = np.random.default_rng(size).standard_normal(shape, np.float32)
        for mask in MASKS:

            @jax.jit
            def features(
                backbone: Any, images: jax.Array, mask: Any = mask, side: int = size // patch
            ) -> Any:
                patches = patchify(images, patch)
                model = nnx.merge(graphdef, backbone)
                return model(patches, mask=mask, grid=(side, side))

            found = features(backbone, jnp.asarray(images))
            np.savez(
                folder / f"{size}_{mask}.npz",
                images=images,
                tokens=np.asarray(found.tokens),
                blocks=np.asarray(found.blocks),
            )


def check(name: str) -> bool:
    """Prints a line for each way, size and mask of a model; True if all are within tolerance."""
    config = make_config(name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        params = random_params(config)
        write_features(params, config, folder)
        source = Source(params, config_lib.to_dict(config), 0, f"a random {name}")
        for form in ("safetensors", "timm"):
            export(source, form, folder / form)
        del params, source
        command = [str(_TORCH_PYTHON.value), str(PEER), str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None  # a pipe
            good = [_print(name, json.loads(line)) for line in process.stdout]
    return all(good) and process.returncode == 0


def _print(name: str, answer: dict[str, Any]) -> bool:
    """Prints a line of the table; True if it is within tolerance."""
    if "error" in answer:
        print(f"{name:6}{answer['way']:13}left out: {answer['error']}")
        return True
    print(
        f"{name:6}{answer['way']:13}{answer['size']:4} px  {answer['mask']:8}"
        f"{answer['blocks']:10.1e}{answer['tokens']:10.1e}{answer['largest']:10.1f}",
        flush=True,
    )
    return max(answer["blocks"], answer["tokens"]) <= TOLERANCE


def main() -> None:
    """Checks each model, and exits with one of the codes above."""
    if not _TORCH_PYTHON.value:
        raise ValueError(f"--torch_python is needed; usage: {_USAGE}")
    print(f"{'model':6}{'way':13}{'images':9}{'mask':8}{'blocks':>10}{'tokens':>10}{'largest':>10}")
    good = [check(name) for name in _MODELS.value]
    sys.exit(0 if all(good) else cli.EXIT_ERROR)


if __name__ == "__main__":
    cli.run(main, _USAGE)
