"""Metric files: what a kill leaves, what a resumed stage drops and writes again."""

import json

import pytest

from lt_jax.runtime import faults, metrics

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


def test_numbers_survive_to_the_last_bit(tmp_path):
    writer = metrics.MetricWriter(tmp_path, {}, 0)
    writer.write(1, {"loss": 0.1 + 0.2})
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text)["loss"] == 0.1 + 0.2
