"""The printed records are those of the batches that training gets."""

import json

import numpy as np

from darl_jax.data.images.config import ImagesConfig
from darl_jax.data.pipeline import train_batches
from tests.programs import call


def test_lines_name_the_records_of_the_training_batches(capsys) -> None:
    flags = "--config=configs/digits.py", "--config.batch_size=32", "--config.seed=7"
    assert call("records", *flags, "--first_step=80", "--last_step=82", "--files") == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    config = ImagesConfig(
        source="digits", image_size=8, channels=1, mean=(0.3,), std=(0.4,), num_workers=0
    )
    split = config.open_split("train_split")
    options = {"batch_size": 32, "seed": 7, "start_step": 79, "process_count": 2}
    for process in range(2):
        with train_batches(split, config, process_index=process, **options) as batches:
            for line, batch in zip(printed, batches, strict=False):
                rows = line["records"][16 * process : 16 * (process + 1)]
                np.testing.assert_array_equal(rows, batch["index"])
    assert [line["step"] for line in printed] == [80, 81, 82]
    assert len(printed[0]["files"]) == 32
