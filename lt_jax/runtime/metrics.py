"""Metric streams: one `metrics.jsonl` a stage, and the same numbers as TensorBoard events."""

import json
import pathlib
from typing import Any

from lt_jax.runtime import files


class MetricWriter:
    """Appends metrics of one stage; a resumed stage drops what it is about to write again."""

    def __init__(self, folder: pathlib.Path, tags: dict[str, Any], resume_at: int):
        """Opens `folder`/metrics.jsonl and keeps its lines with step <= `resume_at`.

        Args:
          folder: the stage's artifact.
          tags: constant fields of every line: stage, and arm and seed where they apply.
          resume_at: the step from which training goes on; 0 for a fresh start.
        """
        from tensorboardX import SummaryWriter

        self._tags = tags
        self._path = folder / "metrics.jsonl"
        kept = [line for line in read(self._path) if line["step"] <= resume_at and resume_at > 0]
        files.write_atomically(
            self._path, "".join(json.dumps(line) + "\n" for line in kept), "metrics"
        )
        self._file = open(self._path, "a")  # noqa: SIM115  (closed by `close`)
        # purge_step makes TensorBoard discard events of the interrupted attempt.
        self._events = SummaryWriter(str(folder / "events"), purge_step=resume_at + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one line and one event a value."""
        line = {"step": step, **self._tags, **{name: float(v) for name, v in values.items()}}
        with files.disk_errors(self._path, "metrics"):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, float(value), step)

    def close(self) -> None:
        """Flushes both."""
        self._file.close()
        self._events.close()


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
