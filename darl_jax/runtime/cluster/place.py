"""A process's place in a cluster: which of how many it is, and where the first one is found."""

import dataclasses
import re
from collections.abc import Mapping

from jax._src.clusters import GceTpuCluster, GkeTpuCluster, SlurmCluster

_DNS_SECONDS = 300  # a TPU pod's machines have names before these are known


@dataclasses.dataclass(frozen=True)
class Place:
    """One process's place in a cluster.

    Attributes:
      coordinator: host:port where the processes meet, on process 0's machine.
      num_processes: of all machines together.
      process_id: of this process.
      gpus: which of the visible GPUs are this process's; None for all.
    """

    coordinator: str
    num_processes: int
    process_id: int
    gpus: tuple[int, ...] | None = None


def find_place(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    environment: Mapping[str, str],
) -> Place | None:
    """This process's place.

    The arguments count before JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID,
    each of these for itself; then comes SLURM (a step of several tasks), then a TPU pod. For these
    two JAX_COORDINATOR_PORT is another port than JAX's choice.

    Args:
      coordinator: host:port on process 0's machine.
      num_processes: of all machines together.
      process_id: from 0 to num_processes - 1.
      environment: the variables.

    Returns:
      None for a process that is alone.

    Raises:
      ValueError: some of the settings are missing, or do not fit together.
    """
    place = _explicit_place(coordinator, num_processes, process_id, environment)
    if place is None:
        place = _slurm_place(environment) or _tpu_place(environment)
    return place if place is not None and place.num_processes > 1 else None


def _explicit_place(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    environment: Mapping[str, str],
) -> Place | None:
    given = {
        "--coordinator (or JAX_COORDINATOR_ADDRESS)": coordinator
        or environment.get("JAX_COORDINATOR_ADDRESS"),
        "--num_processes (or JAX_NUM_PROCESSES)": num_processes
        if num_processes is not None
        else _integer("JAX_NUM_PROCESSES", environment),
        "--process_id (or JAX_PROCESS_ID)": process_id
        if process_id is not None
        else _integer("JAX_PROCESS_ID", environment),
    }
    address, count, index = given.values()
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if missing and count != 1:
        present = " and ".join(name for name in given if name not in missing)
        raise ValueError(
            f"of several processes each is told {present}, and not {' and '.join(missing)}; give "
            "all three, or none for one process"
        )
    if count == 1:
        address, index = address or "localhost:0", index or 0
    count, index = int(count or 0), int(index or 0)
    if not re.fullmatch(r".+:\d+", str(address)):
        raise ValueError(f"--coordinator (or JAX_COORDINATOR_ADDRESS)={address} is not host:port")
    if count < 1:
        raise ValueError(f"--num_processes (or JAX_NUM_PROCESSES)={count} must be 1 or more")
    if not 0 <= index < count:
        raise ValueError(
            f"--process_id (or JAX_PROCESS_ID)={index} must be from 0 to {count - 1}, for "
            f"--num_processes (or JAX_NUM_PROCESSES) is {count}"
        )
    return Place(str(address), count, index)


def _integer(name: str, environment: Mapping[str, str]) -> int | None:
    text = environment.get(name)
    if not text:
        return None
    if not re.fullmatch(r"\d+", text):
        raise ValueError(f"{name}={text} is not a number")
    return int(text)


def _slurm_place(environment: Mapping[str, str]) -> Place | None:
    # In a batch script outside of srun, and in a shell in an allocation, the job's variables are
    # there too; those of a step of several tasks are not.
    if environment.get("SLURM_STEP_NUM_TASKS", "1") == "1" or not SlurmCluster.is_env_present():
        return None
    return Place(
        SlurmCluster.get_coordinator_address(_DNS_SECONDS, environment.get("JAX_COORDINATOR_PORT")),
        int(environment["SLURM_STEP_NUM_TASKS"]),
        SlurmCluster.get_process_id(),
        slurm_gpus(environment),
    )


def slurm_gpus(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """Which of the visible GPUs are this task's share; None for all of them.

    Raises:
      ValueError: the tasks on this machine cannot have equal shares.
    """
    # "2(x3),1" is 2, 2, 2, 1.
    tasks = [
        int(number)
        for number, _, repeats in re.findall(
            r"(\d+)(\(x(\d+)\))?", environment["SLURM_STEP_TASKS_PER_NODE"]
        )
        for _ in range(int(repeats or 1))
    ][int(environment["SLURM_NODEID"])]
    local = int(environment["SLURM_LOCALID"])
    if tasks == 1 or {"SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU"} & environment.keys():
        return None
    if "CUDA_VISIBLE_DEVICES" not in environment:
        # One each, as JAX has it; without GPUs it means nothing.
        return (local,)
    visible = len(environment["CUDA_VISIBLE_DEVICES"].split(","))
    if visible < tasks:
        # Each sees its own already.
        return None
    if visible % tasks:
        raise ValueError(
            f"SLURM starts {tasks} tasks on a machine with {visible} GPUs; let "
            "--ntasks-per-node divide the number of GPUs"
        )
    share = visible // tasks
    return tuple(range(local * share, (local + 1) * share))


def _tpu_place(environment: Mapping[str, str]) -> Place | None:
    if "tpu" not in (environment.get("JAX_PLATFORMS") or "tpu"):
        return None
    # JAX has one class for each way to learn of a pod: variables on GKE, the metadata server else.
    for pod in (GkeTpuCluster, GceTpuCluster):
        if pod.is_env_present():
            count = pod.get_process_count()
            if count == 1:
                return None
            port = environment.get("JAX_COORDINATOR_PORT")
            return Place(
                pod.get_coordinator_address(_DNS_SECONDS, port), count, pod.get_process_id()
            )
    return None
