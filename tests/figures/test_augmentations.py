"""The picture shows the batches that training gets, and says what their labels are."""

import numpy as np
import pytest

from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.images.randaugment import RandAugmentConfig
from darl_jax.data.pipeline import train_batches
from darl_jax.figures.augmentations import COLUMNS, ROWS, examples
from darl_jax.methods.transfer.mixing import MixingConfig

DIGITS = ImagesConfig(
    source="digits", image_size=8, channels=1, mean=(0.5,), std=(0.5,), num_workers=0,
    randaugment=RandAugmentConfig(magnitude=9.0),
)  # fmt: skip
MIXING = MixingConfig(mixup=0.8, cutmix=1.0)


def test_without_mixing_the_images_are_those_of_the_training_pipeline() -> None:
    split = DIGITS.open_split("train_split")
    rows = examples(split, DIGITS, MixingConfig(), seed=3)
    assert [len(row) for row in rows] == [COLUMNS] * ROWS
    with train_batches(split, DIGITS, batch_size=COLUMNS, seed=3, start_step=0) as batches:
        for row, batch in zip(rows, batches, strict=False):
            np.testing.assert_array_equal([e.pixels for e in row], batch["image"])
            assert [e.shares for e in row] == [[(label, 1.0)] for label in batch["label"]]
            assert [e.record for e in row] == batch["index"].tolist()


def test_shares_of_mixed_labels_are_those_of_an_image_and_its_partner() -> None:
    split = DIGITS.open_split("train_split")
    plain = examples(split, DIGITS, MixingConfig(), seed=0)
    mixed = examples(split, DIGITS, MIXING, seed=0)
    several = 0
    for labels, row in zip(plain, mixed, strict=True):
        for example, own, partner in zip(row, labels, labels[::-1], strict=True):
            allowed = {own.shares[0][0], partner.shares[0][0]}
            assert {c for c, _ in example.shares} <= allowed
            # What is left out is less than would be written as 0.01.
            assert sum(share for _, share in example.shares) == pytest.approx(1, abs=0.006)
            several += len(example.shares) == 2
    assert several > 20
