"""Progress off a terminal: one line for finished work, none for failed work."""

import pytest

from lt_jax.runtime.progress import Progress


def test_finished_work_prints_one_line(capsys):
    with Progress("generator", 30, start=10) as bar:
        bar.update(20, loss=1.0)
        bar.of(25, 26)
        bar.update(26)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("generator: 16 steps in ")


def test_failed_work_prints_none(capsys):
    with pytest.raises(ValueError, match="failed"), Progress("generator", 30) as bar:
        bar.update(20)
        raise ValueError("failed")
    assert capsys.readouterr().err == ""
