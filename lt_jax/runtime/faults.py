"""What goes wrong around a run: signals, full disks, non-finite numbers, two runs in one folder."""

import contextlib
import errno
import fcntl
import os
import pathlib
import signal
import threading
from collections.abc import Iterator

REQUEUE_EXIT_CODE = 75  # EX_TEMPFAIL: what schedulers take as "run me again"

_stop = threading.Event()


class Preempted(Exception):
    """SIGTERM arrived and the current training has been saved."""


class NonFiniteError(FloatingPointError):
    """A loss or gradient became NaN or infinite."""


class DiskFullError(OSError):
    """No space left; what was already written is intact."""


class WorkdirInUseError(RuntimeError):
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
def disk_errors(path: pathlib.Path, what: str, needed: int | None = None) -> Iterator[None]:
    """Turns "no space left on device" and "quota exceeded" into an error that says what to do."""
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        # orbax's and ArrayRecord's storage layers report the same conditions without an errno.
        texts = ("No space left", "quota exceeded")
        full = number in (errno.ENOSPC, errno.EDQUOT) or any(t in str(error) for t in texts)
        if not full or isinstance(error, DiskFullError):
            raise
        size = f" ({needed / 2**20:.1f} MiB needed)" if needed is not None else ""
        raise DiskFullError(
            errno.ENOSPC,
            f"no space left while writing {what}{size} to {path}; finished stages and the last "
            "checkpoint are intact: free space and run the same command again",
        ) from error


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


def write_atomically(path: pathlib.Path, data: bytes | str, what: str) -> None:
    """Writes a file under a temporary name and renames it: it exists whole or not at all."""
    raw = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path, what, len(raw)):
            with open(temporary, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
