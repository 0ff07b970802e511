"""What a config says about the data."""

import dataclasses

from darl_jax.data.images.randaugment import RandAugmentConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, and how they become the model's input.

    Attributes:
      source: "tfds", "folder" or "digits".
      name: the TFDS dataset, for example "imagenet2012"; may carry a config and a version,
        "cifar10:3.0.2".
      data_dir: where TFDS prepared it, or the folder of images; local or a bucket.
      train_split: in TFDS's split syntax, slices too, for every source.
      validation_split: the same for the images that are held out.
      image_size: rows and columns of what the model sees.
      channels: 3 for RGB, 1 for luminance.
      mean: of each channel, in units of [0, 1]; the objective standardises with it.
      std: of each channel, in units of [0, 1].
      crop_scale: smallest and largest area of the random resized crop; MAE's (0.2, 1).
      crop_ratio: smallest and largest aspect ratio of it.
      flip: mirror half of the training images.
      randaugment: what is done to the training images after that; nothing by default.
      eval_crop: in evaluation, the central square has this fraction of the short side.
      resizer: what resizes JPEGs: "simd" (the package cykooz-resizer) is four times as fast as
        "pillow", and a grey level off in one pixel of fifty.
      in_memory: decode once and hold all pixels; for small images of one size.
      num_workers: processes that read and decode, in each process of the run, but no more than
        it may use cores; 0 for threads in this one. Images in memory need none.
      worker_timeout_seconds: a worker that makes nothing for so long, while its images are waited
        for, is taken for stuck; another takes its place once, and then it is an error.
      on_bad_record: "error" stops at a record that cannot be decoded; "skip" replaces it, and in
        evaluation leaves it out.
    """

    source: str = "tfds"
    name: str = ""
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
    num_workers: int = 8
    worker_timeout_seconds: float = 300.0
    on_bad_record: str = "error"

    def __post_init__(self) -> None:
        _check_choice("source", self.source, ("tfds", "folder", "digits"))
        _check_choice("on_bad_record", self.on_bad_record, ("error", "skip"))
        _check_choice("resizer", self.resizer, ("simd", "pillow"))
        _check_choice("channels", self.channels, (1, 3))
        if self.image_size < 1:
            raise ValueError(f"data.image_size is {self.image_size}; it must be at least 1")
        if self.num_workers < 0:
            raise ValueError(f"data.num_workers is {self.num_workers}; it must be 0 or more")
        if self.worker_timeout_seconds <= 0:
            raise ValueError(
                f"data.worker_timeout_seconds is {self.worker_timeout_seconds}; it must be positive"
            )
        if not 0 < self.eval_crop <= 1:
            raise ValueError(f"data.eval_crop is {self.eval_crop}; it must be in (0, 1]")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"data.crop_scale is {self.crop_scale}; it must be (smallest, largest) in (0, 1]"
            )
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(
                f"data.crop_ratio is {self.crop_ratio}; it must be (smallest, largest) above 0"
            )
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(
                    f"data.{key} has {len(values)} values and data.channels is {self.channels}; "
                    "they must agree"
                )
        if min(self.std) <= 0:
            raise ValueError(f"data.std is {self.std}; it must be positive")


def _check_choice(key: str, value: str | int, choices: tuple[str | int, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"data.{key} is {value!r}; it must be one of {', '.join(map(repr, choices))}"
        )
