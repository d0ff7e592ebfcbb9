"""The training loop: batches in, steps dispatched, metrics one step late, checkpoints between.

A step is `step(state, batch, key, context) -> (state, metrics)`; context is what holds for many
steps, such as a round's label prior. The key of step n is fold_in(key, n), and batch n depends on
n alone, so that a training that was killed and resumed equals one that was not.

Several trainings may make the same updates side by side (`population`): each has its own batches,
keys, checkpoints and lines (`record`), and a program makes the updates of all.
"""

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import jax

from lt_jax.runtime import faults, ledger, population, progress, resident
from lt_jax.runtime.record import Record
from lt_jax.runtime.train_state import TrainState
from lt_jax.shapes import Array, PRNGKey

Step = Callable[[TrainState, Any, PRNGKey, Any], tuple[TrainState, dict[str, Array]]]


class Loop:
    """Checkpointed trainings of `steps` updates each, mostly one."""

    def __init__(
        self,
        step: Step,
        records: Sequence[Record],
        *,
        steps: int,
        layout: population.Layout | None = None,
    ):
        """All have one step, one mesh and one `RuntimeConfig`.

        Args:
          step: of one training, from `spmd.jit_step`.
          records: of each training.
          steps: of each.
          layout: how their arrays lie; None: of one training.
        """
        self._step, self._records, self._steps = step, list(records), steps
        self._job, more = records[0].job, len(records) - 1
        self._name = self._job.name + (f" and {more} more" if more else "")
        self._layout = layout or population.Alone(self._job.mesh)
        self._program = self._layout.program(step)
        self._keys = self._layout.keys([record.key for record in records])
        self._unread: list[tuple[int, dict[str, Array]]] = []
        self._failed: dict[int, faults.NonFiniteError] = {}
        self._waited = 0.0
        self._store: jax.Array | None = None  # of images, where they lie on the devices
        self._settled = False
        self._clock: ledger.Clock | None = None

    def restore(self, states: Sequence[TrainState]) -> tuple[Any, list[int]]:
        """The trainings' states on the devices, and where each stands.

        Args:
          states: fresh ones, taken where a training has no checkpoint yet.
        """
        found = [
            record.open(self._layout.target(state))
            for record, state in zip(self._records, states, strict=True)
        ]
        starts = [start for _, start in found]
        self._clock = ledger.Clock(*(record.ledger for record in self._records))
        self._bar = progress.Progress(self._name, self._steps, start=starts[0])
        return self._layout.restored([state for state, _ in found]), starts

    def members(self, tree: Any) -> list[tuple[int, Any]]:
        """States or metrics of the trainings, by number, in which all has been finite so far."""
        found = enumerate(self._layout.members(tree))
        return [(i, own) for i, own in found if i not in self._failed]

    def run(self, state: Any, start: int, until: int, context: Any = ()) -> Any:
        """Makes updates `start`..`until`; saves on the way, but not at `until`: see `save`.

        Raises:
          NonFiniteError: a loss or gradient became NaN or infinite. Where that is one of several
            trainings, the others are saved, at `until` by the caller's `save`, which raises it.
          Preempted: SIGTERM arrived; all is saved.
        """
        if not self._settled and start < until:
            streams = [record.stream for record in self._records]
            self._store, self._settled = resident.settle(streams, self._job, self._name), True
        runtime = self._job.runtime
        flops: float | None = None  # of one step; every step of a run has the same shapes
        for n in range(start, until):
            began, waited = time.perf_counter(), self._waited
            batch = self._next_batch()
            if flops is None:
                flops = self._flops(state, batch, context)
            state, values = self._program(state, batch, self._layout.key(self._keys, n), context)
            for record in self._records:
                record.ledger.flops += flops
                record.ledger.images += batch["label"].shape[-1]
            self._unread.append((n, values))
            self._read(keep=1)
            if n > start:  # the first step of a run may compile
                for record in self._records:
                    record.time(time.perf_counter() - began, self._waited - waited)
            done = n + 1
            log = done % runtime.log_every == 0 or done == self._steps
            # At `until` the caller saves, once it has written what belongs to that step.
            save = done != until and (faults.stopping() or done % runtime.checkpoint_every == 0)
            if log or save:
                self._read(keep=0)
            if log and len(self._failed) < len(self._records):
                self._log(done)
            self._stop_failed(state, done, until)
            if save:  # before the next batch is fetched, so that loader and state agree
                self.save(state, done)
                faults.raise_if_stopping(f"{self._name}, step {done}")
        self._read(keep=0)
        self._stop_failed(state, until, until)
        self._bar.update(until)
        return state

    def save(self, state: Any, step: int) -> None:
        """Saves each training, so that it can go on from `step`.

        Raises NonFiniteError for one that is not finite, now or before, once the others are saved.
        """
        assert self._clock is not None
        self._clock.read()
        for i, own in self.members(state):
            try:
                self._records[i].save(own, step)
            except faults.NonFiniteError as error:
                self._failed[i] = error
        if self._failed:
            first, *others = self._failed.values()
            for other in others:
                first.add_note(str(other))
            raise first

    def __enter__(self) -> "Loop":
        """Itself; the trainings' files are closed on leaving, however it ends."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Books the last seconds; closes checkpoints, loaders, metrics and progress, each one.

        What ended the trainings is what is raised; errors of closing are added to it as notes.
        """
        closing = [call for record in self._records for call in record.closing()]
        if self._clock is not None:
            self._clock.read()
            closing.append(lambda: self._bar.__exit__(kind, error, trace))
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
        batches = [next(record.stream) for record in self._records]  # type: ignore[call-overload]
        waited = time.perf_counter() - since
        self._waited += waited
        for record in self._records:
            record.ledger.data_wait += waited / len(self._records)
        placed = self._layout.batch(batches)
        return resident.images(placed, self._store, self._job.mesh, self._layout.rows)

    def _read(self, keep: int) -> None:
        """Reads the metrics of all steps but the last `keep`; of all, where some are not finite."""
        cut = max(0, len(self._unread) - keep)
        self._tell(self._unread[:cut])
        self._unread = self._unread[cut:]
        if self._failed:
            self._tell(self._unread)
            self._unread = []

    def _tell(self, unread: Sequence[tuple[int, dict[str, Array]]]) -> None:
        for n, values in unread:
            for i, own in self.members(values):
                try:
                    self._records[i].read(n, own)
                except faults.NonFiniteError as error:
                    self._failed[i] = error

    def _stop_failed(self, state: Any, done: int, until: int) -> None:
        """Ends the run where a training is not finite, with the others saved.

        Where others have come to the end of a round, what belongs to that comes before.
        """
        if self._failed and (done < until or len(self._failed) == len(self._records)):
            self.save(state, done)

    def _log(self, done: int) -> None:
        assert self._clock is not None
        self._clock.read()
        left = [record for i, record in enumerate(self._records) if i not in self._failed]
        self._bar.update(done, loss=statistics.mean(record.log(done) for record in left))

    def _flops(self, state: Any, batch: Any, context: Any) -> float:
        arguments = state, batch, self._layout.key(self._keys, 0), context
        leaves, structure = jax.tree.flatten(self._layout.shapes(arguments))
        return _counted(self._layout.countable(self._step), structure, tuple(leaves))


@functools.lru_cache(maxsize=64)
def _counted(step: Step, structure: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]) -> float:
    # Trainings of many seeds share one step, which is lowered once.
    return ledger.flops(step, *jax.tree.unflatten(structure, shapes))
