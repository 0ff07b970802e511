import json
import pathlib
import stat

import pytest

from benchmarks import contestants, step_table, train_step

DIGITS = str(pathlib.Path(__file__).resolve().parents[2] / "configs" / "digits.py:mse")


def test_rows_are_measured_and_missing_ones_have_a_reason(tmp_path, capsys):
    file, traces = tmp_path / "rows.json", tmp_path / "traces"
    flags = ["--batch_size=2", "--unroll=1", "--seconds=0.01", "--data_dir=."]
    train_step.main([f"--config={DIGITS}", *flags, f"--json={file}", f"--profile={traces}"])
    record = json.loads(file.read_text())
    rows = {row["step"]: row for row in record["rows"]}
    assert list(rows) == ["attention xla", "fed by digits"]
    assert [note.split(": ")[2] for note in record["notes"]] == [
        "attention cudnn",
        "attention splash",
    ]
    assert all(len(row["seconds"]) == contestants.ROUNDS for row in rows.values())
    assert list(traces.glob("digits_mse_mse/**/*.xplane.pb"))
    printed = capsys.readouterr().out
    assert all(step in printed for step in rows)
    assert all(note in printed for note in record["notes"])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--models=x16"], "--models"),
        (["--models=s16", "--image_size=100"], "image_size"),
        (["--objectives=mae"], "--objectives"),
        (["--seconds=0"], "--seconds"),
        (["--config=nowhere.py"], "--config"),
        (["--json=nowhere/rows.json"], "--json"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(flags, named, capsys):
    with pytest.raises(SystemExit) as stopped:
        train_step.main(flags)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and named in message


def test_rates_follow_from_the_seconds():
    row = {
        "batch_size": 4,
        "seconds": [2.0, 1.0, 4.0],
        "step_flops": 30,
        "matmul_flops": 10,
        "matmul_seconds": [0.2, 0.1, 0.1],
    }
    rates = step_table.with_rates(row, row | {"seconds": [1.0, 2.0, 2.0]})
    assert rates["examples_per_second_best"] == 4 and rates["examples_per_second_median"] == 2
    assert rates["fraction_of_matmul_best"] == pytest.approx(0.3)
    assert rates["fraction_of_matmul_median"] == pytest.approx(0.15)
    assert rates["images_of_first"] == 0.5


def small_config(objective="mse"):
    return train_step.size_config("ti16", objective, 32)


def python_that_answers(folder, *answers):
    """An executable that says the first line at once, and one more for each line that it gets."""
    path = folder / "python"
    first, *rest = [f"echo '{json.dumps(answer)}'" for answer in answers]
    path.write_text("\n".join(["#!/bin/sh", first, *(f"read line && {a}" for a in rest), ""]))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def equal_work(config):
    return {"parameters": 11, "forward_flops": config.method.flops() // 3}


def test_seconds_are_those_of_the_pytorch_process(tmp_path):
    config = small_config()
    python = python_that_answers(tmp_path, equal_work(config), {"seconds": 1.5}, {"seconds": 2.5})
    with contestants.TorchPeer(python, config, 11) as peer:
        assert [peer.run(3), peer.run(1)] == [1.5, 2.5]


@pytest.mark.parametrize("key", ["parameters", "forward_flops"])
def test_pytorch_of_unequal_work_is_refused(key, tmp_path):
    config = small_config()
    answer = equal_work(config)
    answer[key] += 1
    with pytest.raises(ValueError, match=f"not of equal work: its {key} are {answer[key]}"):
        contestants.TorchPeer(python_that_answers(tmp_path, answer), config, 11)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ({"error": "no GPU"}, ValueError, "PyTorch: no GPU"),
        ({"error": "CUDA out of memory. Tried"}, MemoryError, "out of memory"),
    ],
)
def test_an_error_of_pytorch_is_reported(answer, error, message, tmp_path):
    with pytest.raises(error, match=message):
        contestants.TorchPeer(python_that_answers(tmp_path, answer), small_config(), 11)


def test_a_python_that_cannot_run_or_ends_at_once_is_an_error():
    config = small_config()
    with pytest.raises(ValueError, match="--torch_python=/nowhere/python cannot be run"):
        contestants.TorchPeer("/nowhere/python", config, 11)
    with pytest.raises(ValueError, match="ended with code 1"):
        contestants.TorchPeer("false", config, 11)


def test_pytorch_is_not_compared_with_other_work():
    assert contestants.why_no_peer(small_config()) is None
    assert "squared error" in contestants.why_no_peer(small_config("diffusion"))
