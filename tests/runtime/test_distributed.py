"""How processes find each other, and what one alone makes of it; several: tests/test_hosts.py."""

import json
import os
import subprocess
import sys

import pytest

from lt_jax.errors import Preempted
from lt_jax.runtime import distributed
from tests import processes

JOIN = """
import jax
from lt_jax.errors import Preempted
from lt_jax.runtime import distributed, launchers
jax.config.update("jax_platforms", "cpu")
distributed.initialize(launchers.Launch("127.0.0.1:{port}", 2, {process}), 1)
"""


TOGETHER = """
import json
import jax
import numpy as np
from lt_jax.runtime import distributed, launchers, mesh
jax.config.update("jax_platforms", "cpu")
mesh.configure_devices(2, None)
distributed.initialize(launchers.Launch(), 60)
everywhere, me = mesh.make_mesh(fsdp=2), jax.process_index()
rows, square = np.arange(8), np.arange(4096).reshape(64, 64)
mesh.meet(everywhere)
own = mesh.own(rows, everywhere)
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
)

def compilations(call, tree):
    compiled.clear()
    return call(tree, everywhere), len(compiled)

split, _ = compilations(mesh.distribute, [square, square])
_, still = compilations(mesh.distribute, split)
_, once = compilations(mesh.replicate, split)
_, again = compilations(mesh.replicate, split)
kept = mesh.fetch_to_first({"split": split, "key": np.arange(3)})
found = {
    "kept": [own is not None for own in jax.tree.leaves(kept, is_leaf=lambda own: own is None)],
    "kept whole": me != 0 or bool((kept["split"][0] == square).all()),
    "agreed": distributed.agree({"said by": me}),
    "alike": [distributed.alike("a"), distributed.alike(str(me))],
    "own": own.tolist(),
    "rows": mesh.fetch(mesh.put(own, everywhere)).tolist(),
    "square": bool((mesh.fetch(mesh.distribute(square, everywhere)) == square).all()),
    "compiled": [still, once, again],
    "devices": [everywhere.size, distributed.on_first(lambda: mesh.make_mesh().size)],
}
try:
    distributed.on_first(lambda: 1 / 0)
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}"
print("FOUND", json.dumps(found))
"""


def cluster(name):
    """What a launcher tells each of two processes on this machine."""
    job = processes.free_port()  # of which JAX makes the coordinator's port
    told = {
        "slurm": {
            "SLURM_JOB_ID": str(job),
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_NTASKS": "2",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_PROCID": "{0}",
            "SLURM_LOCALID": "{0}",
        },
        "ompi": {
            "OMPI_MCA_orte_hnp_uri": f"{job * 4096}.0;tcp://127.0.0.1:1",
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_RANK": "{0}",
            "OMPI_COMM_WORLD_LOCAL_RANK": "{0}",
        },
    }[name]
    return [{key: text.format(process) for key, text in told.items()} for process in range(2)]


@pytest.mark.parametrize("launcher", ["slurm", "ompi"])
def test_processes_of_a_launcher_find_each_other_and_agree(launcher):
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER],
            cwd=processes.ROOT,
            env={**os.environ, **told},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for told in cluster(launcher)
    ]
    said = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    for number, (_, words) in enumerate(said):
        assert f"lt_jax: process {number} of 2: devices cpu:0, cpu:1\n" in words.decode()
    first, second = (json.loads(out.decode().split("FOUND")[1]) for out, _ in said)
    assert (first.pop("own"), second.pop("own")) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert (first.pop("kept"), second.pop("kept")) == ([True] * 3, [False] * 3)
    assert first.pop("devices") == [4, 2] and second.pop("devices") == [4, None]
    assert first.pop("error") == "ZeroDivisionError: division by zero"
    assert "PeerError: process 0 ended with an error" in (error := second.pop("error"))
    assert "division by zero" in error
    assert first == second == {
        "agreed": {"said by": 0},
        "alike": [True, False],
        "rows": list(range(8)),
        "square": True,
        "kept whole": True,
        "compiled": [0, 1, 0],
    }  # fmt: skip


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
