"""The stage audit: optional, resumable, blind to test labels; its parts in the report."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

from lt_jax import auditing, dry_run, pipeline, preflight
from lt_jax import config as config_lib
from lt_jax import specs as specs_lib
from lt_jax.auditing import accuracy_score, generator, inception
from lt_jax.config import Config, ConfigError
from lt_jax.data.manifest import ManifestError
from lt_jax.evaluate.images import privacy
from lt_jax.evaluate.report import audit_figures
from lt_jax.models import inception as network
from lt_jax.models import inception_weights
from lt_jax.runtime import arrays as arrays_lib
from tests.shrink import shrink
from tests.test_golden_configs import load
from tests.test_synthesis import Guarded

PARTS = ("nearness", "membership", "probe", "diversity", "accuracy_score")


def tiny(**audit):
    """Digits with a pool that passes its gates, and no more arms than needed."""
    config = shrink(load(pathlib.Path(__file__).parents[1] / "configs/digits.py"), levels=1)
    with config.unlocked():
        config.data.imbalance_factor = 3.0
        config.synthesize.selection.keep_rate = 1.0
        config.synthesize.selection.memorization.gate = False
        config.synthesize.fill_to = 80
        config.classify.seeds = (0, 1)
        config.classify.arms = config_lib.arms(ce={})
        config.audit.update(
            {"noise_times": (0.2, 0.6), "draws": 2, "folds": 2, "pairs": 28, "resamples": 100}
        )
        config.audit.update({"batch_size": 64, "images": 60, "parts": PARTS, **audit})
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run with every audit but Inception's."""
    run = pipeline.Pipeline(tiny(), tmp_path_factory.mktemp("auditing") / "run")
    run.run()
    return run


@pytest.fixture(scope="module")
def report(finished):
    return json.loads((finished.workdir / "report.json").read_text())


def test_a_run_without_audits_keeps_its_keys():
    keys = lambda config: {
        spec.stage: spec.key for spec in specs_lib.of(config_lib.build(Config, config))
    }
    without, audited = tiny(parts=()), tiny()
    for config in (without, audited):
        with config.unlocked():
            config.classify.arms = config_lib.arms(ce={}, fill={"controller": "fill_to_head"})
    plain = keys(without)
    assert not any(name.startswith("audit") for name in plain)
    assert {n: k for n, k in keys(audited).items() if n in plain and n != "report"} == {
        n: k for n, k in plain.items() if n != "report"
    }
    with without.unlocked():
        without.audit.update(seed=3, draws=5, inception_weights="nowhere.npz")
    assert keys(without) == plain


def test_each_part_s_key_holds_what_it_reads_alone():
    keys = lambda **audit: {
        spec.stage: spec.key
        for spec in specs_lib.of(config_lib.build(Config, tiny(**audit)))
        if spec.stage.startswith("audit/")
    }
    before = keys()
    assert list(before) == [f"audit/{part}" for part in PARTS]
    moved = lambda **audit: {n for n, key in keys(**audit).items() if key != before[n]}
    assert moved(draws=3) == {"audit/membership"}
    assert moved(pairs=3) == {"audit/diversity"}
    assert moved(folds=3) == {"audit/membership", "audit/probe"}
    assert moved(batch_size=32) == set()
    assert keys(parts=(*PARTS, "probe")) == before


def test_audits_are_made_where_no_arm_needs_a_pool(finished):
    assert {"generator", "synthesize"} <= {spec.stage for spec in finished.specs}
    assert (finished.workdir / "audit/membership/audit.json").exists()


def test_finished_parts_are_skipped_and_unfinished_ones_gone_on_with(finished, capsys):
    mark = finished.workdir / "audit/accuracy_score/artifact.json"
    folder = mark.parent.resolve()
    before = (folder / "audit.json").read_text()
    held, mark = mark.read_text(), folder / "artifact.json"
    mark.unlink()  # as if killed right before its end
    finished.run(["audit"])
    said = capsys.readouterr().err
    assert said.count("finished before") == len(PARTS) - 1
    assert (folder / "audit.json").read_text() == before
    assert json.loads(mark.read_text())["key"] == json.loads(held)["key"]


def test_the_report_holds_every_part_with_n_and_cost(report):
    found = report["audit"]
    assert list(found) == list(PARTS)
    assert all(part["cost"]["seconds"] > 0 for part in found.values())
    attack = found["membership"]
    assert attack["members"] == attack["non_members"] <= 60
    assert [entry["time"] for entry in attack["times"]] == [0.2, 0.6]
    for entry in (*attack["times"], attack["mean"], attack["calibrated"]):
        low, high = entry["ci95"]
        assert low <= entry["auroc"] <= high and entry["n_positive"] == attack["members"]
        assert not entry["tpr"]["resolved"] and "non-members" in entry["tpr"]["reason"]
    assert len(found["probe"]["classes"]) == 10 and found["probe"]["overall"]["probe"]
    nearness = found["nearness"]
    assert nearness["candidates"] is None and not nearness["gate"]
    for measure in ("cosine", "ms_ssim"):
        overall = nearness["accepted"][measure]["overall"]
        assert sum(overall["val"]["histogram"]) == overall["n_val"] > 0
        assert "histogram" not in nearness["accepted"][measure]["classes"][0]["val"]
        pairs = nearness["closest"]["accepted"][measure]
        values = [pair["value"] for pair in pairs]
        assert values == sorted(values, reverse=True) and len(pairs) == 12
        highest = max(
            entry["synthetic"]["max"] or 0 for entry in nearness["accepted"][measure]["classes"]
        )
        assert values[0] == pytest.approx(highest)
    diversity = found["diversity"]["classes"][0]
    assert diversity["real"]["pairs"] <= 28 and diversity["real"]["n"] == 8
    macro = found["diversity"]["macro"]
    assert macro["classes"] > 1 and all(spread > 0 for spread in macro["std"].values())


def test_the_accuracy_score_compares_as_many_images_of_each_class(finished, report):
    found = report["audit"]["accuracy_score"]
    assert found["counts"]["synthetic"] == found["counts"]["real"]
    assert found["val"]["real"]["n"] == 2 and len(found["test"]["synthetic"]["values"]) == 2
    # Labels of test images are opened by the report: the artifact has none of that.
    assert "test" not in json.loads(
        (finished.workdir / "audit/accuracy_score/audit.json").read_text()
    )
    arrays = arrays_lib.load(finished.workdir / "audit/accuracy_score/predictions.npz")
    manifest = finished.context().data[0]
    logits = arrays["val_real_1"]
    labels = manifest.labels[manifest.rows("val")]
    judged = [manifest.classes.index(name) for name in found["classes"]]
    guess = np.array(judged)[logits[:, judged].argmax(axis=1)]
    recalls = [(guess[labels == k] == k).mean() for k in judged if (labels == k).any()]
    assert found["val"]["real"]["values"][1] == pytest.approx(np.mean(recalls))
    folder = finished.workdir / "audit/accuracy_score"
    with pytest.raises(ManifestError, match="other test images"):
        accuracy_score.test(dict(found), folder, ("x",), np.zeros(1, int))


def test_no_test_image_reaches_a_measurement(finished, tmp_path):
    context = finished.context()
    manifest, images = context.data
    guarded = dataclasses.replace(context)
    guarded.__dict__["data"] = manifest, Guarded(images, manifest.rows("test"))
    for part in ("nearness", "membership", "diversity"):
        (tmp_path / part).mkdir()
        auditing.run(tmp_path / part, guarded, part)
        again = json.loads((tmp_path / part / "audit.json").read_text())
        assert again == json.loads((finished.workdir / f"audit/{part}/audit.json").read_text())


def test_members_and_others_are_of_the_same_classes(finished):
    manifest = finished.context().data[0]
    for most in (10, 60, 10_000):
        rows, member = generator.sides(manifest, most, 0)
        counts = [
            np.bincount(manifest.labels[rows[side]], minlength=10) for side in (member, ~member)
        ]
        np.testing.assert_array_equal(*counts)
        splits = np.array(manifest.splits)[rows]
        assert set(splits[member]) == {"train"} and set(splits[~member]) <= {"val", "policy_val"}
        assert len(set(rows.tolist())) == len(rows) and counts[0].sum() <= max(most, 10)


def test_figures_are_drawn_of_every_part(report):
    drawn = dict(audit_figures.figures_of(report["audit"]))
    assert list(drawn) == [f"audit_{part}" for part in PARTS]
    for figure in drawn.values():
        figure.draw_without_rendering()


def test_an_empty_pool_and_missing_splits_are_clear(finished, tmp_path, monkeypatch):
    context = finished.context()
    reader = lambda context: rejected_pool(finished)
    monkeypatch.setattr(auditing.pool, "open_pool", reader)
    monkeypatch.setattr(accuracy_score, "open_pool", reader)
    with pytest.raises(privacy.PrivacyError, match="0 accepted synthetic"):
        auditing.run(tmp_path, context, "nearness")
    with pytest.raises(accuracy_score.ScoreError, match="0 accepted synthetic"):
        auditing.run(tmp_path, context, "accuracy_score")
    auditing.run(tmp_path, context, "diversity")
    found = json.loads((tmp_path / "audit.json").read_text())
    assert all("synthetic" in entry["reasons"] for entry in found["classes"])
    auditing.run(tmp_path, context, "probe")
    found = json.loads((tmp_path / "audit.json").read_text())
    assert found["overall"]["probe"] is None and found["overall"]["reasons"]["probe"]


def rejected_pool(finished):
    """The run's pool with every image rejected."""
    pool = auditing.pool.PoolReader(
        finished.context().folder("synthesize"), finished.context().data[0].sha256
    )
    pool.columns["verdict"][:] = "ood"
    return pool


@pytest.mark.parametrize(
    ("audit", "split", "word"),
    [
        ({"parts": ("nearness",)}, {"val": 0.0}, "`nearness` compares with held-out images"),
        ({"parts": ("membership",)}, {"val": 0.0, "policy_val": 0.0}, "membership"),
        ({"parts": ("membership",), "noise_times": ()}, {}, "noise_times: got none"),
    ],
)
def test_what_cannot_be_audited_is_refused_beforehand(audit, split, word):
    config = tiny(**audit)
    with config.unlocked():
        config.data.split.update(split)
    with pytest.raises(ConfigError, match=word):
        preflight.check_audit(config_lib.build(Config, config))
    preflight.check_audit(config_lib.build(Config, tiny()))


def test_inception_takes_a_file_that_is_there(tmp_path):
    config = tiny(parts=("inception",), inception_weights=str(tmp_path / "nowhere.npz"))
    with pytest.raises(ConfigError, match=r"audit\.inception_weights: got .*nowhere"):
        pipeline.Pipeline(config, tmp_path / "run")


def test_inception_s_features_make_a_fidelity_report(finished, tmp_path, monkeypatch):
    """With a network that is quick: what is fed to it, and that the report is of its features."""

    class Quick:
        def __hash__(self):
            return 0

    def apply(module, params, images):
        assert images.shape[1:] == (299, 299, 3)
        return images.mean(axis=1).reshape(len(images), -1)[:, ::60] + params["offset"]

    monkeypatch.setattr(inception_weights, "load", lambda path: {"offset": np.ones((1, 1))})
    monkeypatch.setattr(network, "InceptionV3", Quick)
    monkeypatch.setattr(inception.module, "apply", apply)
    context = finished.context()
    found, costs = inception.measure(tmp_path, context)
    assert found["class_names"] == list(context.data[0].classes)
    assert found["overall"]["n_val"] == len(context.data[0].rows("val"))
    assert found["overall"]["matched"]["kid"] is not None and costs.images > 0


def test_the_dry_run_names_the_audit_and_its_work(finished):
    text = dry_run.describe(finished, ["audit"])
    assert "audit/probe" in text and "4 passes of the generator" in text


def test_joined_stores_are_one():
    first, second = np.zeros((3, 2, 2, 1), np.uint8), np.ones((2, 2, 2, 1), np.uint8)
    store = accuracy_score.Joined(first, second)
    assert len(store) == 5
    found = store[np.array([4, 0, 3, 2])]
    np.testing.assert_array_equal(found[:, 0, 0, 0], [1, 0, 1, 0])
