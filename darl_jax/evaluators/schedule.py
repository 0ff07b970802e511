"""Which questions are asked of a model: by a run now and then, or of a checkpoint."""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree, UInt8

from darl_jax import config as config_lib
from darl_jax.config import ConfigError, TrainConfig
from darl_jax.data.base import Split, Splits, some_records
from darl_jax.data.pipeline import eval_batches
from darl_jax.evaluators import linear_probe
from darl_jax.evaluators.knn import Knn, bank_records
from darl_jax.evaluators.likelihood import Likelihood
from darl_jax.evaluators.likelihood_picture import draw_likelihood
from darl_jax.evaluators.linear_probe import LinearProbe
from darl_jax.evaluators.pictures import Pictures
from darl_jax.evaluators.samples import Samples
from darl_jax.evaluators.validation_loss import ValidationLoss
from darl_jax.interchange.loading import LoadedModel
from darl_jax.methods import Objective, PatchObjective
from darl_jax.methods.darl.diffusion import Diffusion
from darl_jax.methods.darl.mse import MSE
from darl_jax.monitoring.writers import MetricWriter
from darl_jax.training import build
from darl_jax.training.checkpoint import absolute_path
from darl_jax.training.initialization import check_same_model, place, report, transfer
from darl_jax.training.sharding import make_mesh
from darl_jax.training.state import create_params, graph_definition

# Each has a key <name>_every_steps in the config.
EVALUATORS = ("loss", "pictures", "samples", "probe", "knn", "likelihood")

# What only the parts behind the backbone can answer.
_NEED_THE_WHOLE_MODEL = ("loss", "pictures", "samples", "likelihood")

_SECONDS = "evaluation/seconds"


class Evaluation:
    """The evaluators that a config asks for, each at multiples of its own steps and at the end.

    Raises:
      ValueError: the data cannot answer what is asked.
    """

    def __init__(
        self,
        config: TrainConfig,
        sources: Splits,
        graphdef: nnx.GraphDef,
        objective: Objective,
        *,
        initial_params: Callable[[], PyTree],
        mesh: Mesh,
    ):
        self._config = config.evaluation
        batches = functools.partial(
            eval_batches,
            config=config.data,
            # No larger than what a step holds at once.
            batch_size=config.batch_size // config.accumulation_steps,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        validation = functools.partial(batches, sources.validation)
        mean, std = config.data.mean, config.data.std
        if self._config.loss_every_steps:
            self._loss = ValidationLoss(graphdef, objective, validation, mesh)
        if self._config.pictures_every_steps and isinstance(objective, PatchObjective):
            self._pictures = Pictures(
                graphdef,
                objective,
                validation,
                number=self._config.num_pictures,
                order=config.model.order.title,
                mean=mean,
                std=std,
                mesh=mesh,
            )
        if self._config.samples_every_steps and isinstance(objective, PatchObjective):
            self._samples = Samples(
                self._config.samples,
                config.sampler,
                graphdef,
                objective,
                grid=config.grid,
                originals=held_out(config, sources.validation, self._config.samples.completed),
                batch_size=config.batch_size // config.accumulation_steps,
                mesh=mesh,
            )
        if self._config.probe_every_steps:
            records = linear_probe.training_records(sources.train, self._config.probe)
            self._probe = LinearProbe(
                self._config.probe,
                graphdef,
                initial_params=initial_params,
                # A few hundred records: starting workers would take longer than reading them.
                training_batches=functools.partial(
                    batches, records, config=dataclasses.replace(config.data, num_workers=0)
                ),
                test_batches=validation,
                mean=mean,
                std=std,
                mesh=mesh,
            )

        if self._config.knn_every_steps:
            bank = bank_records(sources.train, self._config.knn)
            self._knn = Knn(
                self._config.knn,
                graphdef,
                bank_batches=functools.partial(batches, bank),
                query_batches=validation,
                mean=mean,
                std=std,
                mesh=mesh,
            )

        if self._config.likelihood_every_steps and isinstance(objective, MSE | Diffusion):
            settings = self._config.likelihood
            to_fit = some_records(sources.train, settings.train_images)
            to_measure = some_records(sources.validation, settings.images or sys.maxsize)
            self._likelihood = Likelihood(
                settings,
                graphdef,
                objective,
                training_batches=functools.partial(batches, to_fit),
                test_batches=functools.partial(batches, to_measure),
                mesh=mesh,
            )

    def due(self, step: int, *, last: bool) -> bool:
        """Whether anything is asked after this step."""
        return any(self._is_due(name, step, last) for name in EVALUATORS)

    def _is_due(self, name: str, step: int, last: bool) -> bool:
        every_steps = getattr(self._config, f"{name}_every_steps")
        return every_steps > 0 and (last or step % every_steps == 0)

    def run(
        self, params: PyTree, key: PRNGKeyArray, step: int, writer: MetricWriter, *, last: bool
    ) -> dict[str, float]:
        """Asks what is due, logs and writes the answers, and returns the numbers by name."""
        numbers: dict[str, float] = {}
        began = time.monotonic()
        if self._is_due("loss", step, last):
            values = dict(self._loss.run(params, key))
            numbers |= {f"validation/{name}": value for name, value in values.items()}
            logging.info("Step %d: validation loss %.5f%s", step, values["loss"], _told(values))
        if self._is_due("pictures", step, last):
            writer.images(step, self._pictures.run(params, key, step))
        if self._is_due("samples", step, last):
            writer.images(step, self._samples.run(params, key))
        if self._is_due("probe", step, last):
            values = dict(self._probe.run(params, key))
            numbers |= values
            logging.info("Step %d: %s", step, linear_probe.comparison(values, self._config.probe))
        if self._is_due("knn", step, last):
            values = dict(self._knn.run(params, key))
            numbers |= values
            logging.info("Step %d: k-NN%s", step, _told(values))
        if self._is_due("likelihood", step, last):
            measured = self._likelihood.measure(params, key)
            numbers |= dict(measured.numbers())
            writer.images(step, {"likelihood": draw_likelihood(measured, step)})
            writer.arrays(step, "likelihood", measured.arrays())
            logging.info("Step %d: %s", step, measured.told())
        # The last key, and never without the others: `made` looks for it.
        writer.scalars(step, numbers | {_SECONDS: time.monotonic() - began})
        return numbers


def held_out(
    config: TrainConfig, validation: Split, number: int
) -> UInt8[np.ndarray, "image height width channel"]:
    """Some images of the validation split, the same in all processes.

    Raises:
      ValueError: the split holds none.
    """
    records = some_records(validation, number)
    data = dataclasses.replace(config.data, num_workers=0)
    batches = [*eval_batches(records, data, batch_size=max(1, min(number, len(records))))]
    images = np.concatenate([batch["image"][batch["mask"]] for batch in batches] or [[]])
    if not len(images):
        raise ValueError("the validation split holds no image; name one that does")
    return images


def _told(values: Mapping[str, float]) -> str:
    """The accuracies among some values; of those by block the best one."""
    told = [
        f", {name.replace('_', ' ')} {values[name]:.4f}"
        for name in ("accuracy", "top5_accuracy")
        if name in values
    ]
    blocks = [name for name in values if name.removeprefix("knn/").startswith("accuracy/block_")]
    if blocks:
        best = max(blocks, key=lambda name: values[name])
        told.append(f", best {best} {values[best]:.4f}")
    return "".join(told)


def made(history: Iterable[Mapping[str, int | float]], step: int) -> bool:
    """Whether an evaluation at a step is in a run's metrics."""
    return any(line["step"] == step and _SECONDS in line for line in history)


def asked(config: TrainConfig, names: list[str], *, pictures: bool) -> TrainConfig:
    """The config with the named evaluators on and the others off.

    Args:
      config: whose own evaluators are meant where none is named.
      names: of evaluators.
      pictures: whether there is a place for pictures.

    Raises:
      ConfigError: a name is unknown, or nothing is asked.
    """
    if not pictures:
        for name in ("pictures", "samples"):
            if name in names:
                raise ConfigError(f"--evaluators={name} needs a --workdir, where the pictures go")
        evaluation = dataclasses.replace(
            config.evaluation, pictures_every_steps=0, samples_every_steps=0
        )
        config = dataclasses.replace(config, evaluation=evaluation)
    for name in names:
        if name not in EVALUATORS:
            raise ConfigError(f"--evaluators has {name!r}; choose from {', '.join(EVALUATORS)}")
    keys = {name: f"{name}_every_steps" for name in EVALUATORS}
    if names:
        every: dict[str, Any] = {key: int(name in names) for name, key in keys.items()}
        evaluation = dataclasses.replace(config.evaluation, **every)
        config = dataclasses.replace(config, evaluation=evaluation)
    if not any(getattr(config.evaluation, key) for key in keys.values()):
        raise ConfigError(
            f"the config runs no evaluator; name some with --evaluators={','.join(EVALUATORS)}"
        )
    return config


def read_config(given: ml_collections.ConfigDict | None, loaded: LoadedModel) -> TrainConfig:
    """The config of the command line, or the checkpoint's own.

    Raises:
      ConfigError: neither is there, or it cannot be used.
    """
    if given is not None:
        return config_lib.load(given, begins=False)
    if loaded.config is None:
        raise ConfigError(f"{loaded.description} holds no config: give --config")
    own: dict[str, Any] = {k: v for k, v in loaded.config.items() if k != "train_records"}
    return config_lib.load(ml_collections.ConfigDict(own))


def evaluate_checkpoint(
    config: TrainConfig, loaded: LoadedModel, workdir: str | None
) -> dict[str, float]:
    """The answers by name, for a model whose parameters come from a checkpoint.

    Args:
      config: which data, and which evaluators.
      loaded: the checkpoint.
      workdir: where metrics and pictures go, None for nowhere.

    Raises:
      ConfigError: the checkpoint does not fit the config.
      ValueError: the data cannot answer what is asked.
    """
    mesh = make_mesh(config.mesh)
    build.check_layout(config, mesh)
    check_same_model(loaded, config)
    with jax.set_mesh(mesh):
        sources = config.data.open()
        config = build.with_classes(config, len(sources.train.class_names), sources.train.dataset)
        build_model = build.model_builder(config)
        init_key, _, evaluation_key = jax.random.split(jax.random.key(config.seed), 3)
        params = restored_params(config, loaded, mesh)
        step = loaded.step or 0
        evaluation = Evaluation(
            config,
            sources,
            graph_definition(build_model),
            build.build_objective(config),
            initial_params=lambda: create_params(build_model, init_key, mesh),
            mesh=mesh,
        )
        folder = absolute_path(workdir) if workdir else None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        writer = MetricWriter(folder or "", active=folder is not None)
        try:
            return evaluation.run(params, evaluation_key, step, writer, last=True)
        finally:
            writer.close()


def restored_params(config: TrainConfig, loaded: LoadedModel, mesh: Mesh) -> PyTree:
    """The model's parameters, those of the checkpoint in their places.

    Where the backbone alone is asked, nothing else is taken.

    Raises:
      ConfigError: an evaluator needs parameters that the checkpoint does not have.
    """
    initial = create_params(build.model_builder(config), jax.random.key(config.seed), mesh)
    whole = [
        name for name in _NEED_THE_WHOLE_MODEL if getattr(config.evaluation, f"{name}_every_steps")
    ]
    behind = tuple(part for part in loaded.params if part != "backbone")
    result = transfer(initial, loaded, drop=() if whole else behind)
    learnt = (loaded.config or {}).get("objective", {})
    for key in ("mask", "pooling", "normalise_target") if whole else ():
        here = getattr(config.objective, key, None)
        if key in learnt and here not in (None, learnt[key]):
            logging.warning(
                "config.objective.%s is %r, and %s was trained with %r",
                *(key, here, loaded.description, learnt[key]),
            )
    logging.info("Parameters: %s", report(result, loaded))
    if whole and result.new:
        others = [name for name in EVALUATORS if name not in _NEED_THE_WHOLE_MODEL]
        raise ConfigError(
            f"{loaded.description} has no {result.new[0]}, which the evaluator {whole[0]!r} of "
            f"config.objective.name={config.objective.name!r} needs; --evaluators="
            f"{','.join(others)} need the backbone alone"
        )
    return place(result.params, initial)
