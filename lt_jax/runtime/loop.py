"""The training loop: batches in, steps dispatched, metrics one step late, checkpoints between.

A step is `step(state, batch, key, context) -> (state, metrics)`; context is what holds for many
steps, such as a round's label prior. The key of step n is fold_in(key, n), and batch n depends on
n alone, so that a training that was killed and resumed equals one that was not.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from lt_jax.runtime import checkpoint, faults, finite, ledger, mesh, metrics, progress, resident
from lt_jax.runtime.job import Job
from lt_jax.runtime.train_state import TrainState
from lt_jax.shapes import Array, PRNGKey

Step = Callable[[TrainState, Any, PRNGKey, Any], tuple[TrainState, dict[str, Array]]]


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


class Loop:
    """One checkpointed training of `steps` updates."""

    def __init__(
        self,
        step: Step,
        stream: Stream,
        key: PRNGKey,
        *,
        steps: int,
        job: Job,
    ):
        """The step is compiled for `job.mesh`."""
        self._step, self._stream, self._key, self._steps = step, stream, key, steps
        self._job, self._name = job, job.name
        self._checkpoints = checkpoint.Checkpointer(job.folder / "checkpoints")
        stream.restrict(*mesh.part(job.mesh))
        self._window = _Window()
        self._opened = self._settled = False
        self._store: jax.Array | None = None  # of images, where they lie on the devices
        self.ledger = ledger.Ledger()

    def restore(self, state: TrainState) -> tuple[TrainState, int]:
        """Where the training stands: the newest checkpoint's state and step, or the fresh one's."""
        found = self._checkpoints.restore(state)
        start = 0
        if found is not None:
            start, state, note = found
            self.ledger = ledger.Ledger.of(note["ledger"])
            self._window = _Window(note["window"])
            self._stream.seek(start, note["stream"])
        else:
            self._stream.seek(0, None)
        self.metrics = metrics.MetricWriter(self._job.folder, dict(self._job.tags), start)
        self._clock = ledger.Clock(self.ledger)
        self._bar = progress.Progress(self._name, self._steps, start=start)
        self._opened = True
        return state, start

    def run(self, state: TrainState, start: int, until: int, context: Any = ()) -> TrainState:
        """Makes updates `start`..`until`; saves on the way, but not at `until`: see `save`.

        Raises:
          NonFiniteError: a loss or gradient became NaN or infinite.
          Preempted: SIGTERM arrived; the state is saved.
        """
        pending: tuple[int, dict[str, Array]] | None = None
        flops: float | None = None  # of one step; every step of a run has the same shapes
        if not self._settled:
            self._store, self._settled = resident.settle([self._stream], self._job), True
        for n in range(start, until):
            began, waited = time.perf_counter(), self.ledger.data_wait
            batch = self._next_batch()
            key = jax.random.fold_in(self._key, n)
            if flops is None:
                flops = _flops(self._step, state, batch, key, context)
            self.ledger.flops += flops
            state, values = self._step(state, batch, key, context)
            self.ledger.images += len(batch["label"])
            if pending is not None:
                self._read(*pending)
            pending = (n, values)
            if n > start:  # the first step of a run may compile
                self._window.time(time.perf_counter() - began, self.ledger.data_wait - waited)
            done = n + 1
            log = done % self._job.runtime.log_every == 0 or done == self._steps
            # At `until` the caller saves, once it has written what belongs to that step.
            save = done != until and (
                faults.stopping() or done % self._job.runtime.checkpoint_every == 0
            )
            if log or save:
                self._read(*pending)
                pending = None
            if log:
                self._log(done)
            if save:  # before the next batch is fetched, so that loader and state agree
                self.save(state, done)
                faults.raise_if_stopping(f"{self._name}, step {done}")
        if pending is not None:
            self._read(*pending)
        self._bar.update(until)
        return state

    def save(self, state: TrainState, step: int) -> None:
        """Saves everything that continuing from `step` needs, as one atomic checkpoint.

        Raises NonFiniteError for a state that is not finite: what is saved always is.
        """
        finite.require(state, f"{self._name}, step {step}")
        self._clock.read()
        note = {"ledger": dataclasses.asdict(self.ledger), "stream": self._stream.state()}
        note["window"] = self._window.state()
        self._checkpoints.save(step, state, note)

    def __enter__(self) -> "Loop":
        """Itself; the training's files are closed on leaving, however it ends."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Books the last seconds; closes checkpoints, loader, metrics and progress, each one.

        What ended the training is what is raised; errors of closing are added to it as notes.
        """
        closing = [self._checkpoints.close, self._stream.close]
        if self._opened:
            self._clock.read()
            closing += [self.metrics.close, lambda: self._bar.__exit__(kind, error, trace)]
        first = error
        for close in closing:
            try:
                close()
            except Exception as late:
                if first is None:
                    first = late
                else:
                    first.add_note(f"while closing: {late!r}")
        if first is not error:
            raise first  # type: ignore[misc]

    def _next_batch(self) -> Any:
        since = time.perf_counter()
        batch = next(self._stream)  # type: ignore[call-overload]
        self.ledger.data_wait += time.perf_counter() - since
        placed = mesh.put(dict(batch), self._job.mesh)
        return resident.images(placed, self._store, self._job.mesh, 0)

    def _read(self, n: int, values: dict[str, Array]) -> None:
        host = {name: float(value) for name, value in mesh.fetch(values).items()}
        bad = [name for name, value in host.items() if not math.isfinite(value)]
        if bad:
            raise faults.NonFiniteError(
                f"{self._name}: {', '.join(bad)} became non-finite at step {n}; the batch held "
                f"{self._stream.describe(n)}; the last checkpoint before it is finite, and the "
                "same command makes all steps from there: lower the learning rate or clip_norm"
            )
        self._window.add(host)

    def _log(self, done: int) -> None:
        self._clock.read()
        means = self._window.take()
        self.metrics.write(done, means)
        self._bar.update(done, loss=means.get("loss", math.nan))


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


def _flops(step: Step, *arguments: Any) -> float:
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple(
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))
        for leaf in leaves
    )
    return _counted(step, structure, shapes)


@functools.lru_cache(maxsize=64)
def _counted(step: Step, structure: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> float:
    # Trainings of many seeds share one step, which is lowered once.
    return ledger.flops(step, *jax.tree.unflatten(structure, shapes))
