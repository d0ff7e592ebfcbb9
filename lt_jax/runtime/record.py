"""What one training reads and leaves: its batches, checkpoints, lines of metrics and costs."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from lt_jax.runtime import checkpoint, faults, finite, ledger, mesh
from lt_jax.runtime.job import Job
from lt_jax.runtime.metrics import MetricWriter
from lt_jax.shapes import Array, PRNGKey

T = TypeVar("T")


@runtime_checkable
class Stream(Protocol):
    """What the loop asks of a loader."""

    def __next__(self) -> Mapping[str, np.ndarray]:
        """The next global batch."""
        ...

    def seek(self, step: int, state: Mapping[str, Any] | None) -> None:
        """Continues at batch `step`, under a state that `state` returned."""
        ...

    def state(self) -> dict[str, Any]:
        """What `seek` needs, as JSON."""
        ...

    def restrict(self, part: int, parts: int) -> None:
        """From now on gives the rows of the `part`-th of `parts` equal parts of each batch."""
        ...

    def describe(self, step: int) -> str:
        """Which images batch `step` holds, for an error message."""
        ...

    def close(self) -> None:
        """Ends the loader's threads and processes."""
        ...


class Record:
    """One training's own part of a loop.

    Attributes:
      stream: of its batches; key: of its steps; job: where it runs.
      ledger: what it has cost so far.
      metrics: where its lines go, once it is open.
    """

    metrics: MetricWriter

    def __init__(self, stream: Stream, key: PRNGKey, job: Job):
        """Touches nothing on disk; see `open`."""
        self.stream, self.key, self.job = stream, key, job
        self.ledger = ledger.Ledger()
        self._window = _Window()
        self._checkpoints: checkpoint.Checkpointer | None = None
        self._opened = False

    def open(self, state: T) -> tuple[T, int]:
        """Where the training stands: the newest checkpoint's state and step, or the fresh one's."""
        self._checkpoints = checkpoint.Checkpointer(self.job.folder / "checkpoints")
        self.stream.restrict(*mesh.part(self.job.mesh))
        found = self._checkpoints.restore(state)
        start = 0
        if found is not None:
            start, state, note = found
            self.ledger = ledger.Ledger.of(note["ledger"])
            self._window = _Window(note["window"])
            self.stream.seek(start, note["stream"])
        else:
            self.stream.seek(0, None)
        self.metrics = MetricWriter(self.job.folder, dict(self.job.tags), start)
        self._opened = True
        return state, start

    def time(self, seconds: float, waited: float) -> None:
        """Adds a step's wall clock, and how much of it passed before its batch was there."""
        self._window.time(seconds, waited)

    def read(self, n: int, values: Mapping[str, Array | np.ndarray]) -> None:
        """Adds the metrics of step n to the means; raises NonFiniteError where one is none."""
        host = {name: float(value) for name, value in mesh.fetch(dict(values)).items()}
        bad = [name for name, value in host.items() if not math.isfinite(value)]
        if bad:
            step = checkpoint.newest(self.job.folder / "checkpoints")
            kept = f"the checkpoint of step {step} is finite" if step else "no checkpoint is there"
            raise faults.NonFiniteError(
                f"{self.job.name}: {', '.join(bad)} became non-finite at step {n}; the batch held "
                f"{self.stream.describe(n)}; {kept}, and the same command makes all steps from "
                f"{step}: lower the learning rate or clip_norm"
            )
        self._window.add(host)

    def log(self, done: int) -> float:
        """Writes the means since the last line; returns that of the loss."""
        means = self._window.take()
        self.metrics.write(done, means)
        return means.get("loss", math.nan)

    def save(self, state: Any, step: int) -> None:
        """Saves everything that continuing from `step` needs, as one atomic checkpoint.

        Raises NonFiniteError for a state that is not finite: what is saved always is.
        """
        assert self._checkpoints is not None
        finite.require(state, f"{self.job.name}, step {step}")
        note = {"ledger": dataclasses.asdict(self.ledger), "stream": self.stream.state()}
        note["window"] = self._window.state()
        self._checkpoints.save(step, state, note)

    def closing(self) -> list[Any]:
        """What is to be called once the training ends, however it does."""
        calls: list[Any] = [self._checkpoints.close] if self._checkpoints else []
        calls.append(self.stream.close)
        return [*calls, self.metrics.close] if self._opened else calls


class _Window:
    """Running means of metrics since the last log line, and how much of that time was waiting.

    The means are kept in checkpoints; times are those of this process.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self._sums: dict[str, float] = dict(state["sums"]) if state else {}
        self._count: int = state["count"] if state else 0
        self._seconds, self._waited = 0.0, 0.0

    def state(self) -> dict[str, Any]:
        return {"sums": self._sums, "count": self._count}

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def time(self, seconds: float, waited: float) -> None:
        """Adds a step's wall clock, and how much of it passed before its batch was there."""
        self._seconds += seconds
        self._waited += waited

    def take(self) -> dict[str, float]:
        """The means; `data_wait_fraction` is the part of the steps' seconds spent on waiting."""
        means = {name: value / self._count for name, value in self._sums.items()}
        means["data_wait_fraction"] = self._waited / self._seconds if self._seconds else 0.0
        self._sums, self._count, self._seconds, self._waited = {}, 0, 0.0, 0.0
        return means
