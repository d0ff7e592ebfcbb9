"""Runs killed at random moments of every stage end as an unbroken run does, bit for bit.

Real processes (`python -m lt_jax.main`) are sent SIGKILL, which no handler sees. Minutes on two
cores, thus `-m slow`; what came out is kept in experiments/resume/README.md.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pyarrow.parquet as pq
import pytest

from lt_jax import pipeline, policy_learning
from lt_jax.runtime import metrics
from tests.test_golden_configs import load

ROOT = pathlib.Path(__file__).parents[1]
# Stages of a few seconds, each with many checkpoints or parts, so that kills land between them.
CONFIG = """
from configs import digits
from tests.shrink import shrink

def get_config():
    config = shrink(digits.get_config())
    with config.unlocked():
        arms = config.classify.arms.to_dict()
        kept = ("ce", "synthetic_fill_to_head", "source_replay")
        live = {**arms["source_replay"], "controller": "policy"}
        config.classify.arms = {**{name: arms[name] for name in kept}, "live": live}
        config.mixing.policy.updates = 300
        config.generator.steps = 240
        config.extractor.steps = 300
        config.classify.update(steps=240, rounds=3)
        config.mixing.rounds = 3
        config.synthesize.update(fill_to=200, steps=10)
        config.evaluate.update(resamples=2000, permutations=2000)
        config.runtime.update(log_every=10, checkpoint_every=15)
    return config
"""
QUOTA = {
    "prepare": 2,
    "generator": 3,
    "extractor": 3,
    "synthesize": 4,
    "mixing": 2,
    "classify": 4,
    "report": 2,
}
# A kill in a training or in a generation waits for so many new checkpoints or parts at most, and
# then for part of the time that one takes: it follows the work, whatever the machine's pace.
AHEAD = {"generator": 3, "extractor": 4, "synthesize": 25, "mixing": 6, "classify": 6}
CHECKPOINT_EVERY = 15
EVERY = {"synthesize": 1, "mixing": policy_learning.SAVE_EVERY}  # else checkpoints of a training
TIMINGS = {"seconds", "data_wait", "data_wait_fraction"}


class Run:
    """One config in one workdir, run by as many processes as it takes."""

    def __init__(self, folder: pathlib.Path, name: str):
        config = folder / "config.py"
        config.write_text(CONFIG)
        self.workdir = folder / name
        self.specs = pipeline.Pipeline(load(config), self.workdir).specs
        self._log = folder / f"{name}.log"
        self._command = [
            sys.executable,
            "-m",
            "lt_jax.main",
            f"--config={config}",
            f"--workdir={self.workdir}",
            f"--config.runtime.compilation_cache={folder / 'compiled'}",
        ]

    def start(self) -> subprocess.Popen:
        """A process that goes on with the run."""
        with open(self._log, "a") as log:
            environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
            return subprocess.Popen(
                self._command, cwd=ROOT, stdout=log, stderr=log, env=environment
            )

    def to_the_end(self) -> dict[str, float]:
        """Runs until all is done; returns when each stage finished, in seconds from its opening."""
        process = self.start()
        opened: dict[str, float] = {}
        seconds: dict[str, float] = {}
        while process.poll() is None:
            now = time.monotonic()
            for stage, folder in self.folders().items():
                if folder.exists():
                    opened.setdefault(stage, now)
                if stage not in seconds and (folder / "artifact.json").exists():
                    seconds[stage] = now - opened.get(stage, now)
            time.sleep(0.01)
        assert process.returncode == 0, self._log.read_text()[-4000:]
        return seconds

    def folders(self) -> dict[str, pathlib.Path]:
        """Where each stage's artifact lies, through the workdir's links."""
        return {spec.stage: self.workdir / spec.stage for spec in self.specs}

    def unfinished(self) -> str | None:
        """The first stage that is not finished; None where all are."""
        folders = self.folders().items()
        return next((s for s, f in folders if not (f / "artifact.json").exists()), None)

    def progress(self, stage: str) -> int:
        """Steps in the newest checkpoint of a training, or parts of the pool; 0 elsewhere."""
        folder = self.folders()[stage]
        steps = [int(p.name) for p in folder.glob("checkpoints/*") if p.name.isdigit()]
        return max(steps, default=len(list(folder.glob("parts/*.parquet"))))

    def finished(self) -> dict[str, tuple[int, str]]:
        """Time and content of each finished artifact's mark."""
        marks = {s: folder / "artifact.json" for s, folder in self.folders().items()}
        return {
            s: (mark.stat().st_mtime_ns, mark.read_text())
            for s, mark in marks.items()
            if mark.exists()
        }


def wait_for(condition, process, seconds=300.0):
    """Until `condition()` holds or the process has ended."""
    until = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < until, "the run makes no progress"
        time.sleep(0.002)


def kill_once(run, quota, typical, rng):
    """Kills a process of `run` in the next stage that has kills to come; returns that stage."""
    process = run.start()

    def reached():
        stage = run.unfinished()
        if stage is None or not quota.get(stage.split("/")[0]):
            return False
        # Its link may be an earlier process's: work begins once the lock names this one.
        return run.folders()[stage].exists() and owner(run) == process.pid

    wait_for(reached, process)
    stage = run.unfinished()
    name = stage.split("/")[0]
    ahead = rng.randint(0, AHEAD.get(name, 0))
    target = run.progress(stage) + ahead * EVERY.get(name, CHECKPOINT_EVERY)
    # A stage that ends meanwhile has escaped: the kill falls into the one behind it.
    wait_for(lambda: run.unfinished() != stage or run.progress(stage) >= target, process)
    time.sleep(rng.uniform(0.0, 0.5 * typical[stage] / (1 + AHEAD.get(name, 0))))
    process.send_signal(signal.SIGKILL)
    return run.unfinished() if process.wait() == -signal.SIGKILL else None


def owner(run):
    """The process that holds the workdir's lock."""
    text = (run.workdir / ".lock").read_text()
    return int(text) if text else None


def kill_many(run, typical, rng):
    """Spends `QUOTA`; kills that a stage has escaped are spent on those behind it."""
    quota = dict(QUOTA)
    hits = []
    finished = {}
    while sum(quota.values()):
        stage = kill_once(run, quota, typical, rng)
        now = run.finished()
        assert {s: now.get(s) for s in finished} == finished, "a finished stage was redone"
        finished = now
        if stage is None:
            break
        name = stage.split("/")[0]
        hits.append((stage, run.progress(stage)))
        quota[name] = max(quota[name] - 1, 0)
        stages = [stage for stage in pipeline.STAGES if stage in quota]  # those of this run
        for early in stages[: stages.index(name)]:
            quota["classify" if name != "report" else "report"] += quota[early]
            quota[early] = 0
    return hits, finished


def without_timings(value):
    """JSON values without the fields that hold times."""
    if isinstance(value, dict):
        return {k: without_timings(v) for k, v in value.items() if k not in TIMINGS}
    return [without_timings(v) for v in value] if isinstance(value, list) else value


def arrays_of(folder):
    """Every array of an artifact by name: .npz entries, .npy files and checkpoints."""
    arrays = {}
    for path in folder.rglob("*.npz"):
        with np.load(path) as file:
            arrays |= {f"{path.relative_to(folder)}:{name}": file[name] for name in file.files}
    for path in folder.rglob("*.npy"):
        arrays[str(path.relative_to(folder))] = np.load(path)
    for path in folder.rglob("state"):  # orbax: <step>/state beside <step>/note
        with ocp.StandardCheckpointer() as checkpointer:
            leaves = flat(checkpointer.restore(path.absolute()))
        arrays |= {f"{path.relative_to(folder)}:{name}": leaf for name, leaf in leaves.items()}
    return arrays


def flat(tree, path=""):
    """Nested dicts and lists as one dict of arrays."""
    if isinstance(tree, dict | list | tuple):
        entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for name, entry in entries for k, v in flat(entry, f"{path}/{name}").items()}
    return {} if tree is None else {path: np.asarray(tree)}


def notes_of(folder):
    """What stands beside the arrays of each checkpoint: digest, stream, metrics' window, ledger."""
    return {
        str(path.relative_to(folder)): without_timings(json.loads(path.read_text()))
        for path in folder.rglob("note/metadata")
    }


def assert_equal(run, other):
    """Both runs hold the same, bit for bit; times and the log of openings apart."""
    for stage, folder in run.folders().items():
        twin = other.folders()[stage]
        mine, theirs = arrays_of(folder), arrays_of(twin)
        assert mine.keys() == theirs.keys(), stage
        for name in mine:
            assert mine[name].dtype == theirs[name].dtype, f"{stage} {name}"
            assert mine[name].tobytes() == theirs[name].tobytes(), f"{stage} {name}"
        assert notes_of(folder) == notes_of(twin), stage
        marks = [json.loads((f / "artifact.json").read_text()) for f in (folder, twin)]
        for mark in marks:
            del mark["finished"]
        assert without_timings(marks[0]) == without_timings(marks[1]), stage
    assert_same_manifest_and_pool(run.folders(), other.folders())
    lines = [without_timings(metrics.read(r.workdir / "metrics.jsonl")) for r in (run, other)]
    assert lines[0] == lines[1] and len(lines[0]) > 100
    reports = [
        without_timings(json.loads((r.workdir / "report.json").read_text())) for r in (run, other)
    ]
    for report in reports:
        del report["command"]  # names the workdir
        del report["dataset"]["test_openings"]  # a killed report has opened it, too, and says so
        del report["config"]["runtime"]
    assert reports[0] == reports[1]


def assert_same_manifest_and_pool(folders, twins):
    """Manifest and pool, accepted and rejected, row by row; what is told of policies."""
    told = ("mixing/curves.json", "mixing/proxy.json")
    for name in ("prepare/manifest.parquet", "synthesize/pool.parquet", *told):
        stage, file = name.split("/")
        mine, theirs = ((f[stage] / file).read_bytes() for f in (folders, twins))
        assert mine == theirs, name
    pool = pq.read_table(folders["synthesize"] / "pool.parquet")
    assert pool["verdict"].to_pylist().count("accepted") > 100


def leftovers(workdir):
    """Temporary files and folders of writes that were never finished."""
    endings = (".tmp", ".partial")
    return [
        path
        for path in workdir.rglob("*")
        if path.name.endswith(endings) or "orbax-checkpoint-tmp" in path.name
    ]


@pytest.mark.slow
def test_killed_twenty_times_equals_unbroken(tmp_path):
    seed = int(os.environ.get("LT_JAX_RESUME_SEED", "0"))
    Run(tmp_path, "warm").to_the_end()  # compiles, so that the times below are those of work
    unbroken, killed = Run(tmp_path, "unbroken"), Run(tmp_path, "killed")
    typical = unbroken.to_the_end()
    hits, finished = kill_many(killed, typical, random.Random(seed))
    killed.to_the_end()
    print("\nseconds unbroken:", {stage: round(s, 1) for stage, s in typical.items()})
    print("kills, with the steps or parts on disk:", *hits, sep="\n  ")
    assert len(hits) >= 20
    assert {stage.split("/")[0] for stage, _ in hits} == set(QUOTA)
    assert any(done for _, done in hits), "no kill fell between two checkpoints"
    after = killed.finished()
    assert {s: after[s] for s in finished} == finished, "a finished stage was redone"
    assert_equal(killed, unbroken)
    openings = (killed.workdir / "test_openings.jsonl").read_text().splitlines()
    assert 1 <= len(openings) <= 1 + sum(stage == "report" for stage, _ in hits)
    assert leftovers(killed.workdir) == []
