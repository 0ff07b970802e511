"""What was learned from can be read back, over kills and other numbers of processes."""

import resource

import numpy as np
import pytest

from darl_jax.monitoring.example_log import ExampleLog, read_example_log


def write(folder, step, rows, process_count=1):
    for i, part in enumerate(np.split(np.array(rows), process_count)):
        log = ExampleLog(folder, process_index=i, process_count=process_count)
        log.add(step, part)
        log.close()


def test_rows_come_back_in_the_order_of_the_global_batch(tmp_path):
    write(tmp_path, 1, [5, 3, 9, 7], process_count=2)
    write(tmp_path, 2, [1, 0, 2, 4], process_count=4)
    assert read_example_log(tmp_path) == {1: [5, 3, 9, 7], 2: [1, 0, 2, 4]}


def test_step_that_not_all_processes_noted_is_left_to_the_attempt_that_did_it_again(tmp_path):
    write(tmp_path, 1, [5, 3], process_count=2)
    log = ExampleLog(tmp_path, process_index=0, process_count=2)
    log.add(2, np.array([8]))
    assert read_example_log(tmp_path) == {1: [5, 3]}
    write(tmp_path, 2, [8, 6])
    assert read_example_log(tmp_path) == {1: [5, 3], 2: [8, 6]}


def test_line_that_a_kill_cut_short_hides_no_other(tmp_path):
    write(tmp_path, 1, [5, 3])
    with open(tmp_path / "examples" / "process_0_of_1.jsonl", "a") as file:
        file.write('{"step": 2, "ind')
    write(tmp_path, 2, [6, 4])
    assert read_example_log(tmp_path) == {1: [5, 3], 2: [6, 4]}


@pytest.mark.parametrize("again", [1, 2])
def test_step_done_twice_with_other_records_is_an_error(tmp_path, again):
    write(tmp_path, 1, [5, 3])
    write(tmp_path, 1, [5, 4], process_count=again)
    with pytest.raises(ValueError, match="step 1 was done twice with other records"):
        read_example_log(tmp_path)


def test_bucket_is_refused():
    with pytest.raises(ValueError, match="gs://bucket/run is a bucket"):
        ExampleLog("gs://bucket/run")


def test_full_disk_is_reported_once_and_by_path(tmp_path):
    """A limit on the size of files makes writes fail as a full disk does."""
    log = ExampleLog(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*/process_0_of_1.jsonl: .*too large"):
            log.add(1, np.array([5, 3]))
        log.close()  # has nothing left to write, and so no second error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_workdir_that_cannot_be_written_is_reported_by_path(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*/file/examples/process_0_of_1.jsonl"):
        ExampleLog(tmp_path / "file")
