"""A tiny Transformer on text through train, evaluate and sample as they are."""

import json

import numpy as np
import pytest

from darl_jax.config import TrainConfig, default_config, evaluator, load
from darl_jax.monitoring.writers import read_metrics
from darl_jax.training.checkpoint import restore_params
from tests.programs import call, refusal
from tests.tiny_runs import assert_same_bits, run, saved_state, stopped


def text_config(path) -> TrainConfig:
    config = default_config(objective="ardm", model="ardm_transformer", data="text")
    config.batch_size, config.total_steps, config.total_epochs = 16, 12, None
    config.ema_decay = 0.9
    config.model.update(width=8, depth=1, num_heads=2, mlp_dim=8)
    config.data.update(path=str(path), length=6, piece_length=12)
    config.optimizer.update(learning_rate=1e-2, base_learning_rate=None)
    config.optimizer.update(warmup_steps=2, warmup_epochs=None)
    config.checkpoint.update(every_steps=6, keep_last=2)
    config.evaluators.validation.every_steps = 12
    config.evaluators.bits = evaluator("integer_likelihood", every_steps=12)
    config.evaluators.bits.update(examples=40, budgets=(2,), exact=3)
    config.evaluators.samples = evaluator("integer_samples", every_steps=12)
    config.evaluators.samples.update(number=2, completed=2, calls=3)
    return load(config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ardm")
    (folder / "text.txt").write_bytes(b"the cat sat on the mat " * 300)
    config = text_config(folder / "text.txt")
    assert run(config, folder / "run") == 0
    return folder / "run", config


def test_a_stopped_run_goes_on_with_the_same_bits_and_losses_of_single_steps(trained, tmp_path):
    workdir, config = trained
    stopped(config, tmp_path)
    assert run(config, tmp_path) == 0
    once, twice = saved_state(workdir, config), saved_state(tmp_path, config)
    assert_same_bits(once, twice)
    (tracked,) = (x for name, x in once.items() if "params" in name and "loss_per_step" in name)
    assert (tracked > 0).all() and not any("loss_per_step" in x and "opt" in x for x in once)


def test_evaluate_measures_what_the_run_measured(trained, tmp_path):
    workdir, _ = trained
    last = read_metrics(workdir)[-1]
    written = {k: v for line in read_metrics(workdir) for k, v in line.items() if "bits/" in k}
    assert last["step"] == 12 and written["bits/standard_error"] > 0
    assert written["bits/exact_bits_per_dim/2_calls"] > 0
    assert call(
        "evaluate", f"--checkpoint={workdir}", f"--workdir={tmp_path}", "--evaluators=bits"
    ) == 0  # fmt: skip
    found = {k: v for line in read_metrics(tmp_path) for k, v in line.items() if "bits/" in k}
    assert found == pytest.approx(written)


def test_sample_prints_texts_and_completes_what_a_mask_keeps(trained, tmp_path, capsys):
    workdir, _ = trained
    flags = f"--checkpoint={workdir}", "--calls=2"
    assert call("sample", *flags, f"--output={tmp_path / 'a'}", "--number=3", "--batch_size=2") == 0
    lines = (tmp_path / "a" / "samples.txt").read_text().splitlines()
    assert [len(line) for line in lines] == [6, 6, 6]
    assert all(line in capsys.readouterr().out for line in lines[:1])
    settings = json.loads((tmp_path / "a" / "settings.json").read_text())
    assert settings["calls"] == 2 and settings["first_steps"][0][0] == 0
    mask = np.array([1, 0, 0, 1, 1, 0], bool)[:, None]
    np.save(tmp_path / "mask.npy", mask)
    assert call(
        "sample", *flags, f"--output={tmp_path / 'b'}", "--validation_images=2", "--completions=3",
        f"--mask={tmp_path / 'mask.npy'}",
    ) == 0  # fmt: skip
    with np.load(tmp_path / "b" / "samples.npz") as arrays:
        kept = arrays["values"].reshape(2, 3, 6)[:, :, mask[:, 0]]
    assert (kept == kept[:, :1]).all()
    np.save(tmp_path / "wrong.npy", mask[:3])
    for more, message in (
        ([f"--mask={tmp_path / 'wrong.npy'}"], "it must have bool[6, 1]"),
        (["--known=6"], "--known=6 must be from 0 to 5"),
        (["--batch_size=0"], "--batch_size=0 must be at least 1"),
        (["--calls=7"], "7 calls cannot make 6 steps"),
    ):
        output = f"--output={tmp_path / 'c'}"
        assert message in refusal(capsys, "sample", *flags, output, "--validation_images=1", *more)


def test_export_refuses_a_model_that_is_no_vit(trained, tmp_path, capsys):
    flags = f"--checkpoint={trained[0]}", "--format=safetensors", f"--output={tmp_path / 'out'}"
    assert "has no ViT, which an export is of" in refusal(capsys, "export", *flags)


def test_the_averaged_parameters_have_the_losses_that_training_tracked(trained):
    workdir, _ = trained
    averaged, _, _ = restore_params(workdir)
    own, _, _ = restore_params(workdir, averaged=False)
    np.testing.assert_array_equal(averaged["loss_per_step"], own["loss_per_step"])
