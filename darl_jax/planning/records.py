"""Numbers of training records and classes of well-known datasets, which need not be present."""

import dataclasses
from typing import Any

from darl_jax.config import TrainConfig
from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.sources.base import slice_split

# Records of each split and number of classes, as the pages of TFDS's catalog say,
# https://www.tensorflow.org/datasets/catalog.
KNOWN_DATASETS = {
    "imagenet2012": ({"train": 1_281_167, "validation": 50_000}, 1000),
    "cifar10": ({"train": 50_000, "test": 10_000}, 10),
}


def training_records(config: TrainConfig, given: int | None) -> tuple[int, str]:
    """Returns (records of the training split, origin of the number); the `given` number wins.

    Raises:
      ValueError: the number is not known, or `config.data` names a dataset or split that is absent.
    """
    data = config.data
    if given is not None:
        return given, "as --records says"
    if not isinstance(data, ImagesConfig):
        return len(data.open().train), "counted in the dataset"
    if data.data_dir or data.source == "digits":
        return len(data.open_split("train_split")), "counted in the dataset"
    name = _tfds_name(config)
    if name in KNOWN_DATASETS:
        split = slice_split(data.train_split, KNOWN_DATASETS[name][0], "train_split")
        return len(split), f"as TFDS's page of {name} says"
    raise ValueError(
        "the number of training records decides the length of the run: give --records=N, or "
        "config.data.data_dir where the dataset is present"
    )


def with_classes(config: TrainConfig) -> TrainConfig:
    """Returns the config with the number of classes of its dataset, where it needs one.

    Raises:
      ValueError: the dataset is neither present nor known.
    """
    objective: Any = config.objective
    if getattr(objective, "num_classes", 0) is not None:
        return config
    name = _tfds_name(config)
    if name not in KNOWN_DATASETS:
        return config.resolved(config.data.open().train)
    objective = dataclasses.replace(objective, num_classes=KNOWN_DATASETS[name][1])
    return dataclasses.replace(config, objective=objective)


def _tfds_name(config: TrainConfig) -> str:
    data = config.data
    if isinstance(data, ImagesConfig) and data.source == "tfds":
        return data.dataset.split(":")[0]
    return ""
