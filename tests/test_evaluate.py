"""The program that evaluates a checkpoint by the evaluators of a config."""

import numpy as np
import pytest

from darl_jax.monitoring.writers import read_metrics
from tests.programs import call, finish, refusal, start


def last_values(workdir) -> dict[str, float]:
    return {name: value for line in read_metrics(workdir) for name, value in line.items()}


def evaluated(checkpoint, workdir, *arguments: str) -> dict[str, float]:
    """The numbers that the program keeps."""
    flags = f"--checkpoint={checkpoint}", f"--workdir={workdir}"
    assert call("evaluate", *flags, *arguments) == 0
    return last_values(workdir)


def test_numbers_are_those_that_the_run_itself_wrote(fine_tuned, tmp_path, capsys):
    found = evaluated(fine_tuned, tmp_path, "--config.batch_size=7")
    written = last_values(fine_tuned)
    assert found["validation/accuracy"] == written["validation/accuracy"]
    assert found["validation/loss"] == pytest.approx(written["validation/loss"], rel=1e-6)
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert printed["validation/accuracy"] == f"{found['validation/accuracy']:.5f}"


@pytest.mark.slow
def test_a_likelihood_is_the_one_that_the_run_itself_wrote(tiny_diffusion, tmp_path):
    found = evaluated(tiny_diffusion, tmp_path, "--evaluators=likelihood")
    written = last_values(tiny_diffusion)
    names = [name for name in found if name.startswith("likelihood/")]
    assert len(names) == 14
    for name in names:
        assert written[name] == pytest.approx(found[name], rel=1e-6)
    assert (tmp_path / "pictures" / "likelihood_00000012.png").exists()
    with np.load(tmp_path / "likelihood_00000012.npz") as arrays:
        assert len(arrays["records"]) == 40
        total = arrays["analytic_by_patch"].sum(axis=0).mean()
    assert total == pytest.approx(found["likelihood/analytic/bits_per_dim"], rel=1e-6)


def test_keys_of_the_checkpoints_own_config_can_be_overridden(fine_tuned, tmp_path):
    larger = evaluated(
        fine_tuned, tmp_path / "larger",
        "--config.data.image_size=12", "--config.model.trained_image_size=8",
        "--config.data.validation_split=train[:5%]",
    )  # fmt: skip
    assert 0.0 < larger["validation/accuracy"] < 1.0
    assert larger["validation/loss"] != last_values(fine_tuned)["validation/loss"]


def test_pictures_and_evaluators_by_their_kind(tiny_run, tmp_path):
    found = evaluated(tiny_run, tmp_path, "--evaluators=validation,pictures,knn,likelihood")
    assert list((tmp_path / "pictures").glob("predictions_*.png"))
    assert "knn/accuracy/block_01" in found
    assert 0.0 < found["likelihood/gaussian/bits_per_dim"] < 8.0
    assert found["validation/loss"] == last_values(tiny_run)["validation/loss"]


def test_a_backbone_alone_serves_evaluators_that_need_no_more(tiny_run, tmp_path, capsys):
    # Another objective than the checkpoint's own needs a config file.
    file = tmp_path / "classification.py"
    file.write_text(
        "from darl_jax.config import to_config_dict\n"
        "from tests.tiny_runs import tiny\n"
        "def get_config():\n"
        "    return to_config_dict(tiny('classification'))\n"
    )
    found = evaluated(tiny_run, tmp_path / "out", f"--config={file}", "--evaluators=knn")
    assert "knn/accuracy/block_02" in found
    arguments = f"--checkpoint={tiny_run}", f"--config={file}", "--evaluators=validation"
    assert "has no head/bias, which config.objective.name='classification' needs" in refusal(
        capsys, "evaluate", *arguments
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--evaluators=accuracy"], "--evaluators has 'accuracy'; choose from "),
        (["--evaluators=pictures"], "--evaluators=pictures needs a --workdir"),
        (["--checkpoint="], "--checkpoint is needed"),
        (["--checkpoint=/no/such/run"], "/no/such/run"),
        (["--config.evaluators.validation.every_steps=0"], "the config has no evaluator to run"),
        (["--config.data.crop_scle=1"], "--config.data.crop_scle=1: there is no key"),
    ],
)
def test_a_wrong_flag_is_one_line(tiny_run, capsys, arguments, message):
    found = refusal(capsys, "evaluate", f"--checkpoint={tiny_run}", *arguments)
    assert message in found


@pytest.mark.slow
@pytest.mark.process
def test_a_run_on_two_devices_is_evaluated_on_one(tmp_path):
    """As its config says fsdp=2, which does not fit here; so does sample, and so an export."""
    train = (
        "from tests.tiny_runs import run, tiny\n"
        f"assert run(tiny(mesh__data=1, mesh__fsdp=2), {str(tmp_path / 'run')!r}) == 0\n"
    )
    finish(start("-c", train, JAX_NUM_CPU_DEVICES="2"))
    found = evaluated(tmp_path / "run", tmp_path / "found")
    written = last_values(tmp_path / "run")
    assert found["validation/loss"] == pytest.approx(written["validation/loss"], rel=1e-5)
    folders = {name: f"--output={tmp_path / name}" for name in ("samples", "export")}
    assert call("sample", f"--checkpoint={tmp_path / 'run'}", "--number=1", folders["samples"]) == 0
    to = "--format=safetensors", folders["export"]
    assert call("export", f"--checkpoint={tmp_path / 'run'}", *to) == 0
    exported = evaluated(tmp_path / "export", tmp_path / "of_export", "--evaluators=knn")
    assert "knn/accuracy/block_01" in exported
