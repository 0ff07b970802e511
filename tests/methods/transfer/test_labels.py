"""Classes: counted and named by the training split."""

import dataclasses

import pytest

from darl_jax.methods.transfer.classification import ClassificationConfig
from tests.toys import Integers


@dataclasses.dataclass(frozen=True)
class Photos(Integers):
    class_names: tuple[str, ...] = ()
    dataset: str = "photos"


def photos(names: tuple[str, ...]) -> Photos:
    return Photos("train", 10, class_names=names)


def resolved(names: tuple[str, ...], **config) -> ClassificationConfig:
    return ClassificationConfig(**config).resolved(photos(names))


def test_classes_are_those_of_the_training_split() -> None:
    config = resolved(("bus", "car"))
    assert (config.num_classes, config.class_names) == (2, ("bus", "car"))
    assert resolved(("bus", "car"), num_classes=2) == config
    assert config.resolved(photos(("bus", "car"))) == config


@pytest.mark.parametrize(
    ("names", "config", "message"),
    [
        ((), {}, "photos has no labels, which config.objective.name='classification' learns"),
        (("bus",), {}, "photos has the one class 'bus', .* a folder of images has a sub-folder"),
        (("bus", "car"), {"num_classes": 1000}, "num_classes=1000, and photos has 2; None counts"),
        (
            ("bus", "van"),
            {"num_classes": 2, "class_names": ("bus", "car")},
            "class 1 is 'van' in photos and 'car' in the config",
        ),
    ],
)
def test_a_split_with_other_classes_is_refused_by_name(names, config, message) -> None:
    with pytest.raises(ValueError, match=message):
        resolved(names, **config)
