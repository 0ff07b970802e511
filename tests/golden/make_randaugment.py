"""Writes randaugment.npz: RandAugment's operations as timm performs them.

Run by hand, with the one file timm/data/auto_augment.py of the library, which needs NumPy and
Pillow only (timm 1.0.31 and Pillow 11.3.0 wrote the file that is here; Pillow 13 no longer
posterizes to 0 bits, which is what timm asks for at the highest magnitude):

    python tests/golden/make_randaugment.py path/to/timm/data/auto_augment.py

Everything is uint8. The operations are those of `rand-m9-mstd0.5-inc1`, bicubic, with the fill
color of ImageNet's mean. Keys:
    image                       (24, 20, 3)    the input, an uneven one
    strengths                   (8,)           magnitude / 10 with the sign, float64
    <operation>                 (8, 24, 20, 3) for each strength
    mixed/names, mixed/strengths (6, 2)        pairs of operations, one after the other
    mixed/images                (6, 24, 20, 3)
    gray/<operation>            (8, 24, 20)    the same of the input's luminance, fill of the mean
"""

import importlib.util
import pathlib
import random
import sys
from unittest import mock

import numpy as np
from PIL import Image

MEAN = (0.485, 0.456, 0.406)
STRENGTHS = (-1.0, -0.93, -0.4, 0.0, 0.25, 0.77, 0.9, 1.0)
PAIRS = (
    (("Rotate", 0.9), ("ShearX", -0.95)),
    (("ColorIncreasing", -0.88), ("Equalize", 0.9)),
    (("SolarizeAdd", 0.9), ("TranslateYRel", 0.9)),
    (("TranslateYRel", -0.87), ("Invert", 0.9)),
    (("PosterizeIncreasing", 0.85), ("AutoContrast", 0.9)),
    (("ShearY", 0.91), ("ShearY", -0.91)),
)


def picture() -> np.ndarray:
    """A gradient, a disc and noise: smooth parts and edges, not all levels in every channel."""
    y, x = np.mgrid[:24, :20]
    image = np.stack([30 + 8 * y, 20 + 9 * x, 60 + 3 * (x + y)], axis=-1).astype(float)
    image[(y - 9) ** 2 + (x - 12) ** 2 < 30] = (240, 90, 15)
    image += np.random.default_rng(0).normal(0, 6, image.shape)
    return np.clip(np.rint(image), 3, 247).astype(np.uint8)


def main() -> None:
    spec = importlib.util.spec_from_file_location("auto_augment", sys.argv[1])
    timm = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(timm)

    def perform(name: str, strength: float, image: Image.Image, fill: int | tuple) -> Image.Image:
        hparams = {"img_mean": fill, "interpolation": Image.Resampling.BICUBIC}
        operation = timm.AugmentOp(name, prob=1.0, magnitude=10 * abs(strength), hparams=hparams)
        # Its coin for the direction: more than one half is the negative one.
        with mock.patch.object(random, "random", return_value=0.9 if strength < 0 else 0.1):
            return operation(image)

    fill = tuple(min(255, round(255 * value)) for value in MEAN)
    image = Image.fromarray(picture())
    arrays = {"image": np.asarray(image), "strengths": np.array(STRENGTHS)}
    for name in timm._RAND_INCREASING_TRANSFORMS:
        arrays[name] = np.stack([perform(name, s, image, fill) for s in STRENGTHS])
        gray = image.convert("L")
        arrays[f"gray/{name}"] = np.stack([perform(name, s, gray, fill[0]) for s in STRENGTHS])
    arrays["mixed/names"] = np.array([[name for name, _ in pair] for pair in PAIRS])
    arrays["mixed/strengths"] = np.array([[strength for _, strength in pair] for pair in PAIRS])
    mixed = []
    for pair in PAIRS:
        result = image
        for name, strength in pair:
            result = perform(name, strength, result, fill)
        mixed.append(np.asarray(result))
    arrays["mixed/images"] = np.stack(mixed)
    path = pathlib.Path(__file__).with_name("randaugment.npz")
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main()
