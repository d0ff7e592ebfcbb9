"""Who carries trials out: this process, local processes, or Slurm, the last two through submitit.

submitit writes jobs (`attend`) as pickles into `OUT/jobs` and reads them there: a folder that this
user alone may write into (`states.owned`). Results are not read from there, but from the trials'
folders.
"""

import contextlib
import dataclasses
import io
import itertools
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from lt_jax.errors import UserError
from lt_jax.runtime import faults, files, launchers
from lt_jax.runtime.progress import say, say_of
from lt_jax.sweep import states
from lt_jax.sweep.attend import Attend
from lt_jax.sweep.states import Planned, SweepError

COMMAND = (sys.executable, "-m", "lt_jax.sweep.trial")
SLURM_ARRAY = 1000  # jobs of an array at most: Slurm's default of MaxArraySize
_FOREVER = 60 * 24 * 365  # minutes
_TIMEOUTS = 100  # of a job, before it is the driver that submits its trial again
_NEVER = ("invalid", "unrecognized", "is not available")  # what sbatch says of a wrong option
_DEVICES = pathlib.Path("/dev")


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
    """What the driver asks of whoever carries trials out.

    Attributes:
      workers: trials that run at once; so many are drawn where each follows from those before.
      pause: seconds between two looks.
    """

    workers: int
    pause: float

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
    workers: int = 1
    pause: float = 0.5  # between two looks at a trial that another process runs

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

    pause = 2.0

    def __init__(
        self, out: pathlib.Path, most: int, gpus: int = 0, command: Sequence[str] = COMMAND
    ):
        """`gpus`: of this machine; at most so many trials run at once where there are any."""
        if most < 1 or gpus < 0:
            raise SweepError(f"--workers, --gpus: got {most}, {gpus}; takes 1 or more, 0 or more")
        self._out, self._cards, self._command = out, _cards(gpus), command
        self.workers = min(most, gpus) if gpus else most
        self._executor = submitit().LocalExecutor(_folder(out))
        self._executor.update_parameters(timeout_min=_FOREVER)
        self._jobs: dict[str, tuple[Any, str]] = {}

    def room(self, busy: int) -> int:
        """Up to `workers`."""
        return max(0, self.workers - busy)

    def submit(self, trials: Sequence[Planned]) -> None:
        """Starts a process each; trials beyond the free cards are left for later."""
        cards = self._free() if self._cards else itertools.repeat("")
        for planned, card in zip(trials, cards, strict=False):
            with _deaf():
                job = self._executor.submit(_attend(planned, self._command, card))
            self._jobs[planned.name] = job, card

    def _free(self) -> list[str]:
        """Cards that no trial of the sweep has, one that outlived an earlier driver included."""
        noted = (self._out / states.FOLDER).glob("*/card")
        used = {path.read_text() for path in noted if faults.held(path.parent)}
        used |= {card for _, card in self._jobs.values()}
        return [card for card in self._cards if card not in used]

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
        self._jobs.clear()  # submitit's own ends are noisy where the interpreter is gone


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes that start meanwhile do not hear Ctrl-C, which a terminal tells all: `stop` does.

    submitit's own would kill the job, and so leave nobody to wait until its trial has saved.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cards(gpus: int) -> list[str]:
    """The first `gpus` cards that this process sees; SweepError where it sees fewer."""
    found, cards = launchers.devices_of(_DEVICES), launchers.named_cards(os.environ)
    where = f"CUDA_VISIBLE_DEVICES={','.join(cards or [])}"
    if cards is None:
        # No such device need not mean that there is no card: not everywhere they are so called.
        cards, where = [str(i) for i in range(found or gpus)], f"{found} in {_DEVICES}"
    if gpus > len(cards):
        raise SweepError(f"--gpus: got {gpus}; takes {len(cards)} at most ({where})")
    if cards and not gpus and found:
        say(f"sweep: trials will not see the {len(cards)} GPUs of this machine; --gpus=N for N")
    return cards[:gpus]


class Slurm:
    """Jobs of arrays; they outlive this process, and a later one finds them by their numbers."""

    pause = 30.0  # squeue is asked at each look

    def __init__(
        self,
        out: pathlib.Path,
        most: int,
        options: Mapping[str, Any],
        more: Sequence[tuple[str, str]] = (),
        command: Sequence[str] = COMMAND,
        queued: int = SLURM_ARRAY,
    ):
        """`most` jobs run at once, `queued` wait or run.

        `options`: of AutoExecutor; `more`: of sbatch.
        """
        if most < 1 or not 1 <= queued <= SLURM_ARRAY:
            raise SweepError(
                f"--workers, --queued: got {most}, {queued}; takes 1 or more, 1 to {SLURM_ARRAY}"
            )
        library = submitit()
        self.workers, self._queued = min(most, queued), queued
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
            slurm_array_parallelism=self.workers,
            slurm_additional_parameters={"requeue": True, **dict(more)},
            **options,
        )
        self._ids = {
            planned.name: path.read_text()
            for planned in states.all_in(out)
            if (path := planned.folder / "slurm_job").exists()
        }

    def room(self, busy: int) -> int:
        """One array at first, which Slurm lets run by `workers`; later, what is left of these.

        So that no more run at once, whatever has been lost and is submitted again.
        """
        return max(0, self.workers - busy) if busy else self._queued

    def submit(self, trials: Sequence[Planned]) -> None:
        """One array of all; each trial notes its job. Where sbatch refuses, they go on waiting.

        Raises SweepError where it will not take them later, either: an option is wrong.
        """
        errors = submitit().core.utils
        try:
            # It prints what it raises, at each attempt.
            with contextlib.redirect_stderr(io.StringIO()), self._executor.batch():
                held = [self._executor.submit(_attend(one, self._command)) for one in trials]
        except (errors.UncompletedJobError, errors.FailedSubmissionError) as error:
            self._clear()
            reason = str(error).strip()
            if any(word in reason.lower() for word in _NEVER):
                raise SweepError(f"--executor=slurm: {reason}") from error
            say_of(
                "sweep",
                "sbatch",
                f"Slurm takes no jobs now ({reason}); it is asked every {self.pause:g} s. Where it "
                f"never takes {len(trials)} at once, --queued=N submits no more than N",
            )
            return
        for planned, job in zip(trials, held, strict=True):
            files.write_atomically(planned.folder / "slurm_job", job.job_id, "a job's number")
            self._ids[planned.name] = job.job_id
        say(f"sweep: {len(held)} jobs submitted, {held[0].job_id} to {held[-1].job_id}")

    def _clear(self) -> None:
        """Removes what was written for jobs that were not taken."""
        for name in (".submission_file_*.sh", f"{'[0-9a-f]' * 32}.pkl"):
            for path in self._executor.folder.glob(name):
                path.unlink()

    def pending(self) -> set[str]:
        """Those that Slurm has in its queue, waiting or running; all where it does not answer."""
        # Not submitit's own states: they come from sacct, which many clusters do not have.
        queue = ["squeue", "--me", "--noheader", "--array", "--format=%F_%K"]
        found = subprocess.run(queue, capture_output=True, text=True, check=False)
        if found.returncode:
            say_of("sweep", "squeue", f"Slurm does not answer ({found.stderr.strip()})")
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


def _attend(planned: Planned, command: Sequence[str], card: str | None = None) -> Attend:
    folder = planned.folder.resolve()
    return Attend([*command, str(folder)], str(folder / "log.txt"), card)
