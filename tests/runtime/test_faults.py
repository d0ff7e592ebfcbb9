"""Locks, full disks and signals: what other processes and kills leave intact."""

import errno
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from lt_jax.runtime import faults, files

ROOT = pathlib.Path(__file__).parents[2]
HOST = socket.gethostname()
HOLD = """
import pathlib, sys, time
from lt_jax.runtime import faults
with faults.lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_went(tmp_path):
    workdir = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(workdir)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        try:
            assert other.stdout.readline() == "held\n"
            with (
                pytest.raises(
                    faults.WorkdirInUseError, match=rf"in use by process {other.pid} on {HOST};"
                ),
                faults.lock(workdir),
            ):
                pass
            os.kill(other.pid, signal.SIGKILL)
            other.wait()
            with faults.lock(workdir):
                assert (workdir / ".lock").read_text() == f"{os.getpid()} on {HOST}"
        finally:
            other.kill()


def test_a_lock_is_freed_by_its_end_and_by_an_error(tmp_path):
    with faults.lock(tmp_path):
        pass
    with pytest.raises(KeyError), faults.lock(tmp_path):
        raise KeyError
    with faults.lock(tmp_path):
        pass


def test_the_patient_wait_for_a_lock_and_go_on(tmp_path):
    held = threading.Event()

    def hold():
        with faults.lock(tmp_path):
            held.set()
            time.sleep(0.3)

    assert not faults.held(tmp_path)
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    assert faults.held(tmp_path)
    with pytest.raises(faults.WorkdirInUseError), faults.lock(tmp_path, patience=0.05):
        pass
    with faults.lock(tmp_path, patience=30):
        assert not thread.is_alive() or faults.held(tmp_path)
    thread.join()
    assert not faults.held(tmp_path)


def test_sigterm_ends_the_wait_for_a_lock(tmp_path, sigterm):
    with faults.lock(tmp_path):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(faults.Preempted), faults.lock(tmp_path, patience=30):
            pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(faults.fcntl, "flock", flock)
    refused = pytest.raises(faults.NoLocksError, match="its file system has no locks")
    with refused, faults.lock(tmp_path):
        pass


def test_locks_of_one_host_alone_are_known_from_the_mount(tmp_path):
    lines = [
        "1 0 8:1 / / rw,relatime - ext4 /dev/sda rw",
        f"2 1 0:5 / {tmp_path.resolve()} rw,relatime - nfs server:/x rw,vers=3,local_lock=all",
        f"3 1 0:6 / {tmp_path.resolve()}/safe rw - nfs4 server:/y rw,local_lock=none",
        f"4 1 0:7 / {tmp_path.resolve()}/big rw - lustre server:/z rw,localflock",
    ]
    mounts = "\n".join(lines)
    for name in ("", "big"):
        assert "mounted with local" in (faults.one_host_only(tmp_path / name, mounts) or "")
    assert faults.one_host_only(tmp_path / "safe" / "deep", mounts) is None
    assert faults.one_host_only(tmp_path) is None


LEFT = "7 on another"  # by a process that was killed, or holds it


@pytest.mark.parametrize(
    "reason, left, warns",
    [
        ("localflock", LEFT, True),
        ("localflock", f"7 on {HOST}", False),
        (None, LEFT, False),
    ],
)
def test_where_locks_hold_on_one_host_a_name_of_another_warns(
    tmp_path, monkeypatch, capsys, reason, left, warns
):
    monkeypatch.setattr(faults, "one_host_only", lambda folder: reason)
    (tmp_path / ".lock").write_text(left)
    with faults.lock(tmp_path):
        said = capsys.readouterr().err
    assert ("process 7 on another may be at work in it" in said) == warns
    assert (tmp_path / ".lock").read_text() == ""  # who has ended is not taken for another


@pytest.mark.parametrize(
    "text, lost",
    [
        ("UNKNOWN: Gloo AllGather failed: [pair.cc:547] Connection closed by peer", True),
        ("UNAVAILABLE: Failed to send RPC to coordination service", True),
        ("DEADLINE_EXCEEDED: Barrier timed out", True),
        ("INTERNAL: NCCL operation x failed: remote process exited or network error", True),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes", False),
        ("INTERNAL: ptxas exited with non-zero error code 2", False),
        ("Gloo is not a field", False),
    ],
)
def test_only_a_failed_message_counts_as_the_loss_of_another(text, lost):
    assert bool(faults._LOST.search(text)) == lost


def test_files_are_written_whole_from_text_or_bytes(tmp_path):
    path = tmp_path / "note.json"
    files.write_atomically(path, "größer", "a note")
    assert path.read_text() == "größer"
    files.write_atomically(path, b"\x00\x01", "a note")
    assert path.read_bytes() == b"\x00\x01"
    assert [p.name for p in tmp_path.iterdir()] == ["note.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, number, call):
    path = tmp_path / "note.json"
    path.write_text("old")

    def full(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(faults.os, call, full)
        with pytest.raises(files.DiskFullError, match=r"writing a note \(2\.0 MiB needed\).*free"):
            files.write_atomically(path, b"x" * 2**21, "a note")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["note.json"]


def test_other_errors_leave_the_old_file_and_pass_as_they_are(tmp_path, monkeypatch):
    path = tmp_path / "note.json"
    path.write_text("old")

    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(faults.os, "fsync", broken)
        with pytest.raises(OSError, match="Input/output") as caught:
            files.write_atomically(path, "new", "a note")
    assert not isinstance(caught.value, files.DiskFullError)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["note.json"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "x"),
        OSError(errno.EDQUOT, "x"),
        ValueError("RESOURCE_EXHAUSTED: ... No space left on device [os_error_code='28']"),
        RuntimeError("write() failed: Disk quota exceeded; writing 00001.tmp"),
    ],
)
def test_full_disks_are_known_by_number_or_by_text(tmp_path, error):
    with (
        pytest.raises(files.DiskFullError, match="the checkpoint to") as caught,
        files.disk_errors(tmp_path, "the checkpoint"),
    ):
        raise error
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.__cause__ is error


def test_sweep_removes_what_killed_writes_left_and_nothing_else(tmp_path):
    cache = tmp_path / "artifacts"
    left = [tmp_path / ".config.json.123.tmp", tmp_path / "parts/.images.npy.7.partial"]
    kept = [tmp_path / ".lock", tmp_path / "a.1.tmp", tmp_path / ".a.tmp", cache / ".x.1.tmp"]
    for path in left + kept:
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    files.sweep(tmp_path, outside=cache)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_an_error_that_says_what_to_do_is_not_wrapped_again(tmp_path):
    with (
        pytest.raises(files.DiskFullError, match="inner") as caught,
        files.disk_errors(tmp_path, "outer"),
        files.disk_errors(tmp_path, "inner"),
    ):
        raise OSError(errno.ENOSPC, "x")
    assert "outer" not in str(caught.value)


@pytest.fixture
def sigterm():
    """The handler; event and handler are put back afterwards."""
    with faults.saving_on_sigterm():
        yield
        faults._stop.clear()


def test_sigterm_asks_to_stop_and_does_nothing_else(sigterm):
    assert not faults.stopping()
    faults.raise_if_stopping("nothing")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0)  # handlers run between bytecodes
    assert faults.stopping()
    with pytest.raises(faults.Preempted, match="SIGTERM: step 3 is saved; the same command"):
        faults.raise_if_stopping("step 3")


def test_what_sigterm_and_ctrl_c_did_before_they_do_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with faults.saving_on_sigterm(grace=0.0, ctrl_c=True):
        thread = next(one for one in threading.enumerate() if one.name == "sigterm")
    thread.join(5)
    assert not thread.is_alive()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    heard = []
    signal.signal(signal.SIGTERM, lambda *_: heard.append("here"))
    os.kill(os.getpid(), signal.SIGTERM)  # with the deadline still in force: the end of pytest
    time.sleep(0.2)
    signal.signal(signal.SIGTERM, before[0])
    assert heard == ["here"] and not faults.stopping()


STARTING = """
import os, runpy, signal, sys
class Importing:
    def find_spec(self, name, *_):
        if name == "jax":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Importing())
runpy.run_module("lt_jax.main", run_name="__main__")
"""


def test_sigterm_while_libraries_are_imported_has_its_code():
    assert subprocess.run([sys.executable, "-c", STARTING], cwd=ROOT).returncode == 75


BUSY = """
import hashlib, sys, time
from lt_jax.runtime import faults
with faults.saving_on_sigterm(float(sys.argv[1])):
    print("ready", flush=True)
    if sys.argv[2] == "polls":
        while True:
            time.sleep(0.01)
            try:
                faults.check("a loop")
            except faults.Preempted as stop:
                sys.exit(str(stop))
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # as in a compiler: no bytecode for long
"""


def ended(grace, kind):
    """Exit code, seconds from SIGTERM to the end and stderr of a busy process."""
    with subprocess.Popen(
        [sys.executable, "-c", BUSY, str(grace), kind],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            began = time.monotonic()
            process.terminate()
            told = process.communicate(timeout=20)[1]
            return process.returncode, time.monotonic() - began, told
        finally:
            process.kill()


def test_sigterm_ends_in_time_what_does_not_poll_and_leaves_what_does_to_itself():
    code, seconds, told = ended(0.3, "never polls")
    assert code == faults.REQUEUE_EXIT_CODE
    assert 0.3 <= seconds < 5 and "ended after 0.3 s" in told
    code, seconds, told = ended(15.0, "polls")
    assert code == 1 and seconds < 5
    assert told == "SIGTERM: a loop is begun anew by the same command; all before it is kept\n"
