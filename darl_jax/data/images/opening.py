"""Opens the splits that a config names, and looks at them before a run begins."""

import numpy as np
from absl import logging

from darl_jax.data.base import Splits
from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.images.memory import MemorySplit
from darl_jax.data.images.split import ImageSplit
from darl_jax.data.sources.base import Source
from darl_jax.data.sources.digits import DigitsSource
from darl_jax.data.sources.folder import FolderSource
from darl_jax.data.sources.tfds import TfdsSource


def open_splits(config: ImagesConfig) -> Splits:
    """Body of `ImagesConfig.open`."""
    train, validation = open_split(config, "train_split"), open_split(config, "validation_split")
    if train.class_names != validation.class_names:
        raise ValueError(
            f"data.train_split='{train.split}' has {len(train.class_names)} classes and "
            f"data.validation_split='{validation.split}' has {len(validation.class_names)}, and "
            "they must be the same"
        )
    if config.in_memory:
        return Splits(MemorySplit(train), MemorySplit(validation))
    return Splits(train, validation)


def open_split(config: ImagesConfig, key: str) -> ImageSplit:
    """Body of `ImagesConfig.open_split`."""
    split = ImageSplit(_open_source(config, key), config)
    first = split.eval_examples(np.zeros(1, np.int64))
    logging.info(
        "data.%s: %s, split '%s', %d records, %d classes; the first one %s",
        *(key, split.dataset, split.split, len(split), len(split.class_names)),
        "decodes" if first["mask"][0] else "does not decode",
    )
    return split


def _open_source(config: ImagesConfig, key: str) -> Source:
    split: str = getattr(config, key)
    if config.source == "folder":
        return FolderSource(config.data_dir, split, split_key=key, train_split=config.train_split)
    if config.source == "digits":
        return DigitsSource(split, split_key=key)
    skip_bad = config.on_bad_record == "skip"
    return TfdsSource(config.dataset, split, config.data_dir, split_key=key, skip_bad=skip_bad)
