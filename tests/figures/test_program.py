"""Programs that draw write their picture, or say in one line what they cannot draw."""

import pytest

from darl_jax.figures.program import by_name
from tests.programs import call, refusal


def test_runs_are_told_apart_by_the_shortest_name():
    assert dict(by_name(["runs/a", "other/b/"])) == {"a": "runs/a", "b": "other/b/"}
    assert [name for name, _ in by_name(["x/a", "y/a", "b"])] == ["x/a", "y/a", "b"]
    with pytest.raises(ValueError, match="runs/a is named twice"):
        list(by_name(["runs/a", "runs/a"]))


def test_the_picture_is_written(tmp_path, capsys):
    picture = tmp_path / "orders.png"
    assert call("figures.orders", "--grid=2", f"--output={picture}") == 0
    assert capsys.readouterr().out == f"wrote {picture}\n"
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("orders", ["--gird=3"], "Unknown command line flag 'gird'"),
        ("orders", ["--grid=1"], "--grid=1 must be at least 2"),
        ("schedules", ["--output=/no/such/x.png"], "there is no folder /no/such"),
        ("errors", [], "name one run's workdir or several"),
    ],
)
def test_bad_input_is_one_line(capsys, program, arguments, message):
    assert message in refusal(capsys, f"figures.{program}", *arguments)
