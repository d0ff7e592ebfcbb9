"""The pool: what is read is what was written, for whom it was written, whatever interrupted it."""

import errno
import pathlib
import pickle

import numpy as np
import pytest
from array_record.python import array_record_module

from lt_jax.data import pool
from lt_jax.data.pool import ForeignPoolError, PoolInfo, PoolReader, PoolWriter
from lt_jax.runtime import files

MANIFEST = "a" * 64
INFO = PoolInfo(
    generator="g" * 64,
    extractor="e" * 64,
    manifest_sha256=MANIFEST,
    seed=7,
    classes=("first", "second"),
    guidance_scale=1.5,
    sampler="ddim, 20 steps",
    thresholds=(0.1, 0.25),
    least_label_probability=0.3,
)
# Accepted: 0, 2, 4, 7 of class 0; 1, 5, 6 of class 1.
LABELS = np.array([0, 1, 0, 0, 0, 1, 1, 0], np.int32)
VERDICTS = np.array(
    ["accepted", "accepted", "accepted", "ood", "accepted", "accepted", "accepted", "accepted"]
)


def pixels(channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (8, 6, 5, channels), np.uint8)


def columns(indices: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "index": indices,
        "label": LABELS[indices],
        "source_label": LABELS[indices],
        "label_weight": np.ones(len(indices), np.float32),
        "conditions": [f'{{"source": "image {i}"}}' for i in indices],
        "score": indices.astype(np.float32) / 8,
        "label_probability": 1 - indices.astype(np.float32) / 8,
        "verdict": VERDICTS[indices],
    }


def write(folder, parts, wanted=(8, 8), channels: int = 3) -> None:
    writer = PoolWriter(folder, INFO)
    for number, indices in enumerate(parts):
        chosen = np.array(indices)
        writer.write(number, pixels(channels)[chosen], columns(chosen))
    writer.finish(np.array(wanted))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_and_columns_come_back_bit_for_bit(tmp_path, channels):
    write(tmp_path, [[0, 1, 2], [3, 4, 5, 6], [7]], channels=channels)
    reader = PoolReader(tmp_path, MANIFEST)
    assert reader.info == INFO
    assert len(reader) == 8
    order = np.array([6, 0, 3, 7, 0])
    np.testing.assert_array_equal(reader[order], pixels(channels)[order])
    for name, values in columns(np.arange(8)).items():
        np.testing.assert_array_equal(reader.columns[name], values, err_msg=name)
    assert reader.columns["label"].dtype == np.int32
    assert reader.columns["score"].dtype == np.float32


def test_rows_and_counts_by_class_and_verdict(tmp_path):
    write(tmp_path, [range(8)])
    reader = PoolReader(tmp_path, MANIFEST)
    np.testing.assert_array_equal(reader.rows(0), [0, 2, 4, 7])
    np.testing.assert_array_equal(reader.rows(0, "ood"), [3])
    np.testing.assert_array_equal(reader.counts(), [4, 3])
    np.testing.assert_array_equal(reader.counts("surplus"), [0, 0])


@pytest.mark.parametrize(
    "parts", [[range(8)], [[0, 1, 2], [3, 4, 5], [6, 7]], [[4, 5, 6, 7], [0, 1, 2, 3]]]
)
def test_finish_keeps_the_first_wanted_of_each_class_whatever_the_parts(tmp_path, parts):
    write(tmp_path, parts, wanted=(2, 1))
    reader = PoolReader(tmp_path, MANIFEST)
    np.testing.assert_array_equal(reader.columns["index"], np.arange(8))
    np.testing.assert_array_equal(reader.rows(0), [0, 2])
    np.testing.assert_array_equal(reader.rows(0, "surplus"), [4, 7])
    np.testing.assert_array_equal(reader.rows(1), [1])
    np.testing.assert_array_equal(reader.rows(1, "surplus"), [5, 6])
    np.testing.assert_array_equal(reader.rows(0, "ood"), [3])  # a rejection stays one
    np.testing.assert_array_equal(reader[np.arange(8)], pixels(3))


def test_a_pool_in_which_nothing_was_wanted_is_a_pool(tmp_path):
    """The verdicts of no rows once had no type, and could not be written."""
    PoolWriter(tmp_path, INFO).finish(np.zeros(2, int))
    reader = PoolReader(tmp_path, MANIFEST)
    assert len(reader) == 0
    np.testing.assert_array_equal(reader.counts(), [0, 0])
    with pytest.raises(ValueError, match="no images were asked for"):
        reader[reader.rows(0)]


def test_a_foreign_manifest_is_refused(tmp_path):
    write(tmp_path, [range(8)])
    with pytest.raises(ForeignPoolError, match=r"aaaaaaaaaaaa.*bbbbbbbbbbbb"):
        PoolReader(tmp_path, "b" * 64)


def test_an_unfinished_pool_is_refused(tmp_path):
    writer = PoolWriter(tmp_path, INFO)
    writer.write(0, pixels(3), columns(np.arange(8)))
    with pytest.raises(ValueError, match=r"no finished pool.*run synthesize"):
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
    write(tmp_path, [[0, 1, 2, 3], [4, 5, 6, 7]])
    damage(tmp_path / "shards" / "00001.array_record", how)
    reader = PoolReader(tmp_path, MANIFEST)
    np.testing.assert_array_equal(reader[np.arange(4)], pixels(3)[:4])
    with pytest.raises(ValueError, match=r"00001\.array_record.*run synthesize again"):
        reader[np.array([4])]


def test_a_shard_of_other_images_is_corrupt(tmp_path):
    write(tmp_path, [[0, 1, 2, 3], [4, 5, 6, 7]])
    shards = tmp_path / "shards"
    (shards / "00000.array_record").write_bytes((shards / "00001.array_record").read_bytes())
    with pytest.raises(ValueError, match=r"00000\.array_record: record 0 is corrupt"):
        PoolReader(tmp_path, MANIFEST)[np.array([0])]


def test_a_missing_shard_is_named(tmp_path):
    write(tmp_path, [[0, 1, 2, 3], [4, 5, 6, 7]])
    (tmp_path / "shards" / "00001.array_record").unlink()
    with pytest.raises(ValueError, match=r"00001\.array_record: record 0 cannot be read"):
        PoolReader(tmp_path, MANIFEST)[np.array([4])]


def test_an_interrupted_write_is_redone_and_finished_ones_are_kept(tmp_path, monkeypatch):
    writer = PoolWriter(tmp_path, INFO)
    writer.write(0, pixels(3)[:3], columns(np.arange(3)))
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomically", _killed)
        with pytest.raises(KeyboardInterrupt):  # between the shard and its table
            writer.write(1, pixels(3)[3:6][::-1], columns(np.arange(3, 6)))
    assert (tmp_path / "shards" / "00001.array_record").exists()

    again = PoolWriter(tmp_path, INFO)
    (part,) = again.finished()
    np.testing.assert_array_equal(part["index"], [0, 1, 2])
    again.write(1, pixels(3)[3:], columns(np.arange(3, 8)))
    again.finish(np.array([8, 8]))
    np.testing.assert_array_equal(PoolReader(tmp_path, MANIFEST)[np.arange(8)], pixels(3))


def _killed(*_) -> None:
    raise KeyboardInterrupt


def test_a_run_killed_behind_finish_finds_its_parts_again(tmp_path):
    """`finish` once removed them: all images were generated anew if the kill came then."""
    write(tmp_path, [[0, 1, 2], [3, 4, 5, 6, 7]], wanted=(2, 1))
    table = (tmp_path / "pool.parquet").read_bytes()
    again = PoolWriter(tmp_path, INFO)
    assert [len(part["index"]) for part in again.finished()] == [3, 5]
    assert (again.finished()[1]["verdict"] != "surplus").all()  # as they were judged
    again.finish(np.array([2, 1]))
    assert (tmp_path / "pool.parquet").read_bytes() == table


class _FullDisk:
    """A shard writer on a disk without space, which the library reports without an errno."""

    def __init__(self, path: str, options: str):
        self._path = pathlib.Path(path)

    def write(self, record: bytes) -> None:
        self._path.write_bytes(record[:10])

    def close(self) -> None:
        raise RuntimeError("write() failed: No space left on device; writing 00001.tmp")


def test_no_space_for_a_shard_leaves_earlier_parts_and_no_half_shard(tmp_path, monkeypatch):
    writer = PoolWriter(tmp_path, INFO)
    writer.write(0, pixels(3)[:3], columns(np.arange(3)))
    with monkeypatch.context() as patch:
        patch.setattr(array_record_module, "ArrayRecordWriter", _FullDisk)
        with pytest.raises(files.DiskFullError, match=r"shard of the pool.*MiB needed.*00001"):
            writer.write(1, pixels(3)[3:], columns(np.arange(3, 8)))
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["00000.array_record"]
    assert len(writer.finished()) == 1
    writer.write(1, pixels(3)[3:], columns(np.arange(3, 8)))
    writer.finish(np.array([8, 8]))
    np.testing.assert_array_equal(PoolReader(tmp_path, MANIFEST)[np.arange(8)], pixels(3))


def test_no_space_for_a_table_leaves_earlier_parts(tmp_path, monkeypatch):
    writer = PoolWriter(tmp_path, INFO)
    writer.write(0, pixels(3)[:3], columns(np.arange(3)))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(files.DiskFullError, match="table of the pool"):
            writer.write(1, pixels(3)[3:], columns(np.arange(3, 8)))
    assert len(PoolWriter(tmp_path, INFO).finished()) == 1
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["00000.parquet"]


def test_a_reader_travels_to_other_processes_without_its_open_files(tmp_path):
    write(tmp_path, [range(8)])
    reader = PoolReader(tmp_path, MANIFEST)
    first = reader[np.arange(2)]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader))[np.arange(2)], first)


def test_few_shards_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_OPEN_SHARDS", 2)
    write(tmp_path, [[i] for i in range(8)])
    reader = PoolReader(tmp_path, MANIFEST)
    np.testing.assert_array_equal(reader[np.arange(8)], pixels(3))
    np.testing.assert_array_equal(reader[np.arange(8)[::-1]], pixels(3)[::-1])
    assert len(reader._readers) == 2
