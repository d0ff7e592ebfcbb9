"""A sweep on a real Slurm: arrays, jobs cancelled, killed, requeued, preempted, failed.

eval "$(tests/slurm/start.sh)"; python -m pytest -m slurm tests/slurm; tests/slurm/start.sh stop
"""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from lt_jax.sweep import driver, jobs, states
from lt_jax.sweep.states import State
from tests.sweep import tiny_trial

pytestmark = pytest.mark.slurm
ROOT = pathlib.Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "tests.sweep.tiny_trial")
N = 8


def answer(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Skips, with the way to start it, where no Slurm answers."""
    try:
        answer("sinfo")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip('no Slurm answers: eval "$(tests/slurm/start.sh)"')


def executor(out, time_limit=10, **more):
    options = {"timeout_min": time_limit, "slurm_partition": "low", "cpus_per_task": 1, **more}
    return jobs.Slurm(out, 2, options, command=COMMAND)


def wait(condition, seconds=120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, answer("squeue")
        time.sleep(0.3)
    return found


def running(out, but=()):
    """Trials that run and have saved a step, as (trial, number of its job)."""
    return [
        (one, (one.folder / "slurm_job").read_text())
        for one in states.all_in(out)
        if one.name not in but
        and states.status(one.folder).state is State.RUNNING
        and (one.workdir / "progress.json").exists()
    ]


def child(one):
    """The process that holds a trial's lock."""
    return int((one.folder / ".lock").read_text().split()[0])


def drive(out, planned, found):
    """A driver in a thread, since the test plays the scheduler's part meanwhile."""

    def run():
        found.update(driver.run(out, planned, executor(out), pause=0.5))

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_sweep_is_whole_after_jobs_are_cancelled_killed_requeued_and_preempted(tmp_path):
    out = tmp_path / "sweep"
    planned = tiny_trial.plan(out, N, steps=40, pause=0.1)
    found = {}
    driving = drive(out, planned, found)
    hit, before = [], {}
    for ordeal in ("cancel", "kill", "requeue", "preempt"):
        one, job = wait(lambda: running(out, hit))[0]
        hit.append(one.name)
        before[one.name] = int((one.workdir / "progress.json").read_text())
        if ordeal == "cancel":
            answer("scancel", job)
        elif ordeal == "kill":
            os.kill(child(one), signal.SIGKILL)
        elif ordeal == "requeue":
            answer("scontrol", "requeue", job)
        else:
            preempt()
    driving.join(400)
    assert not driving.is_alive()
    tiny_trial.check_whole(out, N)
    assert {one.state for one in found.values()} == {State.DONE}
    again = [states.status(one.folder) for one in planned if one.name in hit]
    assert all(one.begun >= 2 for one in again)
    for one in planned:  # each went on from what it had saved
        starts = [int(line) for line in (one.workdir / "starts").read_text().split()]
        assert max(starts) >= before.get(one.name, 0)


def test_a_second_driver_leaves_jobs_in_the_queue_alone(tmp_path):
    out = tmp_path / "sweep"
    planned = tiny_trial.plan(out, 3, steps=20, pause=0.1)
    first = executor(out)
    first.submit(planned)
    second = executor(out)
    assert second.pending() == {one.name for one in planned}
    found = driver.run(out, planned, second, pause=0.5)
    assert all(one.begun == 1 for one in found.values())
    tiny_trial.check_whole(out, 3)
    assert len(list((out / "jobs").glob("*_submission.sh"))) == 1


def preempt():
    """A job of the higher partition takes every processor for a moment."""
    cores = f"--cpus-per-task={os.cpu_count()}"
    answer("sbatch", "--partition=high", cores, "--output=/dev/null", "--wrap=sleep 3")


def queued(job):
    """A job's state; nothing where Slurm has forgotten it."""
    command = ["squeue", "--noheader", f"--job={job}", "--format=%T"]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


def test_a_preempted_job_requeues_itself_without_a_driver(tmp_path):
    out = tmp_path / "sweep"
    planned = tiny_trial.plan(out, 1, steps=60, pause=0.3)
    executor(out).submit(planned)
    one, job = wait(lambda: running(out))[0]
    preempt()
    wait(lambda: states.status(one.folder).state is State.DONE, 240)
    held = states.status(one.folder)
    assert (held.begun, held.ended) == (2, 2)  # it was asked to end, and saved
    assert (one.folder / "slurm_job").read_text() == job


def test_a_cancelled_job_saves_and_is_not_requeued(tmp_path):
    out = tmp_path / "sweep"
    planned = tiny_trial.plan(out, 1, steps=1000, pause=0.3)
    executor(out).submit(planned)
    one, job = wait(lambda: running(out))[0]
    answer("scancel", job)
    wait(lambda: states.status(one.folder).ended == 1)
    wait(lambda: queued(job) in ("", "CANCELLED"))
    time.sleep(5)
    assert queued(job) in ("", "CANCELLED")
    assert states.status(one.folder) == states.Status(State.WAITING, "", 1, 1)


def test_a_failed_trial_is_a_failed_job(tmp_path):
    out = tmp_path / "sweep"
    (one,) = planned = tiny_trial.plan(out, 1, steps=1)
    one.cache.mkdir()
    (one.cache / "generator").touch()  # no folder: the trial fails
    executor(out).submit(planned)
    wait(lambda: states.status(one.folder).state is State.FAILED)
    job = (one.folder / "slurm_job").read_text()
    wait(lambda: "JobState=FAILED Reason=NonZeroExitCode" in answer("scontrol", "show", "job", job))


def test_the_warning_before_a_job_s_time_is_over_saves_and_requeues(tmp_path):
    out = tmp_path / "sweep"
    planned = tiny_trial.plan(out, 1, steps=100, pause=0.8)
    limited = executor(out, time_limit=2, slurm_signal_delay_s=60)
    limited.submit(planned)
    one, job = wait(lambda: running(out))[0]
    wait(lambda: states.status(one.folder).begun == 2, 240)
    held = states.status(one.folder)
    assert held.ended == 1  # it was asked to end, and saved
    found = driver.run(out, planned, limited, pause=0.5)
    assert (one.folder / "slurm_job").read_text() == job  # requeued by itself, not submitted anew
    assert all(status.state is State.DONE for status in found.values())
