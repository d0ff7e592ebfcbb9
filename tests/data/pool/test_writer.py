"""Writing a pool: what is read is what was written, in order, behind the caller's back."""

import dataclasses
import errno
import pathlib
import threading

import numpy as np
import pytest
from array_record.python import array_record_module

from lt_jax.data.pool import ForeignPoolError, PoolError, PoolInfo, PoolReader, PoolWriter
from lt_jax.data.pool import writer as writer_module
from lt_jax.data.pool.schema import GATES, judgements, part_path, shard_path
from lt_jax.runtime import files
from tests.data.pool.making import INFO, MANIFEST, columns, pixels, write


@pytest.mark.parametrize("channels", [1, 3])
def test_images_and_columns_come_back_bit_for_bit(tmp_path, channels):
    reader = write(tmp_path, [[0, 1, 2], [3, 4, 5, 6], [7]], channels=channels)
    assert reader.info == INFO
    assert len(reader) == 8
    order = np.array([6, 0, 3, 7, 0])
    np.testing.assert_array_equal(reader[order], pixels(channels)[order])
    for name, values in columns(np.arange(8)).items():
        np.testing.assert_array_equal(reader.columns[name], values, err_msg=name)
    assert reader.columns["label"].dtype == np.int32
    assert reader.columns["score"].dtype == np.float32


def test_flat_and_smooth_images_are_lossless_and_small():
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    smooth = np.broadcast_to(ramp[:, None, None], (64, 64, 3)).copy()
    smooth[:, :20] = 0
    record = writer_module.encode(smooth)
    from lt_jax.data.pool.records import decode

    np.testing.assert_array_equal(decode(record), smooth)
    assert len(record) < smooth.size / 20


def test_rejected_candidates_may_leave_their_images_behind(tmp_path):
    reader = write(tmp_path, [[0, 1, 2], [3], [4, 5, 6, 7]], keep_rejected=False)
    assert len(reader) == 8
    shard, position = reader.columns["shard"], reader.columns["position"]
    assert (shard[3], position[3], reader.columns["sha256"][3]) == (-1, -1, "")
    assert reader.columns["cosine"][3] == np.float32(0.3)  # what it was judged by is kept
    assert not shard_path(tmp_path, 1).exists()  # a shard of nothing
    kept = reader.with_image(np.arange(8))
    np.testing.assert_array_equal(kept, [0, 1, 2, 4, 5, 6, 7])
    np.testing.assert_array_equal(reader[kept], pixels()[kept])
    with pytest.raises(PoolError, match=r"candidate 3 was not kept .*ood.*keep_rejected=True"):
        reader[np.array([0, 3])]


def test_images_go_to_the_rows_that_are_kept(tmp_path):
    with PoolWriter(tmp_path, INFO) as writer:
        writer.write(0, pixels()[[0, 1, 2, 4]], columns(range(5)), np.array([0, 1, 2, 4]))
        writer.finish(np.array([8, 8]))
    reader = PoolReader(tmp_path, MANIFEST)
    np.testing.assert_array_equal(reader.columns["position"], [0, 1, 2, -1, 3])
    np.testing.assert_array_equal(reader[np.array([4, 2])], pixels()[[4, 2]])


@pytest.mark.parametrize(
    "parts", [[range(8)], [[0, 1, 2], [3, 4, 5], [6, 7]], [[4, 5, 6, 7], [0, 1, 2, 3]]]
)
def test_finish_keeps_the_first_wanted_of_each_class_whatever_the_parts(tmp_path, parts):
    reader = write(tmp_path, parts, wanted=(2, 1))
    np.testing.assert_array_equal(reader.columns["index"], np.arange(8))
    np.testing.assert_array_equal(reader.rows(0), [0, 2])
    np.testing.assert_array_equal(reader.rows(0, "surplus"), [4, 7])
    np.testing.assert_array_equal(reader.rows(1), [1])
    np.testing.assert_array_equal(reader.rows(1, "surplus"), [5, 6])
    np.testing.assert_array_equal(reader.rows(0, "ood"), [3])  # a rejection stays one
    np.testing.assert_array_equal(reader[np.arange(8)], pixels())


def test_chosen_rows_stay_and_the_rest_becomes_surplus(tmp_path):
    chosen = [np.array([7, 2]), np.array([6, 1, 5])]
    reader = write(tmp_path, [[4, 5, 6, 7], [0, 1, 2, 3]], wanted=(2, 8), chosen=chosen)
    np.testing.assert_array_equal(reader.rows(0), [2, 7])
    np.testing.assert_array_equal(reader.rows(0, "surplus"), [0, 4])
    np.testing.assert_array_equal(reader.rows(1), [1, 5, 6])
    assert [outcome.unmet for outcome in reader.outcomes] == [0, 5]


def test_rows_to_choose_from_are_those_of_the_finished_pool(tmp_path):
    with PoolWriter(tmp_path, INFO) as writer:
        writer.write(0, pixels()[4:], columns(range(4, 8)))
        writer.write(1, pixels()[:4], columns(range(4)))
        joined = writer.joined()
        np.testing.assert_array_equal(joined[joined.rows(1)], pixels()[[1, 5, 6]])
        chosen = [joined.rows(0)[-1:], joined.rows(1)[:1]]
        writer.finish(np.array([1, 1]), chosen)
    assert PoolReader(tmp_path, MANIFEST).rows(0).tolist() == chosen[0].tolist() == [7]


@pytest.mark.parametrize(
    "wrong", [[3, 0], [1, 0], [0, 0], [0], [0, 2, 4], [0, 99]],
    ids=["rejected", "another class", "twice", "too few", "too many", "no row"],
)  # fmt: skip
def test_what_cannot_be_chosen(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"chosen for class 0; takes 2 different"):
        write(tmp_path, [range(8)], (2, 1), chosen=[np.array(wrong), np.array([1])])


def test_a_pool_can_be_finished_again_with_other_counts(tmp_path):
    write(tmp_path, [range(8)], wanted=(1, 1))
    with PoolWriter(tmp_path, INFO) as writer:
        writer.finish(np.array([3, 3]))
        writer.finish(np.array([4, 2]))
    assert PoolReader(tmp_path, MANIFEST).counts().tolist() == [4, 2]


def test_outcomes_say_what_each_class_got_and_why(tmp_path):
    first, second = write(tmp_path, [range(8)], wanted=(6, 2)).outcomes
    assert (first.name, first.wanted, first.accepted, first.surplus) == ("first", 6, 4, 0)
    assert (first.generated, first.unmet, first.several) == (5, 2, 1)
    assert first.failed == {"ood": 1, "label": 0, "memorised": 1}
    assert first.why == "budget spent after 5 candidates: 1 failed ood, 1 failed memorised"
    assert (second.accepted, second.surplus, second.unmet, second.why) == (2, 1, 0, "")


def test_a_pool_in_which_nothing_was_wanted_is_a_pool(tmp_path):
    """The verdicts of no rows once had no type, and could not be written."""
    PoolWriter(tmp_path, INFO).finish(np.zeros(2, int))
    reader = PoolReader(tmp_path, MANIFEST)
    assert len(reader) == 0
    np.testing.assert_array_equal(reader.counts(), [0, 0])
    with pytest.raises(PoolError, match="no images were asked for"):
        reader[reader.rows(0)]


def test_verdicts_follow_from_failures_in_every_combination():
    bits = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], bool)
    told = judgements(bits)
    for row, failed, verdict in zip(bits, told["failed"], told["verdict"], strict=True):
        assert [gate in failed.split(",") for gate in GATES] == row.tolist()
        assert verdict == (GATES[row.argmax()] if row.any() else "accepted")


def test_thresholds_are_one_a_class_and_infinity_survives(tmp_path):
    reader = write(tmp_path, [range(8)])
    assert reader.info.cosine_thresholds == (0.9, float("inf"))
    assert "Infinity" not in (tmp_path / "pool.json").read_text()
    with pytest.raises(PoolError, match=r"cosine_thresholds.*each of 2 classes"):
        PoolInfo(**{**vars(INFO), "cosine_thresholds": (0.5,)})
    with pytest.raises(PoolError, match="thresholds"):
        PoolInfo(**{**vars(INFO), "thresholds": (0.5, float("nan"))})


@pytest.mark.parametrize(
    "change, match",
    [
        ({"nearest": None}, r"missing: \['nearest'\]"),
        ({"colour": [1] * 8}, r"not taken: \['colour'\]"),
        ({"failed": [""] * 8}, "row 3: failed '', but verdict 'ood'"),
        ({"failed": ["odd"] * 8, "verdict": ["odd"] * 8}, "row 0: failed 'odd'"),
    ],
)
def test_columns_that_are_not_a_part_of_a_pool(tmp_path, change, match):
    told = {k: v for k, v in {**columns(range(8)), **change}.items() if v is not None}
    with PoolWriter(tmp_path, INFO) as writer, pytest.raises(ValueError, match=match):
        writer.write(0, pixels(), told)


@pytest.mark.parametrize(
    "images, kept, match",
    [
        (7, None, "7 images for 8 of 8 rows"),
        (2, [1, 0], "ascend"),
        (2, [1, 8], "ascend"),
        (2, [-1, 1], "ascend"),
        (6, [0, 1, 2, 3, 5, 6], r"rows \[4, 7\] are accepted, but have no image"),
    ],
)
def test_images_that_do_not_fit_their_rows(tmp_path, images, kept, match):
    with PoolWriter(tmp_path, INFO) as writer, pytest.raises(ValueError, match=match):
        rows = None if kept is None else np.array(kept)
        writer.write(0, pixels()[:images], columns(range(8)), rows)


def test_parts_come_in_order(tmp_path):
    with PoolWriter(tmp_path, INFO) as writer:
        with pytest.raises(ValueError, match="got part 1; 0 parts are written"):
            writer.write(1, pixels(), columns(range(8)))
        writer.write(0, pixels(), columns(range(8)))
        with pytest.raises(ValueError, match="got part 0; 1 parts are written"):
            writer.write(0, pixels(), columns(range(8)))


def test_a_candidate_in_two_parts_is_no_pool(tmp_path):
    with PoolWriter(tmp_path, INFO) as writer:
        writer.write(0, pixels()[:2], columns([0, 1]))
        writer.write(1, pixels()[1:3], columns([1, 2]))
        with pytest.raises(PoolError, match="candidate 1 stands in two parts"):
            writer.finish(np.array([8, 8]))


def test_a_write_happens_behind_the_callers_back_one_at_a_time(tmp_path, monkeypatch):
    gate, working = threading.Event(), []

    def slow(image):
        working.append(threading.current_thread().name)
        assert gate.wait(30)
        return encode(image)

    encode = writer_module.encode
    monkeypatch.setattr(writer_module, "encode", slow)
    with PoolWriter(tmp_path, INFO) as writer:
        writer.write(0, pixels()[:1], columns([0]))
        assert not part_path(tmp_path, 0).exists()  # and yet it has returned
        threading.Timer(0.1, gate.set).start()
        writer.write(1, pixels()[1:2], columns([1]))
        assert part_path(tmp_path, 0).exists()
    assert part_path(tmp_path, 1).exists()  # leaving the block waits
    assert all(name.startswith("pool") for name in working)


class _FullDisk:
    """A shard writer on a disk without space, which the library reports without an errno."""

    def __init__(self, path: str, options: str):
        self._path = pathlib.Path(path)

    def write(self, record: bytes) -> None:
        self._path.write_bytes(record[:10])

    def close(self) -> None:
        raise RuntimeError("write() failed: No space left on device; writing 00001.tmp")


@pytest.mark.parametrize("then", ["write", "finish", "close", "finished", "joined"])
def test_no_space_for_a_shard_is_told_next_and_nothing_before_it_is_lost(
    tmp_path, monkeypatch, then
):
    writer = PoolWriter(tmp_path, INFO)
    writer.write(0, pixels()[:3], columns(range(3)))
    assert len(writer.finished()) == 1
    calls = {
        "write": lambda: writer.write(2, pixels()[6:], columns([6, 7])),
        "finish": lambda: writer.finish(np.array([8, 8])),
    }
    with monkeypatch.context() as patch:
        patch.setattr(array_record_module, "ArrayRecordWriter", _FullDisk)
        writer.write(1, pixels()[3:], columns(range(3, 8)))
        with pytest.raises(files.DiskFullError, match=r"shard of the pool.*MiB needed.*00001"):
            calls.get(then, getattr(writer, then))()
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["00000.array_record"]
    assert not (tmp_path / "pool.parquet").exists()
    if then in ("finish", "close"):  # no thread is left to write with
        writer = PoolWriter(tmp_path, INFO)
    assert len(writer.finished()) == 1
    writer.write(1, pixels()[3:], columns(range(3, 8)))
    writer.finish(np.array([8, 8]))
    np.testing.assert_array_equal(PoolReader(tmp_path, MANIFEST)[np.arange(8)], pixels())


def test_no_space_for_a_table_leaves_earlier_parts(tmp_path, monkeypatch):
    writer = PoolWriter(tmp_path, INFO)
    writer.write(0, pixels()[:3], columns(range(3)))
    assert len(writer.finished()) == 1

    def full(path, data, what):
        with files.disk_errors(path, what, len(data)):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomically", full)
        writer.write(1, pixels()[3:], columns(range(3, 8)))
        with pytest.raises(files.DiskFullError, match="table of the pool"):
            writer.close()
    assert len(PoolWriter(tmp_path, INFO).finished()) == 1
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["00000.parquet"]


def test_an_error_of_the_block_comes_before_that_of_the_write(tmp_path, monkeypatch):
    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", _FullDisk)
    with pytest.raises(KeyError, match="mine") as caught, PoolWriter(tmp_path, INFO) as writer:
        writer.write(0, pixels(), columns(range(8)))
        raise KeyError("mine")
    assert any("last write failed, too: " in note for note in caught.value.__notes__)
    with (
        pytest.raises(files.DiskFullError, match="00000"),
        PoolWriter(tmp_path, INFO) as writer,
    ):
        writer.write(0, pixels(), columns(range(8)))


def test_parts_of_another_run_are_not_gone_on_with(tmp_path):
    with PoolWriter(tmp_path, INFO) as writer:
        writer.write(0, pixels(), columns(range(8)))
    for name, value in (("generator", "other"), ("manifest_sha256", "b" * 64), ("seed", 8)):
        other = PoolWriter(tmp_path, PoolInfo(**{**vars(INFO), name: value}))
        with pytest.raises(PoolError, match=rf"00000\.parquet: its {name} is"):
            other.finished()
    with pytest.raises(ForeignPoolError):
        write(tmp_path / "other", [range(8)])
        PoolReader(tmp_path / "other", "b" * 64)


def gates_of(**fields):
    return PoolInfo(**{**vars(INFO), **fields})


@pytest.mark.parametrize(
    "other, told",
    [
        ({"thresholds": (1.5, 2.1)}, "thresholds of second 2 then, 2.1 now"),
        ({"thresholds": (1.4, 2.1)}, r"thresholds of first 1.5 then, 1.4 now \(and of 1 more"),
        ({"cosine_thresholds": ()}, "cosine_thresholds of 2 classes then, of 0 now"),
        ({"cosine_thresholds": (0.9, 0.9)}, "cosine_thresholds of second inf then, 0.9 now"),
        ({"ms_ssim_thresholds": (0.7, 0.5)}, "ms_ssim_thresholds of first 0.75 then, 0.7 now"),
        ({"scores": ("knn",)}, r"scores \('knn', 'mahalanobis'\) then, \('knn',\) now"),
        ({"least_label_probability": 0.2}, "least_label_probability 0.1 then, 0.2 now"),
        ({"extractor": "x"}, "extractor 'e+' then, 'x' now"),
    ],
)
def test_a_pool_is_not_gone_on_with_by_other_gates_and_nothing_is_lost(tmp_path, other, told):
    with PoolWriter(tmp_path, INFO) as writer:
        writer.write(0, pixels()[:4], columns(range(4)))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(PoolError, match=rf"gates\.json: the 1 parts .* judged by other.*{told}"):
        PoolWriter(tmp_path, gates_of(**other))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with PoolWriter(tmp_path, INFO) as writer:
        writer.write(1, pixels()[4:], columns(range(4, 8)))
        writer.finish(np.array([8, 8]))
    assert len(PoolReader(tmp_path, MANIFEST)) == 8


def test_gates_refitted_up_to_rounding_go_on_with_the_limits_of_the_first(tmp_path):
    with PoolWriter(tmp_path, INFO) as writer:
        writer.write(0, pixels(), columns(range(8)))
    again = gates_of(thresholds=(1.5 + 1e-6, 2.0), cosine_thresholds=(0.9 - 1e-7, float("inf")))
    with PoolWriter(tmp_path, again) as writer:
        assert writer.info == INFO
        writer.finish(np.array([8, 8]))
    assert PoolReader(tmp_path, MANIFEST).info == INFO


def test_before_the_first_part_gates_may_change(tmp_path):
    PoolWriter(tmp_path, INFO).close()
    other = gates_of(thresholds=(1.0, 2.0))
    with PoolWriter(tmp_path, other) as writer:
        assert writer.info == other


@pytest.mark.parametrize("harm", [lambda p: p.unlink(), lambda p: p.write_text("{}")])
def test_parts_of_which_the_gates_are_not_known_are_not_gone_on_with(tmp_path, harm):
    with PoolWriter(tmp_path, INFO) as writer:
        writer.write(0, pixels(), columns(range(8)))
    harm(tmp_path / "gates.json")
    with pytest.raises(PoolError, match=r"gates\.json: does not say by which gates the 1 parts"):
        PoolWriter(tmp_path, INFO)


def test_all_processes_judge_by_the_gates_and_count_the_parts_of_the_first(tmp_path, in_turn):
    def opened(process):
        if process:  # has fitted gates of its own, and does not see the first part yet
            (tmp_path / "parts" / "00000.parquet").unlink()
        mine = tuple(limit + 1e-7 * process for limit in INFO.thresholds)
        with PoolWriter(tmp_path, dataclasses.replace(INFO, thresholds=mine)) as writer:
            return writer.info, writer._parts

    write(tmp_path, [range(8)])
    assert in_turn(opened) == [(INFO, 1), (INFO, 1)]
