"""Flags and config files on the command line: values, and errors of one line with exit code 2."""

import pathlib
import sys

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from darl_jax.config import load
from darl_jax.runtime import cli

DIGITS = "configs/digits.py"


@pytest.fixture
def parsed(monkeypatch):
    """Parses a command line as a program does, with flags of its own; returns its config."""
    monkeypatch.chdir(pathlib.Path(__file__).resolve().parents[2])

    def parse(*arguments: str):
        argv = ["train", *arguments]
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
        monkeypatch.setattr(flags, "FLAGS", values)
        # ml_collections runs every config file in one module.
        monkeypatch.delitem(sys.modules, "config_config", raising=False)
        cli.flags_parser("train --config=FILE")(argv)
        return values.config

    return parse


def test_word_chooses_a_config_and_keys_are_overridden(parsed):
    config = load(parsed(f"--config={DIGITS}:mse", "--config.model.depth=3", "--config.seed=7"))
    assert (config.objective.name, config.model.depth, config.seed) == ("mse", 3, 7)


def test_key_takes_none_and_a_key_that_is_none_takes_a_number(parsed):
    config = load(
        parsed(f"--config={DIGITS}", "--config.total_steps=None", "--config.total_epochs=2.5")
    )
    assert (config.total_steps, config.total_epochs) == (None, 2.5)
    assert config.steps(records=6400) == 250


def test_tilde_is_the_home_folder(parsed, monkeypatch, tmp_path):
    (tmp_path / "my.py").write_text(pathlib.Path(DIGITS).resolve().read_text())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parsed("--config=~/my.py").batch_size == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([f"--config={DIGITS}", "--config.model.widht=3"], "model.widht=3: there is no key"),
        ([f"--config={DIGITS}", "--config.batch_size=many"], "--config.batch_size=many"),
        ([f"--config={DIGITS}", "--config.model.order=spiral"], "=spiral: this is a group of keys"),
        ([f"--config={DIGITS}", "--wrkdir=x"], "wrkdir"),
        ([f"--config={DIGITS}", "stray"], "stray is not understood; usage: train --config=FILE"),
        (["--config=configs/no_such.py"], "--config=configs/no_such.py: there is no such file"),
        ([f"--config={DIGITS}:x"], "no word 'x': give --config=FILE.py:WORD with one of diff"),
        (["--config=configs/linear_vit.py"], "a word is missing: give --config=FILE.py:WORD with"),
        (["--config=configs/darl_vit_b16_mse.py:x"], "configs/darl_vit_b16_mse.py takes no word"),
    ],
)
def test_wrong_command_line_gets_one_line_and_exit_code_2(parsed, capsys, arguments, message):
    assert message in refused(parsed, capsys, *arguments)


def refused(parsed, capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as caught:
        parsed(*arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config():\n    return nothing\n", "my.py, line 2: name 'nothing' is not defined"),
        ("x = 1\n", "no attribute 'get_config'"),
        ("def get_config(:\n", "invalid syntax"),
        ("def get_config():\n    return {'seed': 1}\n", "must return a ConfigDict, such as"),
    ],
)
def test_error_in_a_config_file_is_one_line_that_names_it(parsed, capsys, tmp_path, text, message):
    (tmp_path / "my.py").write_text(text)
    assert message in refused(parsed, capsys, f"--config={tmp_path}/my.py")


def test_platform_without_a_device_is_named(monkeypatch):
    def devices() -> None:
        assert False, ""  # noqa: B011, PT015 - as JAX does

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    no_device = pytest.raises(ValueError, match="no device for JAX_PLATFORMS='cuda'")
    with no_device, cli.advice_on_devices():
        jax.devices()
    monkeypatch.undo()  # Other errors of JAX are left as they are.
    with pytest.raises(RuntimeError, match="of its own"), cli.advice_on_devices():
        raise RuntimeError("an error of its own")
