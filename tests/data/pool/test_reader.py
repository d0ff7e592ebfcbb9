"""Reading a pool: for whom it was written, whatever has become of its files."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lt_jax.data.pool import ForeignPoolError, PoolError, PoolReader, PoolWriter, open_pool, records
from tests.data.pool.making import INFO, MANIFEST, columns, pixels, write

NEW = ("scores", "cosine", "ms_ssim", "nearest", "failed")


def test_rows_and_counts_by_class_and_verdict(tmp_path):
    reader = write(tmp_path, [range(8)])
    np.testing.assert_array_equal(reader.rows(0), [0, 2, 4, 7])
    np.testing.assert_array_equal(reader.rows(0, "ood"), [3])
    np.testing.assert_array_equal(reader.counts(), [4, 3])
    np.testing.assert_array_equal(reader.counts("ood"), [1, 0])
    np.testing.assert_array_equal(reader.counts("surplus"), [0, 0])


def test_a_foreign_manifest_is_refused(tmp_path):
    write(tmp_path, [range(8)])
    with pytest.raises(ForeignPoolError, match=r"aaaaaaaaaaaa.*bbbbbbbbbbbb"):
        PoolReader(tmp_path, "b" * 64)
    assert len(open_pool(tmp_path)) == 8  # to be looked at


def test_an_unfinished_pool_is_refused(tmp_path):
    with PoolWriter(tmp_path / "synthesize", INFO) as writer:
        writer.write(0, pixels(), columns(range(8)))
    with pytest.raises(PoolError, match=r"no finished pool.*1 parts are written.*run synthesize"):
        PoolReader(tmp_path / "synthesize", MANIFEST)
    with pytest.raises(PoolError, match="no such folder"):
        PoolReader(tmp_path / "elsewhere", MANIFEST)
    writer.finish(np.array([8, 8]))
    with pytest.raises(PoolError, match=r"did you mean .*synthesize"):
        PoolReader(tmp_path, MANIFEST)


def test_an_older_pool_is_told_by_the_columns_that_it_lacks(tmp_path):
    write(tmp_path, [range(8)])
    path = tmp_path / "pool.parquet"
    pq.write_table(pq.read_table(path).drop_columns([*NEW]), path)
    (tmp_path / "pool.json").write_text(json.dumps({"generator": "g"}))  # it had no outcomes
    with pytest.raises(PoolError, match=rf"lacks {', '.join(NEW)}: .*run synthesize again"):
        PoolReader(tmp_path, MANIFEST)


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda t: t.append_column("mine", pa.array(range(8))), "has unknown mine"),
        (
            lambda t: t.set_column(0, "index", t["index"].cast(pa.int32())),
            r"has retyped index \(int32, not int64\)",
        ),
    ],
)
def test_columns_of_another_version_are_named(tmp_path, change, match):
    write(tmp_path, [range(8)])
    path = tmp_path / "pool.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(PoolError, match=match):
        PoolReader(tmp_path, MANIFEST)


@pytest.mark.parametrize(
    "name, content",
    [
        ("pool.parquet", b""),
        ("pool.parquet", b"PAR1 and so on"),
        ("pool.json", b"{"),
        ("pool.json", b"{}"),
        ("pool.json", b"[]"),
        ("pool.json", b'{"version": 1, "outcomes": []}'),
    ],
)
def test_a_damaged_table_or_description_is_an_error_that_names_it(tmp_path, name, content):
    write(tmp_path, [range(8)])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PoolError, match=rf"{name}: .*run synthesize again"):
        PoolReader(tmp_path, MANIFEST)


def damage(path, how: str) -> None:
    raw = bytearray(path.read_bytes())
    if how == "flipped":
        at = raw.index(b"IDAT") + 20  # within the first image
        raw[at] ^= 1
    elif how == "cut":
        del raw[len(raw) // 2 :]
    else:
        raw.clear()
    path.write_bytes(raw)


@pytest.mark.parametrize("how", ["flipped", "cut", "empty"])
def test_a_damaged_shard_is_an_error_that_names_it(tmp_path, how):
    reader = write(tmp_path, [[0, 1, 2, 3], [4, 5, 6, 7]])
    damage(tmp_path / "shards" / "00001.array_record", how)
    np.testing.assert_array_equal(reader[np.arange(4)], pixels()[:4])
    with pytest.raises(PoolError, match=r"00001\.array_record.*run synthesize again"):
        reader[np.array([4])]


def test_a_shard_of_other_images_is_corrupt(tmp_path):
    reader = write(tmp_path, [[0, 1, 2, 3], [4, 5, 6, 7]])
    shards = tmp_path / "shards"
    (shards / "00000.array_record").write_bytes((shards / "00001.array_record").read_bytes())
    with pytest.raises(PoolError, match=r"00000\.array_record: record 0 is corrupt"):
        reader[np.array([0])]


def test_a_missing_shard_is_named(tmp_path):
    reader = write(tmp_path, [[0, 1, 2, 3], [4, 5, 6, 7]])
    (tmp_path / "shards" / "00001.array_record").unlink()
    with pytest.raises(PoolError, match=r"00001\.array_record: record 0 cannot be read"):
        reader[np.array([4])]


def test_a_reader_travels_to_other_processes_without_open_files_and_arrays(tmp_path):
    reader = write(tmp_path, [range(8)])
    first = reader[np.arange(2)]
    sent = pickle.loads(pickle.dumps(reader))
    assert not sent._readers and not sent.columns._made
    np.testing.assert_array_equal(sent[np.arange(2)], first)


def test_columns_are_made_when_they_are_asked_for(tmp_path):
    reader = write(tmp_path, [range(8)])
    assert not reader.columns._made
    assert reader.columns["index"] is reader.columns["index"]
    assert set(reader.columns._made) == {"index"}
    assert list(reader.columns) == reader.table.column_names
    with pytest.raises(KeyError):
        reader.columns["colour"]


def test_few_shards_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_OPEN_SHARDS", 2)
    reader = write(tmp_path, [[i] for i in range(8)])
    np.testing.assert_array_equal(reader[np.arange(8)], pixels())
    np.testing.assert_array_equal(reader[np.arange(8)[::-1]], pixels()[::-1])
    assert len(reader._readers) == 2


def test_other_tools_read_the_table(tmp_path):
    """Plain Parquet: names and values as in `SCHEMA`, NaN for what was not measured."""
    write(tmp_path, [range(8)], keep_rejected=False)
    rows = pq.read_table(tmp_path / "pool.parquet").to_pylist()
    assert rows[3]["failed"] == "ood,memorised" and rows[3]["verdict"] == "ood"
    assert rows[0]["nearest"] == "train 0" and np.isnan(rows[7]["cosine"])
    assert {row["manifest_sha256"] for row in rows} == {MANIFEST}
