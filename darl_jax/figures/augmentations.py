r"""Draws 64 training images as the model sees them, with their labels.

    python -m darl_jax.figures.augmentations --config=configs/supervised_vit_l16.py:rope2d \
        --config.data.data_dir=~/tensorflow_datasets

Each of the eight rows is a batch of its own, since a batch is mixed in one way: cropped, mirrored
and distorted by the training pipeline, then erased and mixed by `config.objective.mixing`. The
model is not built.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from ml_collections import config_flags

from darl_jax import config as config_lib
from darl_jax.data.base import Split
from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.pipeline import train_batches
from darl_jax.figures.program import run_program
from darl_jax.methods.transfer.mixing import MixingConfig, augment
from darl_jax.monitoring.drawing import Mosaic
from darl_jax.nn.patches import standardize, unstandardize

_USAGE = "python -m darl_jax.figures.augmentations --config=configs/supervised_vit_l16.py:rope2d"

ROWS = COLUMNS = 8
_GAP = 6  # pixels between images
_CAPTION = 30  # pixels for two lines under an image
_TITLE = 52  # pixels for the title and the subtitle
_LEAST_SHOWN = 0.005  # smaller shares of a label would be written as 0.00


class Example(NamedTuple):
    """A training image."""

    record: int  # index in the split
    pixels: UInt8[np.ndarray, "height width channel"]
    shares: list[tuple[int, float]]  # (class, share) of its label, largest first


def examples(
    split: Split, config: ImagesConfig, mixing: MixingConfig, seed: int
) -> list[list[Example]]:
    """Reads the first ROWS batches of COLUMNS examples each.

    Images are decoded one by one, even with `data.in_memory`, which would decode the whole split
    and gives the same within two gray levels.
    """
    by_record = dataclasses.replace(config, in_memory=False, num_workers=0)
    rows = []
    options = {"batch_size": COLUMNS, "seed": seed, "start_step": 0}
    with train_batches(split, by_record, **options) as batches:
        for key in jax.random.split(jax.random.key(seed), ROWS):
            batch = next(batches)
            images = standardize(jnp.asarray(batch["image"]), config.mean, config.std)
            # Without smoothing, which is the same for every image; a class -1 has no share.
            targets = jax.nn.one_hot(batch["label"], max(len(split.class_names), 1))
            images, targets = augment(key, images, targets, mixing)
            pixels = np.asarray(unstandardize(images, config.mean, config.std))
            seen = zip(batch["index"].tolist(), pixels, _shares(targets), strict=True)
            rows.append([Example(*parts) for parts in seen])
    return rows


def _shares(targets: jax.Array) -> list[list[tuple[int, float]]]:
    result = []
    for row in np.asarray(targets, np.float64):
        shown = [c for c in np.argsort(-row, kind="stable") if row[c] >= _LEAST_SHOWN]
        result.append([(int(c), float(row[c])) for c in shown])
    return result


def draw(
    rows: Sequence[Sequence[Example]], names: Sequence[str], title: str, subtitle: str
) -> Figure:
    """Draws the examples in rows, with the classes (and shares) of their labels."""
    mosaic = Mosaic(
        [[example.pixels for example in row] for row in rows],
        gap=(_CAPTION, _GAP),
        margins=(_GAP, _GAP, _TITLE, _CAPTION + _GAP),
    )
    for y, row in zip(mosaic.y, rows, strict=True):
        for x, example in zip(mosaic.x, row, strict=True):
            at, caption = (x + 1, y + mosaic.height + 3), _caption(example.shares, names)
            mosaic.text(*at, caption, size=6.5, color="0.25", va="top", linespacing=1.1)
    mosaic.text(_GAP, 8, title, size=11, weight="bold", va="top")
    mosaic.text(_GAP, 28, subtitle, size=9, color="0.25", va="top")
    return mosaic.figure


def _caption(shares: Sequence[tuple[int, float]], names: Sequence[str]) -> str:
    if len(shares) == 1:
        return names[shares[0][0]]
    return "\n".join(f"{names[c]} {share:.2f}" for c, share in shares)


def describe(config: ImagesConfig, mixing: MixingConfig) -> str:
    """Describes the augmentation in a line."""
    done = [f"crops of {config.crop_scale[0]:g} to {config.crop_scale[1]:g} of the area"]
    if config.flip:
        done.append("mirrored")
    if config.randaugment.magnitude:
        done.append(f"RandAugment({config.randaugment.magnitude:g}, {config.randaugment.std:g})")
    if mixing.erasing_probability:
        done.append(f"erased with probability {mixing.erasing_probability:g}")
    if mixing.mixup:
        done.append(f"mixup({mixing.mixup:g})")
    if mixing.cutmix:
        done.append(f"CutMix({mixing.cutmix:g})")
    return ", ".join(done)


def draw_config(config: ml_collections.ConfigDict | None) -> Figure:
    """Draws a config's training images. Raises ValueError if it has none."""
    if config is None:
        raise ValueError(f"--config is needed; usage: {_USAGE}")
    loaded = config_lib.load(config, begins=False)
    mixing = getattr(loaded.objective, "mixing", MixingConfig())
    data = loaded.data
    if not isinstance(data, ImagesConfig):
        raise ValueError(f"config.data.name={data.name!r} makes no images")
    split = data.open_split("train_split")
    title = f"{split.dataset}, split '{split.split}', as it is trained on"
    rows = examples(split, data, mixing, loaded.seed)
    return draw(rows, split.class_names, title, describe(data, mixing))


if __name__ == "__main__":
    run_program(
        draw_config,
        _USAGE,
        output="augmented.png",
        config=config_flags.DEFINE_config_file(
            "config", None, "Config file; --config.KEY=VALUE overrides any of its keys."
        ),
    )
