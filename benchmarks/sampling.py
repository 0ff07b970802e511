"""Times sampling beside matrix products on the same device.

    python benchmarks/sampling.py --batch_sizes=1,16
    python benchmarks/sampling.py --batch_sizes=1,16 --patches=1   # on a CPU
    python benchmarks/sampling.py --config=configs/digits.py --batch_sizes=64

Each row is a sampler and a batch size: the compiled function that sample.py runs, on random
parameters. "prefix anew" is the same without a cache, a loop on the host that runs the backbone
over the image so far for each patch. With --patches=N only the last N patches of an image are made
(the others are given) and their time is scaled up to a whole image. The cached rows then count the
reading of what is given as many times too often: for them it is an upper bound, far off where a
patch has few steps, and "of cached" says nothing. All rows and a large matrix product take turns.
"""

import argparse
import math
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import contestants
from benchmarks.experiments import table
from darl_jax import config as config_lib
from darl_jax.config import TrainConfig
from darl_jax.generation.generator import Generator, make_tables, patch_drawer
from darl_jax.methods.darl.diffusion import Diffusion
from darl_jax.methods.darl.samplers import SamplerConfig
from darl_jax.nn.patches import patchify, standardize
from darl_jax.runtime.cli import EXIT_BAD_INPUT, USER_ERRORS, one_line_errors
from darl_jax.training.sharding import make_mesh
from darl_jax.training.state import create_params, graph_definition

ROOT = pathlib.Path(__file__).resolve().parents[1]
SAMPLERS = {
    "DDPM, T = 1000": SamplerConfig(),
    "DDPM, 1000 to 100": SamplerConfig(last_steps=100),
    "DDIM, 50": SamplerConfig("ddim", steps=50),
    "DDIM, 50 to 10": SamplerConfig("ddim", steps=50, last_steps=10),
    "solver, 20": SamplerConfig("dpm_solver", steps=20),
}


class Sampling:
    """One sampler and one batch size."""

    def __init__(self, model: "Model", sampler: SamplerConfig, batch_size: int, known: int):
        self._model, self.batch_size, self._known = model, batch_size, known
        self.generator = Generator(
            model.graphdef,
            model.method,
            sampler=sampler,
            known=known,
            mesh=model.mesh,
        )
        shape = (batch_size, *model.method.inputs["image"].shape)
        self.given = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def run(self, repeats: int) -> float:
        """Seconds of some images; see Contestant."""
        began = time.perf_counter()
        for _ in range(repeats):
            images = self.generator(
                self._model.params, jax.random.key(0), np.arange(self.batch_size), self.given
            )
        jax.block_until_ready(images)
        return time.perf_counter() - began


class Model:
    """A config's model with random parameters, on one device."""

    def __init__(self, config: TrainConfig):
        self.config = config
        self.mesh = make_mesh(config.mesh, jax.devices()[:1])
        self.method = diffusion_method(config)
        self.graphdef: Any = graph_definition(self.method.init)
        self.params = create_params(self.method.init, jax.random.key(0), self.mesh)


def diffusion_method(config: TrainConfig) -> Diffusion:
    if not isinstance(config.method, Diffusion):
        raise ValueError("--config must be of objective.name='diffusion'")
    return config.method


class PrefixAnew(Sampling):
    """The same images with the backbone over all patches so far, for each patch."""

    def __init__(self, model: Model, sampler: SamplerConfig, batch_size: int, known: int):
        super().__init__(model, sampler, batch_size, known)
        method = model.method
        counts = sampler.counts(math.prod(method.grid))[known:]
        tables = make_tables(sampler, counts)

        @jax.jit
        def next_patch(params: Any, patches: Any, keys: Any, place: Any) -> Any:
            darl = nnx.merge(model.graphdef, params)
            z = darl.encode(patches)
            z = jax.lax.dynamic_index_in_dim(z, place, axis=1, keepdims=False)
            own_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, place)
            draw = patch_drawer(darl, method, sampler, tables)
            return patches.at[:, place].set(draw(z, own_keys, place - known))

        self._next_patch: Callable[..., Any] = next_patch

    def run(self, repeats: int) -> float:
        """Seconds of some images; see Contestant."""
        method = self._model.method
        began = time.perf_counter()
        for _ in range(repeats):
            given = standardize(jnp.asarray(self.given), method.data.mean, method.data.std)
            patches = patchify(given, method.model.patch_size)
            keys = jax.random.split(jax.random.key(0), self.batch_size)
            for place in range(self._known, patches.shape[1]):
                patches = self._next_patch(self._model.params, patches, keys, place)
        jax.block_until_ready(patches)
        return time.perf_counter() - began


def image_flops(method: Diffusion, counts: list[int]) -> int:
    """Counted FLOPs of one image."""
    return method.forward_flops(counts)


def load_config(path: str, dtype: str | None) -> TrainConfig:
    config = config_lib.from_file(path)
    config.model.dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    return config_lib.load(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default=f"{ROOT}/configs/darl_vit_l8_64px_generation.py")
    parser.add_argument("--batch_sizes", default="1,16", help="of each row (1,16)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--patches", type=int, help="made of each image (all)")
    parser.add_argument("--samplers", default="0,1,2,3,4", help=f"of {[*SAMPLERS]}, by number")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each row (3)")
    arguments = parser.parse_args()
    with one_line_errors(EXIT_BAD_INPUT, *USER_ERRORS):
        config = load_config(arguments.config, arguments.dtype)
        method = diffusion_method(config)
        patches = math.prod(method.grid)
        made = arguments.patches or patches
        if not 1 <= made <= patches:
            raise ValueError(f"--patches={made} must be between 1 and {patches}")
        batch_sizes = [int(size) for size in arguments.batch_sizes.split(",")]
        names = [[*SAMPLERS][int(number)] for number in arguments.samplers.split(",")]
    model = Model(config)
    print(f"{jax.devices()[0].device_kind}, {config.model.dtype}, {made} of {patches} patches made")
    print(f"one image at T = 1000: {image_flops(method, [1000] * patches) / 1e12:.2f} TFLOP")
    with jax.set_mesh(model.mesh):
        rows: list[tuple[str, type[Sampling], Sampling]] = []
        for batch_size in batch_sizes:
            for name in names:
                for kind in (
                    (Sampling, PrefixAnew) if SAMPLERS[name].last_steps is None else (Sampling,)
                ):
                    contestant = kind(model, SAMPLERS[name], batch_size, patches - made)
                    rows.append((name, kind, contestant))
        product = contestants.Matmul(config.model.dtype)
        runners: list[contestants.Contestant] = [*(row[-1] for row in rows), product]
        for runner in runners:
            contestants.show("compiles")
            runner.run(1)
        seconds = np.array(
            [[runner.run(1) for runner in runners] for _ in range(arguments.rounds)]
        ).min(axis=0)
    rate = product.flops / seconds[-1]
    print(f"matrix product: {rate / 1e12:.3f} TFLOP/s")
    lines = [["sampler", "backbone", "batch", "s an image", "images/s", "of matmul", "of cached"]]
    cached = 0.0
    for (name, kind, contestant), taken in zip(rows, seconds, strict=False):
        counts = SAMPLERS[name].counts(patches)
        work = image_flops(method, counts)
        # Patches with few steps cost less: scaled by the steps that they have.
        whole = taken * sum(counts) / sum(counts[patches - made :]) / contestant.batch_size
        cached = whole if kind is Sampling else cached
        lines.append(
            [
                name,
                "cached" if kind is Sampling else "prefix anew",
                str(contestant.batch_size),
                f"{whole:.3g}",
                f"{1 / whole:.3g}",
                f"{work / whole / rate:.2f}",
                f"{whole / cached:.2f}",
            ]
        )
    print(table(lines))


if __name__ == "__main__":
    main()
