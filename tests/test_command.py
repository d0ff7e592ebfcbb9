"""How a command line ends: by SIGTERM, on a full disk, and with whose config."""

import pathlib
import signal
import subprocess
import sys

import pytest
from absl import flags

from lt_jax import command, pipeline
from lt_jax.config import ConfigError
from lt_jax.runtime import distributed, faults
from tests.test_golden_configs import load

ROOT = pathlib.Path(__file__).parents[1]
COMMAND = """
import errno, hashlib, os, time
from absl import flags
from lt_jax import command
from lt_jax.runtime import faults

def main(argv):
    if argv[1] == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/a/folder")
    if argv[1] == "big":
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes.")
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
    line = [sys.executable, "-c", COMMAND, f"--config={tmp_path / 'config.json'}"]
    return subprocess.Popen(
        [*line, "--out=runs/x", *arguments],
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


def test_memory_that_is_out_is_told_with_the_remedy(tmp_path):
    with start(tmp_path, "big") as process:
        stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "Traceback" in stderr
    assert "take smaller batches, more devices" in stderr.splitlines()[-1]


def test_json_is_data_in_any_case_and_only_a_python_file_is_run(tmp_path):
    parser = command._ConfigFile(flags.ArgumentParser())
    code = "def get_config(): ..."
    for name in ("X.JSON", "x.txt", "x.PY"):
        (tmp_path / name).write_text('{"generator": {"steps": 7}}' if name == "X.JSON" else code)
    assert parser.parse(str(tmp_path / "X.JSON")).generator.steps == 7
    for name in ("x.txt", "x.PY"):
        with pytest.raises(ConfigError, match=r"takes \.py, which is run, or \.json"):
            parser.parse(str(tmp_path / name))


def test_a_damaged_config_of_a_workdir_is_named(tmp_path):
    run = pipeline.Pipeline(load(ROOT / "configs" / "digits.py"), tmp_path)
    (tmp_path / "config.json").write_text('{"data": {')
    with pytest.raises(ConfigError, match=r"config\.json is damaged .* delete it"):
        run.run([])


def test_hosts_that_read_other_inputs_are_refused_with_the_first_stage(tmp_path, monkeypatch):
    config = load(ROOT / "configs" / "digits.py")
    run = pipeline.Pipeline(config, tmp_path)
    config.generator.steps += 1  # as a base that another host does not see
    told = [spec.key for spec in pipeline.Pipeline(config, tmp_path).specs]
    monkeypatch.setattr(distributed, "alike", lambda text: text in [*told, " ".join(told)])
    with pytest.raises(distributed.DistributedError, match=r"^generator: the hosts .*data\.root"):
        run._check_keys()
    told = [spec.key for spec in run.specs]
    run._check_keys()
