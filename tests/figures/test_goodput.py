"""The table and the picture show the seconds of the categories."""

import matplotlib.colors
import pytest

from darl_jax.figures.goodput import draw, goodput_figure, table, timeline
from darl_jax.monitoring.clock import CATEGORIES
from darl_jax.monitoring.writers import MetricWriter

FIRST = {"productive": 100.0, "compile": 20.0, "startup": 15.0}
SECOND = FIRST | {"lost": 200.0}
LATER = SECOND | {"productive": 200.0, "compile": 40.0, "startup": 30.0, "evaluation": 65.0}


def line(seconds: dict[str, float], attempt: int) -> dict[str, float]:
    values = {f"goodput/{c}_seconds": seconds.get(c, 0.0) for c in CATEGORIES}
    share = seconds["productive"] / sum(seconds.values())
    return values | {"step": 10, "goodput/share": share, "goodput/attempt": attempt}


HISTORY = [line(FIRST, 1), line(FIRST, 1), line(SECOND, 2), line(LATER, 2)]


def test_timeline_has_the_downtime_before_the_new_attempt():
    points, starts = timeline(HISTORY)
    assert starts == [335]
    assert list(points.sum(axis=1)) == [0, 135, 135, 335, 335, 535]
    assert list(points[3] - points[2]) == [0, 0, 0, 0, 0, 0, 200]
    with pytest.raises(ValueError, match="no goodput"):
        timeline([{"step": 1, "time": 0.0, "train/loss": 1.0}])


def test_table_has_each_category_and_the_attempts():
    text = table("digits", HISTORY)
    assert "digits: 2 attempts, 0:08:55" in text
    assert "productive  37.4% 0:03:20" in text
    assert "lost        37.4% 0:03:20" in text
    assert "evaluation  12.1% 0:01:05" in text


@pytest.mark.parametrize("lines", [4, 200])
def test_areas_of_the_picture_are_the_seconds_of_the_categories(lines):
    last = LATER
    history = [*HISTORY]
    while len(history) < lines:  # Ever longer training.
        last = last | {"productive": last["productive"] + 10}
        history.append(line(last, 2))
    bars = goodput_figure("digits", history).axes[1].patches
    assert len(bars) <= 150 * len(CATEGORIES)
    areas: dict[str, float] = {}  # in the order of the categories
    for bar in bars:
        color = matplotlib.colors.to_hex(bar.get_facecolor())
        areas[color] = areas.get(color, 0.0) + bar.get_width() * bar.get_height()
    wanted = [last.get(c, 0.0) / sum(last.values()) for c in CATEGORIES]
    found = [area / sum(areas.values()) for area in areas.values()]
    assert found == pytest.approx(wanted, abs=1e-6)


def test_program_reads_a_workdir(tmp_path, capsys):
    writer = MetricWriter(tmp_path)
    writer.scalars(10, {name: x for name, x in HISTORY[0].items() if name != "step"})
    writer.close()
    draw([str(tmp_path)])
    assert f"{tmp_path.name}: 1 attempt, 0:02:15" in capsys.readouterr().out
    with pytest.raises(ValueError, match="name one workdir"):
        draw([str(tmp_path)] * 2)
