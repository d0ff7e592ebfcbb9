"""Trials as facts on disk, and the driver that knows nothing else."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments.sweep import __main__ as command_line
from lt_jax.config import ConfigError
from lt_jax.runtime import faults
from lt_jax.sweep import driver, jobs, states
from lt_jax.sweep.attend import Attend
from lt_jax.sweep.definition import Trial
from lt_jax.sweep.states import State, Status
from lt_jax.sweep.trial import carry_out
from tests.sweep import tiny_trial

ROOT = pathlib.Path(__file__).parents[2]


def run(out, work=tiny_trial.work, **options):
    executor = jobs.InProcess(lambda folder: carry_out(folder, work))
    return driver.run(out, states.all_in(out), executor, pause=0.0, **options)


def test_trials_are_carried_out_once_and_in_order(tmp_path):
    planned = tiny_trial.plan(tmp_path, 5, steps=2, pause=0.0)
    assert [one.name for one in states.all_in(tmp_path)] == [one.name for one in planned]
    lines = []
    found = run(tmp_path, tell=lines.append)
    tiny_trial.check_whole(tmp_path, 5)
    assert lines[0].endswith("5 waiting, 0 running, 0 failed, 0 done")
    assert lines[-1].endswith("0 waiting, 0 running, 0 failed, 5 done")
    assert len((tmp_path / "cache/generator/made").read_text().splitlines()) == 1
    assert run(tmp_path) == found
    assert all(one == Status(State.DONE, "", 1, 1) for one in found.values())


def test_a_failed_trial_is_kept_apart_until_it_is_put_back(tmp_path, capsys):
    tiny_trial.plan(tmp_path, 3, steps=1, pause=0.0)
    broken = True

    def work(planned):
        if broken and planned.trial.overrides["number"] == 1:
            raise ValueError("first line\nlast line")
        tiny_trial.work(planned)

    found = run(tmp_path, work)
    (failed,) = [name for name, one in found.items() if one.state is State.FAILED]
    assert found[failed].error == "last line" and "Traceback" in capsys.readouterr().err
    assert run(tmp_path, work)[failed].begun == 1  # not begun again
    broken = False
    back = [one.name for one in states.all_in(tmp_path) if states.put_back(one.folder)]
    assert back == [failed]
    run(tmp_path, work)
    tiny_trial.check_whole(tmp_path, 3)


def test_retry_leaves_trials_alone_that_are_in_use_and_puts_the_others_back(tmp_path, capsys):
    planned = tiny_trial.plan(tmp_path, 4)
    for one in planned[:3]:
        states.mark(one.folder, Status(State.FAILED, "broken", 1, 1))
    with faults.lock(planned[0].folder):
        command_line.main(["retry", f"--out={tmp_path}"])
    found = [states.status(one.folder).state for one in planned]
    assert found == [State.FAILED, State.WAITING, State.WAITING, State.WAITING]
    told = capsys.readouterr().out
    assert "2 of 4 trials wait again" in told
    assert f"1 are in use and left alone: {planned[0].name}" in told


def test_a_stopped_trial_waits_and_goes_on_where_it_was(tmp_path):
    (planned,) = tiny_trial.plan(tmp_path, 1)

    def stopped(_):
        raise faults.Preempted("saved")

    assert carry_out(planned.folder, stopped) == faults.REQUEUE_EXIT_CODE
    assert states.status(planned.folder) == Status(State.WAITING, "", 1, 1)


def test_a_trial_whose_process_vanishes_again_and_again_is_given_up(tmp_path):
    (planned,) = tiny_trial.plan(tmp_path, 1)
    states.mark(planned.folder, Status(begun=3))
    assert states.status(planned.folder).deaths == 3
    found = run(tmp_path, deaths=3)
    assert found[planned.name].state is State.FAILED
    assert "vanished 3 times" in found[planned.name].error
    states.put_back(planned.folder)
    assert states.status(planned.folder) == Status()


def test_a_trial_that_is_held_is_running_and_left_alone(tmp_path, capsys):
    (planned,) = tiny_trial.plan(tmp_path, 1, steps=1)
    with faults.lock(planned.folder):
        assert states.status(planned.folder).state is State.RUNNING
        assert carry_out(planned.folder, tiny_trial.work) == 0
    assert "left alone" in capsys.readouterr().err
    assert states.status(planned.folder) == Status()


def test_what_follows_from_results_is_drawn_as_workers_are_free(tmp_path):
    """Though the executor takes a thousand at once, as Slurm does."""
    asked, waiting = [], []

    class Source:
        def more(self, room, known):
            asked.append((room, sum(one.state is not State.DONE for one in known.values())))
            first = len(known)
            trials = [Trial({"number": i}, {}) for i in range(first, min(5, first + room))]
            return [states.write(tmp_path, one, (), tmp_path / "cache") for one in trials]

    class Slow(jobs.InProcess):
        """Ends one trial a look."""

        def room(self, busy):
            return 1000

        def submit(self, trials):
            waiting.extend(trials)

        def pending(self):
            if waiting:
                self.run(waiting.pop(0).folder)
            return {one.name for one in waiting}

    executor = Slow(lambda folder: carry_out(folder, lambda _: None), workers=2)
    found = driver.run(tmp_path, [], executor, Source(), pause=0.0)
    assert len(found) == 5 and {one.state for one in found.values()} == {State.DONE}
    assert asked[0] == (2, 0) and all(room + open_ <= 2 for room, open_ in asked)


def test_one_driver_at_a_time(tmp_path):
    tiny_trial.plan(tmp_path, 1)
    with pytest.raises(faults.WorkdirInUseError), faults.lock(tmp_path):
        run(tmp_path)


def test_another_base_is_refused_and_the_same_one_is_not(tmp_path):
    first = states.write(tmp_path, Trial({"a": 1}, {"x": 1}), (), tmp_path / "cache")
    again = states.write(tmp_path, Trial({"a": 1}, {"x": 1}), (), tmp_path / "cache")
    assert again == first and first.cache == (tmp_path / "cache").resolve()
    with pytest.raises(ConfigError, match=r"config\.x: 1 there, 2 here"):
        states.write(tmp_path, Trial({"a": 1}, {"x": 2}), (), tmp_path / "cache")


def test_a_folder_that_others_may_write_into_is_refused(tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs").chmod(0o777)
    with pytest.raises(states.SweepError, match="another user owns it or may write"):
        jobs.Local(tmp_path, 1)


def test_a_job_passes_requests_to_stop_on_and_leaves_a_log(tmp_path):
    """As a job of submitit does, in a process of its own."""
    (planned,) = tiny_trial.plan(tmp_path, 1, steps=1000)
    command = [sys.executable, "-m", "tests.sweep.tiny_trial", str(planned.folder)]
    code = (
        "import sys; from lt_jax.sweep.attend import Attend\n"
        f"sys.exit(Attend({command!r}, {str(tmp_path / 'log')!r})())"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as job:
        progress = planned.workdir / "progress.json"
        end = time.monotonic() + 60
        while not progress.exists() and time.monotonic() < end:
            time.sleep(0.05)
        job.terminate()
        assert job.wait(60) == faults.REQUEUE_EXIT_CODE
    assert states.status(planned.folder) == Status(State.WAITING, "", 1, 1)
    assert json.loads(progress.read_text()) > 0
    assert "SIGTERM" in (tmp_path / "log").read_text()


def test_local_processes_carry_trials_out(tmp_path):
    pytest.importorskip("submitit")
    planned = tiny_trial.plan(tmp_path, 3, steps=2)
    command = (sys.executable, "-m", "tests.sweep.tiny_trial")
    executor = jobs.Local(tmp_path, 3, command=command)
    driver.run(tmp_path, planned, executor, pause=0.2)
    tiny_trial.check_whole(tmp_path, 3)
    assert len((tmp_path / "cache/generator/made").read_text().splitlines()) == 1


def test_a_missing_library_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(jobs.MissingLibraryError, match=r"pip install -r requirements-sweep\.txt"):
        jobs.submitit()
    assert Attend(["true"], "log").command == ["true"]


def test_a_warning_lets_the_trial_save_before_the_job_is_requeued(tmp_path):
    """As submitit's handler of the signal does it: `checkpoint`, amid the wait for the trial."""
    pytest.importorskip("submitit")
    (planned,) = tiny_trial.plan(tmp_path, 1, steps=1000)
    command = [sys.executable, "-m", "tests.sweep.tiny_trial", str(planned.folder)]
    code = (
        "import signal, sys; from lt_jax.sweep.attend import Attend\n"
        f"job = Attend({command!r}, {str(tmp_path / 'log')!r})\n"
        "def warned(*_):\n"
        "    again = job.checkpoint().function\n"
        "    sys.exit(3 if again.command == job.command else 4)\n"
        "signal.signal(signal.SIGUSR2, warned)\n"
        "job()"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as job:
        progress = planned.workdir / "progress.json"
        end = time.monotonic() + 60
        while not progress.exists() and time.monotonic() < end:
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR2)
        assert job.wait(60) == 3
    assert states.status(planned.folder) == Status(State.WAITING, "", 1, 1)
