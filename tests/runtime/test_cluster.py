"""Processes that fail and leave together: who ends, how soon, with which code and which words.

This file is also the program that those processes run. They are forked from one that has imported
JAX, which is most of what a start takes.
"""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from darl_jax.runtime.cluster import coordinator
from darl_jax.runtime.cluster import membership as cluster
from darl_jax.runtime.cluster.place import Place, find_place, slurm_gpus

PROCESSES = 2
MOST_SECONDS = 15.0


# The program.


def exchange_for_ever() -> NoReturn:
    """A collective ten times a second, as training has it."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))
    while True:
        ones = np.ones(jax.local_device_count(), np.float32)
        assert float(total(jax.make_array_from_process_local_data(rows, ones))) == len(mesh.devices)
        time.sleep(0.1)


def now() -> None:
    print(f"FAULT {time.time()}", file=sys.stderr, flush=True)


def fault_in(process: int, fault: Callable[[], Any]) -> Callable[[], None]:
    """A program in which one process comes to grief once all are at work."""

    def run() -> None:
        cluster.gather(np.zeros(1))
        if jax.process_index() == process:
            now()
            fault()
        exchange_for_ever()

    return run


def break_down() -> None:
    raise KeyError("the first cause")


def refuse() -> None:
    try:
        raise ValueError("the first cause")
    except ValueError:
        sys.exit(2)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_coordinator() -> None:
    assert cluster._membership is not None
    assert cluster._membership._coordinator is not None
    cluster._membership._coordinator.kill()
    time.sleep(60)


def break_down_on_a_thread() -> None:
    threading.Thread(target=break_down).start()


def hang_while_unwinding() -> None:
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(time.sleep, 60)
        with cluster.failing_together():
            break_down()


def be_interrupted() -> None:
    """By a signal that comes to this process alone."""
    signal.signal(signal.SIGTERM, lambda *_: cluster.leave_together(143, "the first cause"))
    os.kill(os.getpid(), signal.SIGTERM)


def all_fail_alike() -> None:
    cluster.gather(np.zeros(1))
    time.sleep(0.2 * jax.process_index())
    now()
    raise ValueError("the first cause")


def finish() -> None:
    index = jax.process_index()
    values = np.array([[index + 1 / 3, 1e300]])
    expected = np.array([[[1 / 3, 1e300]], [[4 / 3, 1e300]]])
    # The mesh of the program need not be the one of these.
    mesh = Mesh(np.array(jax.devices()).reshape(-1, 1), ("data", "fsdp"))
    with jax.set_mesh(mesh):
        np.testing.assert_array_equal(cluster.gather(values), expected)
        assert cluster.agree_on(2**40 + index) == 2**40
    # Process 0 still writes what only one should.
    time.sleep(1.5 if index == 0 else 0)
    now()


def leave_without_coordinator() -> None:
    """The coordinator goes when this process has begun to leave, and then a signal comes."""
    cluster.gather(np.zeros(1))
    membership = cluster._membership
    assert membership is not None
    say_it = membership._say

    def say_too_late(message: dict[str, object]) -> None:
        time.sleep(1)  # until the other one has begun to leave, too
        membership._hub.shutdown(socket.SHUT_RDWR)
        say_it(message)

    membership._say = say_too_late  # type: ignore[method-assign]
    now()


def be_interrupted_while_leaving() -> None:
    """Twice, in the middle of it."""
    cluster.gather(np.zeros(1))
    signal.signal(signal.SIGTERM, lambda *_: cluster.leave_together(143, "the last words"))
    membership = cluster._membership
    assert membership is not None
    say_it, end = membership._say, membership.end

    def say_and_be_interrupted(message: dict[str, object]) -> None:
        membership._say = say_it  # type: ignore[method-assign]
        say_it(message)
        os.kill(os.getpid(), signal.SIGTERM)

    def end_interrupted() -> NoReturn:
        membership.end = end  # type: ignore[method-assign]
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        end()

    membership._say = say_and_be_interrupted  # type: ignore[method-assign]
    membership.end = end_interrupted  # type: ignore[method-assign]
    now()


def stop_and_save() -> None:
    cluster.gather(np.zeros(1))
    now()
    sys.exit(75)


PROGRAMS = {
    "exception in a worker": fault_in(1, break_down),
    "exception in the coordinator": fault_in(0, break_down),
    "exit 2 in a worker": fault_in(1, refuse),
    "kill -9 of a worker": fault_in(1, kill_self),
    "kill -9 of process 0": fault_in(0, kill_self),
    "kill -9 of the coordinator beside it": fault_in(0, kill_coordinator),
    "exception on a thread": fault_in(1, break_down_on_a_thread),
    "exception, and then a hang": fault_in(0, hang_while_unwinding),
    "a signal to a worker": fault_in(1, be_interrupted),
    "all fail alike": all_fail_alike,
    "finished": finish,
    "stopped": stop_and_save,
    "left without the coordinator": leave_without_coordinator,
    "signals while leaving": be_interrupted_while_leaving,
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def become_member(name: str, index: int, port: int, log: pathlib.Path) -> None:
    """What a forked process does; it returns or raises as the program does."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.alarm(60)  # whatever a test of theirs finds, they end
    cluster.UNWIND_SECONDS = 1.0
    with cluster.member(f"localhost:{port}", PROCESSES, index):
        PROGRAMS[name]()


def run_all(folder: pathlib.Path) -> None:
    """Runs each program on two processes; writes how each of them ended."""
    results: dict[str, Any] = {}
    for name in PROGRAMS:
        port = free_port()
        logs = [folder / f"{name}, process {index}" for index in range(PROCESSES)]
        pids: list[int] = []
        for index, log in enumerate(logs):
            pid = os.fork()
            if pid == 0:
                become_member(name, index, port, log)
                return
            pids.append(pid)
        codes: list[int] = [0] * PROCESSES
        for _ in pids:
            pid, status = os.wait()
            codes[pids.index(pid)] = os.waitstatus_to_exitcode(status)
        results[name] = {"codes": codes, "ended": time.time()}
        results[name]["logs"] = [log.read_text() for log in logs]
    (folder / "results.json").write_text(json.dumps(results))


# The tests.


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cluster")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    subprocess.run(
        [sys.executable, __file__, str(folder)],
        check=True,
        timeout=120,
        env=environment | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return json.loads((folder / "results.json").read_text())


def seconds_to_the_end(result: dict[str, Any]) -> float:
    faults = [
        float(line.split()[1])
        for log in result["logs"]
        for line in log.splitlines()
        if line.startswith("FAULT")
    ]
    return result["ended"] - max(faults)


KILLED = "failed: it was killed, it crashed, or its machine does not answer any more"


@pytest.mark.parametrize(
    ("name", "codes", "survivor", "words"),
    [
        ("exception in a worker", [1, 1], 0, "process 1 failed: KeyError: 'the first cause'"),
        ("exception in the coordinator", [1, 1], 1, "process 0 failed: KeyError: 'the first cause"),
        ("exit 2 in a worker", [2, 2], 0, "process 1 failed: the first cause"),
        ("kill -9 of a worker", [1, -9], 0, f"process 1 {KILLED}"),
        ("kill -9 of process 0", [-9, 1], 1, f"process 0 {KILLED}"),
        ("exception on a thread", [1, 1], 0, "process 1 failed: KeyError: 'the first cause'"),
        ("exception, and then a hang", [1, 1], 1, "process 0 failed: KeyError: 'the first cause"),
    ],
)
def test_a_failure_ends_all_within_seconds_with_one_code_and_the_first_cause(
    results: dict[str, Any], name: str, codes: list[int], survivor: int, words: str
) -> None:
    result = results[name]
    assert result["codes"] == codes, result["logs"]
    assert seconds_to_the_end(result) < MOST_SECONDS
    said = [line for line in result["logs"][survivor].splitlines() if "Gloo" not in line]
    assert len(said) == 1
    assert said[0].startswith(f"process {survivor} ends, because {words}")
    assert "ends" not in result["logs"][1 - survivor]


def test_the_failing_process_shows_where_it_failed(results: dict[str, Any]) -> None:
    for name, process in (("exception in a worker", 1), ("exception, and then a hang", 0)):
        log = results[name]["logs"][process]
        assert f"process {process} failed:\nTraceback" in log
        assert "in break_down" in log


def test_all_end_when_what_tells_them_of_failures_is_killed(results: dict[str, Any]) -> None:
    result = results["kill -9 of the coordinator beside it"]
    assert 0 not in result["codes"]
    assert seconds_to_the_end(result) < MOST_SECONDS


def test_a_signal_to_one_process_ends_all_with_its_code(results: dict[str, Any]) -> None:
    result = results["a signal to a worker"]
    assert result["codes"] == [143, 143]
    assert seconds_to_the_end(result) < MOST_SECONDS
    assert result["logs"][0].endswith("process 0 ends as process 1 does: the first cause\n")
    assert result["logs"][1].endswith("\nthe first cause\n")


def test_what_all_fail_with_at_once_is_told_by_one(results: dict[str, Any]) -> None:
    result = results["all fail alike"]
    assert result["codes"] == [1, 1]
    assert "".join(result["logs"]).count("the first cause") == 2  # the line and its traceback
    assert sorted("the first cause" in log for log in result["logs"]) == [False, True]


@pytest.mark.parametrize(("name", "code"), [("finished", 0), ("stopped", 75)])
def test_processes_leave_in_good_order_without_a_word(
    results: dict[str, Any], name: str, code: int
) -> None:
    result = results[name]
    assert result["codes"] == [code, code], result["logs"]
    assert seconds_to_the_end(result) < MOST_SECONDS
    words = [line for log in result["logs"] for line in log.splitlines() if "Gloo" not in line]
    assert [line.split()[0] for line in words] == ["FAULT"] * 2


def test_nothing_is_waited_for_by_a_process_that_leaves(results: dict[str, Any]) -> None:
    for name, code in (("left without the coordinator", 0), ("signals while leaving", 143)):
        result = results[name]
        assert result["codes"] == [code, code], result["logs"]
        assert seconds_to_the_end(result) < MOST_SECONDS


@contextlib.contextmanager
def hub(num_processes: int, join_seconds: float = 60.0) -> Iterator[Callable[[], Any]]:
    """A hub; gives what connects to it, as a file for lines."""
    listener = coordinator.listen(0)
    inner, outer = os.pipe()
    serving = coordinator.Hub(listener, num_processes, 1234, join_seconds)
    thread = threading.Thread(target=serving.serve, args=(inner,))
    thread.start()
    with contextlib.ExitStack() as opened:

        def connect(hello: dict[str, int]) -> Any:
            file = socket.create_connection(("localhost", listener.getsockname()[1])).makefile("rw")
            opened.callback(file.close)
            say(file, hello)
            return file

        yield connect
    thread.join(timeout=20)
    assert not thread.is_alive()
    os.close(inner)
    os.close(outer)
    listener.close()


def say(file: Any, message: dict[str, Any]) -> None:
    file.write(json.dumps(message) + "\n")
    file.flush()


def test_an_own_failure_counts_before_an_earlier_complaint_about_others() -> None:
    with hub(3) as connect:
        members = [connect({"process": index, "num_processes": 3}) for index in range(3)]
        assert [json.loads(member.readline()) for member in members] == [{"port": 1234}] * 3
        say(members[0], {"reason": "Connection reset by peer", "code": 1, "suspect": True})
        time.sleep(0.1)
        say(members[2], {"reason": "no such key", "code": 2, "suspect": False})
        expected = {"process": 2, "reason": "no such key", "code": 2}
        assert [json.loads(member.readline()) for member in members] == [expected] * 3


def test_a_complaint_is_the_cause_when_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "SUSPICION_SECONDS", 0.1)
    with hub(1) as connect:
        member = connect({"process": 0, "num_processes": 1})
        member.readline()
        say(member, {"reason": "heartbeat", "code": 1, "suspect": True})
        assert json.loads(member.readline())["reason"] == "heartbeat"


def test_a_member_that_leaves_is_no_failure_and_a_stranger_counts_for_nothing() -> None:
    with hub(2) as connect:
        members = [connect({"process": index, "num_processes": 2}) for index in range(2)]
        stranger = connect({"GET": 1})
        assert stranger.readline() == ""
        say(members[0], {"left": True})
        members[0].close()
        time.sleep(0.1)
        say(members[1], {"reason": "later", "code": 3, "suspect": False})
        answers = [json.loads(members[1].readline()) for _ in range(2)]
        assert answers == [{"port": 1234}, {"process": 1, "reason": "later", "code": 3}]


def test_who_did_not_come_is_named() -> None:
    with hub(4, join_seconds=0.3) as connect:
        member = connect({"process": 2, "num_processes": 4})
        reason = json.loads(member.readline())["reason"]
    assert reason == "3 of 4 processes did not come within 0.3 s: 0, 1, 3"


def test_two_processes_with_one_number_are_told() -> None:
    with hub(2) as connect:
        members = [connect({"process": 1, "num_processes": 2}) for _ in range(2)]
        assert [json.loads(member.readline())["code"] for member in members] == [2, 2]


def test_who_comes_to_a_run_that_is_complete_is_sent_away_and_ends_nobody() -> None:
    with hub(2) as connect:
        members = [connect({"process": index, "num_processes": 2}) for index in range(2)]
        assert [json.loads(member.readline()) for member in members] == [{"port": 1234}] * 2
        late = connect({"process": 1, "num_processes": 2})
        answer = json.loads(late.readline())
        assert answer["code"] == 1
        assert "already" in answer["reason"]
        assert late.readline() == ""
        for member in members:
            say(member, {"left": True})
            member.close()


def test_a_port_that_cannot_be_reached_is_named() -> None:
    port = free_port()
    message = f"process 1 cannot reach localhost:{port}: .*refused; all ports between"
    with pytest.raises(ConnectionError, match=message):
        cluster._join(Place("localhost:1", 2, 1), "localhost", port)


def test_a_process_whose_coordinator_never_comes_says_where_it_looked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "JOIN_SECONDS", 0.0)
    address = f"localhost:{free_port()}"
    with pytest.raises(ConnectionError, match=f"process 1 of 2 found no coordinator at {address}"):
        cluster._find_coordinator(Place(address, 2, 1))


def test_an_address_in_use_is_named() -> None:
    with socket.create_server(("", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"at {address}: .*in use"):
            cluster._start_coordinator(Place(address, 2, 0))


def test_a_process_that_is_alone_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    threads, hook = threading.active_count(), threading.excepthook
    with cluster.member(None, None, None):
        assert (threading.active_count(), threading.excepthook) == (threads, hook)
        assert cluster.agree_on(7) == 7
        np.testing.assert_array_equal(cluster.gather(np.arange(2.0)), [[0.0, 1.0]])
        cluster.fail_together("of no consequence", 1)
    with pytest.raises(KeyError), cluster.member(None, None, None):
        break_down()


VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "here:1",
    "JAX_NUM_PROCESSES": "3",
    "JAX_PROCESS_ID": "2",
}


def test_flags_count_before_variables() -> None:
    assert find_place("there:2", 5, 0, VARIABLES) == Place("there:2", 5, 0)
    assert find_place(None, None, 0, VARIABLES) == Place("here:1", 3, 0)
    assert find_place(None, None, None, VARIABLES) == Place("here:1", 3, 2)
    assert find_place(None, None, None, {}) is None
    assert find_place(None, 1, None, {}) is None


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("here:1", None, None), {}, r"--num_processes \(or JAX_NUM_PROCESSES\) and --process_id"),
        ((None, None, None), {"JAX_PROCESS_ID": "1"}, r"not --coordinator \(or JAX_COORD.*three"),
        ((None, None, None), VARIABLES | {"JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID=x is not a num"),
        (("here", 2, 0), {}, "--coordinator .*=here is not host:port"),
        (("here:1", 2, 2), {}, "--process_id .*=2 must be from 0 to 1"),
        (("here:1", 0, 0), {}, "--num_processes .*=0 must be 1 or more"),
    ],
)
def test_half_given_and_wrong_settings_are_named(
    arguments: tuple[Any, ...], environment: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find_place(*arguments, environment)


STEP = {
    "SLURM_JOB_ID": "4096",
    "SLURM_STEP_NODELIST": "gpu[007-009]",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_NTASKS": "6",
    "SLURM_PROCID": "3",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "1",
}


def test_a_slurm_step_of_several_tasks_is_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert find_place(None, None, None, os.environ) == Place("gpu007:61440", 6, 3, (1,))
    # A shell in an allocation of six tasks is a step of one.
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert find_place(None, None, None, os.environ) is None
    # As is a batch script, which is no step at all.
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    assert find_place(None, None, None, os.environ) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (1,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, (2, 3)),
        ({"CUDA_VISIBLE_DEVICES": "3"}, None),  # bound by SLURM
        ({"CUDA_VISIBLE_DEVICES": "4,5", "SLURM_GPUS_PER_TASK": "2"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_STEP_TASKS_PER_NODE": "2,1,3"}, None),
    ],
)
def test_tasks_on_one_machine_share_its_gpus(
    changes: dict[str, str], expected: tuple[int, ...] | None
) -> None:
    assert slurm_gpus(STEP | changes) == expected


def test_gpus_that_cannot_be_shared_equally_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 tasks on a machine with 3 GPUs"):
        slurm_gpus(STEP | {"CUDA_VISIBLE_DEVICES": "0,1,2"})


def test_a_tpu_slice_of_several_machines_is_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    pod = {
        "TPU_WORKER_HOSTNAMES": "localhost,second",
        "TPU_WORKER_ID": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
    }
    for name, value in pod.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("JAX_PLATFORMS")
    assert find_place(None, None, None, os.environ) == Place("localhost:8482", 4, 3)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert find_place(None, None, None, os.environ) is None


if __name__ == "__main__":
    run_all(pathlib.Path(sys.argv[1]))
