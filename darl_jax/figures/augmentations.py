r"""Draws 64 training images as the model sees them, with their labels.

    python -m darl_jax.figures.augmentations --config=configs/supervised_vit_l16.py:rope2d \
        --config.data.data_dir=~/tensorflow_datasets

Each of the eight rows is a batch of its own, for a batch is mixed in one way: cropped, mirrored and
distorted by the training pipeline, then erased and mixed as `config.objective.mixing` says. No
model is made.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import IdentityTransform
from ml_collections import config_flags

from darl_jax import config as config_lib
from darl_jax.data.base import Split
from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.pipeline import train_batches
from darl_jax.evaluators.pictures import magnify
from darl_jax.methods.transfer.mixing import MixingConfig, augment
from darl_jax.nn.patches import standardize, unstandardize
from darl_jax.runtime import cli

_USAGE = "python -m darl_jax.figures.augmentations --config=configs/supervised_vit_l16.py:rope2d"

ROWS = COLUMNS = 8
_DPI = 100
_SMALLEST_SIDE = 112  # Pixels; smaller images are magnified by a whole number, without smoothing.
_GAP = 6  # Pixels between images.
_CAPTION = 30  # Pixels for two lines under an image.
_TITLE = 52  # Pixels for the dataset's name, and for what is done to its images.
_LEAST_SHOWN = 0.005  # A smaller share of a label would be written as 0.00.


class Example(NamedTuple):
    """An image as it is learned from.

    Attributes:
      record: its number in the split.
      pixels: after all that is done to it.
      shares: how much of each class its label is, largest first; empty where it has none.
    """

    record: int
    pixels: UInt8[np.ndarray, "height width channel"]
    shares: list[tuple[int, float]]


def examples(
    split: Split, config: ImagesConfig, mixing: MixingConfig, seed: int
) -> list[list[Example]]:
    """The first batches of COLUMNS examples each, ROWS of them.

    Images are read one by one, even with `data.in_memory`, which would decode all of them for
    these few and gives the same within two gray levels.
    """
    by_record = dataclasses.replace(config, in_memory=False, num_workers=0)
    rows = []
    options = {"batch_size": COLUMNS, "seed": seed, "start_step": 0}
    with train_batches(split, by_record, **options) as batches:
        for key in jax.random.split(jax.random.key(seed), ROWS):
            batch = next(batches)
            images = standardize(jnp.asarray(batch["image"]), config.mean, config.std)
            # Without smoothing, which says the same of every image; a class -1 has no share.
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
    """The examples in rows, each with its label under it, and their shares where it has several."""
    height, width, _ = rows[0][0].pixels.shape
    factor = max(1, -(-_SMALLEST_SIDE // height))
    height, width = height * factor, width * factor
    total_height = _TITLE + len(rows) * (height + _CAPTION) + _GAP
    total_width = _GAP + len(rows[0]) * (width + _GAP)
    canvas = np.full((total_height, total_width, 3), 255, np.uint8)
    figure = Figure(figsize=(total_width / _DPI, total_height / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    # Text in pixels from the lower left corner.
    text = functools.partial(figure.text, transform=IdentityTransform())
    for i, row in enumerate(rows):
        y = _TITLE + i * (height + _CAPTION)
        for j, example in enumerate(row):
            x = _GAP + j * (width + _GAP)
            canvas[y : y + height, x : x + width] = magnify(example.pixels, factor)
            caption = _caption(example.shares, names)
            bottom = total_height - y - height
            text(x + 1, bottom - 3, caption, size=6.5, color="0.25", va="top", linespacing=1.1)
    figure.figimage(canvas, origin="upper", zorder=-1)
    text(_GAP, total_height - 8, title, size=11, weight="bold", va="top")
    text(_GAP, total_height - 28, subtitle, size=9, color="0.25", va="top")
    return figure


def _caption(shares: Sequence[tuple[int, float]], names: Sequence[str]) -> str:
    if len(shares) == 1:
        return names[shares[0][0]]
    return "\n".join(f"{names[c]} {share:.2f}" for c, share in shares)


def describe(config: ImagesConfig, mixing: MixingConfig) -> str:
    """What is done to the images, in a line."""
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


def main() -> None:
    """Reads a config's training images and writes the picture."""
    if flags.FLAGS.config is None:
        raise ValueError(f"--config is needed; usage: {_USAGE}")
    config = config_lib.load(flags.FLAGS.config, begins=False)
    mixing = getattr(config.objective, "mixing", MixingConfig())
    data = config.data
    if not isinstance(data, ImagesConfig):
        raise ValueError(f"config.data.name={data.name!r} makes no images")
    split = data.open_split("train_split")
    rows = examples(split, data, mixing, config.seed)
    figure = draw(
        rows,
        split.class_names,
        f"{split.dataset}, split '{split.split}', as it is trained on",
        describe(data, mixing),
    )
    output = pathlib.Path(flags.FLAGS.output)
    figure.savefig(output, dpi=_DPI, format="png")
    print(f"wrote {output}")


if __name__ == "__main__":
    # Not where this module is imported: programs have flags of their own.
    config_flags.DEFINE_config_file(
        "config", None, "A config file; any key of it can be overridden as --config.key=value."
    )
    flags.DEFINE_string("output", "augmented.png", "The picture's file, a PNG.")
    cli.run(main, _USAGE)
