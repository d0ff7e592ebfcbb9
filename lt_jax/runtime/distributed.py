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

import atexit
import contextlib
import dataclasses
import json
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar, cast

from lt_jax.errors import Preempted, UserError
from lt_jax.runtime import launchers
from lt_jax.runtime.launchers import DistributedError as DistributedError

T = TypeVar("T")

_AFTER = 60  # seconds that JAX would wait longer
_LEAST_BYTES = 256  # of a message: lengths are powers of two, so that few programs are compiled
_ANNOUNCED = "lt_jax/"  # before the keys of what one process tells all
_FAREWELL = 3.0  # seconds; all have asked within them (`faults`)


class PeerError(UserError, RuntimeError):
    """The first process ended with an error, and this one with it."""


@dataclasses.dataclass
class _Here:
    """This process among `count`; `ticks` counts the questions whether to stop."""

    index: int = 0
    count: int = 1
    alone: bool = False
    ticks: int = 0


_here = _Here()
_asking = threading.Lock()  # while the coordinator is told or asked


def initialize(launch: launchers.Launch, timeout: int) -> None:
    """Joins the processes of a run; call it before the first use of a device, once.

    Args:
      launch: how they find each other.
      timeout: seconds within which all have to come, and without a sign of life of one, after which
        it counts as lost: all others then end with JAX's message that says so.

    Raises:
      DistributedError: they do not find each other, counts do not fit, or those of a node cannot
        share its GPUs evenly.
    """
    arguments = launchers.arguments(launch, os.environ)
    if arguments is None:
        return
    import jax

    on_cpu = jax.config.jax_platforms == "cpu"  # type: ignore[attr-defined]
    devices = None if on_cpu else launchers.local_devices(launch, os.environ)
    if devices is not None:
        arguments["local_device_ids"] = devices
    _join(arguments, timeout)
    _check_devices()
    barrier("joined")  # CPU collectives are set up within 30 s of each other, or not at all


def _join(arguments: Mapping[str, Any], timeout: int) -> None:
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
        if "coordinator_address" in arguments:
            raise DistributedError(f"--coordinator: {line(error)}") from error
        raise DistributedError(f"{launchers.no_cluster(os.environ)} ({line(error)})") from error
    except RuntimeError as error:
        raise DistributedError(f"{_not_joined(arguments, timeout)} ({line(error)})") from error
    finally:
        impatience.cancel()
    state = _state()  # `jax.process_index` makes the devices, which may fail in one process alone
    _here.index, _here.count = state.process_id, state.num_processes
    # Before JAX's own farewell: a question under way then would end in an abort.
    atexit.register(_asking.acquire, timeout=_FAREWELL)


def _check_devices() -> None:
    """Says which devices this process has; all need as many."""
    import jax

    names = ", ".join(f"{d.platform}:{d.local_hardware_id}" for d in jax.local_devices())
    print(
        f"lt_jax: process {_here.index} of {_here.count}: devices {names}",
        file=sys.stderr,
        flush=True,
    )
    held = {
        process: sum(device.process_index == process for device in jax.devices())
        for process in range(_here.count)
    }
    if len(set(held.values())) > 1:
        raise DistributedError(
            f"processes have different numbers of devices ({held}); give each as many, by "
            "config.runtime.cpu_devices on CPU, or by the launcher's GPUs a task or "
            "--local_devices on GPU"
        )


def _not_joined(arguments: Mapping[str, Any], timeout: int) -> str:
    who = f"process {arguments.get('process_id', 'of the cluster')}"
    where = arguments.get("coordinator_address", "as Slurm, Open MPI or Kubernetes say")
    count = arguments.get("num_processes", "as many as it has started")
    return (
        f"{who} has not joined the others within {timeout} s (coordinator: {where}; processes: "
        f"{count}); see that process 0 runs and its port can be reached, and that all processes "
        "run, each with a number of its own (--num_processes and --process_id, or the launcher's); "
        "config.runtime.host_timeout sets how long to wait"
    )


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
    told = agree(failed and {"line": line(failed), "stopped": isinstance(failed, Preempted)})
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


def announce(word: str, text: str = "") -> None:
    """Tells all processes at once, wherever they are: no collective, and nobody has to answer."""
    with _coordinator() as client:
        if client is not None:
            client.key_value_set(_ANNOUNCED + word, text)  # the first one stays: it is the cause


def announced() -> dict[str, str]:
    """What any process has announced, text by word; nothing once this one is about to end."""
    pairs = []
    with _coordinator() as client:
        if client is not None:
            pairs = client.key_value_dir_get(_ANNOUNCED)
    return {key.removeprefix(_ANNOUNCED): text for key, text in pairs}


@contextlib.contextmanager
def _coordinator() -> Iterator[Any]:
    """JAX's client of it, which keeps texts by key; None where there is none, or no time.

    Inside, errors are dropped: it may be gone.
    """
    if _here.count == 1 or not _asking.acquire(timeout=1.0):
        yield None
        return
    try:
        with contextlib.suppress(RuntimeError):
            yield _state().client
    finally:
        _asking.release()


def _state() -> Any:
    """JAX's own, of what has been joined."""
    from jax._src import distributed  # JAX has no public name for it

    return distributed.global_state


def leave(error: str) -> NoReturn:
    """Ends this process with 1 and lets the others know why.

    Without the farewell at which JAX waits for all: those who are in the middle of a message to
    this one would never come to it.
    """
    announce("error", f"process {_here.index} ended with an error ({error})")
    sys.stdout.flush()
    if is_first():  # whom they ask
        _asking.acquire(timeout=_FAREWELL)
        time.sleep(_FAREWELL)
    os._exit(1)


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


def line(error: BaseException) -> str:
    """An error's first line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
