"""Locators that stay inside a root, and files that appear whole or not at all."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def inside(root: Path, locator: str) -> Path:
    """The path of `locator` below `root`.

    Only the spelling is judged: a symbolic link that stands inside the root may lead elsewhere,
    because whoever owns the root has put it there, and image folders often are links.

    Raises:
      ValueError: the locator is empty, absolute, or climbs out of the root.
    """
    parts = Path(locator).parts
    normal = os.path.normpath(locator) if locator else ".."
    if os.path.isabs(normal) or normal.split(os.sep)[0] == os.pardir or "\0" in locator:
        raise ValueError(
            f"{locator!r} leads out of {root}; give image and mask paths relative to "
            "config.data.root, without '..' above it"
        )
    return root.joinpath(*parts)


def require_space(folder: Path, needed: int) -> None:
    """Raises OSError (ENOSPC) where `folder`'s disk has fewer than `needed` bytes free."""
    if shutil.disk_usage(folder).free < needed:
        raise _no_space(folder, needed)


@contextlib.contextmanager
def whole_file(path: Path, needed: int = 0) -> Iterator[BinaryIO]:
    """Opens a file for writing that takes its name only once it is complete and on disk.

    Args:
      path: the final name; an older file of that name stands until then.
      needed: bytes that will be written, for the message when there is no space.

    Raises:
      OSError: no space left (the message says where and how much was needed); what was written so
        far is removed, as after any other error.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(path, needed) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _no_space(path: Path, needed: int) -> OSError:
    folder = path if path.is_dir() else path.parent
    free = shutil.disk_usage(folder).free
    amount = f"needs {needed / 2**20:.1f} MiB" if needed else "did not fit"
    return OSError(
        errno.ENOSPC,
        f"no space left: this {amount}, {free / 2**20:.1f} MiB are free; "
        "free some, or choose another --workdir",
        str(path),
    )
