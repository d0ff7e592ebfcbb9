"""Writes a pool in parts, behind the device's back, and joins them."""

import io
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_module  # type: ignore[attr-defined]
from jaxtyping import Int, UInt8

from lt_jax.data.pool import gates, schema
from lt_jax.data.pool.records import Records, digest, encode
from lt_jax.data.pool.schema import SCHEMA, PoolError, PoolInfo
from lt_jax.runtime import distributed, files

_GIVEN = [name for name in SCHEMA.names if name not in (*schema.PLACE, *schema.ORIGIN)]


class PoolWriter:
    """Writes parts 0, 1, ... of a pool on a thread of its own, one at a time; a context manager.

    A part is on disk, whole, when the next `write` returns, or `finish` or `close`. An error of a
    write is raised by whichever of these comes next; the parts before it are intact, and the part
    may be written again. Leaving the `with` block waits for the write under way.

    Of several processes the first one writes; the others get the same, and read what it wrote.
    """

    def __init__(self, folder: pathlib.Path, info: PoolInfo):
        """Opens `folder`, in which nobody else may write; parts of an interrupted run are kept.

        Raises:
          PoolError: the parts that are there were judged by other gates than those of `info`.
          DiskFullError: no space left.
        """
        self._folder = folder
        self._parts = distributed.told(lambda: _opened(folder))
        self._info = gates.keep(folder, info, self._parts)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pool")
        self._writing: Future[None] | None = None

    @property
    def info(self) -> PoolInfo:
        """What all records share, with the limits by which the first part was judged."""
        return self._info

    def finished(self) -> list[dict[str, np.ndarray]]:
        """The columns of each part written so far, in order.

        Raises:
          PoolError: a part is damaged, of another version or of another generator.
        """
        self._settle()
        distributed.barrier("pool read")
        tables = (self._read(part) for part in range(self._parts))
        return [{name: schema.to_numpy(t[name]) for name in t.column_names} for t in tables]

    def write(
        self,
        part: int,
        images: UInt8[np.ndarray, "m h w c"],
        columns: Mapping[str, Any],
        kept: Int[np.ndarray, "m"] | None = None,
    ) -> None:
        """Waits for the write before, then starts that of part number `part` and returns.

        Args:
          part: the number of parts before it.
          images: uint8, 1 or 3 channels. Like the columns, they must not be changed until the next
            call.
          columns: [n] by name, those of `SCHEMA` up to `verdict`.
          kept: rows of the columns, ascending, that the images belong to; the others have none.
            None: all rows have an image.

        Raises:
          DiskFullError, or another error of the write before.
          ValueError: parts out of order, or columns that are not a part of a pool.
        """
        self._settle()
        if part != self._parts:
            raise ValueError(f"pool: got part {part}; {self._parts} parts are written, in order")
        table = _given(columns)
        kept = np.arange(table.num_rows) if kept is None else kept
        _check(table, len(images), kept)
        self._writing = self._thread.submit(self._write, part, images, table, kept)

    def joined(self) -> Records:
        """All parts as one table, by index, before any accepted image has become surplus.

        Raises:
          PoolError: see `finished`; or a candidate was written twice.
        """
        self._settle()
        distributed.barrier("pool joined")
        tables = [self._read(part) for part in range(self._parts)]
        table = pa.concat_tables(tables or [SCHEMA.empty_table()]).sort_by("index")
        index = table["index"].to_numpy()
        if len(twice := index[1:][index[1:] == index[:-1]]):
            raise PoolError(
                f"{self._folder}: candidate {twice[0]} stands in two parts; {schema.AGAIN}"
            )
        return Records(self._folder, table)

    def finish(
        self,
        wanted: Int[np.ndarray, "k"],
        chosen: Sequence[Int[np.ndarray, "_"]] | None = None,
    ) -> None:
        """Joins the parts. Accepted images that are not needed become surplus.

        The parts stay as they are: a run that is killed before it marks its stage as finished finds
        them, and a pool can be finished again with other counts.

        Args:
          wanted: images a class.
          chosen: rows of `joined()`, for each class those that stay accepted: `wanted` of them, or
            all where fewer are. None: the first by index, so that they do not depend on the batches
            in which they were generated.

        Raises:
          DiskFullError, or another error of the write before.
          PoolError: see `joined`.
          ValueError: `wanted` or `chosen` are not of this pool's classes.
        """
        self.close()
        records = self.joined()
        classes = self._info.classes
        accepted = [records.rows(k) for k in range(len(classes))]
        stay = _first(accepted, wanted) if chosen is None else _chosen(accepted, wanted, chosen)
        verdict = records.columns["verdict"].astype(object)
        verdict[np.setdiff1d(np.concatenate(accepted), np.concatenate(stay))] = "surplus"
        column = SCHEMA.get_field_index("verdict")
        table = records.table.set_column(
            column, SCHEMA.field("verdict"), pa.array(verdict, pa.string())
        )
        outcomes = schema.outcomes(classes, wanted, Records(self._folder, table).columns)
        files.write_atomically(
            self._folder / schema.TABLE, _parquet(table), "the table of the pool"
        )
        files.write_atomically(
            self._folder / schema.DESCRIPTION,
            schema.describe(self._info, outcomes),
            "the description of the pool",
        )
        distributed.barrier("pool finished")

    def close(self) -> None:
        """Waits for the write under way and raises its error; nothing can be written hereafter."""
        try:
            self._settle()
        finally:
            self._thread.shutdown()

    def __enter__(self) -> "PoolWriter":
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes; an error of the block comes first, with a note where a write failed, too."""
        try:
            self.close()
        except Exception as failed:
            if error is None:
                raise
            error.add_note(f"The pool's last write failed, too: {failed}")

    def _settle(self) -> None:
        """Waits for the write under way."""
        if self._writing is None:
            return
        error = self._writing.exception()
        self._writing = None
        if error is not None:
            raise error
        self._parts += 1

    def _write(
        self, part: int, images: np.ndarray, table: pa.Table, kept: Int[np.ndarray, "m"]
    ) -> None:
        if not distributed.is_first():
            return
        records = [encode(image) for image in images]
        if records:
            _write_shard(schema.shard_path(self._folder, part), records)
        shard, position = np.full((2, table.num_rows), -1)
        shard[kept], position[kept] = part, np.arange(len(kept))
        sha256 = np.full(table.num_rows, "", object)
        sha256[kept] = [digest(record) for record in records]
        columns = {"shard": shard, "position": position, "sha256": sha256}
        for name in schema.ORIGIN:
            columns[name] = [getattr(self._info, name)] * table.num_rows
        for name, column in columns.items():
            field = SCHEMA.field(name)
            table = table.append_column(field, pa.array(column).cast(field.type))
        path = schema.part_path(self._folder, part)
        files.write_atomically(path, _parquet(table.select(SCHEMA.names)), "a table of the pool")

    def _read(self, part: int) -> pa.Table:
        path = schema.part_path(self._folder, part)
        table = schema.read_table(path)
        for name in ("generator", "manifest_sha256", "seed"):
            found, mine = set(table[name].unique().to_pylist()), getattr(self._info, name)
            if found - {mine}:
                raise PoolError(
                    f"{path}: its {name} is {next(iter(found - {mine}))}, this run's is {mine}; "
                    f"{schema.AGAIN}"
                )
        return table


def _opened(folder: pathlib.Path) -> int:
    """The number of parts that are there."""
    for name in ("shards", "parts"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    files.sweep(folder)
    return next(n for n in itertools.count() if not schema.part_path(folder, n).exists())


def _given(columns: Mapping[str, Any]) -> pa.Table:
    """The caller's columns in the schema's types."""
    if set(columns) != set(_GIVEN):
        raise ValueError(
            f"pool: columns missing: {sorted(set(_GIVEN) - set(columns))}; not taken: "
            f"{sorted(set(columns) - set(_GIVEN))}"
        )
    fields = pa.schema([SCHEMA.field(name) for name in _GIVEN])
    return pa.table({name: columns[name] for name in _GIVEN}).cast(fields)


def _check(table: pa.Table, images: int, kept: Int[np.ndarray, "m"]) -> None:
    n = table.num_rows
    if len(kept) != images or (np.diff(np.concatenate([[-1], kept, [n]])) < 1).any():
        raise ValueError(
            f"pool: {images} images for {len(kept)} of {n} rows; takes an image for each row of "
            "`kept`, which ascend"
        )
    judged = zip(table["failed"].to_pylist(), table["verdict"].to_pylist(), strict=True)
    for row, (failed, verdict) in enumerate(judged):
        unknown = failed and set(failed.split(",")) - {*schema.GATES}
        if unknown or verdict != schema.verdict_of(failed):
            raise ValueError(f"pool: row {row}: failed {failed!r}, but verdict {verdict!r}")
    accepted = np.flatnonzero(np.array(table["failed"].to_pylist(), dtype=object) == "")
    if len(lost := np.setdiff1d(accepted, kept)):
        raise ValueError(f"pool: rows {lost.tolist()} are accepted, but have no image")


def _first(accepted: Sequence[np.ndarray], wanted: Int[np.ndarray, "k"]) -> list[np.ndarray]:
    return [rows[: int(count)] for rows, count in zip(accepted, wanted, strict=True)]


def _chosen(
    accepted: Sequence[np.ndarray], wanted: Int[np.ndarray, "k"], chosen: Sequence[np.ndarray]
) -> Sequence[np.ndarray]:
    for label, (own, count, rows) in enumerate(zip(accepted, wanted, chosen, strict=True)):
        takes = min(int(count), len(own))
        if len(rows) != takes or len(np.intersect1d(rows, own)) != takes:
            raise ValueError(
                f"pool: {len(rows)} rows are chosen for class {label}; takes {takes} different "
                "rows of accepted images of the class"
            )
    return chosen


def _write_shard(path: pathlib.Path, records: Sequence[bytes]) -> None:
    """A shard that has its name once it is whole and on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with files.disk_errors(path, "a shard of the pool", sum(map(len, records))):
            writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
            for record in records:
                writer.write(record)
            writer.close()
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # half a shard would hold space that is missing


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
