"""A trial without networks: shared work that is made once, then steps of its own that are saved.

    python -m tests.sweep.tiny_trial OUT/trials/<name>

It obeys the same locks, marks and signals as a real one, and a second of it costs no processor.
"""

import json
import math
import os
import pathlib
import sys
import time

from lt_jax.runtime import faults, files
from lt_jax.sweep import states
from lt_jax.sweep.definition import Trial
from lt_jax.sweep.trial import carry_out


def plan(out: pathlib.Path, n: int, steps: int = 20, pause: float = 0.05) -> list[states.Planned]:
    """`n` trials of that many steps."""
    config = {"steps": steps, "pause": pause}
    trials = [Trial({"number": i}, config) for i in range(n)]
    planned = [states.write(out, trial, (), out / "cache") for trial in trials]
    states.add_to_order(out, [trial.name for trial in trials])
    return planned


def work(planned: states.Planned) -> None:
    """The shared stage, then the steps from the last one saved."""
    config = planned.trial.config
    shared = planned.cache / "generator"
    with faults.lock(shared, patience=math.inf):
        if not (shared / "artifact").exists():
            time.sleep(0.5)
            with (shared / "made").open("a") as file:
                file.write(f"{os.getpid()}\n")
            files.write_atomically(shared / "artifact", str(os.getpid()), "the shared stage")
    with faults.lock(planned.workdir):
        path = planned.workdir / "progress.json"
        start = json.loads(path.read_text()) if path.exists() else 0
        with (planned.workdir / "starts").open("a") as file:
            file.write(f"{start}\n")
        for step in range(start, config["steps"]):
            faults.raise_if_stopping(f"step {step}")
            time.sleep(config["pause"])
            files.write_atomically(path, json.dumps(step + 1), "progress")
    result = {**planned.trial.overrides, "generator": (shared / "artifact").read_text()}
    files.write_atomically(planned.folder / "result.json", json.dumps(result), "a result")


def check_whole(out: pathlib.Path, n: int) -> None:
    """Every trial is done with its own result, from one shared stage."""
    trials = states.all_in(out)
    assert len(trials) == n
    assert all(states.status(one.folder).state is states.State.DONE for one in trials)
    results = [json.loads((one.folder / "result.json").read_text()) for one in trials]
    assert sorted(result["number"] for result in results) == list(range(n))
    assert len({result["generator"] for result in results}) == 1
    steps = trials[0].trial.config["steps"]
    saved = [json.loads((one.workdir / "progress.json").read_text()) for one in trials]
    assert set(saved) == {steps}


if __name__ == "__main__":
    with faults.saving_on_sigterm():
        sys.exit(carry_out(pathlib.Path(sys.argv[1]), work))
