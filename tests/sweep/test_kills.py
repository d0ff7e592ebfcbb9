"""A sweep of 64 trials on two cores whose driver and a third of whose workers are killed at random.

Real processes and SIGKILL, minutes on two cores, thus `-m slow`; what came out is kept in
experiments/sweep/README.md.
"""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from lt_jax.runtime import faults
from lt_jax.sweep import states
from lt_jax.sweep.states import State
from tests.sweep import tiny_trial

ROOT = pathlib.Path(__file__).parents[2]
N = 64
KILLS = N // 3 + 1
DRIVERS = 5  # kills of the driver
DRIVE = """
import pathlib, sys
from lt_jax.sweep import driver, jobs, states
out = pathlib.Path(sys.argv[1])
command = (sys.executable, "-m", "tests.sweep.tiny_trial")
driver.run(out, states.all_in(out), jobs.Local(out, 2, command=command), pause=0.2)
"""


def start(out: pathlib.Path) -> subprocess.Popen:
    with open(out / "driver.log", "a") as log:
        command = [sys.executable, "-c", DRIVE, str(out)]
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def workers(out: pathlib.Path, whole: bool) -> list[tuple[str, int]]:
    """Trials that run, and the processes that hold them; `whole`: the jobs that attend to them."""
    found = []
    for one in states.all_in(out):
        if faults.held(one.folder):
            noted = (one.folder / ".lock").read_text().split()
            if not noted:  # held for a moment, and not yet signed
                continue
            pid = int(noted[0])
            if whole:
                stat = pathlib.Path(f"/proc/{pid}/stat")
                pid = int(stat.read_text().rpartition(")")[2].split()[1]) if stat.exists() else pid
            found.append((one.name, pid))
    return found


@pytest.mark.slow
def test_a_sweep_loses_nothing_when_its_driver_and_a_third_of_its_workers_are_killed(tmp_path):
    generator = random.Random(int(os.environ.get("KILL_SEED", "0")))
    tiny_trial.plan(tmp_path, N, steps=20, pause=0.05)
    process, killed, hit = start(tmp_path), 0, set[str]()
    driver_kills = sorted(generator.sample(range(1, KILLS), DRIVERS))
    end = time.monotonic() + 1500
    while process.poll() is None or killed < KILLS:
        assert time.monotonic() < end
        if process.poll() is not None:
            assert process.returncode == 0 or killed, (tmp_path / "driver.log").read_text()
            process = start(tmp_path)
        time.sleep(generator.uniform(0.2, 1.5))
        # Every third kill is of the job around a trial, which the trial outlives.
        running = workers(tmp_path, whole=killed % 3 == 2)
        fresh = [held for held in running if held[0] not in hit]
        if killed >= KILLS or not fresh:
            continue
        name, pid = generator.choice(fresh)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        hit.add(name)
        killed += 1
        if killed in driver_kills:
            process.kill()
            process.wait()
            process = start(tmp_path)
    assert killed == KILLS and process.wait() == 0, (tmp_path / "driver.log").read_text()
    tiny_trial.check_whole(tmp_path, N)
    marked = [states.status(one.folder) for one in states.all_in(tmp_path)]
    deaths = sum(one.deaths for one in marked)
    print(f"{killed} workers and {DRIVERS} drivers killed; {deaths} starts lost, no trial")
    assert 0 < deaths <= KILLS
    assert {one.state for one in marked} == {State.DONE}
