"""One trial of a sweep in a process of its own.

    python -m lt_jax.sweep.trial OUT/trials/<name>

Exit codes: 0 done (or another process runs it), 75 stopped by SIGTERM or Ctrl-C with everything
saved, 1 failed. However it ends, what it found is in the trial's folder (`states`).
"""

import dataclasses
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable

if __name__ == "__main__":  # before the imports, which take seconds
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))

from lt_jax.errors import UserError
from lt_jax.runtime import faults, files
from lt_jax.runtime.progress import say
from lt_jax.sweep import states
from lt_jax.sweep.states import Planned, State

Work = Callable[[Planned], None]
_PATIENCE = 1.0  # seconds: longer than anybody looks whether a trial is running
_LEASE = 300.0  # seconds: longer than a file server holds a dead host's locks


def carry_out(folder: pathlib.Path, work: Work) -> int:
    """Does a trial's work under its lock and marks what came of it; returns the exit code."""
    # Slurm runs a job again as soon as its host is found dead, before its lock has fallen.
    again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    try:
        with faults.lock(folder, _LEASE if again else _PATIENCE):
            return _carry_out(folder, work)
    except faults.WorkdirInUseError as busy:
        say(f"{folder.name}: left alone ({busy})")
        return 0


def _carry_out(folder: pathlib.Path, work: Work) -> int:
    before = states.marked(folder)
    if before.state is not State.WAITING:
        return 0 if before.state is State.DONE else 1
    cards = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    files.write_atomically(folder / "card", cards, "a trial's card")
    now = dataclasses.replace(before, begun=before.begun + 1)
    states.mark(folder, now)
    now = dataclasses.replace(now, ended=before.ended + 1)
    try:
        work(states.read_trial(folder))
    except faults.Preempted as stop:
        say(str(stop))
        states.mark(folder, now)
        return faults.REQUEUE_EXIT_CODE
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        line = traceback.format_exception_only(error)[-1].strip().splitlines()[-1]
        line = str(error).splitlines()[-1] if isinstance(error, UserError) else line
        say(f"{folder.name}: {error}")
        states.mark(folder, dataclasses.replace(now, state=State.FAILED, error=line))
        return 1
    states.mark(folder, dataclasses.replace(now, state=State.DONE, error=""))
    return 0


def run_pipeline(planned: Planned) -> None:
    """The stages of a trial."""
    from lt_jax import command
    from lt_jax.sweep import measured

    run = measured.pipeline_of(planned)
    command.use_devices(run.config.runtime, planned.cache)
    run.run(planned.stages)


def main() -> None:
    """Runs the trial of the folder that is given."""
    from absl import logging

    logging.set_verbosity(logging.WARNING)
    with faults.saving_on_sigterm(faults.GRACE, ctrl_c=True):
        sys.exit(carry_out(pathlib.Path(sys.argv[1]), run_pipeline))


if __name__ == "__main__":
    main()
