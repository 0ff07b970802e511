"""Random erasing, mixup and CutMix with soft labels, on the device.

mixup: Zhang et al., 2018 (arXiv:1710.09412); CutMix: Yun et al., 2019 (arXiv:1905.04899); random
erasing: Zhong et al., 2020 (arXiv:1708.04896); all three with the details of timm, whose recipes
fine-tuning follows. Everything is drawn over global arrays, so that nothing depends on the number
of devices. Images are standardized ones.

Settled here: one share and one box are drawn for a whole batch, and an image's partner is the one
that stands as far from the batch's other end, timm's mode 'batch'. Labels are weighted by the
areas that are really seen, where a box reaches beyond the image.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

_ERASING_TRIES = 10


@dataclasses.dataclass(frozen=True)
class MixingConfig:
    """How images of a batch are erased in part and mixed with each other; nothing by default.

    Attributes:
      mixup: alpha of the Beta(alpha, alpha) that mixup's share is drawn from; 0 for no mixup.
      cutmix: the same for the area that CutMix keeps; 0 for no CutMix.
      switch_probability: of CutMix, where both are on.
      probability: that a batch is mixed at all.
      erasing_probability: that an image loses a box to noise; 0 for no erasing.
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
        low, high = self.erasing_area
        if not 0 < low <= high < 1:
            raise ValueError(
                f"objective.mixing.erasing_area is {self.erasing_area}; it must be (smallest, "
                "largest) between 0 and 1"
            )
        low, high = self.erasing_aspect
        if not 0 < low <= high < math.inf:
            raise ValueError(
                f"objective.mixing.erasing_aspect is {self.erasing_aspect}; it must be (smallest, "
                "largest) above 0"
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
    """Erases and then mixes, the order of the recipes: erased boxes are mixed as noise."""
    erasing_key, mixing_key = jax.random.split(key)
    return mix(mixing_key, erase(erasing_key, images, config), targets, config)


def mix(
    key: PRNGKeyArray,
    images: Float[Array, "batch height width channel"],
    targets: Float[Array, "batch class"],
    config: MixingConfig,
) -> tuple[Float[Array, "batch height width channel"], Float[Array, "batch class"]]:
    """Each image with its partner, and their labels with the shares that are seen.

    Returns:
      images and targets; the very same ones where mixup and CutMix are off.
    """
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
    # How much of the image itself is seen at each pixel.
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
    """A box of 1 - share of the area about a pixel drawn at random; what is outside is lost."""
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
    """Which of `size` places are among the `length` ones about the center."""
    place = jnp.arange(size)
    return (place >= center - length // 2) & (place < center + (length + 1) // 2)


def erase(
    key: PRNGKeyArray,
    images: Float[Array, "batch height width channel"],
    config: MixingConfig,
) -> Float[Array, "batch height width channel"]:
    """Fills a box of some images with noise from N(0, 1), each image on its own.

    Area and aspect ratio (log-uniform) are drawn ten times and the first box that is smaller than
    the image counts; where none is, the image stays whole.

    Returns:
      the images; the very same ones where erasing is off.
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
        place = jnp.arange(size)
        within = (place >= start) & (place < start + length)
        inside = inside & jnp.expand_dims(within, 2 - axis)
    noise = jax.random.normal(keys[4], images.shape, images.dtype)
    return jnp.where(inside[..., None], noise, images)
