"""Parameters from a checkpoint: what is taken, what is new, what is dropped, what is refused."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from darl_jax.config import ConfigError, default_config, load
from darl_jax.interchange import described, initialization
from darl_jax.interchange.loading import LoadedModel
from darl_jax.methods.darl.model import DARL
from darl_jax.methods.darl.patch_decoders import PatchDecoderConfig
from darl_jax.methods.transfer.classifier import Classifier
from darl_jax.nn.orders import OrderConfig
from darl_jax.nn.vit import ViTConfig
from darl_jax.training.sharding import MeshConfig, make_mesh, tree_shardings
from darl_jax.training.state import parameters
from tests.random_modules import random_module

VIT = ViTConfig(width=16, depth=2, num_heads=2, mlp_dim=32, patch_size=2, dtype="float32")


def pretrained(*, two_stream: bool = False, channels=1, **changes) -> LoadedModel:
    vit = dataclasses.replace(VIT, **changes)
    model = random_module(
        lambda rngs: DARL(
            vit, PatchDecoderConfig(), denoising=False, two_stream=two_stream, grid=(4, 4),
            channels=channels, rngs=rngs,
        ),
        seed=1,
    )  # fmt: skip
    return LoadedModel(
        params=jax.tree.map(np.asarray, parameters(model)),
        config=None,
        model=dataclasses.asdict(vit) | {"order": vit.order},
        trained_image_size=8,
        description="step 3 of /runs/a",
    )


def classifier(classes: int = 5) -> dict:
    model = random_module(
        lambda rngs: Classifier(VIT, num_classes=classes, grid=(4, 4), channels=1, rngs=rngs)
    )
    return parameters(model)


def config(**changes):
    values = default_config(objective="classification")
    values.model.update(width=16, depth=2, num_heads=2, mlp_dim=32, patch_size=2)
    values.data.update(source="digits", image_size=8, channels=1, mean=(0.3,), std=(0.4,))
    values.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return load(values)


def test_the_backbone_is_taken_and_the_rest_is_told() -> None:
    ours, theirs = classifier(), pretrained()
    result = initialization.transfer(ours, theirs)
    for path, leaf in jax.tree_util.tree_leaves_with_path(result.params["backbone"]):
        other = theirs.params["backbone"]
        for key in path:
            other = other[key.key]
        np.testing.assert_array_equal(leaf, other)
    assert result.new == ("head/bias", "head/kernel")
    assert result.dropped == (
        "patch_decoder/head/to_pixels/bias",
        "patch_decoder/head/to_pixels/kernel",
    )
    assert len(result.taken) == len(jax.tree.leaves(ours["backbone"]))
    text = initialization.report(result, theirs)
    assert "step 3 of /runs/a" in text
    assert "new: head/bias, head/kernel" in text
    assert "dropped: patch_decoder/head/to_pixels/bias, patch_decoder/head/to_pixels/kernel" in text


def test_a_tree_keeps_its_structure_and_layout() -> None:
    mesh = make_mesh(MeshConfig())
    ours = classifier()
    laid_out = jax.device_put(ours, tree_shardings(ours, mesh))
    result = initialization.transfer(laid_out, pretrained())
    placed = initialization.put_like(result.params, laid_out)
    assert jax.tree.structure(placed) == jax.tree.structure(ours)
    for a, b in zip(jax.tree.leaves(placed), jax.tree.leaves(laid_out), strict=True):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)
    np.testing.assert_array_equal(placed["backbone"]["sos"], pretrained().params["backbone"]["sos"])


def test_an_array_of_another_shape_is_refused_by_name() -> None:
    with pytest.raises(
        ConfigError, match=r"key/kernel: \(2, 24, 24\) in the checkpoint, \(2, 16, 16\)"
    ):
        initialization.transfer(classifier(), pretrained(width=24))


def test_a_backbone_with_other_arrays_is_refused_by_name() -> None:
    learnable = pretrained(positions="learnable")
    with pytest.raises(
        ConfigError, match="backbone/positions: present in the checkpoint, absent here"
    ):
        initialization.transfer(classifier(), learnable)
    lacking = pretrained()
    del lacking.params["backbone"]["final_norm"]
    with pytest.raises(
        ConfigError, match="final_norm/scale: absent in the checkpoint, present here"
    ):
        initialization.transfer(classifier(), lacking)


def test_learnable_positions_start_at_the_fixed_ones_of_a_checkpoint() -> None:
    fixed, learnable = pretrained(positions="sincos2d"), config(model__positions="learnable")
    loaded = initialization.with_learnable_positions(fixed, learnable)
    initialization.check_same_model(loaded, learnable)
    ours = parameters(random_module(learnable.resolved(learnable.data.open().train).method.init))
    result = initialization.transfer(ours, loaded)
    table = np.asarray(result.params["backbone"]["positions"])
    # Patch (row 1, column 2) of 16 channels: sin and cos of the column, then of the row.
    rates = 10_000.0 ** (-np.arange(4) / 4)
    waves = [wave(at * rates) for at in (2, 1) for wave in (np.sin, np.cos)]
    np.testing.assert_allclose(table[1 * 4 + 2], np.concatenate(waves), atol=1e-6)
    assert "backbone/positions" in result.taken
    for other in (pretrained(positions="learnable"), pretrained()):
        assert initialization.with_learnable_positions(other, learnable) is other
    rope = config()
    assert initialization.with_learnable_positions(fixed, rope) is fixed


def test_a_head_of_other_classes_is_refused_until_it_is_dropped() -> None:
    loaded = dataclasses.replace(pretrained(), params=jax.tree.map(np.asarray, classifier(3)))
    with pytest.raises(ConfigError, match=r"head/kernel: \(16, 3\).*\(16, 5\)[\s\S]*init.drop"):
        initialization.transfer(classifier(5), loaded)
    result = initialization.transfer(classifier(5), loaded, drop=("head",))
    assert result.new == ("head/bias", "head/kernel") == result.dropped
    with pytest.raises(ConfigError, match=r"'heads'.*begin with backbone, head"):
        initialization.transfer(classifier(5), loaded, drop=("heads",))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_heads": 4},  # which no shape shows
        {"positions": "none"},
        {"rope_max_wavelength": 100.0},
        {"rope_y_first": True},
    ],
)
def test_a_model_that_differs_where_no_shape_shows_it_is_refused(changes: dict) -> None:
    key, value = next(iter(changes.items()))
    with pytest.raises(ConfigError, match=rf"config.model.{key} is .* checkpoint's is {value!r}"):
        initialization.check_same_model(pretrained(**changes), config())


def test_images_of_other_channels_are_refused_by_the_key() -> None:
    message = r"config\.data\.channels is 1, and step 3 .* images of 3: set .*channels=3"
    with pytest.raises(ConfigError, match=message):
        initialization.check_same_model(pretrained(channels=3), config())


def test_images_of_another_size_need_the_trained_size() -> None:
    larger = {"data__image_size": 16}
    with pytest.raises(ConfigError, match=r"set config.model.trained_image_size=8"):
        initialization.check_same_model(pretrained(), config(**larger))
    initialization.check_same_model(pretrained(), config(**larger, model__trained_image_size=8))
    with pytest.raises(ConfigError, match=r"set config.model.trained_image_size=8"):
        initialization.check_same_model(pretrained(), config(model__trained_image_size=4))


@pytest.mark.parametrize(
    ("theirs", "ours", "warning"),
    [
        (OrderConfig(), {}, None),
        (OrderConfig("spiral"), {"name": "spiral", "block": 4, "seed": 1}, None),
        (OrderConfig("nested_raster", 2), {"name": "nested_raster", "block": 4}, "raster 4 x 4"),
        (OrderConfig(), {"name": "spiral"}, "order is spiral, and .* in the order raster"),
        (
            OrderConfig("permutation", seed=1),
            {"name": "permutation"},
            "permutation of seed 0, and .* in the order permutation of seed 1",
        ),
    ],
)
def test_another_order_than_the_checkpoint_s_is_a_warning(caplog, theirs, ours, warning):
    changes = {f"model__order__{key}": value for key, value in ours.items()}
    with caplog.at_level("WARNING"):
        initialization.check_same_model(pretrained(order=theirs), config(**changes))
    assert ("config.model.order" in caplog.text) == (warning is not None)
    assert re.search(warning or "", caplog.text)


def test_of_two_streams_the_content_is_taken_and_read_in_raster_order(caplog):
    theirs = pretrained(two_stream=True, order=OrderConfig("random"))
    run = {"model": dataclasses.asdict(dataclasses.replace(VIT, order=OrderConfig("random")))}
    theirs = dataclasses.replace(theirs, model=described.model_of(run))
    with caplog.at_level("WARNING"):
        initialization.check_same_model(theirs, config())
    assert "config.model.order" not in caplog.text
    result = initialization.transfer(classifier(), theirs)
    assert {path.split("/")[0] for path in result.dropped} == {"patch_decoder", "query_stream"}
