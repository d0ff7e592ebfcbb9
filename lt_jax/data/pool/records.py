"""Records of a pool: rows of its table, and their images in the shards."""

import hashlib
import io
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from array_record.python import array_record_module  # type: ignore[attr-defined]
from jaxtyping import Int, Shaped, UInt8
from PIL import Image

from lt_jax.data.images import Held
from lt_jax.data.pool.schema import AGAIN, PoolError, shard_path, to_numpy

_OPEN_SHARDS = 64  # a large pool has more shards than a process may hold files open


class Columns(Mapping[str, Shaped[np.ndarray, "n"]]):
    """A table's columns [n] by name, each made an array when it is first asked for.

    As arrays of text, the columns of a million records would take gigabytes that few users need.
    """

    def __init__(self, table: pa.Table):
        """Of this table."""
        self._table = table
        self._made: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> Shaped[np.ndarray, "n"]:
        """One column; raises KeyError where there is none of that name."""
        if name not in self._made:
            self._made[name] = to_numpy(self._table[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        """Their names."""
        return iter(self._table.column_names)

    def __len__(self) -> int:
        """How many columns there are."""
        return self._table.num_columns

    def __getstate__(self) -> dict[str, Any]:
        """Loader processes make the arrays that they need."""
        return {**self.__dict__, "_made": {}}


class Records:
    """Rows of a pool. `records[rows]` are their images [n, h, w, c], by row of the table."""

    def __init__(self, folder: pathlib.Path, table: pa.Table):
        """Records of `table` (`SCHEMA`), whose images are in the shards below `folder`."""
        self._folder = folder
        self.table = table
        self.columns = Columns(table)
        self._readers: dict[int, array_record_module.ArrayRecordReader] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Loader processes open the shards for themselves."""
        return {**self.__dict__, "_readers": {}}

    def __len__(self) -> int:
        """Records, accepted or not, with an image or without."""
        return self.table.num_rows

    def rows(self, label: int, verdict: str = "accepted") -> Int[np.ndarray, "n"]:
        """Rows of one class with one verdict, by index."""
        columns = self.columns
        return np.flatnonzero((columns["label"] == label) & (columns["verdict"] == verdict))

    def with_image(self, rows: Int[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
        """Those of `rows` whose image was kept: all accepted ones, rejected ones on demand."""
        return rows[self.columns["shard"][rows] >= 0]

    def __getitem__(self, indices: Int[np.ndarray, "n"]) -> UInt8[np.ndarray, "n h w c"]:
        """Images of these rows, n > 0.

        Raises:
          PoolError: an image was not kept, is missing, or is not what was written (sha256), or n
            is 0.
        """
        if not len(indices):
            raise PoolError(f"{self._folder}: no images were asked for, so they have no shape")
        return np.stack([decode(self.record(int(row))) for row in indices])

    def names(self, rows: Int[np.ndarray, "n"]) -> list[str]:
        """What messages call these rows."""
        return [f"candidate {index}" for index in self.columns["index"][rows]]

    def held(self, rows: Int[np.ndarray, "n"]) -> Held:
        """Images of these rows, n > 0, decoded: a store of their own. Raises as indexing does."""
        return Held(self[rows], self.names(rows))

    def record(self, row: int) -> bytes:
        """The PNG file of one row, as it was written. Raises PoolError as indexing does."""
        shard, position = (int(self.columns[name][row]) for name in ("shard", "position"))
        if shard < 0:
            raise PoolError(
                f"{self._folder}: the image of candidate {self.columns['index'][row]} was not kept "
                f"(verdict: {self.columns['verdict'][row]}); to look at rejected images, run "
                "synthesize with --config.synthesize.selection.keep_rejected=True"
            )
        path = shard_path(self._folder, shard)
        try:
            record = self._reader(shard).read([position])[0]
        except Exception as error:  # the library raises bare RuntimeErrors and IndexErrors
            raise PoolError(
                f"{path}: record {position} cannot be read ({error}); {AGAIN}"
            ) from error
        if digest(record) != self.columns["sha256"][row]:
            raise PoolError(
                f"{path}: record {position} is corrupt (sha256 does not match the table); {AGAIN}"
            )
        return record

    def _reader(self, shard: int) -> array_record_module.ArrayRecordReader:
        if shard not in self._readers:
            if len(self._readers) == _OPEN_SHARDS:
                del self._readers[next(iter(self._readers))]
            path = shard_path(self._folder, shard)
            self._readers[shard] = array_record_module.ArrayRecordReader(str(path))
        return self._readers[shard]


def encode(image: UInt8[np.ndarray, "h w c"]) -> bytes:
    """An image of 1 or 3 channels as PNG.

    Run lengths and Huffman codes, without a search for repeats: generated images have noise in
    their last bits and repeat nothing but flat background. At 160 px this takes 0.4 to 0.7 of the
    default's time (0.9 at 32 px, where opening a file costs most) for files within 0.5% of its
    size; level 1 with the search takes longer and makes them up to 15% larger.
    """
    buffer = io.BytesIO()
    pixels = image.squeeze(-1) if image.shape[-1] == 1 else image
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def decode(record: bytes) -> UInt8[np.ndarray, "h w c"]:
    """The image of a record."""
    image = np.asarray(Image.open(io.BytesIO(record)))
    return image[..., None] if image.ndim == 2 else image


def digest(record: bytes) -> str:
    """What the table keeps of a record to know it again."""
    return hashlib.sha256(record).hexdigest()
