"""Files: locators that stay inside a root, files that appear whole or not at all.

Of several processes the first one writes; in the others nothing is written, and nobody has to ask.
"""

import contextlib
import errno
import functools
import io
import os
import pathlib
import re
import shutil
import time
from collections.abc import Iterator
from typing import BinaryIO

from lt_jax.errors import UserError
from lt_jax.runtime import distributed

PATIENCE = 90.0  # seconds; NFS clients believe for up to 60 what a folder held
_TEMPORARY = re.compile(r"\..+\.\d+\.(tmp|partial)")  # .<name>.<process>.tmp


# How tensorstore, below orbax, says which error of the operating system it met.
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")


class DiskFullError(UserError, OSError):
    """No space left; what was already written is intact."""


class LocatorError(UserError, ValueError):
    """A path of an image or mask that leads out of the data's root."""


def inside(root: pathlib.Path, locator: str, follow_links: bool = False) -> pathlib.Path:
    """The path of `locator` below `root`, which may itself be a link.

    Args:
      root: the folder that is not to be left.
      locator: a relative path.
      follow_links: symbolic links below the root may lead elsewhere, as image folders do that
        somebody has linked there on purpose; else they lead nowhere but inside.

    Raises:
      LocatorError: the locator is empty, absolute, or leads out of the root.
    """
    parts = pathlib.Path(locator).parts
    normal = os.path.normpath(locator) if locator else ".."
    if os.path.isabs(normal) or normal.split(os.sep)[0] == os.pardir or "\0" in locator:
        raise LocatorError(
            f"{locator!r} leads out of {root}; give image and mask paths relative to "
            "config.data.root, without '..' above it"
        )
    path = root.joinpath(*parts)
    if not follow_links:
        real, own = os.path.realpath(path), _real(root)
        if os.path.commonpath((real, own)) != own:
            raise LocatorError(
                f"{locator!r} leads out of {root}, by a symbolic link to {real}; where that is "
                "meant, pass --config.data.follow_links"
            )
    return path


@functools.lru_cache(maxsize=64)
def _real(root: pathlib.Path) -> str:
    """Kept, since each image asks for it."""
    return os.path.realpath(root)


def os_error_number(error: Exception) -> int | None:
    """The `errno` of an error of the operating system, also where orbax reports it; else None."""
    if isinstance(error, OSError):
        return error.errno
    found = _OS_ERROR.search(str(error))
    return int(found[1]) if found else None


def require_space(folder: pathlib.Path, needed: int, what: str) -> None:
    """Raises DiskFullError where `folder`'s disk has fewer than `needed` bytes free."""
    if shutil.disk_usage(folder).free < needed:
        raise _no_space(folder, what, needed)


@contextlib.contextmanager
def disk_errors(path: pathlib.Path, what: str, needed: int | None = None) -> Iterator[None]:
    """Turns "no space left on device" and "quota exceeded" into an error that says what to do."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not _is_full(error):
            raise
        raise _no_space(path, what, needed) from error


@contextlib.contextmanager
def whole_file(path: pathlib.Path, what: str, needed: int | None = None) -> Iterator[BinaryIO]:
    """Opens a file for writing that takes its name only once it is complete and on disk.

    Args:
      path: the final name; an older file of that name stands until then.
      what: what it is, for the message when there is no space.
      needed: bytes that will be written, likewise.

    Raises:
      DiskFullError: no space left; what was written so far is removed, as after any other error.
    """
    if not distributed.is_first():
        yield io.BytesIO()
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with disk_errors(path, what, needed):
            with partial.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: pathlib.Path, data: bytes | str, what: str) -> None:
    """Writes a file under a temporary name and renames it: it exists whole or not at all."""
    raw = data.encode() if isinstance(data, str) else data
    with whole_file(path, what, len(raw)) as stream:
        stream.write(raw)


def appeared(path: pathlib.Path, seconds: float | None = None) -> bool:
    """Whether `path` exists; other processes than the first, which has written it, wait for it.

    On NFS a host that has once found nothing there goes on finding nothing until what it knows of
    the folder is too old, or the folder is listed.

    Args:
      path: what the first process has, or should have, written.
      seconds: to wait at most; None: `PATIENCE`. The first process never waits.
    """
    until = time.monotonic() + (PATIENCE if seconds is None else seconds)
    while not path.exists():
        if distributed.is_first() or time.monotonic() > until:
            return False
        for folder in path.parents:
            with contextlib.suppress(OSError):
                os.listdir(folder)
                break
        time.sleep(0.1)
    return True


def sweep(folder: pathlib.Path, outside: pathlib.Path | None = None) -> None:
    """Removes the temporary files of writes in `folder`, not in `outside`, that a kill cut short.

    Call it under the folder's lock: nobody else's unfinished write may be there.
    """
    if not distributed.is_first():
        return
    for path in folder.rglob(".*"):
        if _TEMPORARY.fullmatch(path.name) and outside not in path.parents:
            path.unlink(missing_ok=True)


def _is_full(error: Exception) -> bool:
    # ArrayRecord reports the same conditions without a number.
    texts = ("No space left", "quota exceeded")
    known = os_error_number(error) in (errno.ENOSPC, errno.EDQUOT)
    return known or any(text in str(error) for text in texts)


def _no_space(path: pathlib.Path, what: str, needed: int | None) -> DiskFullError:
    size = f" ({needed / 2**20:.1f} MiB needed)" if needed is not None else ""
    return DiskFullError(
        errno.ENOSPC,
        f"no space left while writing {what}{size} to {path}; finished stages and the last "
        "checkpoint are intact: free space and run the same command again",
    )
