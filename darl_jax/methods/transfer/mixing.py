"""Random erasing, mixup and CutMix with soft labels, on the device.

mixup: Zhang et al., 2018 (arXiv:1710.09412); CutMix: Yun et al., 2019 (arXiv:1905.04899); random
erasing: Zhong et al., 2020 (arXiv:1708.04896); all three with the details of timm, whose recipes
fine-tuning follows. Random numbers are drawn over global arrays, so that nothing depends on the
number of devices. Images are standardized.

Settled here: one share and one box are drawn per batch, and images are mixed with the batch in
reverse, timm's mode 'batch'. Labels are weighted by visible areas, with boxes cut at the border.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

_ERASING_TRIES = 10


@dataclasses.dataclass(frozen=True)
class MixingConfig:
    """Config of random erasing, mixup and CutMix; all are off by default.

    Attributes:
      mixup: alpha of the Beta(alpha, alpha) distribution of mixup's share; 0 for no mixup.
      cutmix: the same for the area that CutMix keeps; 0 for no CutMix.
      switch_probability: probability of CutMix rather than mixup, if both are on.
      probability: probability that a batch is mixed at all.
      erasing_probability: probability that a box of an image is erased; 0 for no erasing.
      erasing_area: smallest and largest area of the box, as a fraction of the image's.
      erasing_aspect: smallest and largest ratio of its height to its width.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    switch_probability: float = 0.5
    probability: float = 1.0
    erasing_probability: float = 0.0
    erasing_area: tuple[float, float] = (0.02, 1 / 3)
    erasing_aspect: tuple[float, float] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        for key in ("mixup", "cutmix"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(
                    f"objective.mixing.{key} is {getattr(self, key)}; it must be positive, or 0 "
                    "for none"
                )
        for key in ("switch_probability", "probability", "erasing_probability"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(
                    f"objective.mixing.{key} is {getattr(self, key)}; it must be in [0, 1]"
                )
        for key, limit, range_ in (
            ("erasing_area", 1, "between 0 and 1"),
            ("erasing_aspect", math.inf, "above 0"),
        ):
            low, high = getattr(self, key)
            if not 0 < low <= high < limit:
                raise ValueError(
                    f"objective.mixing.{key} is {(low, high)}; it must be (smallest, largest) "
                    f"{range_}"
                )


def soft_labels(
    labels: Int[Array, " batch"], num_classes: int, smoothing: float
) -> Float[Array, "batch {num_classes}"]:
    """Label smoothing: 1 - s + s/C for an image's own class, s/C for each other one.

    Args:
      labels: class numbers.
      num_classes: C.
      smoothing: s, in [0, 1).
    """
    return jax.nn.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def augment(
    key: PRNGKeyArray,
    images: Float[Array, "batch height width channel"],
    targets: Float[Array, "batch class"],
    config: MixingConfig,
) -> tuple[Float[Array, "batch height width channel"], Float[Array, "batch class"]]:
    """Erases, then mixes, in the order of timm's recipes: erased boxes are mixed as noise."""
    erasing_key, mixing_key = jax.random.split(key)
    return mix(mixing_key, erase(erasing_key, images, config), targets, config)


def mix(
    key: PRNGKeyArray,
    images: Float[Array, "batch height width channel"],
    targets: Float[Array, "batch class"],
    config: MixingConfig,
) -> tuple[Float[Array, "batch height width channel"], Float[Array, "batch class"]]:
    """Mixes images with the batch in reverse, and labels by visible shares (mixup, CutMix)."""
    if (config.mixup == 0 and config.cutmix == 0) or config.probability == 0:
        return images, targets
    height, width = images.shape[1:3]
    happens_key, choice_key, share_key, box_key = jax.random.split(key, 4)
    if config.mixup and config.cutmix:
        is_cutmix = jax.random.bernoulli(choice_key, config.switch_probability)
    else:
        is_cutmix = jnp.asarray(config.cutmix > 0)
    alpha = jnp.where(is_cutmix, config.cutmix, config.mixup)
    happens = jax.random.bernoulli(happens_key, config.probability)
    share = jnp.where(happens, jax.random.beta(share_key, alpha, alpha), 1.0)
    # Weight of the image itself at each pixel.
    own = share
    if config.cutmix:
        box = _cutmix_box(box_key, share, height, width)
        own = jnp.where(is_cutmix, jnp.where(box, 0.0, 1.0), share)[..., None]
        share = jnp.where(is_cutmix, 1 - jnp.sum(box) / (height * width), share)
    own = own.astype(images.dtype)
    images = own * images + (1 - own) * jnp.flip(images, 0)
    return images, share * targets + (1 - share) * jnp.flip(targets, 0)


def _cutmix_box(
    key: PRNGKeyArray, share: Float[Array, ""], height: int, width: int
) -> Bool[Array, "{height} {width}"]:
    """Mask of a box of 1 - share of the area around a random pixel, cut at the border."""
    side = jnp.sqrt(1 - share)
    keys = jax.random.split(key)
    rows, columns = (
        _around(
            jax.random.randint(one, (), 0, size), jnp.floor(size * side).astype(jnp.int32), size
        )
        for one, size in zip(keys, (height, width), strict=True)
    )
    return rows[:, None] & columns


def _around(center: Int[Array, ""], length: Int[Array, ""], size: int) -> Bool[Array, " {size}"]:
    """Mask of the `length` of `size` pixels around the center."""
    x = jnp.arange(size)
    return (x >= center - length // 2) & (x < center + (length + 1) // 2)


def erase(
    key: PRNGKeyArray,
    images: Float[Array, "batch height width channel"],
    config: MixingConfig,
) -> Float[Array, "batch height width channel"]:
    """Fills a box of some images with noise from N(0, 1), each image independently.

    Area and aspect ratio (log-uniform) are drawn ten times, and the first box smaller than the
    image is erased, if any.
    """
    if config.erasing_probability == 0:
        return images
    batch, height, width, _ = images.shape
    keys = jax.random.split(key, 5)
    happens = jax.random.bernoulli(keys[0], config.erasing_probability, (batch,))
    low, high = config.erasing_area
    tries = (batch, _ERASING_TRIES)
    area = height * width * jax.random.uniform(keys[1], tries, minval=low, maxval=high)
    low, high = (math.log(ratio) for ratio in config.erasing_aspect)
    aspect = jnp.exp(jax.random.uniform(keys[2], tries, minval=low, maxval=high))
    heights, widths = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits, axis=1, keepdims=True)
    happens = happens & jnp.any(fits, axis=1)
    inside = happens[:, None, None]
    corners = jax.random.uniform(keys[3], (2, batch, 1))
    for axis, size, lengths in ((0, height, heights), (1, width, widths)):
        length = jnp.take_along_axis(lengths, first, axis=1)
        start = jnp.floor(corners[axis] * (size - length + 1))
        x = jnp.arange(size)
        within = (x >= start) & (x < start + length)
        inside = inside & jnp.expand_dims(within, 2 - axis)
    noise = jax.random.normal(keys[4], images.shape, images.dtype)
    return jnp.where(inside[..., None], noise, images)
