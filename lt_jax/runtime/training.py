"""One training from its first step to its last, in rounds, or several side by side."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from lt_jax.runtime import loop, mesh, population, record
from lt_jax.runtime.job import Job
from lt_jax.runtime.ledger import Ledger
from lt_jax.runtime.metrics import MetricWriter
from lt_jax.runtime.train_state import TrainState
from lt_jax.shapes import PRNGKey

Resumed = Callable[[TrainState, int], None]
Before = Callable[[int], Any]
After = Callable[[int, TrainState, MetricWriter], None]


@dataclasses.dataclass(frozen=True)
class Training:
    """What all trainings have in common.

    Attributes:
      step: from `spmd.jit_step`.
      state: a fresh one, anywhere.
      stream: of batches.
      key: of the steps.
      job: where it runs; its mesh is that of `step`.
      ends: the step that each round ends with, ascending; the last ends the training. A checkpoint
        is made at each.
      batch: images a batch, and the config field that says so.
      resumed: told the state and step that the training goes on from, before the first round.
      before: of a round's number, its context for the step; rounds that are over are left out.
      after: told the end of a round, its state, and where its metrics belong, before it is saved.
    """

    step: loop.Step
    state: TrainState
    stream: record.Stream
    key: PRNGKey
    job: Job
    ends: Sequence[int]
    batch: tuple[int, str]
    resumed: Resumed = lambda state, start: None
    before: Before = lambda number: ()
    after: After = lambda until, state, metrics: None


def train(training: Training) -> tuple[TrainState, Ledger]:
    """Trains, or goes on training, in its folder; returns the last state and the cost.

    Raises:
      ConfigError: steps are left, and the devices cannot share a batch evenly.
      NonFiniteError, Preempted: see `Loop.run`.
    """
    ((state, costs),) = _train([training], population.Alone(training.job.mesh))
    return state, costs


def train_together(trainings: Sequence[Training], how: str) -> list[tuple[TrainState, Ledger]]:
    """`train` of several by one program, each in its own folder; see `population.Together`.

    What each leaves is what it leaves alone, up to rounding, so that either can go on from the
    other. Seconds are shared out evenly.

    Args:
      trainings: with one step, one mesh, the same rounds, and batches of the same columns.
      how: "vmap", "map" or "devices", which takes a multiple of the devices.

    Returns:
      Of each training its last state, on the host, and its cost; nothing, and nothing is trained,
      where their checkpoints are of different steps.

    Raises:
      ValueError: the trainings are of different steps or rounds, or not so many.
      ConfigError, NonFiniteError, Preempted: as `train`; where one training is not finite, the
        others are saved.
    """
    first = trainings[0]
    if any((t.step, t.ends, t.batch) != (first.step, first.ends, first.batch) for t in trainings):
        raise ValueError("trainings of a population have one step, the same rounds and batch size")
    devices = first.job.mesh.size
    if how == "devices" and len(trainings) % devices:
        raise ValueError(f"{len(trainings)} trainings for {devices} devices; takes a multiple")
    return _train(trainings, population.Together(first.job.mesh, how))


def lower(trainings: Sequence[Training], how: str = "") -> jax.stages.Lowered:
    """The program of a step of `train`, or of `train_together` by `how`, as it is traced there.

    Reads a batch of each stream, which is closed; writes nothing.

    Raises:
      ConfigError: as `train`.
    """
    first = trainings[0]
    device_mesh = first.job.mesh
    layout = population.Together(device_mesh, how) if how else population.Alone(device_mesh)
    layout.check(*first.batch)
    contexts, batches = [], []
    for own in trainings:
        with contextlib.closing(own.stream):
            own.stream.restrict(*mesh.part(device_mesh))
            own.stream.seek(0, None)
            contexts.append(own.before(0))
            batches.append(next(own.stream))
    return layout.program(first.step).lower(
        layout.restored([layout.target(own.state) for own in trainings]),
        layout.batch(batches),
        layout.key(layout.keys([own.key for own in trainings]), 0),
        layout.context(contexts),
    )


def _train(
    trainings: Sequence[Training], layout: population.Layout
) -> list[tuple[TrainState, Ledger]]:
    first = trainings[0]
    records = [record.Record(own.stream, own.key, own.job) for own in trainings]
    with loop.Loop(first.step, records, steps=first.ends[-1], layout=layout) as running:
        state, starts = running.restore([own.state for own in trainings])
        if len(set(starts)) > 1:
            return []
        start = starts[0]
        if start < first.ends[-1]:
            layout.check(*first.batch)
        for i, own in running.members(state):
            trainings[i].resumed(own, start)
        for number, until in enumerate(first.ends):
            if start >= until:
                continue
            context = layout.context([own.before(number) for own in trainings])
            state = running.run(state, start, until, context)
            for i, own in running.members(state):
                trainings[i].after(until, own, records[i].metrics)
            running.save(state, until)
            start = until
    return [(own, each.ledger) for own, each in zip(layout.members(state), records, strict=True)]
