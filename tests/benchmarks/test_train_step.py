import json
import pathlib

import pytest

from benchmarks import contestants, step_table, train_step

DIGITS = str(pathlib.Path(__file__).resolve().parents[2] / "configs" / "digits.py:mse")


@pytest.mark.slow
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
        (["--models=s16", "--image_size=100"], "image_size"),
        (["--seconds=0"], "--seconds"),
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
