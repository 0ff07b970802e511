"""The program, as a user starts it."""

import json
import pathlib
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from darl_jax import export
from tests.interchange.small_run import save_run

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "darl_jax.export", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=250,
    )


@pytest.fixture(autouse=True, scope="module")
def parsed():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "digits"
    save_run(folder)
    line = {"step": 3, "time": 1.0, "validation/loss": 0.25}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def test_it_writes_a_folder_and_says_how_to_load_it(workdir, tmp_path):
    done = run(f"--checkpoint={workdir}", "--format=safetensors", f"--output={tmp_path / 'out'}")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"parameters to {tmp_path / 'out'}: model.safetensors, config.json" in done.stdout
    assert "left out: the patch decoder" in done.stdout
    assert f'sys.path.insert(0, "{tmp_path / "out"}")' in done.stdout
    card = (tmp_path / "out" / "README.md").read_text()
    assert "step 3 of the run digits" in card and "| validation/loss | 0.25 | step 3 |" in card


def wrong_flags(workdir, tmp_path):
    right = {"checkpoint": workdir, "format": "safetensors", "output": tmp_path / "out"}
    return [
        (right | {"format": None}, "--format (one of orbax, safetensors, timm) is needed"),
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
    values = {name: value if value is None else str(value) for name, value in given.items()}
    values["step"] = given.get("step")
    with flagsaver.flagsaver(**values), pytest.raises(SystemExit) as exit_code:
        export.main([])
    printed = capsys.readouterr().err
    assert exit_code.value.code == 2
    assert expected in printed
    assert len(printed.splitlines()) == 1 and printed.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_one_line_with_the_choices():
    done = run("--format=onnx")
    assert done.returncode == 2
    assert "--format=onnx" in done.stderr and "<orbax|safetensors|timm>" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
