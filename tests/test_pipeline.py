"""The whole pipeline, tiny: every config end to end, and what must not happen to a workdir."""

import errno
import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from lt_jax import config as config_lib
from lt_jax import dry_run, pipeline, stages
from lt_jax.data import manifest as manifest_lib
from lt_jax.data.pool import ForeignPoolError, PoolReader
from lt_jax.runtime import faults
from tests.shrink import shrink
from tests.test_golden_configs import CONFIGS, load

ROOT = pathlib.Path(__file__).parents[1]
HAM = ROOT / "../shared/data/ham10000"
DATA = {"ham10000": HAM, "ham10000_28": HAM}


def tiny(name="digits"):
    config = shrink(load(ROOT / "configs" / f"{name}.py"))
    if name == "digits":  # few arms: the others take the same paths
        with config.unlocked():
            arms = config.classify.arms.to_dict()
            kept = ("ce", "synthetic_fill_to_head", "source_replay")
            config.classify.arms = {name: arms[name] for name in kept}
            config.data.imbalance_factor = 10.0
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the tiny digits."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    pipeline.Pipeline(tiny(), workdir, command="test").run()
    return workdir


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_runs_end_to_end(path, tmp_path, finished):
    if path.stem == "digits":
        workdir = finished
    else:
        root = DATA[path.stem]
        if not root.exists():
            pytest.skip(f"needs the images in {root}")
        workdir = tmp_path / "run"
        config = tiny(path.stem)
        with config.unlocked():
            config.data.root = str(few(root, tmp_path / "data"))
            config.data.near_duplicates = "off"
            config.classify.seeds = (0,)
        pipeline.Pipeline(config, workdir).run()
    report = json.loads((workdir / "report.json").read_text())
    assert report["version"] == 1
    assert {arm["name"] for arm in report["arms"]}
    makes_images = any(arm["controller"] != "none" for arm in report["arms"])
    assert (report["pool"]["accepted"] > 0) == makes_images
    assert report["dataset"]["test_openings"] == 1
    assert (workdir / "report.html").stat().st_size > 10_000


def few(root, out):
    """A small HAM10000: twelve lesions of each class."""
    out.mkdir()
    header, *lines = (root / "HAM10000_metadata.csv").read_text().splitlines()
    seen: dict[str, set[str]] = {}
    kept = []
    for line in lines:
        lesion, _, dx = line.split(",")[:3]
        if lesion in seen.setdefault(dx, set()) or len(seen[dx]) == 12:
            continue
        seen[dx].add(lesion)
        kept.append(line)
    (out / "HAM10000_metadata.csv").write_text("\n".join([header, *kept]) + "\n")
    (out / "HAM10000_images").symlink_to((root / "HAM10000_images").resolve())
    return out


def test_second_run_does_nothing(finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("artifact.json")}
    pipeline.Pipeline(tiny(), finished).run()
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("artifact.json")} == before
    assert "finished before" in capsys.readouterr().err
    assert len((finished / "test_openings.jsonl").read_text().splitlines()) == 1


def test_an_arm_recomputes_only_what_its_overrides_touch():
    base = pipeline.specs(pipeline.Pipeline(tiny(), pathlib.Path("unused")).config)
    config = tiny()
    with config.unlocked():
        config.classify.arms.ce.loss = "focal"
    changed = pipeline.Pipeline(config, pathlib.Path("unused")).specs
    moved = {a.stage for a, b in zip(base, changed, strict=True) if a.key != b.key}
    assert moved == {"classify/ce/seed0", "classify/ce/seed1", "report"}


def test_cache_serves_another_workdir(finished, tmp_path):
    store = finished / "artifacts"
    run = pipeline.Pipeline(tiny(), tmp_path / "other", cache=store)
    run.run(["prepare", "generator", "extractor", "synthesize", "classify"])
    assert (tmp_path / "other/generator/artifact.json").exists()
    assert not (tmp_path / "other/artifacts").exists()
    lines = (tmp_path / "other/metrics.jsonl").read_text()
    assert lines == (finished / "metrics.jsonl").read_text()


def test_an_artifact_that_another_run_works_on_is_refused(tmp_path):
    run = pipeline.Pipeline(tiny(), tmp_path / "run", cache=tmp_path / "cache")
    refused = pytest.raises(faults.WorkdirInUseError, match="prepare-")
    with faults.lock(run.store.open(run.specs[0])), refused:
        run.run(["prepare"])


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
    context = stages.Context(
        run.config, {s.stage: s for s in run.specs}, run.store, finished, None, ""
    )
    manifest, _ = context.data
    assert (manifest.labels[manifest.rows("test")] == -1).all()
    for path in finished.rglob("predictions.npz"):
        assert set(np.load(path).files) == {"val_ids", "val_logits", "test_ids", "test_logits"}


def test_train_rows_are_train_rows(finished):
    manifest = manifest_lib.load(finished / "prepare")
    features = np.load(finished / "extractor/features.npz")
    assert features["train_rows"].tolist() == manifest.rows("train").tolist()
    assert not any(name.startswith("test") for name in features.files)


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
    arrays = dict(np.load(path))
    arrays["test_ids"] = arrays["test_ids"][::-1]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="holds other images than the manifest"):
        pipeline.Pipeline(config, copy).run(["report"], accept_config_change=True)


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
    text = dry_run.describe(run, list(pipeline.STAGES))
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
