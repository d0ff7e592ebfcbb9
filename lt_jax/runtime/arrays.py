"""Arrays in files: written whole or not at all, read without pickle, named where damaged."""

import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lt_jax.errors import UserError
from lt_jax.runtime import files


class ArrayFileError(UserError, ValueError):
    """A .npz or .npy file that is damaged, or holds something else than arrays."""


def save(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name as .npz. Raises DiskFullError where there is no space."""
    with files.whole_file(path, path.name, sum(array.nbytes for array in arrays.values())) as file:
        np.savez(file, allow_pickle=False, **arrays)


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of a .npz file.

    Raises:
      ArrayFileError: missing, cut short, altered (each array has a checksum), or with Python
        objects in it, which would be a program.
    """
    return _read(path, lambda: _archive(path))


def load_one(path: pathlib.Path, *, mapped: bool = False) -> np.ndarray:
    """The array of a .npy file; `mapped`: left on disk, and read where it is asked for.

    Raises ArrayFileError as `load`, but alterations are not seen: .npy has no checksum.
    """
    return _read(path, lambda: np.load(path, "r" if mapped else None, allow_pickle=False))


def _archive(path: pathlib.Path) -> dict[str, np.ndarray]:
    # NumPy leaves a file open that it has opened itself and found to be no archive.
    with path.open("rb") as stream:
        held = np.load(stream, allow_pickle=False)
        if not isinstance(held, np.lib.npyio.NpzFile):
            raise ValueError("it holds no arrays by name")
        return dict(held)


def _read(path: pathlib.Path, read: Any) -> Any:
    try:
        return read()
    except (
        FileNotFoundError,
        ValueError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,  # an altered flag asks zipfile for what it cannot do
        RuntimeError,  # or for a password
    ) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"damaged ({error})"
        raise ArrayFileError(
            f"{path}: {reason}; delete the folder {path.parent} and run the same command again, "
            "which makes it anew"
        ) from error
