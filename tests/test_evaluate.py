"""The program that asks a checkpoint the questions of a config."""

import pathlib
import subprocess
import sys

import pytest

from darl_jax.config import ConfigError
from darl_jax.evaluators import schedule as evaluation
from darl_jax.interchange.loading import load_model
from darl_jax.monitoring.writers import read_metrics
from tests.tiny_runs import run, tiny

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def fine_tuned(tiny_run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("fine_tuned")
    config = tiny(
        objective="classification", init__checkpoint=str(tiny_run), ema_decay=0.5,
        optimizer__learning_rate=3e-3,
    )  # fmt: skip
    assert run(config, workdir) == 0
    return workdir


def last_values(workdir) -> dict[str, float]:
    return {name: value for line in read_metrics(workdir) for name, value in line.items()}


@pytest.mark.parametrize("batch_size", [32, 7])
def test_answers_are_those_that_the_run_itself_wrote(fine_tuned, batch_size):
    config = tiny(objective="classification", ema_decay=0.5, batch_size=batch_size)
    config = evaluation.asked(config, ["loss"], pictures=True)
    found = evaluation.evaluate_checkpoint(config, load_model(str(fine_tuned)), None)
    written = last_values(fine_tuned)
    assert found["validation/accuracy"] == written["validation/accuracy"]
    assert found["validation/loss"] == pytest.approx(written["validation/loss"], rel=1e-6)


def test_another_resolution_needs_nothing_but_its_keys(fine_tuned):
    config = tiny(
        objective="classification", data__image_size=12, model__trained_image_size=8
    )  # fmt: skip
    found = evaluation.evaluate_checkpoint(
        evaluation.asked(config, ["loss"], pictures=True), load_model(str(fine_tuned)), None
    )
    assert 0.0 < found["validation/accuracy"] < 1.0


def test_answers_and_pictures_are_kept_where_a_workdir_is_given(tiny_run, tmp_path):
    config = evaluation.asked(tiny(), ["loss", "pictures", "knn", "likelihood"], pictures=True)
    found = evaluation.evaluate_checkpoint(
        config, load_model(str(tiny_run)), str(tmp_path / "answers")
    )
    assert last_values(tmp_path / "answers")["validation/loss"] == found["validation/loss"]
    assert list((tmp_path / "answers" / "pictures").glob("predictions_*.png"))
    assert "knn/accuracy/block_01" in found
    assert list((tmp_path / "answers" / "pictures").glob("likelihood_*.png"))
    assert list((tmp_path / "answers").glob("likelihood_*.npz"))
    assert 0.0 < found["likelihood/gaussian/bits_per_dim"] < 8.0


def test_a_backbone_alone_answers_what_needs_no_more(tiny_run):
    config = tiny(objective="classification")
    loaded = load_model(str(tiny_run))
    assert "knn/accuracy/block_02" in evaluation.evaluate_checkpoint(
        evaluation.asked(config, ["knn"], pictures=True), loaded, None
    )
    with pytest.raises(ConfigError, match="has no head/bias, which the evaluator 'loss'"):
        evaluation.evaluate_checkpoint(
            evaluation.asked(config, ["loss"], pictures=True), loaded, None
        )


def test_an_unknown_evaluator_and_none_at_all_are_named():
    with pytest.raises(ConfigError, match="--evaluators has 'accuracy'; choose from loss, "):
        evaluation.asked(tiny(), ["accuracy"], pictures=True)
    with pytest.raises(ConfigError, match="--evaluators=pictures needs a --workdir"):
        evaluation.asked(tiny(), ["pictures"], pictures=False)
    with pytest.raises(ConfigError, match="the config runs no evaluator; name some"):
        evaluation.asked(tiny(evaluation__loss_every_steps=0), [], pictures=True)


def test_the_program_prints_a_number_for_each_answer(fine_tuned):
    done = subprocess.run(
        [sys.executable, "-m", "darl_jax.evaluate", f"--checkpoint={fine_tuned}"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    printed = dict(line.split() for line in done.stdout.splitlines())
    written = last_values(fine_tuned)
    assert float(printed["validation/accuracy"]) == pytest.approx(
        written["validation/accuracy"], abs=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--checkpoint is needed"),
        (["--checkpoint=/no/such/run"], "/no/such/run"),
    ],
)
def test_wrong_flags_get_one_line_and_exit_code_2(arguments, message):
    done = subprocess.run(
        [sys.executable, "-m", "darl_jax.evaluate", *arguments],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("I")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
