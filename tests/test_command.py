"""How a command line ends: by SIGTERM, on a full disk, and with whose config."""

import pathlib
import signal
import subprocess
import sys

import pytest

from lt_jax.runtime import faults

ROOT = pathlib.Path(__file__).parents[1]
COMMAND = """
import errno, hashlib, os, time
from absl import flags
from lt_jax import command
from lt_jax.runtime import faults

def main(argv):
    if argv[1] == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/a/folder")
    print(command.config().generator.steps, flush=True)
    while argv[1] == "polls":
        faults.check("a loop")
        time.sleep(0.01)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

command.define_config("of the run")
flags.DEFINE_string("out", None, "folder")
command.experiment(main)
"""


def start(tmp_path, *arguments):
    """A command line of a JSON config."""
    (tmp_path / "config.json").write_text('{"generator": {"steps": 7}}')
    command = [sys.executable, "-c", COMMAND, f"--config={tmp_path / 'config.json'}"]
    return subprocess.Popen(
        [*command, "--out=runs/x", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("kind", "told"), [("polls", "SIGTERM: a loop is begun anew"), ("computes", "ended after 1 s")]
)
def test_sigterm_ends_with_the_code_to_be_queued_again(tmp_path, kind, told):
    with start(tmp_path, "--grace=1", kind) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "7\n"
            process.send_signal(signal.SIGTERM)
            stderr = process.communicate(timeout=20)[1]
        finally:
            process.kill()
    assert process.returncode == faults.REQUEUE_EXIT_CODE
    assert told in stderr and "Traceback" not in stderr


def test_a_disk_that_is_full_for_a_folder_is_told_in_a_line(tmp_path):
    with start(tmp_path, "full") as process:
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    line = stderr.splitlines()[-1]
    assert line.startswith("lt_jax: ") and "no space left while writing" in line
    assert "runs/x" in line and "run the same command again" in line
    assert "Traceback" not in stderr
