"""Where a trial stands: facts in its folder, each written atomically by who holds its lock.

    trials/<name>/trial.json   overrides, the whole config, stages, cache: written when planned
    trials/<name>/state.json   waiting, failed (with its last error line) or done; starts and ends
    trials/<name>/.lock        held by the process that runs it: it runs, whatever else is told
    trials/<name>/card         CUDA_VISIBLE_DEVICES of the process that runs it, or ran it last
    trials/<name>/run/         its workdir
    trials/<name>/log.txt      what it printed

A process that is killed releases its lock and has marked nothing: its trial waits again.
"""

import dataclasses
import enum
import json
import os
import pathlib
import stat
from collections.abc import Mapping, Sequence
from typing import Any

from lt_jax import pipeline
from lt_jax.config import ConfigError
from lt_jax.errors import UserError
from lt_jax.runtime import faults, files
from lt_jax.sweep import definition
from lt_jax.sweep.definition import Sweep, Trial

FOLDER = "trials"


class SweepError(UserError, RuntimeError):
    """A sweep's folder, or a trial, that cannot be gone on with."""


class State(enum.StrEnum):
    """Where a trial stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FAILED = "failed"
    DONE = "done"


@dataclasses.dataclass(frozen=True)
class Status:
    """A trial's state, its last error, how often it was begun and how often it ended at all."""

    state: State = State.WAITING
    error: str = ""
    begun: int = 0
    ended: int = 0

    @property
    def deaths(self) -> int:
        """How often the trial's process has vanished, where none is running now."""
        return self.begun - self.ended


@dataclasses.dataclass(frozen=True)
class Planned:
    """A trial on disk: what it is, the stages it runs and the cache that it shares."""

    folder: pathlib.Path
    trial: Trial
    stages: tuple[str, ...]
    cache: pathlib.Path

    @property
    def name(self) -> str:
        """The trial's."""
        return self.folder.name

    @property
    def workdir(self) -> pathlib.Path:
        """Where its run lives."""
        return self.folder / "run"


def folder_of(out: pathlib.Path, name: str) -> pathlib.Path:
    """Where a trial lies."""
    return out / FOLDER / name


def owned(folder: pathlib.Path) -> None:
    """Refuses a folder that another user owns or may write into: jobs in it are run as they are."""
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWOTH | stat.S_IWGRP):
        raise SweepError(
            f"{folder}: another user owns it or may write into it, and what lies there is run; "
            "take a folder of your own (chmod go-w)"
        )


def check_sweep(out: pathlib.Path, sweep: Sweep) -> None:
    """Refuses a folder whose trials have another base or other shared overrides than this sweep.

    Trials that differ in more than their overrides would be compared as if they did not.

    Raises:
      ConfigError: a trial is there that this sweep would give another config.
    """
    base = definition.base_of(sweep.base)
    for planned in all_in(out):
        try:
            config = definition.configured(base, sweep.shared, planned.trial.overrides)
        except (ConfigError, TypeError) as error:
            raise _others(planned.folder, [str(error)]) from error
        _check_config(planned, config)


def _check_config(planned: Planned, config: Mapping[str, Any]) -> None:
    if changes := pipeline.deciding(dict(planned.trial.config), dict(config)):
        raise _others(planned.folder, changes)


def _others(folder: pathlib.Path, changes: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"trial {folder.name}: {folder} holds it under another config (base or shared overrides "
        "have changed):\n  "
        + "\n  ".join(changes[:10])
        + "\nuse another --out (with --cache to share finished stages)"
    )


def cache_of(out: pathlib.Path, given: pathlib.Path | None) -> pathlib.Path:
    """The cache of a sweep's trials: where there are none yet the given one, or OUT/cache.

    Raises:
      SweepError: another one is given than the trials have.
    """
    held = next((planned.cache for planned in all_in(out)), None)
    if held is None:
        return given or out / "cache"
    if given is not None and given.resolve() != held.resolve():
        raise SweepError(
            f"--cache: got {given}, and the trials of {out} have {held}; leave --cache out, or "
            "use another --out"
        )
    return held


def write(out: pathlib.Path, trial: Trial, stages: Sequence[str], cache: pathlib.Path) -> Planned:
    """Writes a trial down; one that is there already must be the same.

    One that is done, and gets further stages, waits again.

    Raises:
      ConfigError: it is there under another config, since the base has changed.
      WorkdirInUseError: it gets further stages while a process runs it.
    """
    folder = folder_of(out, trial.name)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trial.json"
    if path.exists():
        before = read_trial(folder)
        _check_config(before, trial.config)
        if set(stages) - set(before.stages):
            _reopen(folder)
    description = {
        "overrides": trial.overrides,
        "stages": list(stages),
        # From here, so that the whole folder may be moved.
        "cache": os.path.relpath(cache.resolve(), folder.resolve()),
        "config": trial.config,
    }
    files.write_atomically(path, json.dumps(description, indent=1), "a trial")
    return read_trial(folder)


def read_trial(folder: pathlib.Path) -> Planned:
    """The trial in a folder."""
    try:
        held = json.loads((folder / "trial.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise SweepError(f"{folder}: holds no trial ({error})") from error
    cache = pathlib.Path(os.path.normpath(folder.resolve() / held["cache"]))
    trial = Trial(held["overrides"], held["config"])
    return Planned(folder, trial, tuple(held["stages"]), cache)


def all_in(out: pathlib.Path) -> list[Planned]:
    """Every trial of a sweep's folder, in the order in which they were planned."""
    found = [path.parent for path in (out / FOLDER).glob("*/trial.json")]
    order_file = out / "order.json"
    order = json.loads(order_file.read_text()) if order_file.exists() else []
    rank = {name: i for i, name in enumerate(order)}
    found.sort(key=lambda folder: (rank.get(folder.name, len(rank)), folder.name))
    return [read_trial(folder) for folder in found]


def add_to_order(out: pathlib.Path, names: Sequence[str]) -> None:
    """Notes in which order trials were planned; those that are known keep their place."""
    path = out / "order.json"
    before = json.loads(path.read_text()) if path.exists() else []
    order = list(dict.fromkeys([*before, *names]))
    if order != before:
        files.write_atomically(path, json.dumps(order), "the order of trials")


def marked(folder: pathlib.Path) -> Status:
    """What is written down, whether it runs or not."""
    path = folder / "state.json"
    if not path.exists():
        return Status()
    held = json.loads(path.read_text())
    return Status(State(held["state"]), held["error"], held["begun"], held["ended"])


def mark(folder: pathlib.Path, status: Status) -> None:
    """Writes a state down; call it under the trial's lock."""
    text = json.dumps(dataclasses.asdict(status))
    files.write_atomically(folder / "state.json", text, "a trial's state")


def status(folder: pathlib.Path) -> Status:
    """Where a trial stands now."""
    running = faults.held(folder)
    now = marked(folder)  # after the lock, which falls after the mark is made
    return dataclasses.replace(now, state=State.RUNNING) if running else now


def give_up(folder: pathlib.Path, error: str) -> None:
    """Marks a trial that nobody runs as failed."""
    with faults.lock(folder, patience=1.0):
        now = marked(folder)
        if now.state is State.WAITING:
            mark(folder, dataclasses.replace(now, state=State.FAILED, error=error))


def _reopen(folder: pathlib.Path) -> None:
    """Makes a trial that is done wait again."""
    with faults.lock(folder, patience=1.0):
        now = marked(folder)
        if now.state is State.DONE:
            mark(folder, dataclasses.replace(now, state=State.WAITING))


def put_back(folder: pathlib.Path) -> bool:
    """Makes a failed trial wait again, all its starts forgotten; whether it had failed."""
    with faults.lock(folder, patience=1.0):
        failed = marked(folder).state is State.FAILED
        if failed:
            mark(folder, Status())
    return failed
