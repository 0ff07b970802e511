"""When evaluators run, on which data, and under which names their values are written."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from darl_jax.data.images.split import ImageSplit
from darl_jax.data.sources.digits import DigitsSource
from darl_jax.evaluators.base import Context, Evaluator, EvaluatorConfig, labeled
from darl_jax.evaluators.schedule import Evaluation
from darl_jax.monitoring.writers import MetricWriter, read_metrics
from darl_jax.training.sharding import MeshConfig, make_mesh
from darl_jax.training.state import graph_definition
from tests.methods_on_images import images
from tests.toys import DenseConfig, IntegersConfig, Parity, ParityConfig


@dataclasses.dataclass(frozen=True)
class CountConfig(EvaluatorConfig):
    kind: str = "count"
    every_steps: int = 4
    fails: bool = False

    def build(self, context: Context) -> "Count":
        return Count(self, context)


class Count(Evaluator):
    """Number of training records."""

    def __init__(self, config: CountConfig, context: Context):
        self.config, self.context = config, context

    def run(self, params: Any, step: int) -> Iterator[tuple[str, Any]]:
        del params, step
        yield "records", float(len(self.context.splits.train))
        yield "picture", np.zeros((2, 2, 3), np.uint8)
        if self.config.fails:
            raise ValueError("no more")


def make(configs: dict[str, CountConfig]) -> Evaluation:
    data = IntegersConfig(count=48)
    method = Parity(ParityConfig(), DenseConfig(), data)
    context = Context(
        method=method,
        graphdef=graph_definition(method.init),
        data=data,
        splits=data.open(),
        batch_size=8,
        mesh=make_mesh(MeshConfig()),
        key=jax.random.key(0),
        initial_params=dict,
    )
    return Evaluation(configs, context)


def test_each_evaluator_runs_at_its_own_steps_and_in_the_end() -> None:
    evaluation = make({"a": CountConfig(every_steps=4), "b": CountConfig(every_steps=6)})
    assert [s for s in range(1, 14) if evaluation.due(s, last=s == 13)] == [4, 6, 8, 12, 13]
    assert not make({"a": CountConfig(every_steps=0)}).due(4, last=True)


def test_values_are_written_under_the_evaluators_name_from_data_of_its_own(
    tmp_path, monkeypatch
) -> None:
    opened = []
    open_ = IntegersConfig.open
    monkeypatch.setattr(IntegersConfig, "open", lambda self: opened.append(self) or open_(self))
    own = IntegersConfig(count=64)
    evaluation = make(
        {
            "count": CountConfig(),
            "of_own": CountConfig(data=own),
            "of_the_same": CountConfig(data=own),
            "later": CountConfig(every_steps=5),
        }
    )
    assert opened == [IntegersConfig(count=48), own]
    writer = MetricWriter(tmp_path)
    numbers = evaluation.run(None, 4, writer, last=False)
    writer.close()
    assert not evaluation.missing(read_metrics(tmp_path), 4, last=False)
    assert numbers == {"count/records": 48.0, "of_own/records": 64.0, "of_the_same/records": 64.0}
    written = {k: v for line in read_metrics(tmp_path) for k, v in line.items()}
    assert numbers.items() <= written.items()
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {
        "picture_00000004.png",
        "of_own_picture_00000004.png",
        "of_the_same_picture_00000004.png",
    }


def test_a_failure_names_the_evaluator_and_the_step_and_keeps_the_others_values(tmp_path) -> None:
    evaluation = make({"first": CountConfig(), "second": CountConfig(fails=True)})
    writer = MetricWriter(tmp_path)
    with pytest.raises(ValueError, match="evaluator 'second' at step 8: no more"):
        evaluation.run(None, 8, writer, last=False)
    writer.close()
    history = read_metrics(tmp_path)
    assert [line["first/records"] for line in history if "first/records" in line] == [48.0]
    # It is made up for when the run goes on.
    assert evaluation.missing(history, 8, last=False)
    assert not evaluation.missing(history, 7, last=False)


def test_a_split_without_labels_is_refused_by_name() -> None:
    source = DigitsSource("train")
    split = ImageSplit(source, images())
    assert labeled(split) is split
    source.class_names = ()
    with pytest.raises(ValueError, match="digits, split 'train', has no labels"):
        labeled(ImageSplit(source, images()))
