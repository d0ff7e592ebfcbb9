"""How processes are told apart, by flags and by launchers, and which of a node's GPUs are whose."""

import pytest

from lt_jax.runtime import launchers
from lt_jax.runtime.launchers import DistributedError, Launch, Task


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, None),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),  # a batch script
        (
            {"SLURM_STEP_NUM_TASKS": "5", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
            | {"SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_NODEID": "1"},
            Task("Slurm", 5, 3, 2, 1),
        ),
        (
            {"SLURM_STEP_NUM_TASKS": "5", "SLURM_PROCID": "4", "SLURM_LOCALID": "0"}
            | {"SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_NODEID": "2"},
            Task("Slurm", 5, 4, 1, 0),
        ),
        (
            {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
            | {"SLURM_NTASKS_PER_NODE": "4", "SLURM_TASKS_PER_NODE": "8"},
            Task("Slurm", 8, 1, 4, 1),
        ),
        (
            {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
            | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
            | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},  # mpirun's own daemons
            Task("Open MPI", 4, 3, 2, 1),
        ),
    ],
)
def test_a_process_knows_itself_among_those_started(environment, expected):
    assert launchers.task(environment) == expected


@pytest.mark.parametrize(
    "tasks, rank, environment, expected",
    [
        # srun --ntasks-per-node=1 --gpus-per-node=8
        (1, 0, {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, list(range(8))),
        # srun --ntasks-per-node=8 --gpus-per-task=1: each sees its own as the first
        (8, 5, {"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_PER_TASK": "1"}, [0]),
        (2, 1, {"CUDA_VISIBLE_DEVICES": "2,3", "SLURM_GPUS_PER_TASK": "a100:2"}, [0, 1]),
        # bound by the launcher or a script, which says no number
        (8, 5, {"CUDA_VISIBLE_DEVICES": "5"}, [0]),
        (2, 1, {"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "2"}, [0]),
        # all are seen by all
        (8, 5, {}, [5]),
        (4, 3, {}, [6, 7]),
        (2, 1, {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, [1]),
        (2, 0, {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_ON_NODE": "4"}, [0, 1]),
        # no GPU
        (2, 1, {"CUDA_VISIBLE_DEVICES": ""}, None),
        (2, 1, {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None),
    ],
)
def test_gpus_of_a_node_are_shared_by_its_processes(tmp_path, tasks, rank, environment, expected):
    for name in (*(f"nvidia{i}" for i in range(8)), "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    here = Task("Slurm", 16, rank, tasks, rank)
    assert launchers._share(here, environment, tmp_path) == expected


@pytest.mark.parametrize("visible", ["0,1,2,3", "0,1"])
def test_gpus_that_do_not_divide_are_refused(tmp_path, visible):
    here = Task("Slurm", 3, 0, 3, 0)
    with pytest.raises(DistributedError, match="3 processes on this node, which see"):
        launchers._share(here, {"CUDA_VISIBLE_DEVICES": visible}, tmp_path)


def test_a_node_without_gpus_leaves_the_choice_to_jax(tmp_path):
    assert launchers._share(Task("Slurm", 2, 1, 2, 1), {}, tmp_path) is None


@pytest.mark.parametrize(
    "environment, several",
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}, True),
    ],
)
def test_without_flags_the_launcher_says_how_many_there_are(environment, several):
    found = launchers.arguments(Launch(), environment)
    assert found == ({} if several else None)
    assert launchers.arguments(Launch("none"), environment) is None
    assert launchers.arguments(Launch("auto"), environment) == {}


OMPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
SLURM = {"SLURM_STEP_NUM_TASKS": "9", "SLURM_PROCID": "7"}


@pytest.mark.parametrize(
    "launch, environment, count, number",
    [
        (Launch("node7:1234", 3, 2), SLURM, 3, 2),
        (Launch("node7:1234"), SLURM, 9, 7),
        (Launch("node7:1234"), OMPI, 4, 3),  # Open MPI 5, of which JAX does not learn process 0
        (Launch("node7:1234"), OMPI | SLURM, 4, 3),
    ],
)
def test_a_coordinator_by_name_asks_no_cluster(launch, environment, count, number):
    assert launchers.arguments(launch, environment) == {
        "coordinator_address": "node7:1234",
        "num_processes": count,
        "process_id": number,
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
        (Launch(local_devices=(0, 1)), "--local_devices is for one of several processes"),
    ],
)
def test_counts_that_do_not_fit_are_refused(launch, message):
    with pytest.raises(DistributedError, match=message):
        launchers.arguments(launch, {})


@pytest.mark.parametrize("launch", [Launch(), Launch("auto")])
def test_of_a_newer_open_mpi_the_remedy_is_named_and_no_flag_that_was_not_given(launch):
    with pytest.raises(DistributedError) as caught:
        launchers.arguments(launch, OMPI | SLURM)
    said = str(caught.value)
    assert "Open MPI has started 4 processes" in said and "add --coordinator=HOST:PORT" in said
    assert "--coordinator=auto" not in said


ALL = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
NODE = {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1", **OMPI, **ALL}


@pytest.mark.parametrize(
    "launch, environment, expected",
    [
        (Launch(local_devices=(3,)), NODE, [3]),
        (Launch(), NODE, [2, 3]),
        (Launch("node7:1"), NODE, [2, 3]),
        (Launch("node7:1", 4, 3), NODE, None),
        (Launch("auto"), ALL, None),
        (Launch(), NODE | {"JAX_LOCAL_DEVICE_IDS": "1"}, None),
    ],
)
def test_devices_are_those_given_or_the_share_by_the_launcher(launch, environment, expected):
    assert launchers.local_devices(launch, environment) == expected
