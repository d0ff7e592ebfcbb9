"""What goes wrong around a run: signals, non-finite numbers, two runs in one folder.

SIGTERM is answered in two ways. Every long loop polls, saves what it has to save and leaves; and
where none comes to its poll in time (one program that compiles for minutes, a library that computes
without giving word), the process ends at its deadline all the same, with the same code. That loses
what SIGKILL would lose at that moment: the work since the last save.
"""

import contextlib
import fcntl
import os
import pathlib
import signal
import socket
import threading
from collections.abc import Iterator

from lt_jax.errors import UserError
from lt_jax.runtime import files

REQUEUE_EXIT_CODE = 75  # EX_TEMPFAIL: what schedulers take as "run me again"

# Seconds from SIGTERM to the end at most. Slurm (KillWait) and Kubernetes kill after 30.
GRACE = 25.0

_stop = threading.Event()


class Preempted(Exception):
    """SIGTERM arrived and the current training has been saved."""


class NonFiniteError(UserError, FloatingPointError):
    """A loss or gradient became NaN or infinite."""


class WorkdirInUseError(UserError, RuntimeError):
    """Another process runs in the same workdir."""


def install_sigterm_handler(grace: float | None = None) -> None:
    """Makes SIGTERM ask every long loop to save and stop (`raise_if_stopping`, `check`).

    Args:
      grace: seconds after which the process ends with REQUEUE_EXIT_CODE wherever it is; None: it
        ends when a loop has polled.
    """
    signal.signal(signal.SIGTERM, lambda *_: _stop.set())
    if grace is not None:
        # Python's own handlers wait for the main thread, which may be inside a compiler: the
        # number of the signal is written to this pipe at once.
        listening, told = os.pipe()
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        # A forked child has the same pipe, and is often ended by a SIGTERM of its own.
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        threading.Thread(
            target=_end_in_time, args=(listening, grace), name="sigterm", daemon=True
        ).start()


def _end_in_time(listening: int, grace: float) -> None:
    """Waits for SIGTERM, then for the process to end of itself; after `grace` seconds ends it."""
    while os.read(listening, 1)[0] != signal.SIGTERM:
        pass
    _stop.set()
    threading.Event().wait(grace)
    text = f"lt_jax: SIGTERM: ended after {grace:g} s in the middle of some long work; the same "
    os.write(2, f"{text}command goes on from what was saved before\n".encode())
    os._exit(REQUEUE_EXIT_CODE)


def stopping() -> bool:
    """Whether SIGTERM has arrived."""
    return _stop.is_set()


def raise_if_stopping(what: str) -> None:
    """Raises Preempted after SIGTERM; call it where everything up to now is saved."""
    if stopping():
        raise Preempted(f"SIGTERM: {what} is saved; the same command goes on from there")


def check(what: str) -> None:
    """Raises Preempted after SIGTERM; for loops that keep nothing, between two of their rounds."""
    if stopping():
        raise Preempted(f"SIGTERM: {what} is begun anew by the same command; all before it is kept")


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Holds `workdir` for this process; the lock falls with the process, however it ends.

    Raises:
      WorkdirInUseError: another process holds it.
    """
    with contextlib.ExitStack() as stack:
        with files.disk_errors(workdir, "the lock"):
            workdir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(workdir / ".lock", "a+"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise WorkdirInUseError(
                f"{workdir} is in use by process {file.read().strip() or 'unknown'}; wait for it, "
                "or use another --workdir (with --cache to share finished stages)"
            ) from None
        with files.disk_errors(workdir, "the lock"):
            file.truncate(0)
            file.write(f"{os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield
