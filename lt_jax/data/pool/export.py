"""Exports records of a pool for other tools: PNG files in a folder a class, and a CSV table.

    OUT/export.json              of which pool; written first
    OUT/images/<class>/<index>.png          (of all verdicts: images/<verdict>/<class>/...)
    OUT/pool.csv                 all columns, the class's name and the image's path; written last

The files are those of the pool, byte for byte. An export that was killed is repeated by the same
command, which writes the same files anew.
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv
from jaxtyping import Int

from lt_jax.data.pool import schema
from lt_jax.data.pool.reader import PoolReader
from lt_jax.data.pool.schema import PoolError
from lt_jax.runtime import files

ALL = "all"
_MARK, _CSV = "export.json", "pool.csv"


def export(
    pool: PoolReader,
    folder: pathlib.Path,
    out: pathlib.Path,
    verdict: str = "accepted",
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[int, int]:
    """Writes the records of one verdict, or `ALL`; returns how many, and how many with an image.

    Args:
      folder: of the pool.
      out: made where it is missing.
      progress: is told how many images are written.

    Raises:
      PoolError: `out` holds something else, or an image of the pool is damaged.
      DiskFullError: no space left.
    """
    columns = pool.columns
    chosen = np.full(len(pool), verdict == ALL) | (columns["verdict"] == verdict)
    rows = np.flatnonzero(chosen)
    if foreign := set(columns["verdict"].tolist()) - {*schema.VERDICTS}:  # they name folders
        raise PoolError(f"{folder}: unknown verdict {min(foreign)!r}; {schema.AGAIN}")
    _claim(out, _mark(folder, verdict))
    paths = _paths(pool, rows, verdict == ALL)
    for name in sorted({path.rpartition("/")[0] for path in paths if path}):
        (out / name).mkdir(parents=True, exist_ok=True)
    done = 0
    for row, path in zip(rows.tolist(), paths, strict=True):
        if path:
            record = pool.record(row)
            with files.disk_errors(out / path, "an exported image", len(record)):
                (out / path).write_bytes(record)
            done += 1
            progress(done)
    names = np.array(pool.info.classes, dtype=object)[columns["label"][rows]]
    table = pool.table.take(pa.array(rows, pa.int64()))
    table = table.add_column(0, "file", pa.array(paths, pa.string()))
    table = table.add_column(1, "class", pa.array(names, pa.string()))
    with files.whole_file(out / _CSV, "the exported table") as stream:
        pyarrow.csv.write_csv(table, stream)
    return len(rows), done


def folder_names(classes: Sequence[str]) -> tuple[str, ...]:
    """A file name for each class, of letters, digits, "_", "." and "-"; numbered where two would
    differ in nothing or in case alone.
    """
    names = [re.sub(r"[^\w.-]+", "_", c, flags=re.ASCII).strip("._-")[:64] for c in classes]
    if all(names) and len({name.casefold() for name in names}) == len(names):
        return tuple(names)
    digits = len(str(len(names) - 1))
    return tuple(f"{k:0{digits}d}_{name}".rstrip("_") for k, name in enumerate(names))


def _paths(pool: PoolReader, rows: Int[np.ndarray, "n"], apart: bool) -> list[str]:
    """Where the image of each row goes, below the export's folder; "" where it has none.

    `apart`: in a folder a verdict, so that nobody takes rejected images for accepted ones.
    """
    names = folder_names(pool.info.classes)
    columns = (pool.columns[n][rows].tolist() for n in ("label", "verdict", "index", "shard"))
    return [
        f"images/{f'{verdict}/' * apart}{names[label]}/{index:08d}.png" if shard >= 0 else ""
        for label, verdict, index, shard in zip(*columns, strict=True)
    ]


def _mark(folder: pathlib.Path, verdict: str) -> str:
    table = hashlib.sha256((folder / schema.TABLE).read_bytes()).hexdigest()
    return json.dumps({"pool": str(folder), "table_sha256": table, "verdict": verdict}, indent=1)


def _claim(out: pathlib.Path, mark: str) -> None:
    """Makes `out`, or finds in it an export of the same records.

    Raises:
      PoolError: it holds something else.
    """
    if out.exists() and not out.is_dir():
        raise PoolError(f"{out} is a file; takes a folder to export to")
    out.mkdir(parents=True, exist_ok=True)
    path = out / _MARK
    if path.is_file():
        same = _identity(path.read_bytes()) == _identity(mark.encode())
    else:  # nothing, or what a kill has left of the mark itself
        same = all(child.name.startswith(f".{_MARK}.") for child in out.iterdir())
    if not same:
        raise PoolError(
            f"{out} holds something else than an export of these records; takes an empty folder or "
            "a new one"
        )
    files.write_atomically(path, mark, "the export's description")


def _identity(mark: bytes) -> tuple[str, str] | None:
    """Table and verdict that an export is of; wherever the pool lay."""
    try:
        values = json.loads(mark)
        return values["table_sha256"], values["verdict"]
    except (ValueError, KeyError, TypeError):
        return None
