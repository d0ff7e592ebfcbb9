"""A job of submitit: a small process that starts the trial's own and passes requests to stop on.

A crash of the one is no crash of the other. Imports nothing heavy: it stays in memory beside the
trial, on every node.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from lt_jax.runtime import faults, files


class Attend:
    """A job: the trial's process, which is told to save and stop where the job is."""

    def __init__(self, command: Sequence[str], log: str, card: str | None = None):
        """`command` is run with its output behind that of earlier ones in `log`.

        `card`: the GPU that it sees, "" for none; None: those that the job of Slurm sees. A job of
        this machine always has one of the first two, and may itself stand in a job of Slurm's.
        """
        self.command, self.log, self.card = list(command), log, card

    def __call__(self) -> None:
        """Runs it; ends as it ends, so that Slurm calls a failed trial a failed job."""
        path = pathlib.Path(self.log)
        card = {} if self.card is None else {"CUDA_VISIBLE_DEVICES": self.card}
        with files.disk_errors(path, "a trial's log"), path.open("ab") as log:
            # Slurm warns all processes by SIGUSR2: it is this one that passes it on, as SIGTERM.
            before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
            env = {**os.environ, **card}
            self._child = subprocess.Popen(self.command, stdout=log, stderr=log, env=env)
            signal.signal(signal.SIGUSR2, before)
            signal.signal(signal.SIGTERM, lambda *_: self._stop())
            code = self._child.wait()
        if code == faults.REQUEUE_EXIT_CODE and self.card is None:
            _requeue()
        if code:
            sys.exit(code if code > 0 else 128 - code)

    def checkpoint(self) -> Any:
        """What submitit runs after a requeue: the same, once the trial has saved and ended."""
        self._stop()
        # In a signal's handler, perhaps amid `Popen.wait`, whose lock must not be asked for.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Attend(self.command, self.log, self.card))

    def _stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(signal.SIGTERM)


def _requeue() -> None:
    """Puts this job of Slurm back into the queue, unless Slurm is ending it: it was cancelled."""
    if number := os.environ.get("SLURM_JOB_ID"):
        command = ["squeue", "--noheader", f"--job={number}", "--format=%T"]
        state = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        if state == "RUNNING":
            subprocess.run(["scontrol", "requeue", number], check=False)
