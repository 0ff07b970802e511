"""Classes: counted and named by the training split, and kept with the checkpoint."""

import dataclasses

import pytest

from darl_jax.data.sources.digits import DigitsSource
from darl_jax.methods.transfer.classification import ClassificationConfig
from darl_jax.training.checkpoint import restore_params
from tests.toys import Integers

DIGITS = tuple("0123456789")


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


def test_names_that_are_not_as_many_as_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"class_names has 2 names and .*num_classes is 3"):
        ClassificationConfig(num_classes=3, class_names=("a", "b"))


def test_a_checkpoint_keeps_the_names(fine_tuned) -> None:
    assert DigitsSource("train").class_names == DIGITS
    objective = restore_params(fine_tuned)[1]["objective"]
    assert objective["num_classes"] == 10
    assert tuple(objective["class_names"]) == DIGITS
