"""Checks a pool against itself: hashes, shards, tables and how they join, verdicts and values."""

import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from array_record.python import array_record_module  # type: ignore[attr-defined]

from lt_jax.data.pool import gates, schema
from lt_jax.data.pool.reader import PoolReader
from lt_jax.data.pool.records import Columns, digest
from lt_jax.data.pool.schema import SCHEMA, PoolError
from lt_jax.data.pool.summary import MEASURES


def problems(
    pool: PoolReader, folder: pathlib.Path, progress: Callable[[int], None] = lambda done: None
) -> Iterator[str]:
    """What is wrong, where; nothing if the pool is intact. `progress` is told records read."""
    yield from _of_rows(pool)
    yield from _of_gates(pool)
    yield from _of_outcomes(pool)
    yield from _of_join(pool, folder)
    yield from _of_shards(pool, folder, progress)


def _of_rows(pool: PoolReader) -> Iterator[str]:
    """Rows that contradict themselves, the description or each other."""
    columns, info = pool.columns, pool.info
    for name in SCHEMA.names:
        if nulls := pool.table[name].null_count:
            yield f"{schema.TABLE}: column {name}: {nulls} rows are empty"
    index, counts = np.unique(columns["index"], return_counts=True)
    for twice in index[counts > 1].tolist():
        yield f"{schema.TABLE}: index {twice} stands more than once"
    for name in schema.ORIGIN:
        told = pool.table.schema.field(name).type.to_pandas_dtype()(getattr(info, name))
        if wrong := int(np.sum(columns[name] != told)):
            yield f"{schema.TABLE}: column {name}: {wrong} rows differ from {schema.DESCRIPTION}"
    label, verdict = columns["label"], columns["verdict"]
    told = np.array([schema.verdict_of(failed) for failed in columns["failed"].tolist()], dtype=str)
    passed = (told == "accepted") & np.isin(verdict, ("accepted", "surplus"))
    homeless = (columns["shard"] < 0) & np.isin(verdict, ("accepted", "surplus"))
    for what, rows in (
        ("its label is no class", (label < 0) | (label >= len(info.classes))),
        ("its verdict is not that of the gates it failed", (verdict != told) & ~passed),
        ("it is accepted, but has no image", homeless),
    ):
        for row in np.flatnonzero(rows).tolist():
            yield f"{schema.TABLE}: index {columns['index'][row]}: {what}"


def _of_gates(pool: PoolReader) -> Iterator[str]:
    """Candidates that their values and the pool's limits judge otherwise than their row says."""
    columns = pool.columns
    inside = (columns["label"] >= 0) & (columns["label"] < len(pool.info.classes))
    rows = np.flatnonzero(inside)
    own = {name: columns[name][rows] for name in ("label", *MEASURES)}
    told = schema.judgements(gates.failures(pool.info, own))
    for row, failed, verdict in zip(rows.tolist(), told["failed"], told["verdict"], strict=True):
        said = columns["failed"][row], columns["verdict"][row]
        unneeded = not failed and said == ("", "surplus")
        if said != (failed, verdict) and not unneeded:
            yield (
                f"{schema.TABLE}: index {columns['index'][row]}: failed {str(said[0])!r}, verdict "
                f"{said[1]}, but by its values and the gates of {schema.DESCRIPTION} it failed "
                f"{failed!r}, verdict {verdict}"
            )


def _of_outcomes(pool: PoolReader) -> Iterator[str]:
    wanted = [outcome.wanted for outcome in pool.outcomes]
    if len(wanted) != len(pool.info.classes):
        yield f"{schema.DESCRIPTION}: {len(wanted)} outcomes of {len(pool.info.classes)} classes"
        return
    counted = schema.outcomes(pool.info.classes, wanted, pool.columns)
    for said, found in zip(pool.outcomes, counted, strict=True):
        if said != found:
            yield f"{schema.DESCRIPTION}: class {said.name}: says {said}, the table has {found}"


def _of_join(pool: PoolReader, folder: pathlib.Path) -> Iterator[str]:
    """Whether the parts, joined, are the table of the pool."""
    tables = []
    paths = sorted((folder / "parts").glob("*.parquet"))
    for part, path in enumerate(paths):
        if path != schema.part_path(folder, part):
            yield f"parts: {schema.part_path(folder, part).name} is missing before {path.name}"
            return
        try:
            tables.append(schema.read_table(path))
        except PoolError as error:
            yield str(error)
    if len(tables) < len(paths):
        return
    joined = pa.concat_tables(tables or [SCHEMA.empty_table()]).sort_by("index")
    if joined.num_rows != len(pool):
        yield (
            f"parts: {joined.num_rows} rows in {len(paths)} parts, {len(pool)} in {schema.TABLE}"
        )
        return
    before = Columns(joined)
    for name in SCHEMA.names:
        was, now = before[name], pool.columns[name]
        differs = (was != now) & ~((was != was) & (now != now))  # NaN is not itself
        if name == "verdict":
            differs &= ~((was == "accepted") & (now == "surplus"))
        for index in pool.columns["index"][differs].tolist():
            yield f"{schema.TABLE}: index {index}: {name} is not what its part says"


def _of_shards(
    pool: PoolReader, folder: pathlib.Path, progress: Callable[[int], None]
) -> Iterator[str]:
    columns = pool.columns
    order = np.lexsort((columns["position"], columns["shard"]))
    order = order[columns["shard"][order] >= 0]
    numbers, starts = np.unique(columns["shard"][order], return_index=True)
    expected = {schema.shard_path(folder, int(number)).name for number in numbers}
    for path in sorted((folder / "shards").glob("[!.]*")):
        if path.name not in expected:
            yield f"shards/{path.name}: no row of {schema.TABLE} points to it"
    done = 0
    for number, rows in zip(numbers.tolist(), np.split(order, starts)[1:], strict=True):
        yield from _of_shard(pool, schema.shard_path(folder, number), rows)
        done += len(rows)
        progress(done)


def _of_shard(pool: PoolReader, path: pathlib.Path, rows: np.ndarray) -> Iterator[str]:
    """One shard against its `rows`, which are in the order of their positions."""
    where = f"shards/{path.name}"
    index, sha256 = (pool.columns[name][rows].tolist() for name in ("index", "sha256"))
    lost = f"{len(rows)} records are lost, of index {min(index)} to {max(index)}"
    if not path.is_file():
        yield f"{where}: missing: {lost}"
        return
    reader = array_record_module.ArrayRecordReader(str(path))
    if not (held := reader.num_records()):  # so also where the file is no shard
        yield f"{where}: cannot be read: {lost}"
        return
    if held != len(rows) or pool.columns["position"][rows].tolist() != [*range(held)]:
        yield f"{where}: holds {held} records, {schema.TABLE} points to {len(rows)} in it"
    for row, number, expected in zip(rows.tolist(), index, sha256, strict=True):
        position = int(pool.columns["position"][row])
        try:
            found = digest(reader.read([position])[0])
        except Exception as error:  # the library raises bare RuntimeErrors and IndexErrors
            yield f"{where}: record {position} (index {number}) cannot be read ({error})"
        else:
            if found != expected:
                yield f"{where}: record {position} (index {number}): sha256 does not match"
