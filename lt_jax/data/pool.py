"""The pool: synthetic images with their provenance, in ArrayRecord shards beside a Parquet table.

    pool.parquet           one row a generated image: `SCHEMA`
    pool.json              what all rows share: `PoolInfo`
    shards/00012.array_record   the images of write 12, PNG (lossless, readable by anything)
    parts/00012.parquet    the rows of write 12, as they were before the pool was joined

Rejected images are kept with the reason, so that a selection can be inspected and re-judged.
A write is a shard and a part table, the table last: an interrupted generation finds its finished
writes and goes on behind them. A pool carries the sha256 of the manifest whose train rows its
generator saw; `PoolReader` refuses to serve it to another manifest.
"""

import dataclasses
import hashlib
import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_module  # type: ignore[attr-defined]
from PIL import Image

from lt_jax.errors import UserError
from lt_jax.runtime import files

VERDICTS = ("accepted", "ood", "label", "surplus")
_OPEN_SHARDS = 64  # a large pool has more shards than a process may hold files open
SCHEMA = pa.schema(
    [
        ("index", pa.int64()),  # image i depends on (seed, i) only
        ("label", pa.int32()),  # the intended class: the generator's condition
        ("source_label", pa.int32()),  # of the real image that was changed; else the label
        ("label_weight", pa.float32()),  # of the label; the rest is the source_label's
        ("conditions", pa.string()),  # what else was asked for, and the source's id: JSON
        ("score", pa.float32()),  # out-of-distribution score, higher = further out
        ("label_probability", pa.float32()),  # of the intended class, under the extractor
        ("verdict", pa.string()),  # one of VERDICTS; surplus: not needed any more
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


class ForeignPoolError(UserError, ValueError):
    """A pool that was generated from another manifest's train rows."""


@dataclasses.dataclass(frozen=True)
class PoolInfo:
    """What all records of a pool share."""

    generator: str  # key of the generator's artifact
    extractor: str  # key of the extractor's artifact
    manifest_sha256: str
    seed: int
    classes: tuple[str, ...]
    guidance_scale: float
    sampler: str
    thresholds: tuple[float, ...]  # of each class, on `score`
    least_label_probability: float


class PoolWriter:
    """Writes a pool in parts; each part is on disk, whole, when `write` returns."""

    def __init__(self, folder: pathlib.Path, info: PoolInfo):
        """Opens `folder`; parts that an interrupted run has finished are kept."""
        self._folder, self._info = folder, info
        for name in ("shards", "parts"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def finished(self) -> list[dict[str, np.ndarray]]:
        """The columns of each part written so far, in order."""
        parts = []
        while (path := self._part(len(parts))).exists():
            parts.append(_columns(pq.read_table(path)))
        return parts

    def write(self, part: int, images: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        """Writes part number `part`: images uint8 [n, h, w, c] and their columns [n]."""
        shard = self._folder / "shards" / f"{part:05d}.array_record"
        temporary = shard.with_suffix(".tmp")
        records = [_encode(image) for image in images]
        try:
            with files.disk_errors(shard, "a shard of the pool", sum(map(len, records))):
                writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
                for record in records:
                    writer.write(record)
                writer.close()
                temporary.replace(shard)
        finally:
            temporary.unlink(missing_ok=True)  # half a shard would hold space that is missing
        table = (
            pa.table(
                {
                    **columns,
                    "shard": np.full(len(images), part),
                    "position": np.arange(len(images)),
                    "sha256": [hashlib.sha256(record).hexdigest() for record in records],
                    **{
                        name: [getattr(self._info, name)] * len(images)
                        for name in ("generator", "manifest_sha256", "seed", "guidance_scale")
                    },
                },
            )
            .select(SCHEMA.names)
            .cast(SCHEMA)
        )
        files.write_atomically(self._part(part), _parquet(table), "a table of the pool")

    def finish(self, wanted: np.ndarray) -> None:
        """Joins the parts. Of each class the first `wanted` [k] accepted images stay accepted, by
        index; accepted ones behind them become surplus, so that the accepted set does not depend
        on the batches in which it was generated.

        The parts stay: a run that is killed before it marks its stage as finished finds them.
        """
        table = pa.concat_tables(
            [pq.read_table(self._part(i)) for i in range(len(self.finished()))]
            or [SCHEMA.empty_table()]
        ).sort_by("index")
        label = table["label"].to_numpy()
        verdict = np.array(table["verdict"].to_pylist(), dtype=object)
        for k, count in enumerate(wanted):
            accepted = np.flatnonzero((label == k) & (verdict == "accepted"))
            verdict[accepted[int(count) :]] = "surplus"
        column = table.schema.get_field_index("verdict")
        table = table.set_column(column, SCHEMA.field("verdict"), pa.array(verdict, pa.string()))
        files.write_atomically(
            self._folder / "pool.parquet", _parquet(table), "the table of the pool"
        )
        files.write_atomically(
            self._folder / "pool.json",
            json.dumps(dataclasses.asdict(self._info), indent=1),
            "the description of the pool",
        )

    def _part(self, part: int) -> pathlib.Path:
        return self._folder / "parts" / f"{part:05d}.parquet"


class PoolReader:
    """A finished pool. `reader[indices]` are images [n, h, w, c] by row of the table."""

    def __init__(self, folder: pathlib.Path, manifest_sha256: str):
        """Opens a pool for the users of one manifest.

        Raises:
          ForeignPoolError: the pool's generator saw the train rows of another manifest.
          ValueError: the pool is unfinished.
        """
        self._folder = folder
        path = folder / "pool.json"
        if not path.exists():
            raise ValueError(f"{folder}: no finished pool (pool.json is missing); run synthesize")
        values = json.loads(path.read_text())
        lists = {name: tuple(values[name]) for name in ("classes", "thresholds")}
        self.info = PoolInfo(**{**values, **lists})
        if self.info.manifest_sha256 != manifest_sha256:
            raise ForeignPoolError(
                f"{folder} was generated from manifest {self.info.manifest_sha256[:12]}, this run "
                f"uses {manifest_sha256[:12]}: its images may show this run's test groups. "
                "Generate a pool from this split (stages generator and synthesize)"
            )
        self.columns = _columns(pq.read_table(folder / "pool.parquet"))
        self._readers: dict[int, array_record_module.ArrayRecordReader] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Loader processes open the shards for themselves."""
        return {**self.__dict__, "_readers": {}}

    def __len__(self) -> int:
        """Records, accepted or not."""
        return len(self.columns["index"])

    def rows(self, label: int, verdict: str = "accepted") -> np.ndarray:
        """Rows [n] of one class with one verdict, by index."""
        columns = self.columns
        return np.flatnonzero((columns["label"] == label) & (columns["verdict"] == verdict))

    def counts(self, verdict: str = "accepted") -> np.ndarray:
        """Records of each class [k] with one verdict."""
        return np.array([len(self.rows(k, verdict)) for k in range(len(self.info.classes))])

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Images uint8 [n, h, w, c], n > 0.

        Raises:
          ValueError: a record is missing or is not what was written (sha256), or n is 0.
        """
        if not len(indices):
            raise ValueError(f"{self._folder}: no images were asked for, so they have no shape")
        images = []
        for row in indices:
            shard, position = (int(self.columns[name][row]) for name in ("shard", "position"))
            images.append(_decode(self._record(shard, position, str(self.columns["sha256"][row]))))
        return np.stack(images)

    def _record(self, shard: int, position: int, sha256: str) -> bytes:
        path = self._folder / "shards" / f"{shard:05d}.array_record"
        try:
            if shard not in self._readers:
                if len(self._readers) == _OPEN_SHARDS:
                    del self._readers[next(iter(self._readers))]
                self._readers[shard] = array_record_module.ArrayRecordReader(str(path))
            record = self._readers[shard].read([position])[0]
        except Exception as error:  # the library raises bare RuntimeErrors and IndexErrors
            raise ValueError(
                f"{path}: record {position} cannot be read ({error}); "
                "delete the stage's folder and run synthesize again"
            ) from error
        if hashlib.sha256(record).hexdigest() != sha256:
            raise ValueError(
                f"{path}: record {position} is corrupt (sha256 does not match the table); "
                "delete the stage's folder and run synthesize again"
            )
        return record


def _encode(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def _decode(record: bytes) -> np.ndarray:
    image = np.asarray(Image.open(io.BytesIO(record)))
    return image[..., None] if image.ndim == 2 else image


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _columns(table: pa.Table) -> dict[str, np.ndarray]:
    return {
        name: np.array(table[name].to_pylist(), dtype=str)  # also where there are no rows
        if pa.types.is_string(table.schema.field(name).type)
        else table[name].to_numpy()
        for name in table.column_names
    }
