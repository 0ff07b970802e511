"""Config of the data kind `images`."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from darl_jax.data.base import DataConfig, Features, Integers, Splits
from darl_jax.data.images.randaugment import RandAugmentConfig

if TYPE_CHECKING:
    from darl_jax.data.images.split import ImageSplit
    from darl_jax.data.sources.base import Source

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_CHOICES: dict[str, tuple[str | int, ...]] = {
    "source": ("tfds", "folder", "digits"),
    "on_bad_record": ("error", "skip"),
    "resizer": ("simd", "pillow"),
    "channels": (1, 3),
}


@dataclasses.dataclass(frozen=True)
class ImagesConfig(DataConfig):
    """Images of a dataset, and their way to the model's input."""

    name: str = "images"
    source: str = "tfds"  # "tfds", "folder" or "digits"
    # The TFDS dataset, for example "imagenet2012"; may carry a config and a version,
    # "cifar10:3.0.2".
    dataset: str = ""
    # The folder that TFDS prepared it in, or the folder of images; local or a bucket.
    data_dir: str = ""
    train_split: str = "train"  # in TFDS's split syntax, slices too, for every source
    validation_split: str = "validation"  # the same for the images that are held out
    image_size: int = 224  # rows and columns of the model's input
    channels: int = 3  # RGB, or 1 for luminance
    # Of each channel, in units of [0, 1]; the objective normalizes with them.
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    # Smallest and largest area of the random resized crop; MAE's (0.2, 1).
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # smallest and largest aspect ratio of it
    flip: bool = True  # mirror half of the training images
    # Distortion of the training images after that; none by default.
    randaugment: RandAugmentConfig = dataclasses.field(default_factory=RandAugmentConfig)
    # In evaluation, the central square has this fraction of the short side.
    eval_crop: float = 0.875
    # Resizes JPEGs: "simd" (the package cykooz-resizer) is four times as fast as "pillow", and a
    # gray level off in one pixel of fifty.
    resizer: str = "simd"
    in_memory: bool = False  # decode once and hold all pixels; for small images of one size
    # "error" stops at a record that cannot be decoded; "skip" replaces it, and in evaluation leaves
    # it out.
    on_bad_record: str = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, choices in _CHOICES.items():
            rule = f"one of {', '.join(map(repr, choices))}"
            self.check(getattr(self, key) in choices, key, rule)
        self.check(self.image_size >= 1, "image_size", "at least 1")
        self.check(0 < self.eval_crop <= 1, "eval_crop", "in (0, 1]")
        low, high = self.crop_scale
        self.check(0 < low <= high <= 1, "crop_scale", "(smallest, largest) in (0, 1]")
        low, high = self.crop_ratio
        self.check(0 < low <= high, "crop_ratio", "(smallest, largest) above 0")
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(
                    f"data.{key} has {len(values)} values and data.channels is {self.channels}; "
                    "they must agree"
                )
        units = "in units of [0, 1]: divide 8-bit values by 255"
        self.check(all(0 <= value <= 1 for value in self.mean), "mean", units)
        self.check(all(0 < value <= 1 for value in self.std), "std", f"positive and {units}")

    @property
    def features(self) -> Features:
        """`image`, uint8 of (height, width, channel), and `label`, int32, -1 for none."""
        import jax  # Data workers start without it.

        size = (self.image_size, self.image_size, self.channels)
        return {
            "image": jax.ShapeDtypeStruct(size, np.uint8),
            "label": jax.ShapeDtypeStruct((), np.int32),
        }

    @property
    def integers(self) -> Integers:
        """The pixels, of 256 levels."""
        return Integers("image", 256)

    def open(self) -> Splits:
        """Opens both splits, decodes the first record of each, and with `in_memory` all.

        Raises:
          ValueError: a key names something that does not exist; the message names the key.
          BadRecordError: a record cannot be decoded.
        """
        from darl_jax.data.images.memory import MemorySplit

        train, validation = self.open_split("train_split"), self.open_split("validation_split")
        if train.class_names != validation.class_names:
            raise ValueError(
                f"data.train_split='{train.split}' has {len(train.class_names)} classes and "
                f"data.validation_split='{validation.split}' has {len(validation.class_names)}, "
                "and they must be the same"
            )
        if self.in_memory:
            return Splits(MemorySplit(train), MemorySplit(validation))
        return Splits(train, validation)

    def open_split(self, key: str) -> "ImageSplit":
        """As `open`, but one split, never in memory: "train_split" or "validation_split"."""
        from darl_jax.data.images.split import ImageSplit

        split = ImageSplit(self._source(key), self)
        first = split.eval_examples(np.zeros(1, np.int64))
        logging.info(
            "data.%s: %s, split '%s', %d records, %d classes; the first one %s",
            *(key, split.dataset, split.split, len(split), len(split.class_names)),
            "decodes" if first["mask"][0] else "does not decode",
        )
        return split

    def _source(self, key: str) -> "Source":
        from darl_jax.data.sources.digits import DigitsSource
        from darl_jax.data.sources.folder import FolderSource
        from darl_jax.data.sources.tfds import TfdsSource  # which takes a second to import

        split = getattr(self, key)
        if self.source == "folder":
            return FolderSource(self.data_dir, split, split_key=key, train_split=self.train_split)
        if self.source == "digits":
            return DigitsSource(split, split_key=key)
        skip_bad = self.on_bad_record == "skip"
        return TfdsSource(self.dataset, split, self.data_dir, split_key=key, skip_bad=skip_bad)
