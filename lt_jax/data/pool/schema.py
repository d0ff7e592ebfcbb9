"""What a pool says of each candidate, of all of them, and of each class; and where it says it."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int, Shaped

from lt_jax.errors import UserError
from lt_jax.runtime import files

GATES = ("ood", "label", "memorised")  # in the order in which a verdict names them
VERDICTS = ("accepted", *GATES, "surplus")
TABLE, DESCRIPTION = "pool.parquet", "pool.json"
VERSION = 2  # of pool.json

SCHEMA = pa.schema(
    [
        ("index", pa.int64()),  # image i depends on (seed, i) only
        ("label", pa.int32()),  # the intended class: the generator's condition
        ("source_label", pa.int32()),  # of the real image that was changed; else the label
        ("label_weight", pa.float32()),  # of the label; the rest is the source_label's
        ("conditions", pa.string()),  # what else was asked for, and the source's id: JSON
        # By what it was judged.
        ("score", pa.float32()),  # out-of-distribution score, higher = further out
        ("scores", pa.string()),  # of each member of the ensemble, by name: JSON
        ("label_probability", pa.float32()),  # of the intended class, under the extractor
        ("cosine", pa.float32()),  # to the nearest train image; NaN: not measured
        ("ms_ssim", pa.float32()),  # likewise
        ("nearest", pa.string()),  # manifest id of the nearest by MS-SSIM; "": none
        ("failed", pa.string()),  # all of GATES that it failed, comma-separated
        ("verdict", pa.string()),  # one of VERDICTS: the first gate failed; surplus: not needed
        # Where its image is; -1, -1 and "" where none was kept.
        ("shard", pa.int32()),
        ("position", pa.int32()),  # in the shard
        ("sha256", pa.string()),  # of the record's bytes
        # Whence it comes: the same for all records of a pool, and kept when pools are joined.
        ("generator", pa.string()),  # key of the generator's artifact
        ("manifest_sha256", pa.string()),  # of the train rows that the generator saw
        ("seed", pa.int64()),
        ("guidance_scale", pa.float32()),
    ]
)
PLACE = ("shard", "position", "sha256")
ORIGIN = ("generator", "manifest_sha256", "seed", "guidance_scale")
THRESHOLDS = ("thresholds", "cosine_thresholds", "ms_ssim_thresholds")  # of PoolInfo, one a class
_TUPLES = ("classes", "scores", *THRESHOLDS)
AGAIN = "delete the stage's folder and run synthesize again"


class PoolError(UserError, ValueError):
    """A pool that is missing, unfinished, damaged, of another version, or wrongly asked."""


class ForeignPoolError(PoolError):
    """A pool that was generated from another manifest's train rows."""


@dataclasses.dataclass(frozen=True)
class PoolInfo:
    """What all records of a pool share: whence they come, and the gates that judged them.

    Thresholds are one a class, or none where the gate is off; infinity lets everything pass.
    """

    generator: str  # key of the generator's artifact
    extractor: str  # key of the extractor's artifact
    manifest_sha256: str
    seed: int
    classes: tuple[str, ...]
    guidance_scale: float
    sampler: str
    thresholds: tuple[float, ...]  # `score` fails above
    least_label_probability: float
    scores: tuple[str, ...] = ()  # names of what `score` combines
    cosine_thresholds: tuple[float, ...] = ()  # `cosine` fails above
    ms_ssim_thresholds: tuple[float, ...] = ()  # `ms_ssim` fails above

    def __post_init__(self) -> None:
        """Raises PoolError for thresholds that are not one a class, or not numbers."""
        for name in THRESHOLDS:
            given = getattr(self, name)
            if len(given) not in (0, len(self.classes)) or any(map(math.isnan, given)):
                raise PoolError(
                    f"pool: {name} are {given}; takes a number for each of "
                    f"{len(self.classes)} classes, or none at all"
                )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one class.

    Attributes:
      name: of the class.
      wanted: accepted images that were asked for.
      accepted: images that it got.
      surplus: images that passed all gates and were not needed.
      generated: candidates, of every verdict.
      failed: candidates that failed each of GATES, alone or among others.
      several: candidates that failed more than one.
      unmet: wanted images that it did not get.
      why: the reason for that, in words; "" where nothing is unmet.
    """

    name: str
    wanted: int
    accepted: int
    surplus: int
    generated: int
    failed: Mapping[str, int]
    several: int
    unmet: int
    why: str


def judgements(failures: Bool[np.ndarray, "n g"]) -> dict[str, list[str]]:
    """The columns `failed` and `verdict` of candidates that fail these of GATES, in their order."""
    failed = [",".join(gate for gate, on in zip(GATES, row, strict=True) if on) for row in failures]
    return {"failed": failed, "verdict": [verdict_of(gates) for gates in failed]}


def verdict_of(failed: str) -> str:
    """The verdict that goes with the column `failed`."""
    return failed.split(",")[0] or "accepted"


def failures(failed: Sequence[str] | Shaped[np.ndarray, "n"]) -> Bool[np.ndarray, "n g"]:
    """Which of GATES each candidate failed, from the column `failed`."""
    rows = [[gate in gates.split(",") for gate in GATES] for gates in failed]
    return np.array(rows, dtype=bool).reshape(len(rows), len(GATES))


def outcomes(
    classes: Sequence[str],
    wanted: Sequence[int] | Int[np.ndarray, "k"],
    columns: Mapping[str, np.ndarray],
) -> tuple[Outcome, ...]:
    """What became of each class, from the columns `label`, `verdict` and `failed`."""
    failed = failures(columns["failed"])
    found = []
    for k, (name, asked) in enumerate(zip(classes, wanted, strict=True)):
        own = columns["label"] == k
        accepted = int(np.sum(own & (columns["verdict"] == "accepted")))
        sums = failed[own].sum(axis=0).tolist()
        counts: dict[str, int] = dict(zip(GATES, sums, strict=True))
        unmet = max(int(asked) - accepted, 0)
        found.append(
            Outcome(
                name=name,
                wanted=int(asked),
                accepted=accepted,
                surplus=int(np.sum(own & (columns["verdict"] == "surplus"))),
                generated=int(own.sum()),
                failed=counts,
                several=int((failed[own].sum(axis=1) > 1).sum()),
                unmet=unmet,
                why=_why(int(own.sum()), counts) if unmet else "",
            )
        )
    return tuple(found)


def _why(generated: int, failed: Mapping[str, int]) -> str:
    if not generated:
        return "no candidate was generated"
    reasons = ", ".join(f"{count} failed {gate}" for gate, count in failed.items() if count)
    return f"budget spent after {generated} candidates: {reasons or 'none failed a gate'}"


def shard_path(folder: pathlib.Path, part: int) -> pathlib.Path:
    """The images of a part; there is none where no image was kept."""
    return folder / "shards" / f"{part:05d}.array_record"


def part_path(folder: pathlib.Path, part: int) -> pathlib.Path:
    """The rows of a part."""
    return folder / "parts" / f"{part:05d}.parquet"


def describe(info: PoolInfo, found: Sequence[Outcome]) -> str:
    """The content of pool.json."""
    shared = to_json(dataclasses.asdict(info))
    classes = [dataclasses.asdict(outcome) for outcome in found]
    return json.dumps({"version": VERSION, **shared, "outcomes": classes}, indent=1)


def to_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `PoolInfo` as JSON, which has no infinity."""
    limits = {name: fields[name] for name in THRESHOLDS if name in fields}
    return {
        **fields,
        **{name: [None if math.isinf(x) else x for x in own] for name, own in limits.items()},
    }


def of_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `to_json`."""
    limits = {name: values[name] for name in THRESHOLDS if name in values}
    whole = {
        **values,
        **{name: [math.inf if x is None else x for x in own] for name, own in limits.items()},
    }
    return {name: tuple(x) if name in _TUPLES else x for name, x in whole.items()}


def read_description(folder: pathlib.Path) -> tuple[PoolInfo, tuple[Outcome, ...]]:
    """What pool.json says.

    Raises:
      PoolError: there is no finished pool in `folder`, or it is of another version, or damaged.
    """
    path = folder / DESCRIPTION
    if not files.appeared(path):
        raise PoolError(_nothing_at(folder))
    check_schema(_read(folder / TABLE, pq.read_schema), folder / TABLE)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = tuple(Outcome(**outcome) for outcome in values.pop("outcomes"))
        if (version := values.pop("version")) != VERSION:
            raise PoolError(f"{path}: version {version}, this program reads {VERSION}; {AGAIN}")
        return PoolInfo(**of_json(values)), found
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, PoolError):
            raise
        raise PoolError(
            f"{path}: no readable description ({type(error).__name__}: {error}); {AGAIN}"
        ) from error


def _nothing_at(folder: pathlib.Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder; takes that of a finished stage, <workdir>/synthesize"
    if (folder / "synthesize" / DESCRIPTION).is_file():
        return f"{folder}: no finished pool; did you mean {folder / 'synthesize'}?"
    parts = len(list(folder.glob("parts/*.parquet")))
    return (
        f"{folder}: no finished pool ({DESCRIPTION} is missing, {parts} parts are written); "
        "run synthesize to the end"
    )


def read_table(path: pathlib.Path) -> pa.Table:
    """A table of the pool, or of a part of it.

    Raises:
      PoolError: missing, unreadable, or with other columns than `SCHEMA`'s.
    """
    table = _read(path, pq.read_table)
    check_schema(table.schema, path)
    return table.select(SCHEMA.names)


def _read(path: pathlib.Path, read: Any) -> Any:
    files.appeared(path)
    try:
        return read(path)
    except (OSError, pa.ArrowException) as error:
        raise PoolError(f"{path}: no readable table ({error}); {AGAIN}") from error


def check_schema(schema: pa.Schema, path: pathlib.Path) -> None:
    """Raises PoolError where the columns are not those of `SCHEMA`, in any order."""
    missing = [name for name in SCHEMA.names if name not in schema.names]
    unknown = [name for name in schema.names if name not in SCHEMA.names]
    other = [
        f"{field.name} ({schema.field(field.name).type}, not {field.type})"
        for field in SCHEMA
        if field.name in schema.names and schema.field(field.name).type != field.type
    ]
    wrong = [
        f"{what} {', '.join(names)}"
        for what, names in (("lacks", missing), ("has unknown", unknown), ("has retyped", other))
        if names
    ]
    if wrong:
        raise PoolError(
            f"{path}: the table {' and '.join(wrong)}: it was written by another version of this "
            f"program; {AGAIN}"
        )


def to_numpy(column: pa.ChunkedArray) -> Shaped[np.ndarray, "n"]:
    """A column of the table, text as `str`."""
    if pa.types.is_string(column.type):
        return np.array(column.to_pylist(), dtype=str)  # also where there are no rows
    return column.to_numpy()
