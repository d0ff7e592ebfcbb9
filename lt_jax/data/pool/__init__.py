"""The pool: synthetic images with their provenance, in ArrayRecord shards beside a Parquet table.

    pool.parquet           one row a generated image: `SCHEMA`
    pool.json              what all rows share (`PoolInfo`), and what each class got (`Outcome`)
    shards/00012.array_record   the images of write 12, PNG (lossless, readable by anything)
    parts/00012.parquet    the rows of write 12, as they were before the pool was joined
    gates.json             the gates by which all parts were judged, written before the first

Every candidate has its row, with the values by which it was judged and the gates that it failed,
so that a selection can be inspected and re-judged; rejected ones have an image only where it was
kept. A write is a shard and a part table, the table last: an interrupted generation finds its
finished writes and goes on behind them, if it judges by the same gates. A pool carries the sha256
of the manifest whose train rows its generator saw; `PoolReader` refuses to serve it to another
manifest.

    python -m lt_jax.data.pool inspect|export|verify DIR
"""

from lt_jax.data.pool.reader import PoolReader, open_pool
from lt_jax.data.pool.records import Records
from lt_jax.data.pool.schema import (
    GATES,
    SCHEMA,
    VERDICTS,
    ForeignPoolError,
    Outcome,
    PoolError,
    PoolInfo,
)
from lt_jax.data.pool.writer import PoolWriter

__all__ = [
    "GATES",
    "SCHEMA",
    "VERDICTS",
    "ForeignPoolError",
    "Outcome",
    "PoolError",
    "PoolInfo",
    "PoolReader",
    "PoolWriter",
    "Records",
    "open_pool",
]
