"""One function for every kind of file, and one sentence for each thing that is wrong with one."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from darl_jax.interchange.exporting import export
from darl_jax.interchange.loading import build_backbone, load_model, load_run
from darl_jax.interchange.safetensors_files import read_safetensors
from darl_jax.nn.orders import OrderConfig
from darl_jax.training.checkpoint import Checkpointer
from tests.interchange.small_run import (
    as_loaded,
    assert_same,
    block_features,
    golden,
    make_source,
    save_run,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run and its exports, with its parameters."""
    folder = tmp_path_factory.mktemp("interchange")
    params = save_run(folder / "run")
    for form in ("orbax", "safetensors", "timm"):
        export(make_source(), form, folder / form)
    return folder, params


@pytest.fixture
def exported(folders, tmp_path):
    """A copy of the safetensors export, to be damaged."""
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((folders[0] / "safetensors" / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize("place", ["run", "run/checkpoints", "orbax", "safetensors"])
def test_each_kind_gives_the_runs_parameters_and_config(folders, place):
    folder, params = folders
    loaded, expected = load_model(str(folder / place)), as_loaded(make_source())
    if place == "safetensors":
        params = {"backbone": params["backbone"]}
    assert_same(loaded.params, params)
    assert loaded.config == expected.config
    assert loaded.model == expected.model
    assert (loaded.trained_image_size, loaded.step) == (8, 3)


def test_features_of_an_export_are_the_runs_bit_for_bit(folders):
    backbones = [
        build_backbone(load_model(str(folders[0] / kind))) for kind in ("run", "safetensors")
    ]
    images = golden()["images/8x8"]
    first, second = (block_features(backbone, images, "causal") for backbone in backbones)
    np.testing.assert_array_equal(first, second)


def test_orbax_alone_reads_its_export(folders):
    import orbax.checkpoint as ocp

    folder, params = folders
    state = ocp.StandardCheckpointer().restore(folder / "orbax" / "checkpoints" / "3" / "state")
    assert set(state) == {"params"}
    assert_same(state["params"], params)


def test_a_truncated_file_says_how_long_it_is(exported):
    file = exported / "model.safetensors"
    whole = file.read_bytes()
    for length in (len(whole) - 100, 200, 5):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"or is truncated to {length} bytes .*again"):
            load_model(str(exported))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blocks.1.mlp.up.bias"), r"has no array blocks\.1\.mlp\.up\.bias"),
        (lambda t: t.update(other=np.ones(3)), "has other, which a model of its config does not"),
        (lambda t: t.update(sos=np.ones(3)), r"sos of shape \(3,\) instead of \(16,\)"),
    ],
)
def test_arrays_that_are_missing_extra_or_misshapen_are_named(exported, change, message):
    file = exported / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    change(tensors)
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(ValueError, match=message):
        load_model(str(exported))


def without(config, *keys):
    """The text of a config that lacks a key."""
    config = json.loads(json.dumps(config))
    group = config
    for key in keys[:-1]:
        group = group[key]
    del group[keys[-1]]
    return json.dumps(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: json.dumps(c | {"format_version": 1}),
            "has format version 1; .* reads version 2",
        ),
        (lambda c: json.dumps(c)[:50], "is damaged: it is not a JSON"),
        (lambda c: without(c, "model", "grid"), r"has no key model\.grid"),
        (lambda c: without(c, "darl_jax_config"), "has no key darl_jax_config"),
    ],
)
def test_a_config_of_another_version_or_short_of_a_key_is_an_error(exported, change, message):
    path = exported / "config.json"
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=message):
        load_model(str(exported))
    path.unlink()
    with pytest.raises(ValueError, match=r"and no config\.json beside it"):
        load_model(str(exported))


def test_an_export_that_names_no_order_is_in_raster_order(exported):
    path = exported / "config.json"
    config = json.loads(path.read_text())
    del config["model"]["sequence"], config["darl_jax_config"]["model"]["order"]
    path.write_text(json.dumps(config))
    assert load_model(str(exported)).model["order"] == OrderConfig()


def test_what_is_no_model_says_what_can_be_read(folders, tmp_path):
    known = "readable are a run's workdir"
    with pytest.raises(FileNotFoundError, match=f"no file or folder .*nowhere; {known}"):
        load_model(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=f"is no model: it holds nothing; {known}"):
        load_model(str(tmp_path))
    (tmp_path / "notes.txt").write_text("some words that are no model")
    with pytest.raises(ValueError, match=f"of an unknown kind; {known}"):
        load_model(str(tmp_path / "notes.txt"))
    (tmp_path / "x.safetensors").write_text("some words that are no model")
    with pytest.raises(ValueError, match="is no safetensors file"):
        load_model(str(tmp_path / "x.safetensors"))
    safetensors.numpy.save_file({"weight": np.ones(3, np.float32)}, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="has arrays such as weight, which no known model has"):
        load_model(str(tmp_path / "y.safetensors"))
    with pytest.raises(ValueError, match="is an export for timm, which cannot be imported"):
        load_model(str(folders[0] / "timm"))


def test_the_moving_average_is_taken_where_there_is_one(tmp_path):
    source = make_source()
    average = jax.tree.map(lambda x: x + 1, dict(source.params))
    checkpointer = Checkpointer(tmp_path, keep_last=1, keep_every=0)
    checkpointer.save(3, {"params": source.params, "ema": average}, source.config)
    checkpointer.wait()
    checkpointer.close()
    assert_same(load_model(str(tmp_path)).params, average)
    assert_same(load_run(str(tmp_path), averaged=False).params, dict(source.params))


def test_positions_are_counted_on_the_images_of_pre_training(tmp_path):
    """A model fine-tuned on larger images keeps the grid that its positions are counted on."""
    source = make_source()
    source.config["model"]["trained_image_size"] = 8
    source.config["data"]["image_size"] = 12
    export(source, "safetensors", tmp_path / "exported")
    loaded = load_model(str(tmp_path / "exported"))
    assert loaded.trained_image_size == 8
    assert build_backbone(loaded).grid == (4, 4)


def test_a_step_is_a_runs(folders):
    assert load_model(str(folders[0] / "run"), 3).step == 3
    with pytest.raises(FileNotFoundError, match="no checkpoint of step 4"):
        load_model(str(folders[0] / "run"), 4)
    with pytest.raises(ValueError, match="step=3 is one of a run's checkpoints"):
        load_model(str(folders[0] / "safetensors"), 3)


def test_16_bit_arrays_are_read_and_whole_numbers_are_not(tmp_path):
    path = tmp_path / "x.safetensors"
    values = np.array([1.0, -2.5, 0.0])
    halves = {"a": values.astype(np.float16), "b": values.astype(ml_dtypes.bfloat16)}
    safetensors.numpy.save_file(halves, path)
    for value in read_safetensors(path).values():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, values)
    safetensors.numpy.save_file({"a": np.arange(3)}, path)
    with pytest.raises(ValueError, match="the array a has type I64; parameters have one of F64"):
        read_safetensors(path)
