"""What goes wrong around a run: signals, non-finite numbers, two runs in one folder.

SIGTERM is answered in two ways. Every long loop polls, saves what it has to save and leaves; and
where none comes to its poll in time (one program that compiles for minutes, a library that computes
without giving word), the process ends at its deadline all the same, with the same code. That loses
what SIGKILL would lose at that moment: the work since the last save.
"""

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import IO, Any, NoReturn

from lt_jax.errors import Preempted as Preempted
from lt_jax.errors import UserError
from lt_jax.runtime import distributed, files, progress

REQUEUE_EXIT_CODE = 75  # EX_TEMPFAIL: what schedulers take as "run me again"

# Seconds from SIGTERM to the end at most. Slurm (KillWait) and Kubernetes kill after 30.
GRACE = 25.0

_stop = threading.Event()  # it came to this process
_agreed = threading.Event()  # and all processes of the run know
_POLL = 1.0  # seconds until a process hears what another tells
# Of a message between processes that failed, whatever type of error JAX makes of it.
_LOST = re.compile(
    r"^(UNAVAILABLE|DEADLINE_EXCEEDED):|^[A-Z_]+: .*(Gloo|[Cc]onnection (closed|reset|refused)|"
    r"Socket closed|coordination service|heartbeat|remote process exited|network error)",
    re.DOTALL,
)
_PATIENT = 0.5  # seconds of waiting for a lock before a line says so
_LOCKLESS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_ONE_HOST = {"localflock", "nolock", "local_lock=all", "local_lock=flock"}  # of NFS and Lustre


class NonFiniteError(UserError, FloatingPointError):
    """A loss or gradient became NaN or infinite."""


class WorkdirInUseError(UserError, RuntimeError):
    """Another process runs in the same workdir."""


class NoLocksError(UserError, RuntimeError):
    """The file system has no locks, or has them for one host alone."""


@contextlib.contextmanager
def saving_on_sigterm(grace: float | None = None, ctrl_c: bool = False) -> Iterator[None]:
    """Within it, SIGTERM asks every long loop to save and stop (`raise_if_stopping`, `check`).

    A process that was asked is about to end: for it, nothing is put back.

    Args:
      grace: seconds after which the process ends with REQUEUE_EXIT_CODE wherever it is; None: it
        ends when a loop has polled.
      ctrl_c: whether Ctrl-C does the same.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: _stop.set())
    interrupt = signal.getsignal(signal.SIGINT)
    if ctrl_c:
        signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    told = None if grace is None else _start_deadline(grace)
    try:
        yield
    finally:
        if not _stop.is_set():
            if told is not None:
                signal.set_wakeup_fd(-1)
                os.close(told)
            signal.signal(signal.SIGINT, interrupt)
            signal.signal(signal.SIGTERM, before)


def _start_deadline(grace: float) -> int:
    """Starts the thread that ends the process `grace` seconds after SIGTERM; closing this ends it.

    Python's own handlers wait for the main thread, which may be inside a compiler: the number of
    the signal is written to a pipe at once.
    """
    listening, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    _spare_children()
    threading.Thread(
        target=_end_in_time, args=(listening, grace), name="sigterm", daemon=True
    ).start()
    return told


@functools.cache
def _spare_children() -> None:
    """A forked child has the same pipe, and is often ended by a SIGTERM of its own."""
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def _end_in_time(listening: int, grace: float) -> None:
    """Waits for SIGTERM, then for the process to end of itself; after `grace` seconds ends it."""
    while heard := os.read(listening, 1):
        if heard[0] == signal.SIGTERM:
            _stop.set()
            threading.Event().wait(grace)
            text = f"lt_jax: SIGTERM: ended after {grace:g} s in the middle of some long work; the "
            os.write(2, f"{text}same command goes on from what was saved before\n".encode())
            os._exit(REQUEUE_EXIT_CODE)
    os.close(listening)


def watch_others() -> None:
    """Ends with the other processes of the run, and they with this one; call it once they have met.

    A SIGTERM to one becomes one to each within two seconds, be it in the middle of a message, or
    alone at work. An error of one ends all (`end_among_others`).
    """
    _share_sigterm()
    _explain_abort()
    threading.Thread(target=_watch, name="others", daemon=True).start()


def _watch() -> None:
    while True:
        asked = _stop.wait(_POLL)
        if asked:
            distributed.announce("sigterm")
            time.sleep(_POLL)
        told = distributed.announced()
        _end_with(told)
        if "sigterm" in told and not _stop.is_set():
            os.kill(os.getpid(), signal.SIGTERM)


def _end_with(told: dict[str, str]) -> None:
    """Ends where another process has ended with an error."""
    if "error" in told:
        _end(f"{told['error']}; this process ends with it")


def _share_sigterm() -> None:
    """Hears SIGTERM beside JAX, which tells all processes.

    JAX's notifier, in C++, takes the signal for itself: neither deadline nor a first process that
    works alone would hear of it. This puts Python's handler before it, which passes it on.
    """
    before = _LIBRARY.signal(signal.SIGTERM, None)
    if not before or before == int(signal.SIG_IGN):
        tell = lambda: None
    else:
        notifier = _HANDLER(before)
        tell = lambda: notifier(signal.SIGTERM)

    def heard(*_: object) -> None:
        _stop.set()
        tell()

    signal.signal(signal.SIGTERM, heard)
    if _stop.is_set():  # it came while they met
        tell()


def _explain_abort() -> None:
    """Where JAX, in C++, aborts since a process is lost, the last line says so and what to do."""
    _LIBRARY.signal(signal.SIGABRT, ctypes.cast(_ABORTED, ctypes.c_void_p))


def end_among_others(error: BaseException) -> NoReturn:
    """Ends this process of several where an error came up: what the others do, it does not know."""
    line = distributed.line(error)
    if isinstance(error, distributed.PeerError):  # the first process is about to say it all
        _end(line)
    if _LOST.search(str(error)):
        _end_with(distributed.announced())
        _end(_lost(line))
    if isinstance(error, UserError):
        print(f"lt_jax: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
        line = f"{type(error).__name__}: {line}"
    distributed.leave(line)


def _lost(why: str) -> str:
    return (
        f"this process cannot go on, most likely because another was lost ({why}); what is saved "
        "is intact: run the same command again"
    )


def _end(message: str) -> NoReturn:
    """At once; after SIGTERM with its code, as the others may have ended at their deadline."""
    os.write(2, f"lt_jax: {message}\n".encode())
    os._exit(REQUEUE_EXIT_CODE if _stop.is_set() else 1)


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_ABORTED = _HANDLER(lambda _: _end(_lost("JAX has aborted it, see above")))
_LIBRARY = ctypes.CDLL(None)
_LIBRARY.signal.restype = ctypes.c_void_p
_LIBRARY.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)


def stopping() -> bool:
    """Whether SIGTERM has arrived, at any process: all are told at the same call."""
    if distributed.count() == 1:
        return _stop.is_set() or _agreed.is_set()
    if not _agreed.is_set() and distributed.preempted():
        _agreed.set()
    return _agreed.is_set()


def raise_if_stopping(what: str) -> None:
    """Raises Preempted after SIGTERM; call it where everything up to now is saved."""
    if stopping():
        raise Preempted(f"SIGTERM: {what} is saved; the same command goes on from there")


def check(what: str) -> None:
    """Raises Preempted after SIGTERM; for loops that keep nothing, between two of their rounds."""
    if stopping():
        raise Preempted(f"SIGTERM: {what} is begun anew by the same command; all before it is kept")


@contextlib.contextmanager
def lock(workdir: pathlib.Path, patience: float = 0.0) -> Iterator[None]:
    """Holds `workdir` for this run; the lock falls with its (first) process, however it ends.

    It is a flock(2): the kernel releases it. On NFS (4, or 3 with lockd) Linux asks the server, so
    that it holds between hosts, and falls with a host once its lease is over; see `one_host_only`.

    Args:
      workdir: the folder.
      patience: seconds to wait while another process holds it; a line says for whom. SIGTERM ends
        the wait.

    Raises:
      WorkdirInUseError: another run holds it.
      NoLocksError: the file system has no locks.
    """
    with contextlib.ExitStack() as stack:
        distributed.on_first(lambda: stack.enter_context(_holding(workdir, patience)))
        yield


@contextlib.contextmanager
def _holding(workdir: pathlib.Path, patience: float) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with files.disk_errors(workdir, "the lock"):
            workdir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(workdir / ".lock", "a+"))
        _acquire(file, workdir, patience)
        _warn_of_hosts(file, workdir)
        with files.disk_errors(workdir, "the lock"):
            file.truncate(0)
            file.write(f"{os.getpid()} on {socket.gethostname()}")
            file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                file.truncate(0)


def _warn_of_hosts(file: IO[Any], folder: pathlib.Path) -> None:
    """Where locks hold on one host alone, another may hold it; or was killed, and left its name."""
    file.seek(0)
    holder = file.read().strip()
    other = holder and not holder.endswith(f" on {socket.gethostname()}")
    if other and (reason := one_host_only(folder)):
        progress.say(
            f"{folder}: WARNING: {reason}, so that its lock holds on one host alone; process "
            f"{holder} may be at work in it: if it is, end this run, or both write into it"
        )


def _acquire(file: IO[Any], workdir: pathlib.Path, patience: float) -> None:
    since, said, pause = time.monotonic(), False, 0.02
    while not _locked(file, workdir, fcntl.LOCK_EX):
        waited = time.monotonic() - since
        file.seek(0)
        holder = file.read().strip() or "unknown"
        if waited >= patience:
            raise WorkdirInUseError(
                f"{workdir} is in use by process {holder}; wait for it, or use another --workdir "
                "(with --cache to share finished stages)"
            )
        if waited > _PATIENT and not said:
            progress.say(f"{workdir.name}: waiting for process {holder}, which works on it")
            said = True
        raise_if_stopping(f"what came before {workdir.name}")
        time.sleep(pause)
        pause = min(2 * pause, 1.0)


def _locked(file: IO[Any], folder: pathlib.Path, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _LOCKLESS:
            raise
        raise NoLocksError(
            f"{folder}: its file system has no locks ({error.strerror}), so that two processes "
            "could write into one folder; mount it with them (Lustre: -o flock), or use another"
        ) from error
    return True


def held(folder: pathlib.Path) -> bool:
    """Whether a process holds `folder`; a lock that is asked for meanwhile waits for a moment."""
    try:
        with open(folder / ".lock", "rb") as file:
            return not _locked(file, folder, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def one_host_only(folder: pathlib.Path, mounts: str | None = None) -> str | None:
    """How the file system of `folder` is mounted, where its locks do not hold between hosts.

    Args:
      folder: exists.
      mounts: the text of /proc/self/mountinfo; None: this process's.
    """
    table = pathlib.Path("/proc/self/mountinfo")
    if mounts is None:
        mounts = table.read_text() if table.exists() else ""
    at, options = "", set[str]()
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        if folder.resolve().is_relative_to(point) and len(point) >= len(at):
            at, options = point, set(f"{left.split()[5]},{right.split()[-1]}".split(","))
    found = sorted(options & _ONE_HOST)
    return f"{at} is mounted with {found[0]}" if found else None
