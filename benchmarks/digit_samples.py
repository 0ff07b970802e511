"""Judges a model's digits by classifiers that were trained on real ones.

    python benchmarks/digit_samples.py --checkpoint=runs/digits

Completions: each held-out digit's lower half is made anew from its upper half, and a classifier
trained on real training digits alone reads the result. Beside it: the same classifier on the real
digits, on the upper half with the mean lower half of all training digits, and with the mean lower
half of the ten training digits whose upper halves are nearest.

Samples: a classifier tells real held-out digits from as many samples, cross-validated; an error of
0.5 is one that cannot tell, and real training digits in the samples' place say how far it gets.
"""

import argparse
import pathlib
import sys

import jax
import numpy as np
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.experiments import table
from darl_jax import config as config_lib
from darl_jax.config import TrainConfig
from darl_jax.data.sources.digits import DigitsSource
from darl_jax.generation import Generator
from darl_jax.interchange.initialization import restored_params
from darl_jax.interchange.loading import LoadedModel, load_model
from darl_jax.interchange.saved_config import get_config
from darl_jax.methods.darl.diffusion import Diffusion
from darl_jax.methods.darl.samplers import SamplerConfig
from darl_jax.runtime.cli import EXIT_BAD_INPUT, USER_ERRORS, one_line_errors
from darl_jax.training.sharding import make_mesh
from darl_jax.training.state import graph_definition

NEIGHBORS = 10
FOLDS = 5


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of a split."""
    source = DigitsSource(split)
    records = source.read(range(len(source)))
    return np.stack([record.image for record in records]), np.array([r.label for r in records])


def generate(
    config: TrainConfig,
    method: Diffusion,
    loaded: LoadedModel,
    sampler: SamplerConfig,
    given: np.ndarray,
    known: int,
) -> np.ndarray:
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        generator = Generator(
            graph_definition(method.init),
            method,
            sampler=sampler,
            known=known,
            mesh=mesh,
        )
        params = restored_params(config, loaded, mesh)
        key, numbers = jax.random.key(known), np.arange(len(given))
        batches = generator.batches(params, key, numbers, given, batch_size=len(given))
        return np.concatenate([*batches])


def classifier() -> SVC:
    return make_pipeline(StandardScaler(with_std=False), SVC(C=10.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True, help="a run of configs/digits.py")
    parser.add_argument("--sampler", choices=("config", "ddpm"), default="config")
    arguments = parser.parse_args()
    with one_line_errors(EXIT_BAD_INPUT, *USER_ERRORS):
        loaded = load_model(arguments.checkpoint)
        config = config_lib.load(get_config(arguments.checkpoint), begins=False)
        method = config.method
        if not isinstance(method, Diffusion) or method.data.source != "digits":
            raise ValueError(f"--checkpoint={arguments.checkpoint} is no diffusion model of digits")
    sampler = SamplerConfig() if arguments.sampler == "ddpm" else method.objective.sampler
    train, train_labels = digits(method.data.train_split)
    test, labels = digits(method.data.validation_split)
    half = test.shape[1] // 2
    reader = classifier().fit(train.reshape(len(train), -1), train_labels)

    def read(images: np.ndarray) -> str:
        return f"{reader.score(images.reshape(len(images), -1), labels):.3f}"

    def with_lower(lower: np.ndarray) -> np.ndarray:
        return np.concatenate([test[:, :half], np.broadcast_to(lower, test[:, half:].shape)], 1)

    upper = NearestNeighbors(n_neighbors=NEIGHBORS).fit(train[:, :half].reshape(len(train), -1))
    _, nearest = upper.kneighbors(test[:, :half].reshape(len(test), -1))
    completed = generate(
        config, method, loaded, sampler, test, method.grid[0] * method.grid[1] // 2
    )
    rows = [["lower half", "read as the original's class"]]
    rows.append(["the digit's own", read(test)])
    rows.append(["completed by the model", read(completed)])
    rows.append(["mean of the nearest", read(with_lower(train[nearest][:, :, half:].mean(axis=1)))])
    rows.append(["mean of all", read(with_lower(train[:, half:].mean(axis=0)))])
    print(f"{len(test)} held-out digits, sampler {sampler}\n\n{table(rows)}\n")

    samples = generate(config, method, loaded, sampler, np.zeros_like(test), 0)
    rows = [["against held-out digits", "error of a classifier that is to tell them apart"]]
    chosen = np.random.default_rng(0).permutation(len(train))[: len(test)]
    for name, other in (("samples", samples), ("training digits", train[chosen])):
        both = np.concatenate([test, other]).reshape(2 * len(test), -1)
        which = np.repeat([0, 1], len(test))
        shuffled = np.random.default_rng(0).permutation(len(both))
        scores = cross_val_score(classifier(), both[shuffled], which[shuffled], cv=FOLDS)
        rows.append([name, f"{1 - scores.mean():.3f}"])
    print(table(rows))


if __name__ == "__main__":
    main()
