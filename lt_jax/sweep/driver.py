"""Carries a sweep out: gives waiting trials to an executor until none waits or runs.

All it knows is on disk (`states`), so that a driver that was killed, with its workers or without,
is simply started again. Trials that outlive it are found by their locks.
"""

import collections
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from lt_jax.runtime import faults
from lt_jax.runtime.progress import say
from lt_jax.sweep import states
from lt_jax.sweep.jobs import Executor
from lt_jax.sweep.states import Planned, State, Status

DEATHS = 10  # vanished processes of a trial before it counts as failed


@runtime_checkable
class Source(Protocol):
    """Where trials come from."""

    def more(self, room: int, known: Mapping[str, Status]) -> Sequence[Planned]:
        """Up to `room` new trials, from where the known ones stand."""
        ...


class Listed:
    """All trials are known from the start."""

    def more(self, room: int, known: Mapping[str, Status]) -> Sequence[Planned]:
        """None."""
        return ()


def run(
    out: pathlib.Path,
    trials: Sequence[Planned],
    executor: Executor,
    source: Source | None = None,
    *,
    deaths: int = DEATHS,
    pause: float | None = None,
    tell: Callable[[str], None] = say,
) -> dict[str, Status]:
    """Runs trials until all have ended; returns where each stands.

    Args:
      out: the sweep's folder, which this process holds meanwhile.
      trials: planned ones.
      executor: who carries them out.
      source: of further trials.
      deaths: vanished processes of a trial before it is given up.
      pause: seconds between two looks; None: the executor's.
      tell: gets a line whenever the counts change.

    Raises:
      WorkdirInUseError: another process drives this sweep.
      Preempted: SIGTERM arrived; trials that do not outlive this process have saved.
    """
    source = source or Listed()
    planned = {trial.name: trial for trial in trials}
    with faults.lock(out):
        line = ""
        while True:
            if faults.stopping():
                executor.stop()
                faults.raise_if_stopping("every trial")
            pending = executor.pending()  # before the states: what has ended has left its mark
            found = {name: _settled(trial, pending, deaths) for name, trial in planned.items()}
            now = counts(found)
            if now != line:
                tell(f"sweep: {now}")
                line = now
            busy = pending | {name for name, one in found.items() if one.state is State.RUNNING}
            room = executor.room(len(busy))
            ready = [
                planned[name]
                for name, one in found.items()
                if one.state is State.WAITING and name not in pending
            ][:room]
            # What follows from results is drawn when there is somebody to carry it out.
            free = min(room, executor.workers - len(busy)) - len(ready)
            new = source.more(free, found) if free > 0 else []
            planned |= {trial.name: trial for trial in new}
            if ready or new:
                executor.submit([*ready, *new])
            elif not busy:
                return found
            _rest(executor.pause if pause is None else pause)


def _rest(seconds: float) -> None:
    """Sleeps, until SIGTERM at most."""
    end = time.monotonic() + seconds
    while not faults.stopping() and (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.5))


def _settled(trial: Planned, pending: set[str], deaths: int) -> Status:
    """A trial's status; one that has died too often is given up."""
    found = states.status(trial.folder)
    lost = found.state is State.WAITING and trial.name not in pending and found.deaths >= deaths
    if lost:
        states.give_up(
            trial.folder,
            f"its process has vanished {found.deaths} times (killed, out of memory?); see log.txt",
        )
        found = states.status(trial.folder)
    return found


def counts(found: Mapping[str, Status]) -> str:
    """How many trials are in which state, in a line."""
    number = collections.Counter(one.state for one in found.values())
    return f"{len(found)} trials: " + ", ".join(f"{number[state]} {state}" for state in State)
