"""One training from its first step to its last, in rounds: what all trainings have in common."""

from collections.abc import Callable, Sequence
from typing import Any

from lt_jax.runtime import loop, mesh
from lt_jax.runtime.job import Job
from lt_jax.runtime.ledger import Ledger
from lt_jax.runtime.metrics import MetricWriter
from lt_jax.runtime.train_state import TrainState
from lt_jax.shapes import PRNGKey

Resumed = Callable[[TrainState, int], None]
Before = Callable[[int], Any]
After = Callable[[int, TrainState, MetricWriter], None]


def train(
    step: loop.Step,
    state: TrainState,
    stream: loop.Stream,
    key: PRNGKey,
    job: Job,
    *,
    ends: Sequence[int],
    resumed: Resumed = lambda state, start: None,
    before: Before = lambda number: (),
    after: After = lambda until, state, metrics: None,
) -> tuple[TrainState, Ledger]:
    """Trains, or goes on training, in its folder; returns the last state and the cost.

    Args:
      step: from `spmd.jit_step`.
      state: a fresh one, anywhere.
      stream: of batches.
      key: of the steps.
      job: where it runs; its mesh is that of `step`.
      ends: the step that each round ends with, ascending; the last ends the training. A checkpoint
        is made at each.
      resumed: told the state and step that the training goes on from, before the first round.
      before: of a round's number, its context for the step; rounds that are over are left out.
      after: told the end of a round, its state, and where its metrics belong, before it is saved.

    Raises:
      NonFiniteError, Preempted: see `Loop.run`.
    """
    with loop.Loop(step, stream, key, steps=ends[-1], job=job) as training:
        state, start = training.restore(mesh.distribute(state, job.mesh))
        resumed(state, start)
        for number, until in enumerate(ends):
            if start >= until:
                continue
            context = mesh.distribute(before(number), job.mesh)
            state = training.run(state, start, until, context)
            after(until, state, training.metrics)
            training.save(state, until)
            start = until
    return state, training.ledger
