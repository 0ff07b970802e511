"""The figure and the table are the numbers that the runs wrote."""

import pytest

from darl_jax.figures.depth import best_block, columns, table
from darl_jax.monitoring.writers import MetricWriter, read_metrics
from tests.programs import call, refusal


def line(step, name, values):
    return {"step": step} | {f"{name}/block_{i:02d}": x for i, x in enumerate(values, start=1)}


LINEAR = [
    line(1, "validation/accuracy", [0.9, 0.9, 0.9, 0.9]),
    line(2, "validation/accuracy", [0.25, 0.625, 0.5, 0.375]) | {"validation/loss": 1.0},
    line(3, "knn/accuracy", [0.125, 0.25, 0.5, 0.25]),
    {"step": 4, "train/loss": 2.0},
]
ATTENTIVE = [line(7, "validation/accuracy", [0.3, 0.5, 0.75, 0.6])]


def test_the_table_marks_the_best_of_each_column():
    assert table(columns({"linear": LINEAR})).splitlines() == [
        "block   depth    linear    linear, k-NN",
        "    1   0.250     25.00           12.50",
        "    2   0.500     62.50*          25.00",
        "    3   0.750     50.00           50.00*",
        "    4   1.000     37.50           25.00",
    ]


def test_runs_of_other_depths_have_tables_of_their_own():
    short = [line(1, "validation/accuracy", [0.5, 0.75])]
    first, second = table(columns({"long": LINEAR, "short": short})).split("\n\n")
    assert first.splitlines()[-1].split() == ["2", "1.000", "75.00*"]
    assert len(second.splitlines()) == 5


def test_a_block_that_is_not_a_number_is_never_the_best():
    assert best_block({1: float("nan"), 2: 0.25, 3: float("nan"), 4: 0.25}) == 2


def test_a_run_without_accuracies_of_all_blocks_is_named():
    with pytest.raises(ValueError, match="empty: no accuracy by block"):
        columns({"linear": LINEAR, "empty": [{"step": 1, "validation/accuracy": 0.5}]})
    with pytest.raises(ValueError, match="odd, k-NN: of 4 blocks only 3 have a value"):
        columns({"odd": [{"step": 1} | {f"knn/accuracy/block_0{i}": 0.1 for i in (1, 2, 4)}]})


def test_the_program_reads_what_runs_wrote_and_says_in_one_line_what_it_misses(tmp_path, capsys):
    for name, history in (("a/linear", LINEAR), ("b/linear", ATTENTIVE)):
        writer = MetricWriter(tmp_path / name)
        for entry in history:
            writer.scalars(entry["step"], {k: v for k, v in entry.items() if k != "step"})
        writer.close()
    assert columns({"x": read_metrics(tmp_path / "a/linear")}) == columns({"x": LINEAR})

    output = f"--output={tmp_path / 'depth.png'}"
    capsys.readouterr()
    assert call("figures.depth", tmp_path / "a/linear", tmp_path / "b/linear", output) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "depth.png").stat().st_size > 1000
    # Two workdirs of one name are told apart.
    assert str(tmp_path / "b/linear") in printed.splitlines()[0]
    assert "62.50*" in printed
    assert "nothing" in refusal(capsys, "figures.depth", tmp_path / "nothing")
