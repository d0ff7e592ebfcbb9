"""Processes of one run, on one host or several: how they find each other, agree, wait and end.

All processes run the same program: each drives its own devices, and a compiled step runs on those
of all. What is not a device's work is done by all alike (a plan, a verdict), or by the first alone
(`on_first`): it alone writes, while the others wait and then read. What decides how a program goes
on, and is read from outside it (files, signals, clocks), is told by the first (`agree`, `told`).

JAX is imported where several processes use it: whoever writes a file imports this module, be it as
small as what starts a sweep's trial.

Within `on_first` the first process is alone: nobody answers a collective, so that `agree` and
`barrier` do nothing there and a mesh is made of its own devices.
"""

import contextlib
import dataclasses
import json
import os
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar, cast

from lt_jax.errors import Preempted, UserError

T = TypeVar("T")

AUTO, NONE = "auto", "none"
_AFTER = 60  # seconds that JAX would wait longer
_LEAST_BYTES = 256  # of a message: lengths are powers of two, so that few programs are compiled
# How launchers say how many processes they have started.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


class DistributedError(UserError, RuntimeError):
    """Processes that do not find each other, or are not of one run."""


class PeerError(UserError, RuntimeError):
    """The first process ended with an error, and this one with it."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """How the processes find each other.

    Attributes:
      coordinator: host:port of the first process; "auto": as the cluster says (Slurm, Open MPI,
        Kubernetes); "none": there is one process; "": as the cluster says where Slurm or Open MPI
        have started more than one, else one.
      num_processes, process_id: of an explicit coordinator; -1: as the cluster says.
    """

    coordinator: str = ""
    num_processes: int = -1
    process_id: int = -1


@dataclasses.dataclass
class _Here:
    """This process among `count`; `ticks` counts the questions whether to stop."""

    index: int = 0
    count: int = 1
    alone: bool = False
    ticks: int = 0


_here = _Here()


def initialize(launch: Launch, timeout: int) -> None:
    """Joins the processes of a run; call it before the first use of a device, once.

    Args:
      launch: how they find each other.
      timeout: seconds within which all have to come, and without a sign of life of one, after which
        it counts as lost: all others then end with JAX's message that says so.

    Raises:
      DistributedError: they do not find each other, or counts do not fit.
    """
    arguments = _arguments(launch, os.environ)
    if arguments is None:
        return
    import jax

    # Between CPUs of several processes; accelerators have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Where it has waited in vain, JAX ends the process with a stack trace: this comes before.
    impatience = threading.Timer(timeout, _end, [_not_joined(arguments, timeout)])
    impatience.daemon = True
    impatience.start()
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=timeout + _AFTER,
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=timeout,
        )
    except ValueError as error:
        raise DistributedError(
            "--coordinator=auto: no cluster that JAX knows has started this process "
            f"({_line(error)}); give --coordinator=HOST:PORT, --num_processes and --process_id"
        ) from error
    except RuntimeError as error:
        raise DistributedError(f"{_not_joined(arguments, timeout)} ({_line(error)})") from error
    finally:
        impatience.cancel()
    _here.index, _here.count = jax.process_index(), jax.process_count()
    held = {
        process: sum(device.process_index == process for device in jax.devices())
        for process in range(_here.count)
    }
    if len(set(held.values())) > 1:
        raise DistributedError(
            f"processes have different numbers of devices ({held}); give each as many, by "
            "config.runtime.cpu_devices on CPU, or by the launcher's GPUs a task"
        )
    barrier("joined")  # CPU collectives are set up within 30 s of each other, or not at all


def _not_joined(arguments: Mapping[str, Any], timeout: int) -> str:
    who = f"process {arguments.get('process_id', 'of the cluster')}"
    where = arguments.get("coordinator_address", "as Slurm, Open MPI or Kubernetes say")
    return (
        f"{who} has not joined the others within {timeout} s (coordinator: {where}); see that "
        "process 0 runs and its port can be reached, and that as many processes are started as "
        "--num_processes says, each with its own --process_id; config.runtime.host_timeout sets "
        "how long to wait"
    )


def _arguments(launch: Launch, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Of `jax.distributed.initialize`; None: there is one process."""
    explicit = launch.num_processes >= 0 or launch.process_id >= 0
    if launch.coordinator in ("", AUTO, NONE):
        if explicit:
            raise DistributedError(
                "--num_processes and --process_id need --coordinator=HOST:PORT of process 0; "
                "leave all three out where Slurm, Open MPI or Kubernetes start the processes"
            )
        started = max((int(environment.get(name, "1")) for name in _COUNTS), default=1)
        several = launch.coordinator == AUTO or (launch.coordinator == "" and started > 1)
        return {} if several else None
    host, _, port = launch.coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise DistributedError(
            f"--coordinator: got {launch.coordinator!r}; takes HOST:PORT, auto or none"
        )
    if not 0 <= launch.process_id < launch.num_processes:
        raise DistributedError(
            f"--process_id: got {launch.process_id} of --num_processes={launch.num_processes}; "
            "takes 0 up to one less than the number of processes, another for each"
        )
    return {
        "coordinator_address": launch.coordinator,
        "num_processes": launch.num_processes,
        "process_id": launch.process_id,
        "cluster_detection_method": "deactivate",
    }


def count() -> int:
    """Processes that work together here: 1 within `on_first`."""
    return 1 if _here.alone else _here.count


def alone() -> bool:
    """Whether this is within `on_first` of several processes."""
    return _here.alone


def is_first() -> bool:
    """Whether this is the process that writes."""
    return _here.index == 0


def agree(value: T) -> T:
    """The first process's `value` (JSON), in all processes."""
    if count() == 1:
        return value
    import numpy as np
    from jax.experimental import multihost_utils

    raw = json.dumps(value).encode() if is_first() else b""
    length = int(multihost_utils.broadcast_one_to_all(np.array([len(raw)], np.int32))[0])
    padded = np.zeros(max(_LEAST_BYTES, 1 << (length - 1).bit_length()), np.uint8)
    padded[: len(raw)] = np.frombuffer(raw, np.uint8)
    told = multihost_utils.broadcast_one_to_all(padded)
    return json.loads(np.asarray(told, np.uint8)[:length].tobytes())


def alike(text: str) -> bool:
    """Whether all processes have the same text."""
    if count() == 1:
        return True
    import numpy as np
    from jax.experimental import multihost_utils

    mine = np.array([zlib.crc32(text.encode())], np.uint32)
    return len(np.unique(multihost_utils.process_allgather(mine))) == 1


def barrier(name: str) -> None:
    """Waits for all processes: what each has written before, the others can read behind it."""
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def on_first(function: Callable[[], T]) -> T | None:
    """`function()` in the first process, for which the others wait; there None.

    Raises:
      PeerError: in the others, where the first one's function raised; Preempted, where that did.
    """
    if count() == 1:
        return function()
    result, failed = None, None
    if is_first():
        try:
            with _alone():
                result = function()
        except Exception as error:
            failed = error
    told = agree(failed and {"line": _line(failed), "stopped": isinstance(failed, Preempted)})
    if failed is not None:
        raise failed
    if told is not None and told["stopped"]:
        raise Preempted(told["line"])
    if told is not None:
        raise PeerError(
            f"process 0 ended with an error, and process {_here.index} with it: {told['line']}"
        )
    return result


def told(function: Callable[[], T]) -> T:
    """What `function()` (JSON) is in the first process, in all; raises as `on_first` does."""
    return agree(cast(T, on_first(function)))


def preempted() -> bool:
    """Whether SIGTERM has come to any process: all are told at the same call.

    Every process has to ask as often as every other.
    """
    if count() == 1:
        return False
    from jax.experimental import multihost_utils

    _here.ticks += 1
    return multihost_utils.reached_preemption_sync_point(_here.ticks)


def abandon(error: Exception) -> NoReturn:
    """Ends this process at once, where a message between processes has failed.

    Without the farewell that waits for the others, of whom one is gone.
    """
    _end(
        f"process {_here.index} of {_here.count} cannot go on, most likely because another "
        f"was lost ({_line(error)}); what is saved is intact: run the same command again",
    )


def _end(message: str) -> NoReturn:
    print(f"lt_jax: {message}", file=sys.stderr, flush=True)
    os._exit(1)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    _here.alone = True
    try:
        yield
    finally:
        _here.alone = False


def _line(error: BaseException) -> str:
    """An error's first line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
