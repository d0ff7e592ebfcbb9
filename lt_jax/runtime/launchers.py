"""What flags and launchers tell a process: how many there are, where the first is, which GPUs.

Pure functions of flags and of the environment that Slurm (srun) and Open MPI (mpirun) set. JAX
itself reads of it where process 0 is; but each process would take one GPU, the one of its number on
the node, however many it was given.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from lt_jax.errors import UserError

AUTO, NONE = "auto", "none"
_OPEN_MPI, _SLURM = "Open MPI", "Slurm"
_HNP = "OMPI_MCA_orte_hnp_uri"  # by which JAX finds Open MPI's process 0; up to version 4


class DistributedError(UserError, RuntimeError):
    """Processes that do not find each other, or are not of one run."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """How the processes find each other.

    Attributes:
      coordinator: host:port of the first process; "auto": as the cluster says (Slurm, Open MPI,
        Kubernetes); "none": there is one process; "": as the cluster says where Slurm or Open MPI
        have started more than one, else one.
      num_processes, process_id: of an explicit coordinator; -1: as Slurm or Open MPI say.
      local_devices: which of the GPUs that it sees this process takes; (): its share, where Slurm
        or Open MPI say how many processes there are on its node, else all.
    """

    coordinator: str = ""
    num_processes: int = -1
    process_id: int = -1
    local_devices: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """One process among those that a launcher has started.

    Attributes:
      launcher: its name.
      count, rank: how many processes there are, and which one this is, from 0.
      node_count, node_rank: the same of this node alone.
    """

    launcher: str
    count: int
    rank: int
    node_count: int
    node_rank: int


def task(environment: Mapping[str, str]) -> Task | None:
    """This process; None where neither Open MPI nor a step of Slurm has started it."""

    def number(name: str, default: int = 0) -> int:
        return int(environment.get(name, default))

    if "OMPI_COMM_WORLD_SIZE" in environment:  # first: mpirun may itself run within Slurm
        name = "OMPI_COMM_WORLD"
        counts = number(f"{name}_SIZE"), number(f"{name}_RANK")
        return Task(
            _OPEN_MPI, *counts, number(f"{name}_LOCAL_SIZE", 1), number(f"{name}_LOCAL_RANK")
        )
    if "SLURM_STEP_NUM_TASKS" in environment:  # a batch script has SLURM_NTASKS, too, and is one
        counts = number("SLURM_STEP_NUM_TASKS"), number("SLURM_PROCID")
        return Task(_SLURM, *counts, _slurm_node_count(environment), number("SLURM_LOCALID"))
    return None


def _slurm_node_count(environment: Mapping[str, str]) -> int:
    """Of lists such as `2(x3),1`, an entry a node."""
    for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):
        if name in environment:
            runs = re.findall(r"(\d+)(?:\(x(\d+)\))?", environment[name])
            nodes = [int(tasks) for tasks, times in runs for _ in range(int(times or 1))]
            return nodes[min(int(environment.get("SLURM_NODEID", 0)), len(nodes) - 1)]
    return 1


def arguments(launch: Launch, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Of `jax.distributed.initialize`; None: there is one process."""
    explicit = launch.num_processes >= 0 or launch.process_id >= 0
    here = task(environment)
    if launch.coordinator in ("", AUTO, NONE):
        if explicit:
            raise DistributedError(
                "--num_processes and --process_id need --coordinator=HOST:PORT of process 0; "
                "leave all three out where Slurm, Open MPI or Kubernetes start the processes"
            )
        started = here is not None and here.count > 1
        if launch.coordinator == AUTO or (launch.coordinator == "" and started):
            if here and started and here.launcher == _OPEN_MPI and _HNP not in environment:
                raise DistributedError(no_cluster(environment))  # else JAX may take Slurm's
            return {}
        if launch.local_devices:
            raise DistributedError(
                "--local_devices is for one of several processes; for one alone set "
                "CUDA_VISIBLE_DEVICES"
            )
        return None
    host, _, port = launch.coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise DistributedError(
            f"--coordinator: got {launch.coordinator!r}; takes HOST:PORT, auto or none"
        )
    number, among = launch.process_id, launch.num_processes
    if not explicit and here is not None:
        number, among = here.rank, here.count
    if not 0 <= number < among:
        raise DistributedError(
            f"--process_id: got {number} of --num_processes={among}; takes 0 up to one less than "
            "the number of processes, another for each (both are taken from Slurm or Open MPI "
            "where these have started the process)"
        )
    return {
        "coordinator_address": launch.coordinator,
        "num_processes": among,
        "process_id": number,
        "cluster_detection_method": "deactivate",
    }


def no_cluster(environment: Mapping[str, str]) -> str:
    """What to say where JAX finds no coordinator."""
    here = task(environment)
    if here is None:
        return (
            "--coordinator=auto: no cluster that JAX knows has started this process; give "
            "--coordinator=HOST:PORT, --num_processes and --process_id"
        )
    return (
        f"{here.launcher} has started {here.count} processes, but JAX does not find from it where "
        "process 0 is (of Open MPI it knows versions up to 4); add --coordinator=HOST:PORT with "
        "the host of process 0 and a free port, the same for all: their numbers are taken from "
        f"{here.launcher}"
    )


def local_devices(
    launch: Launch, environment: Mapping[str, str], folder: pathlib.Path = pathlib.Path("/dev")
) -> list[int] | None:
    """Which of the GPUs that it sees this process takes; None: as JAX has it.

    Args:
      launch: by what it was started.
      environment: of the launcher, `CUDA_VISIBLE_DEVICES`, and what Slurm says of GPUs.
      folder: of the devices' files, an `nvidia<n>` each.

    Raises:
      DistributedError: the processes of this node see the same, and cannot share them evenly.
    """
    if launch.local_devices:
        return list(launch.local_devices)
    here = task(environment)
    if here is None or launch.num_processes >= 0 or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    return _share(here, environment, folder)


def devices_of(folder: pathlib.Path = pathlib.Path("/dev")) -> int:
    """How many NVIDIA GPUs a machine has, by its devices' files."""
    return len([path for path in folder.glob("nvidia*") if path.name[6:].isdigit()])


def named_cards(environment: Mapping[str, str]) -> list[str] | None:
    """The GPUs that `CUDA_VISIBLE_DEVICES` names; None where there is no such variable."""
    if "CUDA_VISIBLE_DEVICES" not in environment:
        return None
    named = [name.strip() for name in environment["CUDA_VISIBLE_DEVICES"].split(",")]
    return [name for name in named if name not in ("", "-1", "NoDevFiles")]


def _share(
    here: Task, environment: Mapping[str, str], folder: pathlib.Path = pathlib.Path("/dev")
) -> list[int] | None:
    """Which of the NVIDIA GPUs that it sees a process takes, counted among these.

    Args:
      here: the process.
      environment: `CUDA_VISIBLE_DEVICES`, and what Slurm says of GPUs.
      folder: of the devices' files, an `nvidia<n>` each.

    Returns:
      All where it is alone on its node or sees its share only; an even slice where the processes
      of a node see the same; None where there is none.

    Raises:
      DistributedError: there is no even slice.
    """
    on_node = devices_of(folder)
    if "SLURM_GPUS_ON_NODE" in environment:
        on_node = int(environment["SLURM_GPUS_ON_NODE"])
    named = named_cards(environment)
    visible = on_node if named is None else len(named)
    if not visible:
        return None
    a_task = environment.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2]
    if here.node_count == 1 or visible == (int(a_task) if a_task else on_node / here.node_count):
        return list(range(visible))
    size, over = divmod(visible, here.node_count)
    if over or not size:
        raise DistributedError(
            f"{here.launcher} has started {here.node_count} processes on this node, which see "
            f"{visible} GPUs: no even share; start as many as divide them (one a node takes all), "
            "or give each process its own by --local_devices=0,1 (or JAX_PLATFORMS=cpu)"
        )
    return list(range(here.node_rank * size, (here.node_rank + 1) * size))
