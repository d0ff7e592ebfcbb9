"""A job of submitit: a small process that starts the trial's own and passes requests to stop on.

A crash of the one is no crash of the other. Imports nothing heavy: it stays in memory beside the
trial, on every node.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

from lt_jax.runtime import files


class Attend:
    """A job: the trial's process, which is told to save and stop where the job is."""

    def __init__(self, command: Sequence[str], log: str):
        """`command` is run with its output behind that of earlier ones in `log`."""
        self.command, self.log = list(command), log

    def __call__(self) -> int:
        """Runs it; returns its exit code."""
        path = pathlib.Path(self.log)
        with files.disk_errors(path, "a trial's log"), path.open("ab") as log:
            # Slurm warns all processes by SIGUSR2: it is this one that passes it on, as SIGTERM.
            before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
            self._child = subprocess.Popen(self.command, stdout=log, stderr=log)
            signal.signal(signal.SIGUSR2, before)
            signal.signal(signal.SIGTERM, lambda *_: self._stop())
            return self._child.wait()

    def checkpoint(self) -> Any:
        """What submitit runs after a requeue: the same, once the trial has saved and ended."""
        self._stop()
        # In a signal's handler, perhaps amid `Popen.wait`, whose lock must not be asked for.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(Attend(self.command, self.log))

    def _stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(signal.SIGTERM)
