"""How processes find each other, and what one alone makes of it; several: tests/test_hosts.py."""

import subprocess
import sys

import pytest

from lt_jax.errors import Preempted
from lt_jax.runtime import distributed
from lt_jax.runtime.distributed import DistributedError, Launch
from tests import processes

JOIN = """
import jax
from lt_jax.errors import Preempted
from lt_jax.runtime import distributed
jax.config.update("jax_platforms", "cpu")
distributed.initialize(distributed.Launch("127.0.0.1:{port}", 2, {process}), 1)
"""


@pytest.mark.parametrize(
    "environment, several",
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ],
)
def test_without_flags_the_launcher_says_how_many_there_are(environment, several):
    found = distributed._arguments(Launch(), environment)
    assert found == ({} if several else None)
    assert distributed._arguments(Launch("none"), environment) is None
    assert distributed._arguments(Launch("auto"), environment) == {}


def test_explicit_flags_ask_no_cluster():
    found = distributed._arguments(Launch("node7:1234", 3, 2), {"SLURM_STEP_NUM_TASKS": "9"})
    assert found == {
        "coordinator_address": "node7:1234",
        "num_processes": 3,
        "process_id": 2,
        "cluster_detection_method": "deactivate",
    }


@pytest.mark.parametrize(
    "launch, message",
    [
        (Launch("", 2, 0), "need --coordinator"),
        (Launch("auto", 2, 0), "need --coordinator"),
        (Launch("node7", 2, 0), "--coordinator: got 'node7'"),
        (Launch("node7:x", 2, 0), "takes HOST:PORT"),
        (Launch("node7:1", 2, 2), "--process_id: got 2 of --num_processes=2"),
        (Launch("node7:1"), "--process_id: got -1"),
    ],
)
def test_counts_that_do_not_fit_are_refused(launch, message):
    with pytest.raises(DistributedError, match=message):
        distributed._arguments(launch, {})


@pytest.mark.parametrize("process", [0, 1])
def test_who_waits_in_vain_ends_and_says_what_to_do(process):
    program = JOIN.format(port=processes.free_port(), process=process)
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=processes.ROOT, capture_output=True, timeout=60
    )
    said = ended.stderr.decode()
    assert ended.returncode == 1 and "Traceback" not in said
    assert f"process {process} has not joined the others within 1 s" in said
    assert "--num_processes" in said and "config.runtime.host_timeout" in said


def test_one_process_agrees_with_itself():
    assert distributed.count() == 1 and distributed.is_first()
    assert distributed.agree({"a": [1, None]}) == {"a": [1, None]}
    assert distributed.alike("anything") and not distributed.preempted()
    distributed.barrier("here")
    assert distributed.on_first(lambda: 3) == 3
    with pytest.raises(KeyError):
        distributed.on_first(lambda: {}["missing"])


@pytest.mark.parametrize("error", [Preempted("SIGTERM: x is saved"), ValueError("bad")])
def test_the_others_end_as_the_first_does(error, monkeypatch):
    told = []

    def agree(value):
        told.append(value)
        return told[0]

    def first():
        raise error

    monkeypatch.setattr(distributed, "agree", agree)
    monkeypatch.setattr(distributed, "_here", distributed._Here(0, 2))
    with pytest.raises(type(error)):
        distributed.on_first(first)
    monkeypatch.setattr(distributed, "_here", distributed._Here(1, 2))
    stopped = isinstance(error, Preempted)
    with pytest.raises(Preempted if stopped else distributed.PeerError, match=str(error)):
        distributed.on_first(first)
