"""Who carries trials out: this process, local processes, or Slurm, the last two through submitit.

submitit writes jobs (`attend`) as pickles into `OUT/jobs` and reads them there: a folder that this
user alone may write into (`states.owned`). Results are not read from there, but from the trials'
folders.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from lt_jax.errors import UserError
from lt_jax.runtime import faults, files
from lt_jax.runtime.progress import say
from lt_jax.sweep import states
from lt_jax.sweep.attend import Attend
from lt_jax.sweep.states import Planned, SweepError

COMMAND = (sys.executable, "-m", "lt_jax.sweep.trial")
SLURM_ARRAY = 1000  # jobs of an array at most: Slurm's default of MaxArraySize
_FOREVER = 60 * 24 * 365  # minutes
_TIMEOUTS = 100  # of a job, before it is the driver that submits its trial again


class MissingLibraryError(UserError, ImportError):
    """An optional library that the command needs is not installed."""


def submitit() -> Any:
    """The library; imported where it is used, since it is optional."""
    try:
        import submitit as library
    except ImportError as error:
        raise MissingLibraryError(
            "--executor: local and slurm take submitit: pip install -r requirements-sweep.txt"
        ) from error
    return library


@runtime_checkable
class Executor(Protocol):
    """What the driver asks of whoever carries trials out."""

    def room(self, busy: int) -> int:
        """How many trials it takes now, where `busy` are in its hands or running."""
        ...

    def submit(self, trials: Sequence[Planned]) -> None:
        """Takes trials on."""
        ...

    def pending(self) -> set[str]:
        """Names of trials that it has taken on and not yet let go of."""
        ...

    def stop(self) -> None:
        """Asks all of them to save and stop, where they do not outlive this process."""
        ...


@dataclasses.dataclass
class InProcess:
    """One after the other, in this process: for tests, and to step through with a debugger."""

    run: Callable[[pathlib.Path], int]

    def room(self, busy: int) -> int:
        """One at a time."""
        return 1

    def submit(self, trials: Sequence[Planned]) -> None:
        """Runs them to their ends."""
        for planned in trials:
            self.run(planned.folder)
            faults.raise_if_stopping(f"trial {planned.name}")

    def pending(self) -> set[str]:
        """None: they have ended."""
        return set()

    def stop(self) -> None:
        """Nothing to stop."""


class Local:
    """Processes of this machine, `most` at once; with GPUs, each has one to itself."""

    def __init__(
        self, out: pathlib.Path, most: int, gpus: int = 0, command: Sequence[str] = COMMAND
    ):
        """`gpus`: of this machine; at most so many trials run at once where there are any."""
        if most < 1 or gpus < 0:
            raise SweepError(f"--workers, --gpus: got {most}, {gpus}; takes 1 or more, 0 or more")
        self._most, self._gpus, self._command = min(most, gpus) if gpus else most, gpus, command
        self._executor = submitit().LocalExecutor(_folder(out))
        self._jobs: dict[str, tuple[Any, int]] = {}

    def room(self, busy: int) -> int:
        """Up to `most`."""
        return max(0, self._most - busy)

    def submit(self, trials: Sequence[Planned]) -> None:
        """Starts a process each."""
        for planned in trials:
            used = {slot for _, slot in self._jobs.values()}
            slot = next(i for i in range(len(used) + 1) if i not in used)
            card = {"gpus_per_node": 1, "visible_gpus": (slot,)} if self._gpus else {}
            self._executor.update_parameters(timeout_min=_FOREVER, **card)
            job = self._executor.submit(_attend(planned, self._command))
            self._jobs[planned.name] = job, slot

    def pending(self) -> set[str]:
        """Those whose process lives."""
        self._jobs = {name: held for name, held in self._jobs.items() if not held[0].done()}
        return set(self._jobs)

    def stop(self) -> None:
        """SIGTERM to every job's process, which passes it on; waits until they have ended."""
        for job, _ in self._jobs.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)
        for job, _ in self._jobs.values():
            job._process.wait()


class Slurm:
    """Jobs of arrays; they outlive this process, and a later one finds them by their numbers."""

    def __init__(
        self,
        out: pathlib.Path,
        most: int,
        options: Mapping[str, Any],
        more: Sequence[tuple[str, str]] = (),
        command: Sequence[str] = COMMAND,
    ):
        """`most` jobs of an array at once; `options`: of AutoExecutor; `more`: of sbatch."""
        library = submitit()
        _folder(out)
        if reason := faults.one_host_only(out):
            raise SweepError(
                f"{out}: its locks do not hold between hosts ({reason}), so that two of them could "
                "write into one folder; mount it with shared locks, or use another"
            )
        self._command = command
        try:
            # A trial is requeued however often its time is over: it has saved each time.
            limit = {"slurm_max_num_timeout": _TIMEOUTS}
            self._executor = library.AutoExecutor(_folder(out), cluster="slurm", **limit)
        except RuntimeError as error:
            raise SweepError(f"--executor=slurm: {error}") from error
        self._executor.update_parameters(
            name="lt_jax",
            slurm_array_parallelism=most,
            slurm_additional_parameters={"requeue": True, **dict(more)},
            **options,
        )
        self._ids = {
            planned.name: path.read_text()
            for planned in states.all_in(out)
            if (path := planned.folder / "slurm_job").exists()
        }

    def room(self, busy: int) -> int:
        """As many as an array holds: Slurm itself minds how many run."""
        return SLURM_ARRAY

    def submit(self, trials: Sequence[Planned]) -> None:
        """One array of all; each trial notes its job."""
        with self._executor.batch():
            jobs = [self._executor.submit(_attend(planned, self._command)) for planned in trials]
        for planned, job in zip(trials, jobs, strict=True):
            files.write_atomically(planned.folder / "slurm_job", job.job_id, "a job's number")
            self._ids[planned.name] = job.job_id
        say(f"sweep: {len(jobs)} jobs submitted, {jobs[0].job_id} to {jobs[-1].job_id}")

    def pending(self) -> set[str]:
        """Those that Slurm has in its queue, waiting or running; all where it does not answer."""
        # Not submitit's own states: they come from sacct, which many clusters do not have.
        queue = ["squeue", "--me", "--noheader", "--array", "--format=%F_%K"]
        found = subprocess.run(queue, capture_output=True, text=True, check=False)
        if found.returncode:
            say(f"sweep: Slurm does not answer ({found.stderr.strip()})")
            return set(self._ids)
        queued = {line.strip().removesuffix("_N/A") for line in found.stdout.splitlines()}
        return {name for name, number in self._ids.items() if number in queued}

    def stop(self) -> None:
        """Leaves them to Slurm."""


def _folder(out: pathlib.Path) -> pathlib.Path:
    folder = out / "jobs"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    states.owned(folder)
    return folder.resolve()


def _attend(planned: Planned, command: Sequence[str]) -> Attend:
    folder = planned.folder.resolve()
    return Attend([*command, str(folder)], str(folder / "log.txt"))
