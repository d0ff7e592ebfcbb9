"""Runs in two processes on one machine: their results, what they save, and how they end together.

Two processes of one device are compared with one process of two: the same programs on the same
numbers of devices, so that only the messages between them travel otherwise.
"""

import json
import pathlib
import shutil
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from lt_jax import pipeline
from lt_jax.runtime import arrays as arrays_lib
from lt_jax.runtime import artifacts, mesh, metrics
from lt_jax.runtime.ledger import Ledger
from tests import processes
from tests.test_golden_configs import load

PARTS = ("nearness", "membership", "probe", "diversity", "accuracy_score")
WHOLE = f"""
from configs import phantom_detect
from lt_jax import config as config_lib
from tests.shrink import shrink

def get_config():
    config = shrink(phantom_detect.get_config(), 1)
    with config.unlocked():
        config.data.source = "phantom:24"
        config.data.imbalance_factor = 3.0
        config.classify.seeds = (0,)
        config.classify.arms = config_lib.arms(
            ce={{"second_stage": "crt", "second_stage_steps": 0.5}},
            fill={{"controller": "fill_to_head"}},
            live={{"controller": "policy"}},
        )
        config.detect.seeds = (0,)
        config.detect.arms = config_lib.detect_arms(real={{}}, mixed={{"data": "mixed"}})
        config.audit.update(parts={PARTS}, noise_times=(0.2, 0.6), draws=2, folds=2)
        config.audit.update(pairs=28, resamples=100, images=60, batch_size=64)
    return config
"""
STEPS = 1500
TRAINING = f"""
from configs import digits
from lt_jax import config as config_lib
from tests.shrink import shrink

def get_config():
    config = shrink(digits.get_config(), 1)
    with config.unlocked():
        config.classify.arms = config_lib.arms(ce={{}}, fill={{"controller": "fill_to_head"}})
        config.extractor.steps = {STEPS}
        config.runtime.update(log_every=100, checkpoint_every=50, host_timeout=20)
    return config
"""


class Run:
    """One config in one workdir, by one process of two devices or two of one (or twice as many)."""

    def __init__(self, folder: pathlib.Path, name: str, config: str, *more: str, devices: int = 2):
        path = folder / "config.py"
        path.write_text(config)
        self.workdir, self._logs = folder / name, folder / f"{name}_logs"
        self._command = ["-m", "lt_jax.main", f"--config={path}", f"--workdir={self.workdir}"]
        self._command += [f"--config.runtime.compilation_cache={folder / 'compiled'}", *more]
        self._devices = devices
        self.specs = {s.stage: s for s in pipeline.Pipeline(load(path), self.workdir).specs}

    def command(self, count: int) -> list[str]:
        return [*self._command, f"--config.runtime.cpu_devices={self._devices // count}"]

    def finish(self, count: int, timeout: float = 1500) -> list[str]:
        codes, said = processes.finished(self.command(count), count, self._logs, timeout)
        assert codes == [0] * count, said
        return said

    def interrupt(
        self, number: signal.Signals, which: int = 1, timeout: float = 300
    ) -> tuple[list[int], list[str]]:
        """Sends one of two processes a signal once a checkpoint is there."""
        with processes.started(self.command(2), 2, self._logs) as running:
            until = time.monotonic() + timeout
            while not list(self.workdir.glob("extractor/checkpoints/*/_CHECKPOINT_METADATA")):
                assert time.monotonic() < until and running[0].poll() is None, self.said()
                time.sleep(0.05)
            running[which].send_signal(number)
            codes = [process.wait(120) for process in running]
        return codes, self.said()

    def said(self) -> list[str]:
        return processes.outputs(self._logs, 2)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        return arrays_lib.load(self.workdir / name)

    def ledger(self, stage: str) -> Ledger:
        return artifacts.Store(self.workdir).ledger(self.specs[stage])

    def curves(self) -> list[dict]:
        lines = metrics.read(self.workdir / "metrics.jsonl")
        return [{k: v for k, v in line.items() if k != "data_wait_fraction"} for line in lines]


def assert_close(left: Run, right: Run, name: str, atol: float) -> None:
    ours, theirs = left.arrays(name), right.arrays(name)
    assert ours.keys() == theirs.keys()
    for key, values in ours.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, theirs[key], atol=atol, err_msg=f"{name}: {key}")
        else:
            np.testing.assert_array_equal(values, theirs[key], err_msg=f"{name}: {key}")


def assert_same_curves(left: Run, right: Run, rtol: float) -> None:
    for ours, theirs in zip(left.curves(), right.curves(), strict=True):
        assert ours.keys() == theirs.keys() and ours["step"] == theirs["step"]
        numbers = {name: value for name, value in ours.items() if isinstance(value, float)}
        assert numbers == pytest.approx({name: theirs[name] for name in numbers}, rtol, 1e-6)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """An extractor trained by one process."""
    folder = tmp_path_factory.mktemp("training")
    run = Run(folder, "one", TRAINING, "--stages=prepare,extractor")
    run.finish(1)
    return folder, run


def test_a_training_of_two_stopped_by_one_is_ended_by_one(unbroken):
    folder, one = unbroken
    two = Run(folder, "two", TRAINING, "--stages=prepare,extractor")
    codes, said = two.interrupt(signal.SIGTERM)
    assert codes == [75, 75], said
    for words in said:
        assert "is saved" in words
    steps = sorted(int(path.name) for path in two.workdir.glob("extractor/checkpoints/[0-9]*"))
    assert 0 < steps[-1] < STEPS
    two.finish(1)
    assert_close(one, two, "extractor/features.npz", 1e-5)
    assert_same_curves(one, two, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_where_one_is_killed_the_other_ends_and_says_so(tmp_path, which):
    run = Run(tmp_path, "lost", TRAINING, "--stages=prepare,extractor")
    codes, said = run.interrupt(signal.SIGKILL, which)
    assert codes[which] == -signal.SIGKILL and codes[1 - which] == 1, said
    assert "run the same command again" in said[1 - which].splitlines()[-1]
    run.finish(2)  # and the same command goes on


@pytest.mark.slow
def test_a_state_split_over_two_processes_is_gone_on_with_by_one_and_by_two(tmp_path):
    wide = "config.extractor.model.vit.update(width=64, mlp=64)\n        config.runtime.update"
    config = TRAINING.replace("config.runtime.update", wide)
    assert mesh.SMALL <= 64 * 64  # and so split
    stages, fsdp = "--stages=prepare,extractor", "--config.runtime.fsdp=4"
    one = Run(tmp_path, "one", config, stages, devices=4)
    one.finish(1)
    split = Run(tmp_path, "split", config, stages, fsdp, devices=4)
    codes, said = split.interrupt(signal.SIGTERM)
    assert codes == [75, 75], said
    by_two = Run(tmp_path, "by_two", config, stages, fsdp, devices=4)
    shutil.copytree(split.workdir, by_two.workdir, symlinks=True)
    whole = Run(tmp_path, "split", config, stages, devices=4)
    whole.finish(1)
    by_two.finish(2)
    for other in (whole, by_two):
        # Sums in another order over 1,500 steps: 8e-5 was seen, of logits up to 10.
        assert_close(one, other, "extractor/features.npz", 1e-3)
        assert_same_curves(one, other, 1e-4)


@pytest.mark.slow
def test_every_stage_in_two_processes_is_that_of_one(tmp_path):
    one, two = Run(tmp_path, "one", WHOLE), Run(tmp_path, "two", WHOLE)
    one.finish(1)
    said = two.finish(2)
    assert "report:" in said[0] and "report:" not in said[1]
    for name in ("prepare/manifest.json", "prepare/manifest.parquet"):
        assert (one.workdir / name).read_bytes() == (two.workdir / name).read_bytes()
    pools = [pq.read_table(run.workdir / "synthesize/pool.parquet") for run in (one, two)]
    assert pools[0].column_names == pools[1].column_names
    for name in pools[0].column_names:
        ours, theirs = (np.array(pool[name].to_pylist()) for pool in pools)
        if ours.dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=name)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
    assert_close(one, two, "extractor/features.npz", 1e-4)
    for arm in ("ce", "fill", "live"):
        assert_close(one, two, f"classify/{arm}/seed0/predictions.npz", 1e-4)
    for arm in ("real", "mixed"):
        assert_close(one, two, f"detect/{arm}/seed0/predictions.npz", 1e-3)
    assert_close(one, two, "audit/accuracy_score/predictions.npz", 1e-4)
    for rule in ("policy_schedule", "random_search"):
        name = f"mixing/schedules/{rule}_0.json"
        assert (one.workdir / name).read_bytes() == (two.workdir / name).read_bytes()
    assert_same_curves(one, two, 1e-3)
    for stage in one.specs:
        ours, theirs = (run.ledger(stage) for run in (one, two))
        assert (theirs.flops, theirs.images) == pytest.approx((ours.flops, ours.images)), stage
    reports = [json.loads((run.workdir / "report.json").read_text()) for run in (one, two)]
    for ours, theirs in zip(*(report["arms"] for report in reports), strict=True):
        assert ours["name"] == theirs["name"]
        values = [arm["metrics"]["auroc_macro"]["values"] for arm in (ours, theirs)]
        assert values[0] == pytest.approx(values[1], abs=1e-3)
    assert reports[0]["pool"]["accepted"] == reports[1]["pool"]["accepted"] > 0
    assert all(report["dataset"]["test_openings"] == 1 for report in reports)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["map", "vmap"])
def test_a_population_in_two_processes_is_its_members_in_one(tmp_path, how):
    """Whose images lie on the devices of both, or are streamed."""
    config = TRAINING.replace(', fill={{"controller": "fill_to_head"}}'.format(), "")
    stages = "--stages=prepare,classify"
    one = Run(tmp_path, "one", config, stages)
    one.finish(1)
    flags = ("--config.runtime.classifiers=2", f"--config.runtime.population={how}")
    resident = f"--config.runtime.resident_mib={256 * (how == 'map')}"
    two = Run(tmp_path, "two", config, stages, *flags, resident)
    said = two.finish(2)
    assert f"classify: 2 classifiers in 1 program of 2 ({how})" in said[0]
    assert ("kept on every device" in said[0]) == (how == "map")
    for seed in (0, 1):
        assert_close(one, two, f"classify/ce/seed{seed}/predictions.npz", 1e-4)
    refused = Run(
        tmp_path, "three", config, stages, flags[0], "--config.runtime.population=devices"
    )
    codes, said = processes.finished(refused.command(2), 2, tmp_path / "logs", 120)
    assert codes == [1, 1] and all("takes map or vmap" in text for text in said)
