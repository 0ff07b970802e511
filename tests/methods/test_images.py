"""The contract's parts that all methods on images share."""

import dataclasses

import pytest
from flax import nnx, traverse_util

from darl_jax.methods.darl.mse import MSEConfig
from darl_jax.methods.mae.method import MAEConfig
from darl_jax.methods.transfer.classification import ClassificationConfig
from darl_jax.methods.transfer.probe_model import ProbesConfig
from darl_jax.training.state import parameters
from tests.methods_on_images import images, method


@pytest.mark.parametrize(
    "objective",
    [
        MSEConfig(),
        MAEConfig(),
        ClassificationConfig(num_classes=3),
        ClassificationConfig(num_classes=3, norm_after_pooling=True),
        ProbesConfig(num_classes=3),
    ],
    ids=lambda objective: objective.name,
)
def test_layers_are_the_embedding_the_blocks_and_the_rest(objective) -> None:
    of = method(objective, depth=3)
    params = nnx.eval_shape(lambda: of.init(nnx.Rngs(0)))
    layers = {path: of.layer_of(path) for path in traverse_util.flatten_dict(parameters(params))}
    assert of.num_layers == 5
    for path, layer in layers.items():
        if path[:2] == ("backbone", "blocks"):
            assert layer == (1, 2, 3)
        elif path[0] == "backbone" and path[1] != "final_norm":
            assert layer == 0, path
        else:
            assert layer == 4, path
    assert {0, 4, (1, 2, 3)} == set(layers.values())


def test_other_features_than_the_method_reads_name_the_feature() -> None:
    @dataclasses.dataclass(frozen=True)
    class Unlabeled(type(images())):
        @property
        def features(self):
            return {"image": super().features["image"]}

    data = Unlabeled(**vars(images()))
    with pytest.raises(ValueError, match=r"reads the feature 'label', and config.data makes image"):
        method(ClassificationConfig(num_classes=3), data=data)
