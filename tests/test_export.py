"""The program, as a user starts it."""

import json
import os

import pytest

from tests.interchange.small_run import save_run
from tests.programs import call, refusal


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "digits"
    save_run(folder)
    line = {"step": 3, "time": 1.0, "validation/loss": 0.25}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def test_it_writes_a_folder_and_says_how_to_load_it(workdir, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("export", f"--checkpoint={workdir}", "--format=safetensors", f"--output={out}") == 0
    printed = capsys.readouterr().out
    assert f"parameters to {out}: model.safetensors, config.json" in printed
    assert "left out: the patch decoder" in printed
    assert f'sys.path.insert(0, "{out}")' in printed
    card = (out / "README.md").read_text()
    assert "step 3 of the run digits" in card and "| validation/loss | 0.25 | step 3 |" in card
    # As the umask says.
    umask = os.umask(0)
    os.umask(umask)
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o666 & ~umask}


def wrong_flags(workdir, tmp_path):
    right = {"checkpoint": workdir, "format": "safetensors", "output": tmp_path / "out"}
    return [
        (
            right | {"format": None},
            "--format (one of orbax, safetensors, timm, aim, aim-l3m, aimv2,",
        ),
        (right | {"output": None}, "--output is needed"),
        (right | {"checkpoint": None}, "--checkpoint is needed"),
        (right | {"output": "gs://bucket/out"}, "--output=gs://bucket/out must be a local folder"),
        (right | {"output": workdir}, "exists and is not empty; name a new folder"),
        (right | {"step": 4}, "no checkpoint of step 4"),
        (right | {"checkpoint": tmp_path / "nowhere"}, "no checkpoints: there is no folder"),
    ]


@pytest.mark.parametrize("case", range(7))
def test_a_wrong_flag_is_one_line_that_names_it(workdir, tmp_path, capsys, case):
    given, expected = wrong_flags(workdir, tmp_path)[case]
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    assert expected in refusal(capsys, "export", *flags)
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_one_line_with_the_choices(capsys):
    line = refusal(capsys, "export", "--format=onnx")
    assert "--format=onnx" in line and "<orbax|safetensors|timm|aim|" in line
