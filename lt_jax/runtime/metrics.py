"""Metric streams: one `metrics.jsonl` a stage, and the same numbers as TensorBoard events.

Both are written and flushed at once. tensorboardX's own writer has a thread for that, which dies
unseen on a full disk; the bounded queue to it then fills, and the training would wait for ever.

Of several processes the first one writes.
"""

import contextlib
import json
import pathlib
import socket
import time
from typing import Any

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboardX.record_writer import RecordWriter

from lt_jax.runtime import distributed, files


class MetricWriter:
    """Appends metrics of one stage; a resumed stage drops what it is about to write again.

    A full disk is a `files.DiskFullError` from each method.
    """

    def __init__(self, folder: pathlib.Path, tags: dict[str, Any], resume_at: int):
        """Opens `folder`/metrics.jsonl and keeps its lines with step <= `resume_at`.

        Args:
          folder: the stage's artifact.
          tags: constant fields of every line: stage, and arm and seed where they apply.
          resume_at: the step from which training goes on; 0 for a fresh start.
        """
        self._tags = tags
        self._path = folder / "metrics.jsonl"
        self._files = contextlib.ExitStack()
        if not distributed.is_first():
            return
        kept = [line for line in read(self._path) if line["step"] <= resume_at and resume_at > 0]
        files.write_atomically(
            self._path, "".join(json.dumps(line) + "\n" for line in kept), "metrics"
        )
        events = folder / "events"
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        with files.disk_errors(self._path, "metrics"), contextlib.ExitStack() as opened:
            events.mkdir(exist_ok=True)
            self._file = opened.enter_context(open(self._path, "a"))
            self._events = RecordWriter(str(events / name))
            opened.callback(self._events.close)
            self._event(file_version="brain.Event:2")
            # TensorBoard then discards the interrupted attempt's events of this step and later.
            start = SessionLog(status=SessionLog.START)
            self._event(step=resume_at + 1, session_log=start)
            self._events.flush()
            self._files = opened.pop_all()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one line and one event a value."""
        if not distributed.is_first():
            return
        line = {"step": step, **self._tags, **{name: float(v) for name, v in values.items()}}
        with files.disk_errors(self._path, "metrics"):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._event(step=step, summary=summary.scalar(name, float(value)))
            self._events.flush()

    def close(self) -> None:
        """Closes both files, the second one also where the first cannot be flushed."""
        with files.disk_errors(self._path, "metrics"):
            self._files.close()

    def _event(self, **what: Any) -> None:
        self._events.write(Event(wall_time=time.time(), **what).SerializeToString())


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line cut short by a kill is left out."""
    lines = []
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines
