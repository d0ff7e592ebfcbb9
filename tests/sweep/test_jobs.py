"""Who carries trials out: cards, Ctrl-C, and Slurm as far as its commands can be played."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from lt_jax.runtime import faults, progress
from lt_jax.sweep import driver, jobs, states
from lt_jax.sweep.attend import Attend
from lt_jax.sweep.states import State, Status, SweepError
from lt_jax.sweep.trial import carry_out
from tests.sweep import fake_slurm, tiny_trial

pytest.importorskip("submitit")
ROOT = pathlib.Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "tests.sweep.tiny_trial")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The folder of a Slurm that is played."""
    home = tmp_path / "slurm"
    monkeypatch.setenv("PATH", f"{fake_slurm.install(home)}:{os.environ['PATH']}")
    monkeypatch.setattr(progress, "_SAID", {})
    return home


def executor(out, workers=2, **options):
    return jobs.Slurm(out, workers, {"timeout_min": 10}, command=COMMAND, **options)


def wait(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_slurm_s_arrays_carry_trials_out_though_it_takes_none_at_first(tmp_path, slurm, capsys):
    full = "sbatch: error: AssocMaxSubmitJobLimit"
    (slurm / "refusals").write_text(f"{full}\n{full}\n")
    out = tmp_path / "sweep"
    planned = tiny_trial.plan(out, 3, steps=2)
    found = driver.run(out, planned, executor(out), pause=0.3)
    assert {one.state for one in found.values()} == {State.DONE}
    tiny_trial.check_whole(out, 3)
    told = capsys.readouterr().err
    assert told.count(full) == 1 and "--queued=N submits no more" in told
    assert (slurm / "asked").read_text().count("sbatch ") == 3  # twice in vain, one array
    assert len(list((out / "jobs").glob("*.pkl"))) == 6  # of jobs and results: no waste is left
    assert {(one.folder / "slurm_job").read_text() for one in planned} == {"1_0", "1_1", "1_2"}


def test_what_slurm_will_never_take_ends_the_sweep(tmp_path, slurm):
    (slurm / "refusals").write_text("sbatch: error: invalid partition specified: gpuu")
    planned = tiny_trial.plan(tmp_path, 1)
    with pytest.raises(SweepError, match="invalid partition specified: gpuu"):
        executor(tmp_path).submit(planned)


def test_no_more_jobs_are_in_the_queue_than_may_be_and_no_more_run_than_workers(tmp_path, slurm):
    most = executor(tmp_path, 3, queued=50)
    # One array, throttled by Slurm; what is lost waits until it has room among the workers.
    assert [most.room(busy) for busy in (0, 49, 3, 2)] == [50, 0, 0, 1]
    assert executor(tmp_path, 3, queued=2).workers == 2
    with pytest.raises(SweepError, match="--workers, --queued: got 0, 5"):
        executor(tmp_path, 0, queued=5)


def test_a_slurm_that_does_not_answer_is_told_of_once_and_loses_no_job(tmp_path, slurm, capsys):
    (planned,) = tiny_trial.plan(tmp_path, 1)
    (planned.folder / "slurm_job").write_text("7_0")
    (slurm / "queue/7_0").touch()
    held = executor(tmp_path)
    assert held.pending() == {planned.name}
    (slurm / "down").touch()
    assert held.pending() == held.pending() == {planned.name}
    assert capsys.readouterr().err.count("Slurm does not answer") == 1
    (slurm / "down").unlink()
    (slurm / "queue/7_0").unlink()
    assert held.pending() == set()


@pytest.mark.parametrize(("state", "again"), [("RUNNING", 1), ("COMPLETING", 0)])
def test_a_preempted_job_is_requeued_and_a_cancelled_one_is_not(
    tmp_path, slurm, monkeypatch, state, again
):
    (slurm / "state").write_text(state)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    code = f"import sys; sys.exit({faults.REQUEUE_EXIT_CODE})"
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match=str(faults.REQUEUE_EXIT_CODE)):
        Attend([sys.executable, "-c", code], str(tmp_path / "log"))()
    signal.signal(signal.SIGTERM, before)
    assert (slurm / "asked").read_text().count("scontrol requeue 7\n") == again


def test_a_job_ends_as_its_trial_does(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    for line, code in (("exit 1", 1), ("kill -9 $$", 137)):
        with pytest.raises(SystemExit, match=str(code)):
            Attend(["sh", "-c", line], str(tmp_path / "log"))()
    Attend(["true"], str(tmp_path / "log"))()
    signal.signal(signal.SIGTERM, before)


def test_a_job_that_is_requeued_waits_for_a_dead_host_s_lock(tmp_path, monkeypatch):
    (planned,) = tiny_trial.plan(tmp_path, 1)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    code = (
        "import pathlib, sys, time; from lt_jax.runtime import faults\n"
        f"with faults.lock(pathlib.Path({str(planned.folder)!r})):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(2.5)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as dead:
        assert dead.stdout is not None and dead.stdout.readline() == "held\n"
        assert carry_out(planned.folder, lambda _: None) == 0
    assert states.status(planned.folder).state is State.DONE


class Started:
    """submitit's executor, which only notes what it is given."""

    def __init__(self, _):
        self.given = []

    def update_parameters(self, **_):
        pass

    def submit(self, attend):
        self.given.append(attend.card)
        return type("Job", (), {"done": staticmethod(lambda: False)})


def test_workers_with_cards_have_one_each_of_those_this_process_sees(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs.submitit(), "LocalExecutor", Started)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-6f")
    planned = tiny_trial.plan(tmp_path, 4)
    local = jobs.Local(tmp_path, 8, gpus=3)
    assert local.room(0) == 3
    # The first one outlived another driver, with its card.
    (planned[0].folder / "card").write_text("4")
    with faults.lock(planned[0].folder):
        local.submit(planned[1:])
    assert local._executor.given == ["5", "GPU-6f"]
    assert local.pending() == {one.name for one in planned[1:3]}
    with pytest.raises(SweepError, match=r"got 4; takes 3 at most \(CUDA_VISIBLE_DEVICES=4"):
        jobs.Local(tmp_path, 8, gpus=4)


def test_cards_that_no_trial_will_see_are_told_of(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(jobs, "_DEVICES", tmp_path)
    (tmp_path / "nvidia0").touch()
    jobs.Local(tmp_path, 1)
    assert "trials will not see the 1 GPUs" in capsys.readouterr().err
    with pytest.raises(SweepError, match="--gpus: got 2; takes 1 at most"):
        jobs.Local(tmp_path, 1, gpus=2)


def test_a_trial_notes_the_card_it_was_given(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    planned = tiny_trial.plan(tmp_path, 2, steps=1)
    driver.run(tmp_path, planned, jobs.Local(tmp_path, 2, 2, COMMAND), pause=0.2)
    assert {(one.folder / "card").read_text() for one in planned} == {"4", "5"}


DRIVE = """
import pathlib, sys
from lt_jax.runtime import faults
from lt_jax.sweep import driver, jobs, states
out = pathlib.Path(sys.argv[1])
made = jobs.Local(out, 2, command=(sys.executable, "-m", "tests.sweep.tiny_trial"))
with faults.saving_on_sigterm(ctrl_c=True):
    try:
        driver.run(out, states.all_in(out), made)
    except faults.Preempted:
        sys.exit(faults.REQUEUE_EXIT_CODE)
"""


def test_ctrl_c_lets_every_trial_save(tmp_path):
    """As a terminal sends it: to all processes of the group."""
    planned = tiny_trial.plan(tmp_path, 2, steps=1000)
    with open(tmp_path / "log", "w") as log:
        command = [sys.executable, "-c", DRIVE, str(tmp_path)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=log, stdout=log, process_group=0)
    try:
        wait(lambda: all((one.workdir / "progress.json").exists() for one in planned))
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == faults.REQUEUE_EXIT_CODE
    finally:
        process.kill()
        process.wait()
    for one in planned:
        assert states.status(one.folder) == Status(State.WAITING, "", 1, 1)
        assert "SIGTERM: step" in (one.folder / "log.txt").read_text()
    texts = [path.read_text() for path in (tmp_path / "log", *(tmp_path / "jobs").glob("*.err"))]
    assert not any("Traceback" in text for text in texts), texts


def test_ctrl_c_asks_a_trial_alone_to_save(tmp_path):
    (planned,) = tiny_trial.plan(tmp_path, 1, steps=1000)
    code = (
        "import pathlib, sys; from lt_jax.sweep import trial; from tests.sweep import tiny_trial\n"
        "trial.run_pipeline = tiny_trial.work; trial.main()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(planned.folder)], cwd=ROOT) as process:
        wait((planned.workdir / "progress.json").exists)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == faults.REQUEUE_EXIT_CODE
    assert states.status(planned.folder) == Status(State.WAITING, "", 1, 1)
