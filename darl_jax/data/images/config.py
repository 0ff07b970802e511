"""Config of the data kind `images`."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from darl_jax.data.base import DataConfig, Features, Splits
from darl_jax.data.images.randaugment import RandAugmentConfig

if TYPE_CHECKING:
    from darl_jax.data.images.split import ImageSplit

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
    """Images of a dataset, and their way to the model's input.

    Attributes:
      name: "images".
      source: "tfds", "folder" or "digits".
      dataset: the TFDS dataset, for example "imagenet2012"; may carry a config and a version,
        "cifar10:3.0.2".
      data_dir: the folder that TFDS prepared it in, or the folder of images; local or a bucket.
      train_split: in TFDS's split syntax, slices too, for every source.
      validation_split: the same for the images that are held out.
      image_size: rows and columns of the model's input.
      channels: 3 for RGB, 1 for luminance.
      mean: of each channel, in units of [0, 1]; the objective normalizes with it.
      std: of each channel, in units of [0, 1].
      crop_scale: smallest and largest area of the random resized crop; MAE's (0.2, 1).
      crop_ratio: smallest and largest aspect ratio of it.
      flip: mirror half of the training images.
      randaugment: distortion of the training images after that; none by default.
      eval_crop: in evaluation, the central square has this fraction of the short side.
      resizer: resizes JPEGs: "simd" (the package cykooz-resizer) is four times as fast as
        "pillow", and a gray level off in one pixel of fifty.
      in_memory: decode once and hold all pixels; for small images of one size.
      on_bad_record: "error" stops at a record that cannot be decoded; "skip" replaces it, and in
        evaluation leaves it out.
    """

    name: str = "images"
    source: str = "tfds"
    dataset: str = ""
    data_dir: str = ""
    train_split: str = "train"
    validation_split: str = "validation"
    image_size: int = 224
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    randaugment: RandAugmentConfig = dataclasses.field(default_factory=RandAugmentConfig)
    eval_crop: float = 0.875
    resizer: str = "simd"
    in_memory: bool = False
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

    def open(self) -> Splits:
        """Opens both splits, decodes the first record of each, and with `in_memory` all.

        Raises:
          ValueError: a key names something that does not exist; the message names the key.
          BadRecordError: a record cannot be decoded.
        """
        from darl_jax.data.images import opening  # TFDS takes a second to import.

        return opening.open_splits(self)

    def open_split(self, key: str) -> "ImageSplit":
        """As `open`, but one split, never in memory: "train_split" or "validation_split"."""
        from darl_jax.data.images import opening

        return opening.open_split(self, key)
