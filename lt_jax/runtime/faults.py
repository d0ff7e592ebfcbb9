"""What goes wrong around a run: signals, non-finite numbers, two runs in one folder."""

import contextlib
import fcntl
import os
import pathlib
import signal
import threading
from collections.abc import Iterator

from lt_jax.errors import UserError

REQUEUE_EXIT_CODE = 75  # EX_TEMPFAIL: what schedulers take as "run me again"

_stop = threading.Event()


class Preempted(Exception):
    """SIGTERM arrived and the current training has been saved."""


class NonFiniteError(UserError, FloatingPointError):
    """A loss or gradient became NaN or infinite."""


class WorkdirInUseError(UserError, RuntimeError):
    """Another process runs in the same workdir."""


def install_sigterm_handler() -> None:
    """Makes SIGTERM ask every long loop to save and stop (`raise_if_stopping`)."""
    signal.signal(signal.SIGTERM, lambda *_: _stop.set())


def stopping() -> bool:
    """Whether SIGTERM has arrived."""
    return _stop.is_set()


def raise_if_stopping(what: str) -> None:
    """Raises Preempted after SIGTERM; call it where everything up to now is saved."""
    if stopping():
        raise Preempted(f"SIGTERM: {what} is saved; the same command goes on from there")


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Holds `workdir` for this process; the lock falls with the process, however it ends.

    Raises:
      WorkdirInUseError: another process holds it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise WorkdirInUseError(
                f"{workdir} is in use by process {file.read().strip() or 'unknown'}; wait for it, "
                "or use another --workdir (with --cache to share finished stages)"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
