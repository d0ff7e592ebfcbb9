"""The whole pipeline, tiny: every config end to end, and what must not happen to a workdir."""

import concurrent.futures
import errno
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from lt_jax import classification, dry_run, pipeline
from lt_jax import config as config_lib
from lt_jax import specs as specs_lib
from lt_jax.context import Context
from lt_jax.data import manifest as manifest_lib
from lt_jax.data.pool import ForeignPoolError, PoolReader
from lt_jax.errors import UserError
from lt_jax.runtime import arrays as arrays_lib
from lt_jax.runtime import faults, files, mesh, progress
from lt_jax.runtime.ledger import Ledger
from tests import layouts
from tests.shrink import shrink
from tests.test_golden_configs import CONFIGS, load

ROOT = pathlib.Path(__file__).parents[1]
MOST_IMBALANCED = 4.0  # that a tiny set can be made
LAYOUTS = {
    "ham10000": layouts.ham10000,
    "isic2019": layouts.isic2019,
    "busi": layouts.busi,
    "tfds:cifar10": functools.partial(layouts.cifar, name="cifar10"),
    "tfds:cifar100": functools.partial(layouts.cifar, name="cifar100"),
}
# What the pool notes of its images, by config; a class is told in all.
TOLD = {
    "busgen": {"boxes", "device"},
    "busi": {"boxes", "device"},
    "busi_detect": {"boxes", "device"},
    "phantom": {"boxes", "device"},
    "phantom_detect": {"boxes", "device"},
    "ham10000_inpaint": {"source"},
}


def tiny(name="digits"):
    # Two levels where they are what is special: they take a third of a tiny run's time.
    levels = 2 if name in ("digits", "busgen") else 1
    config = shrink(load(ROOT / "configs" / f"{name}.py"), levels)
    with config.unlocked():
        arms = config.classify.arms.to_dict()
        if name == "digits":
            kept = ("ce", "synthetic_fill_to_head", "source_replay")
        else:
            kept = fewest(arms, config.evaluate.baseline)
            config.classify.seeds = (0,)
        most = 10.0 if config.data.source == "digits" else MOST_IMBALANCED
        config.data.imbalance_factor = min(config.data.imbalance_factor, most)
        config.classify.arms = {name: arms[name] for name in kept}
    return config


def fewest(arms, baseline):
    """The baseline and one arm with synthetic images, where there is one: others take its path."""
    pooled = [name for name, arm in arms.items() if arm["controller"] == "fill_to_head"]
    return (baseline, pooled[0]) if pooled else tuple(arms)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the tiny digits."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    pipeline.Pipeline(tiny(), workdir, command="test").run()
    return workdir


@pytest.fixture(scope="session")
def root_of(tmp_path_factory):
    """`root_of(source)`: where a tiny set of that source lies, in its official layout."""

    @functools.cache
    def write(source):
        return str(LAYOUTS[source](tmp_path_factory.mktemp("set")))

    return lambda source: write(source) if source in LAYOUTS else ""


def test_preparing_says_what_each_split_holds_but_no_class_of_the_test(tmp_path, capsys):
    run = pipeline.Pipeline(tiny(), tmp_path)
    run.run(["prepare"])
    manifest = run.context().data[0]
    said = capsys.readouterr().err
    train = ", ".join(
        f"{name}: {count}"
        for name, count in zip(manifest.classes, manifest.counts("train"), strict=True)
    )
    assert f"prepare: train {len(manifest.rows('train'))} images ({train})\n" in said
    assert f"prepare: test {len(manifest.rows('test'))} images\n" in said


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_runs_end_to_end(path, tmp_path, finished, root_of):
    if path.stem == "digits":
        workdir = finished
    else:
        workdir = tmp_path / "run"
        config = tiny(path.stem)
        with config.unlocked():
            config.data.root = root_of(config.data.source)
            if config.data.source.startswith("phantom"):
                config.data.source = "phantom:24"
        pipeline.Pipeline(config, workdir).run()
    report = json.loads((workdir / "report.json").read_text())
    assert report["version"] == 1
    assert {arm["name"] for arm in report["arms"]}
    detected = report["detection"]
    makes_images = any(arm["controller"] != "none" for arm in report["arms"])
    makes_images |= detected is not None and len(detected["arms"]) > 1
    assert (detected is not None) == path.stem.endswith("_detect")
    assert makes_images or path.stem == "ham10000_28"  # which compares networks
    assert (report["pool"]["accepted"] > 0) == makes_images
    assert report["dataset"]["test_openings"] == 1
    assert (workdir / "report.html").stat().st_size > 10_000
    if makes_images:
        pool = PoolReader(workdir / "synthesize", report["dataset"]["manifest_sha256"])
        told = {name for note in pool.columns["conditions"] for name in json.loads(note)}
        assert told == TOLD.get(path.stem, set())


def test_second_run_does_nothing(finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("artifact.json")}
    pipeline.Pipeline(tiny(), finished).run()
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("artifact.json")} == before
    assert "finished before" in capsys.readouterr().err
    assert len((finished / "test_openings.jsonl").read_text().splitlines()) == 1


def test_an_arm_recomputes_only_what_its_overrides_touch():
    base = specs_lib.of(pipeline.Pipeline(tiny(), pathlib.Path("unused")).config)
    config = tiny()
    with config.unlocked():
        config.classify.arms.ce.loss = "focal"
    changed = pipeline.Pipeline(config, pathlib.Path("unused")).specs
    moved = {a.stage for a, b in zip(base, changed, strict=True) if a.key != b.key}
    assert moved == {"classify/ce/seed0", "classify/ce/seed1", "report"}


def test_cache_serves_another_workdir(finished, tmp_path):
    store = finished / "artifacts"
    run = pipeline.Pipeline(tiny(), tmp_path / "other", cache=store)
    run.run()
    assert (tmp_path / "other/generator/artifact.json").exists()
    assert (tmp_path / "other/report.html").read_text() == (finished / "report.html").read_text()
    assert not (tmp_path / "other/artifacts").exists()
    lines = (tmp_path / "other/metrics.jsonl").read_text()
    assert lines == (finished / "metrics.jsonl").read_text()


def assert_same_predictions(run, ordinary):
    for spec in run.specs:
        if not spec.stage.startswith("classify/"):
            continue
        mine, theirs = (
            arrays_lib.load(one.store.folder(spec) / "predictions.npz") for one in (run, ordinary)
        )
        assert mine.keys() == theirs.keys()
        for name, values in mine.items():
            if name.endswith("_logits"):
                np.testing.assert_allclose(values, theirs[name], atol=1e-4)
            else:
                assert values.tolist() == theirs[name].tolist()
        mine, theirs = (one.store.ledger(spec) for one in (run, ordinary))
        assert mine.images == theirs.images
        assert mine.flops == pytest.approx(theirs.flops, rel=1e-3)


def copied(run, ordinary):
    """`run` with what comes before the classifiers taken from another one."""
    for spec in ordinary.specs:
        if spec.stage in ("prepare", "generator", "extractor", "synthesize"):
            shutil.copytree(ordinary.store.folder(spec), run.store.folder(spec))
    return run


def test_classifiers_trained_together_predict_what_they_do_one_by_one(
    finished, tmp_path, capsys, monkeypatch
):
    """Seeds and arms by one program."""
    monkeypatch.setattr(progress, "_SAID", {})  # what the other run said
    config = tiny()
    with config.unlocked():
        config.runtime.update(classifiers=8, population="vmap")
    ordinary = pipeline.Pipeline(tiny(), finished)
    run = copied(pipeline.Pipeline(config, tmp_path / "run"), ordinary)
    run.run(["classify"])
    context = run.context()
    stores = [
        classification.mixed_data(context, "synthetic_fill_to_head", seed)[1].extra
        for seed in (0, 1)
    ]
    assert stores[0] is stores[1]  # on the devices once, then
    said = capsys.readouterr().err
    assert "classify: 6 classifiers in 1 program of 6 (vmap)" in said
    assert "classify ce 0 and 5 more: 8 x images of" in said
    assert "classify ce 0 and 5 more: 4 steps" in said
    assert_same_predictions(run, ordinary)


def stub(spec, folder, context):
    """A stage of no work, which counts how often it was made."""
    time.sleep(0.05)
    with (folder / "made").open("a") as file:
        file.write("x")
    return Ledger()


def test_runs_that_start_at_once_make_what_they_share_once(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.stages, "run", stub)
    monkeypatch.setattr(pipeline.Pipeline, "_preflight", lambda *_: None)

    def run(i):
        config = tiny()
        with config.unlocked():
            config.classify.optimizer.learning_rate = 0.001 * (1 + i)
        trial = pipeline.Pipeline(config, tmp_path / f"run{i}", cache=tmp_path / "cache")
        trial.run([name for name in specs_lib.STAGES if name != "report"])
        return trial

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        runs = list(pool.map(run, range(16)))
    made = {path.parent.name: path.read_text() for path in tmp_path.glob("cache/*/made")}
    assert set(made.values()) == {"x"}
    own = len([spec for spec in runs[0].specs if spec.stage.startswith("classify")])
    assert len(made) == 4 + 16 * own  # prepare, generator, extractor, synthesize
    assert all(run.store.done(spec) for run in runs for spec in run.specs[:-1])


def test_a_run_waits_for_an_artifact_that_another_works_on(tmp_path, capsys):
    run = pipeline.Pipeline(tiny(), tmp_path / "run", cache=tmp_path / "cache")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with faults.lock(run.store.open(run.specs[0])):
            waiting = pool.submit(run.run, ["prepare"])
            time.sleep(1.0)
            assert not waiting.done()
        waiting.result(60)
    assert f"waiting for process {os.getpid()} on" in capsys.readouterr().err
    assert run.store.done(run.specs[0])


MAKING = """
import pathlib, sys, time
from lt_jax import pipeline
from tests.test_pipeline import tiny

def never_done(spec, folder, context):
    (folder / "begun").touch()
    print("making", flush=True)
    time.sleep(600)

pipeline.stages.run = never_done
pipeline.Pipeline(tiny(), pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])).run(["prepare"])
"""


def test_a_run_makes_the_stage_that_it_waits_for_when_the_maker_is_killed(tmp_path, monkeypatch):
    waiting, lines, say = threading.Event(), [], progress.say

    def heard(line):
        say(line)
        lines.append(line)
        if f"waiting for process {maker.pid} on" in line:
            waiting.set()

    monkeypatch.setattr(progress, "say", heard)
    run = pipeline.Pipeline(tiny(), tmp_path / "run", cache=tmp_path / "cache")
    command = [sys.executable, "-c", MAKING, tmp_path / "killed", tmp_path / "cache"]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as maker,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        try:
            assert maker.stdout is not None and maker.stdout.readline() == "making\n"
            held = pool.submit(run.run, ["prepare"])
            assert waiting.wait(60) and not held.done()
            assert not run.store.done(run.specs[0])
        finally:
            maker.kill()
        held.result(60)
    assert run.store.done(run.specs[0]) and (run.workdir / "prepare/begun").exists()
    assert not any("finished before" in line for line in lines)


def test_workdir_of_another_config_is_refused(finished):
    config = tiny()
    with config.unlocked():
        config.generator.steps = 5
    with pytest.raises(config_lib.ConfigError, match=r"config\.generator\.steps: 4 there, 5 here"):
        pipeline.Pipeline(config, finished).run()


def test_runtime_fields_may_change(finished):
    config = tiny()
    with config.unlocked():
        config.runtime.log_every = 3
    pipeline.Pipeline(config, finished).run()


def test_what_does_not_fit_is_found_before_the_first_stage(tmp_path):
    config = tiny()
    with config.unlocked():
        config.classify.model.vit.patch_size = 3
    with pytest.raises(config_lib.ConfigError, match=r"config\.classify\.model: .*patch"):
        pipeline.Pipeline(config, tmp_path / "a").run()
    config = tiny()
    with config.unlocked():
        config.synthesize.batch_size = 15
    with pytest.raises(config_lib.ConfigError, match=r"config\.synthesize\.batch_size: got 15"):
        pipeline.Pipeline(config, tmp_path / "b").run()
    assert not list(tmp_path.rglob("artifact.json"))


def test_no_validation_split_and_an_arm_that_asks_for_nothing(finished, tmp_path):
    config = tiny()
    with config.unlocked():
        config.data.split.update(policy_val=0.0, val=0.0)
        config.synthesize.selection.memorization.gate = False  # it is calibrated on val
        config.data.imbalance_factor = 1.0
        arms = config.classify.arms.to_dict()
        kept = {name: arms[name] for name in ("ce", "source_replay")}
        kept["source_replay"]["fill_to"] = 1
        config.classify.arms = kept
        config.classify.seeds = (0,)
    pipeline.Pipeline(config, tmp_path / "run").run()
    report = json.loads((tmp_path / "run/report.json").read_text())
    left, right = (arm["metrics"]["accuracy"]["values"] for arm in report["arms"])
    assert left == right  # a replay of nothing is the real-only arm


def test_keys_follow_the_contents_of_lists_and_not_the_runtime(tmp_path):
    listed = tmp_path / "list.jsonl"
    config = tiny()
    with config.unlocked():
        config.data.manifest = str(listed)
    keys = []
    for text in ("a", "b"):
        listed.write_text(text)
        keys.append(pipeline.Pipeline(config, tmp_path).specs[0].key)
    assert keys[0] != keys[1]


def test_a_stage_without_its_input_is_refused(tmp_path):
    with pytest.raises(config_lib.ConfigError, match="generator needs prepare"):
        pipeline.Pipeline(tiny(), tmp_path).run(["generator"])
    with pytest.raises(config_lib.ConfigError, match="got 'generate'; takes some of prepare"):
        pipeline.Pipeline(tiny(), tmp_path).run(["generate"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.evaluate.update(baseline="cee"), r"baseline: got 'cee'; takes an arm: ce"),
        (lambda c: c.classify.update(seeds=()), "at least one arm and one seed"),
        (lambda c: c.classify.update(seeds=(1, 1)), "takes seeds that differ"),
    ],
)
def test_arms_that_do_not_fit_are_refused(change, message):
    config = tiny()
    with config.unlocked():
        change(config)
    with pytest.raises(config_lib.ConfigError, match=message):
        pipeline.Pipeline(config, pathlib.Path("unused"))


def test_no_stage_but_report_sees_a_test_label(finished):
    run = pipeline.Pipeline(tiny(), finished)
    context = Context(
        run.config, {s.stage: s for s in run.specs}, run.store, finished, mesh.make_mesh(), ""
    )
    manifest, _ = context.data
    assert (manifest.labels[manifest.rows("test")] == -1).all()
    for path in finished.rglob("predictions.npz"):
        assert set(arrays_lib.load(path)) == {
            f"{split}_{kind}"
            for split in ("policy_val", "val", "test")
            for kind in ("ids", "logits")
        }


def test_train_rows_are_train_rows(finished):
    manifest = manifest_lib.load(finished / "prepare")
    features = arrays_lib.load(finished / "extractor/features.npz")
    assert features["train_rows"].tolist() == manifest.rows("train").tolist()
    assert not any(name.startswith("test") for name in features)


def test_pool_names_its_manifest_and_generator(finished):
    manifest = manifest_lib.load(finished / "prepare")
    run = pipeline.Pipeline(tiny(), finished)
    pool = PoolReader(finished / "synthesize", manifest.sha256)
    assert pool.info.generator == next(s.key for s in run.specs if s.stage == "generator")
    with pytest.raises(ForeignPoolError, match="its images may show this run's test groups"):
        PoolReader(finished / "synthesize", "0" * 64)


def test_predictions_of_other_images_are_refused(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy, symlinks=True)
    config = tiny()
    with config.unlocked():
        config.evaluate.seed = 1
    path = next((copy / "classify/ce/seed0").glob("predictions.npz"))
    arrays = arrays_lib.load(path)
    arrays["test_ids"] = arrays["test_ids"][::-1]
    np.savez(path, **arrays)
    mark = path.with_name("artifact.json")
    told = json.loads(mark.read_text())
    del told["files"], told["sha256"]  # as of an older run, whose files have no digests
    mark.write_text(json.dumps(told))
    with pytest.raises(ValueError, match="holds other test images than the manifest"):
        pipeline.Pipeline(config, copy).run(["report"], accept_config_change=True)


@pytest.mark.parametrize(
    ("stage", "name", "reader"),
    [
        ("prepare", "images.npy", "report"),
        ("prepare", "manifest.parquet", "report"),
        ("prepare", "manifest.json", "report"),
        ("extractor", "features.npz", "synthesize"),
        ("extractor", "params", "synthesize"),
        ("generator", "params", "synthesize"),
        ("synthesize", "pool.parquet", "report"),
        ("synthesize", "pool.json", "report"),
        ("classify/ce/seed0", "predictions.npz", "report"),
        ("classify/ce/seed0", "mixture.json", "report"),
        ("report", "report.json", ""),
        ("report", "artifact.json", ""),
    ],
)
def test_a_flipped_byte_of_a_finished_artifact_is_found_by_its_reader(
    finished, tmp_path, stage, name, reader
):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy, symlinks=True)
    config = tiny()
    with config.unlocked():  # so that the reader has something to do
        config.synthesize.seed += reader == "synthesize"
        config.evaluate.seed += reader == "report"
    path = (copy / stage / name).resolve()
    if path.is_dir():
        path = max(path.rglob("*"), key=lambda file: file.stat().st_size * file.is_file())
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    run = pipeline.Pipeline(config, copy)
    folder = rf"{(copy / stage).resolve()}.*delete .*run the same command again"
    with pytest.raises(UserError, match=folder):
        run.run([reader or "report"], accept_config_change=True)


def test_full_disk_keeps_what_is_finished(finished, tmp_path, monkeypatch):
    run = pipeline.Pipeline(tiny(), tmp_path / "run")
    run.run(["prepare"])

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(files.DiskFullError, match="free space and run the same command again"):
            run.run(["generator"])
    assert (tmp_path / "run/prepare/artifact.json").exists()
    run.run(["generator"])


def test_dry_run_describes_and_writes_nothing(tmp_path):
    run = pipeline.Pipeline(tiny(), tmp_path / "run")
    text = dry_run.describe(run, list(specs_lib.STAGES))
    assert not (tmp_path / "run").exists()
    for spec in run.specs:
        assert spec.stage in text and spec.key[:16] in text
    assert "parameters" in text and "generator" in text


def test_dry_run_without_the_data_says_so(tmp_path):
    config = tiny("ham10000")
    with config.unlocked():
        config.data.root = str(tmp_path / "nowhere")
    text = dry_run.describe(pipeline.Pipeline(config, tmp_path), ["prepare"])
    assert "need the data set" in text


def test_command_line_errors_are_one_line(tmp_path):
    for flag, message in (
        ("--config.data.bogus=1", "--config.data.bogus=1: the config has no such field"),
        (
            "--config.data.sorce=x",
            "--config.data.sorce=x: the config has no such field; Did you mean",
        ),
        (
            "--config.synthesize.method=inpaint",
            "config.synthesize.method: inpaint takes a generator",
        ),
        ("--config.data.split.test=1.5", r"config.data.split.test: got 1.5; takes float in"),
    ):
        command = [
            sys.executable, "-m", "lt_jax.main", "--config=configs/digits.py",
            f"--workdir={tmp_path / 'run'}", "--dry_run", flag,
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert message in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
