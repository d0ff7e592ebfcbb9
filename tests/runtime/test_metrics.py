"""Metric files: what a kill leaves, what a resumed stage drops and writes again."""

import json
import struct

import pytest
from tensorboardX.proto import event_pb2

from lt_jax.runtime import faults, files, metrics

TAGS = {"stage": "classify", "arm": "ce", "seed": 1}


def write(folder, resume_at: int, steps) -> None:
    writer = metrics.MetricWriter(folder, TAGS, resume_at)
    for step in steps:
        writer.write(step, {"loss": 1 / step})
    writer.close()


def steps_of(folder) -> list[int]:
    return [line["step"] for line in metrics.read(folder / "metrics.jsonl")]


def test_lines_hold_step_tags_and_values(tmp_path):
    write(tmp_path, 0, [3])
    assert metrics.read(tmp_path / "metrics.jsonl") == [{"step": 3, **TAGS, "loss": 1 / 3}]
    assert list((tmp_path / "events").iterdir())


def test_a_last_line_cut_by_a_kill_is_left_out(tmp_path):
    write(tmp_path, 0, [1, 2])
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text()
    for cut in (1, 5, 20):
        path.write_text(whole[: -cut - 1])
        assert steps_of(tmp_path) == [1]
    path.write_text(whole[:-1])  # only the line's end is missing
    assert steps_of(tmp_path) == [1, 2]
    write(tmp_path, 2, [3])
    assert steps_of(tmp_path) == [1, 2, 3]


def test_a_file_that_is_not_there_holds_no_lines(tmp_path):
    assert metrics.read(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize(("resume_at", "kept"), [(0, []), (20, [10, 20]), (25, [10, 20])])
def test_a_resumed_stage_writes_nothing_twice(tmp_path, resume_at, kept):
    write(tmp_path, 0, [10, 20, 30])
    write(tmp_path, resume_at, [30, 40])
    assert steps_of(tmp_path) == [*kept, 30, 40]


def test_reopening_is_atomic(tmp_path, monkeypatch):
    write(tmp_path, 0, [10, 20, 30])
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(faults.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 20, [])
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def events(folder) -> list[event_pb2.Event]:
    """All events, by the format of a TFRecord: length, its CRC, data, its CRC."""
    found = []
    for path in sorted((folder / "events").iterdir()):
        raw = path.read_bytes()
        while raw:
            (length,) = struct.unpack("Q", raw[:8])
            found.append(event_pb2.Event.FromString(raw[12 : 12 + length]))
            raw = raw[16 + length :]
    return found


def test_events_hold_the_same_numbers_and_where_a_resumed_stage_begins(tmp_path):
    write(tmp_path, 0, [10, 20])
    write(tmp_path, 10, [20])
    seen = [
        (event.step, event.summary.value[0].simple_value)
        for event in events(tmp_path)
        if event.HasField("summary")
    ]
    assert seen == [(step, pytest.approx(1 / step)) for step in (10, 20, 20)]
    starts = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert starts == [1, 11]
    assert [e.file_version for e in events(tmp_path) if e.file_version] == ["brain.Event:2"] * 2


def test_events_are_on_disk_with_their_line_also_where_the_process_is_then_killed(tmp_path):
    writer = metrics.MetricWriter(tmp_path, TAGS, 0)
    writer.write(3, {"loss": 0.25})
    assert events(tmp_path)[-1].summary.value[0].simple_value == 0.25
    writer.close()


@pytest.mark.parametrize("which", ["_file", "_events"])
def test_a_full_disk_is_said_by_writing_and_by_closing_and_nothing_waits_for_ever(tmp_path, which):
    """The events' thread once died of it unseen, and the eleventh event waited for ever."""
    writer = metrics.MetricWriter(tmp_path, TAGS, 0)
    full = open("/dev/full", "w") if which == "_file" else metrics.RecordWriter("/dev/full")  # noqa: SIM115
    getattr(writer, which).close()
    setattr(writer, which, full)
    for step in range(1, 31):
        with pytest.raises(files.DiskFullError, match="writing metrics"):
            writer.write(step, {"loss": 1.0})
    with pytest.raises(OSError, match="No space"):
        full.close()
    writer.close()


def test_closing_closes_both_files_where_the_first_cannot_be_flushed(tmp_path):
    writer = metrics.MetricWriter(tmp_path, TAGS, 0)
    writer._events.close()
    writer._events._writer = open("/dev/full", "wb")  # noqa: SIM115
    writer._event(step=1)
    with pytest.raises(files.DiskFullError, match="writing metrics"):
        writer.close()
    assert writer._file.closed
    assert writer._events._writer.closed


def test_numbers_survive_to_the_last_bit(tmp_path):
    writer = metrics.MetricWriter(tmp_path, {}, 0)
    writer.write(1, {"loss": 0.1 + 0.2})
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text)["loss"] == 0.1 + 0.2
