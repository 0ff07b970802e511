"""Number of training records of a config, without the dataset where it is well known."""

from darl_jax.config import TrainConfig
from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.sources.base import slice_split

# Records of TFDS datasets in the splits that the configs train on, as their pages at
# https://www.tensorflow.org/datasets/catalog say.
KNOWN_DATASETS = {
    "imagenet2012": {"train": 1_281_167, "validation": 50_000},
    "cifar10": {"train": 50_000, "test": 10_000},
}


def training_records(config: TrainConfig, given: int | None) -> tuple[int, str]:
    """Returns (records of the training split, origin of the number).

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
    name = data.dataset.split(":")[0]
    if data.source == "tfds" and name in KNOWN_DATASETS:
        split = slice_split(data.train_split, KNOWN_DATASETS[name], "train_split")
        return len(split), f"as TFDS's page of {name} says"
    raise ValueError(
        "the number of training records decides the length of the run: give --records=N, or "
        "config.data.data_dir where the dataset is present"
    )
