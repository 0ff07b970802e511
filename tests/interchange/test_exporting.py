"""A folder is whole or not there, and says what is in it."""

import json
import os

import pytest

from darl_jax.interchange import exporting
from darl_jax.interchange.exporting import export, new_folder
from darl_jax.interchange.loading import build_backbone, load_model
from darl_jax.nn.orders import OrderConfig, fixed_order
from tests.interchange.small_run import make_config, make_source


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    with pytest.raises(FileExistsError, match=r"--output=.*there exists and is not empty; name"):
        export(make_source(), "safetensors", tmp_path / "there")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["file"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        export(make_source(), "safetensors", tmp_path / "file")


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    (tmp_path / "there" / "exported").mkdir(parents=True)
    for output in (tmp_path / "there" / "exported", tmp_path / "new" / "exported"):
        result = export(make_source(), "safetensors", output)
        assert sorted(path.name for path in output.iterdir()) == sorted(result.files)
        assert [path.name for path in output.parent.iterdir()] == ["exported"]


def test_arrays_have_the_permissions_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        for form in ("safetensors", "timm"):
            export(make_source(), form, tmp_path / form)
            for name in ("model.safetensors", "config.json"):
                assert (tmp_path / form / name).stat().st_mode & 0o777 == 0o640, (form, name)
    finally:
        os.umask(before)


def test_class_names_are_kept_with_the_head_alone(tmp_path):
    names = ["bus", "car", "train"]
    for classes in (3, 0):
        source = make_source(classes=classes)
        source.config["objective"]["class_names"] = names
        kept = names if classes else None
        for form in ("safetensors", "timm"):
            folder = tmp_path / f"{form}{classes}"
            export(source, form, folder)
            config = json.loads((folder / "config.json").read_text())
            timm = config.get("pretrained_cfg", {}).get("label_names")
            assert (config["class_names"] if form == "safetensors" else timm) == kept
            assert ("| classes | bus, car, train |" in (folder / "README.md").read_text()) == (
                kept is not None
            )


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(exporting.shutil, "copyfile", fail)
    with pytest.raises(type(error)):
        export(make_source(), "safetensors", tmp_path / "exported")
    assert not list(tmp_path.iterdir())


def test_nothing_of_its_name_is_there_before_an_export_is_whole(tmp_path, monkeypatch):
    output = tmp_path / "exported"
    with monkeypatch.context() as patch:
        patch.setattr(exporting.os, "getpid", lambda: 1)
        killed = new_folder(output)
        (killed.__enter__() / "model.safetensors").write_bytes(b"half")  # and no more
    assert [path.name for path in tmp_path.iterdir()] == [".exported.partial-1"]
    # What is left is in nobody's way.
    with new_folder(output) as folder:
        (folder / "file").write_text("whole")
    assert [path.name for path in output.iterdir()] == ["file"]


def test_the_card_tells_the_numbers_at_the_step_and_the_config(tmp_path):
    source = make_source()
    history = [
        {"step": 1, "time": 0.0, "validation/loss": 0.75, "train/loss": 0.8},
        {"step": 3, "time": 1.0, "validation/loss": 0.5},
        {"step": 4, "time": 2.0, "validation/loss": 0.25},  # after the exported step
    ]
    source = exporting.Source(source.params, source.config, 3, "step 3 of the run x", history)
    export(source, "safetensors", tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    for text in ("step 3 of the run x", "loss | 0.5 | step 3 |", "train/loss | 0.8 | step 1 |"):
        assert text in card
    config = card[card.index("## Config") :].split("```json\n")[1].split("\n```")[0]
    assert json.loads(config) == source.config


@pytest.mark.parametrize(
    ("model", "read"),
    [
        ({"order": {"name": "spiral"}}, OrderConfig("spiral")),
        ({"order": {"name": "spiral"}, "two_stream": True}, OrderConfig("spiral")),
        ({"order": {"name": "random"}, "two_stream": True}, OrderConfig()),
    ],
)
def test_the_order_of_the_patches_is_spelled_out_and_random_orders_are_read_as_raster(
    tmp_path, model, read
):
    result = export(make_source(make_config(**model)), "safetensors", tmp_path / "exported")
    assert ("the query stream (" in result.dropped) == ("two_stream" in model)
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    sequence = None if read == OrderConfig() else fixed_order(read, (4, 4)).tolist()
    assert config["model"]["sequence"] == sequence
    card = (tmp_path / "exported" / "README.md").read_text()
    assert f"| order of the patches | {read.name} |" in card
    loaded = load_model(str(tmp_path / "exported"))
    assert set(loaded.params) == {"backbone"}
    assert build_backbone(loaded).config.order == read


def test_what_is_left_out_is_counted(tmp_path):
    source = make_source()
    kept = export(source, "orbax", tmp_path / "orbax").parameters
    result = export(source, "safetensors", tmp_path / "safetensors")
    # The decoder: one linear layer from 16 channels to 2 * 2 * 3 pixels.
    assert kept - result.parameters >= 16 * 12 + 12
    assert f"({kept - result.parameters:,} parameters)" in result.dropped
