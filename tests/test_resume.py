"""Runs ended at random moments of every stage end as an unbroken run does, bit for bit.

Real processes (`python -m lt_jax.main`) are sent SIGKILL, which no handler sees, or SIGTERM, after
which they have to leave in time. Minutes on two cores, thus `-m slow`; what came out is kept in
experiments/resume/README.md.
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
from lt_jax.runtime import faults, metrics
from tests.test_golden_configs import load

ROOT = pathlib.Path(__file__).parents[1]
# Stages of a few seconds, each with many checkpoints or parts, so that kills land between them.
CONFIG = """
from configs import phantom_detect
from lt_jax import config as config_lib
from tests.shrink import shrink

def get_config():
    config = shrink(phantom_detect.get_config(), levels=1)
    with config.unlocked():
        config.data.update(source="phantom:40", imbalance_factor=4.0)
        config.classify.arms = config_lib.arms(
            ce={},
            crt={"second_stage": "crt", "second_stage_steps": 0.5},
            fill={"controller": "fill_to_head"},
            live={"controller": "source_replay", "of": "policy"},
            policy={"controller": "policy"},
            tau={"second_stage": "tau_norm"},
        )
        config.detect.arms = config_lib.detect_arms(real={}, mixed={"data": "mixed"})
        config.audit.parts = ("nearness", "membership", "probe", "diversity", "accuracy_score")
        config.audit.update(noise_times=(0.2, 0.6), draws=4, folds=2, pairs=28, images=120)
        config.mixing.policy.updates = 120
        config.generator.steps = 180
        config.extractor.steps = 150
        config.classify.update(steps=60, rounds=3, seeds=(0,))
        config.detect.update(steps=120, seeds=(0,))
        config.mixing.rounds = 3
        config.synthesize.update(fill_to=80, min_dose=1.0, steps=10)
        config.evaluate.update(resamples=2000, permutations=2000, pictures=("maps", "strips"))
        config.runtime.update(log_every=5, checkpoint_every=5)
    return config
"""
QUOTA = {  # by the start of a stage's name; a stage that is none of these is left to run
    "prepare": 1,
    "generator": 2,
    "extractor": 2,
    "synthesize": 3,
    "audit/accuracy_score": 2,
    "audit/membership": 1,
    "audit/probe": 1,
    "mixing": 2,
    "classify/crt": 3,
    "classify/live": 2,
    "classify/policy": 2,
    "detect": 3,
    "report": 2,
}
# A kill in a training or in a generation waits for so many new checkpoints or parts at most, and
# then for part of the time that one takes: it follows the work, whatever the machine's pace.
AHEAD = {
    "generator": 12,
    "extractor": 10,
    "synthesize": 12,
    "audit/accuracy_score": 20,
    "mixing": 2,
    "classify/crt": 5,
    "classify/live": 5,
    "classify/policy": 5,
    "detect": 8,
}
CHECKPOINT_EVERY = 5
EVERY = {"synthesize": 1, "mixing": policy_learning.SAVE_EVERY}  # else checkpoints of a training
IN_TIME = 30.0  # seconds from SIGTERM to the end: lt_jax.runtime.faults.GRACE, and to be seen
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
        assert process.returncode == 0, self.said()
        return seconds

    def said(self, most: int | None = 4000) -> str:
        """What its processes have written, or the end of it."""
        text = self._log.read_text()
        return text if most is None else text[-most:]

    def folders(self) -> dict[str, pathlib.Path]:
        """Where each stage's artifact lies, through the workdir's links."""
        return {spec.stage: self.workdir / spec.stage for spec in self.specs}

    def unfinished(self) -> str | None:
        """The first stage that is not finished; None where all are."""
        folders = self.folders().items()
        return next((s for s, f in folders if not (f / "artifact.json").exists()), None)

    def progress(self, stage: str) -> int:
        """Steps in the newest checkpoints of its trainings, or parts of the pool; 0 elsewhere."""
        folder = self.folders()[stage].resolve()
        steps = [
            max((int(p.name) for p in held.iterdir() if p.name.isdigit()), default=0)
            for held in (*folder.glob("checkpoints"), *folder.glob("*/checkpoints"))
        ]
        return sum(steps) if steps else len(list(folder.glob("parts/*.parquet")))

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


def kind(stage):
    """The entry of QUOTA that a stage is of; None where it is of none."""
    return next((name for name in QUOTA if stage is not None and stage.startswith(name)), None)


def end_once(run, quota, typical, rng, number):
    """Ends a process of `run` in the next stage that has ends to come.

    Returns that stage, None where the process was through before, and the seconds that it took.
    """
    process = run.start()

    def reached():
        stage = run.unfinished()
        if not quota.get(kind(stage)):
            return False
        # Its link may be an earlier process's: work begins once the lock names this one.
        return run.folders()[stage].exists() and owner(run) == process.pid

    wait_for(reached, process)
    stage = run.unfinished()
    if stage is None:
        assert process.wait() == 0
        return None, 0.0
    ahead = rng.randint(0, AHEAD.get(kind(stage), 0))
    target = run.progress(stage) + ahead * EVERY.get(stage, CHECKPOINT_EVERY)
    # A stage that ends meanwhile has escaped: the end falls into the one behind it.
    wait_for(lambda: run.unfinished() != stage or run.progress(stage) >= target, process)
    time.sleep(rng.uniform(0.0, 0.5 * typical[stage] / (1 + AHEAD.get(kind(stage), 0))))
    hit = run.unfinished()
    process.send_signal(number)
    began = time.monotonic()
    code = process.wait(timeout=2 * IN_TIME)
    ended = -number if number == signal.SIGKILL else faults.REQUEUE_EXIT_CODE
    assert code in (0, ended), run.said()
    return (hit if code else None), time.monotonic() - began


def owner(run):
    """The process that holds the workdir's lock."""
    text = (run.workdir / ".lock").read_text()
    return int(text.split()[0]) if text else None


def end_many(run, typical, rng, number):
    """Spends `QUOTA`; what a stage has escaped is spent on those behind it."""
    quota = dict(QUOTA)
    order = [*dict.fromkeys(kind(spec.stage) for spec in run.specs if kind(spec.stage))]
    hits, times = [], []
    finished = {}
    while sum(quota.values()):
        stage, seconds = end_once(run, quota, typical, rng, number)
        now = run.finished()
        assert {s: now.get(s) for s in finished} == finished, "a finished stage was redone"
        finished = now
        if stage is None:
            break
        hits.append((stage, run.progress(stage)))
        times.append(seconds)
        if name := kind(stage):
            quota[name] = max(quota[name] - 1, 0)
        at = kind(run.unfinished())
        for early in order[: order.index(at)] if at in order else []:
            quota[at] += quota[early]
            quota[early] = 0
    return hits, finished, times


def without_timings(value):
    """JSON values without the fields that hold times."""
    if isinstance(value, dict):
        return {k: without_timings(v) for k, v in value.items() if k not in TIMINGS}
    return [without_timings(v) for v in value] if isinstance(value, list) else value


def arrays_of(folder):
    """Every array of an artifact by name: .npz entries, .npy files and checkpoints."""
    arrays = {}
    for path in folder.rglob("*.npz"):
        with np.load(path, allow_pickle=False) as file:
            arrays |= {f"{path.relative_to(folder)}:{name}": file[name] for name in file.files}
    for path in folder.rglob("*.npy"):
        arrays[str(path.relative_to(folder))] = np.load(path, allow_pickle=False)
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
            del mark["finished"], mark["files"], mark["sha256"]  # of files with times in them
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
    parts = ("nearness", "membership", "probe", "diversity", "accuracy_score")
    told = ("mixing/curves.json", "mixing/proxy.json", *(f"audit/{p}/audit.json" for p in parts))
    for name in ("prepare/manifest.parquet", "synthesize/pool.parquet", *told):
        stage, _, file = name.rpartition("/")
        mine, theirs = ((f[stage] / file).read_bytes() for f in (folders, twins))
        assert mine == theirs, name
    pool = pq.read_table(folders["synthesize"] / "pool.parquet")
    assert pool["verdict"].to_pylist().count("accepted") > 50


def leftovers(workdir):
    """Temporary files and folders of writes that were never finished."""
    endings = (".tmp", ".partial")
    return [
        path
        for path in workdir.rglob("*")
        if path.name.endswith(endings) or "orbax-checkpoint-tmp" in path.name
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A folder with a finished run, the run, and its stages' seconds."""
    folder = tmp_path_factory.mktemp("resume")
    Run(folder, "warm").to_the_end()  # compiles, so that the times below are those of work
    run = Run(folder, "unbroken")
    return folder, run, run.to_the_end()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_ended_in_every_stage_equals_unbroken(unbroken, number):
    folder, whole, typical = unbroken
    rng = random.Random(int(os.environ.get("LT_JAX_RESUME_SEED", "0")))
    run = Run(folder, f"by_{number.name}")
    hits, finished, times = end_many(run, typical, rng, number)
    run.to_the_end()
    print("\nseconds unbroken:", {stage: round(s, 1) for stage, s in typical.items()})
    print("ends, with the steps or parts on disk:", *hits, sep="\n  ")
    print(f"seconds from signal to end: at most {max(times):.2f}, mean {np.mean(times):.2f}")
    assert len(hits) >= 20
    stages = {stage.split("/")[0] for stage, _ in hits}
    assert {name.split("/")[0] for name in QUOTA} <= stages
    assert any(done for _, done in hits), "none fell between two checkpoints"
    assert max(times) < IN_TIME
    after = run.finished()
    assert {s: after[s] for s in finished} == finished, "a finished stage was redone"
    assert_equal(run, whole)
    openings = (run.workdir / "test_openings.jsonl").read_text().splitlines()
    assert 1 <= len(openings) <= 1 + sum(stage == "report" for stage, _ in hits)
    assert leftovers(run.workdir) == []
