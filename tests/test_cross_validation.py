"""Cross-validation: every image is test once, to networks that have not seen it."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from lt_jax import cross_validation, reporting
from lt_jax.config import ConfigError
from lt_jax.data import longtail
from lt_jax.data import manifest as manifest_lib
from lt_jax.errors import UserError
from lt_jax.evaluate import metrics
from lt_jax.evaluate.report import folds as folds_lib
from lt_jax.evaluate.report import shown, summary
from tests.test_pipeline import tiny

FOLDS = 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Workdir and runs of the tiny digits in three folds."""
    workdir = tmp_path_factory.mktemp("runs") / "cv"
    config = tiny()
    with config.unlocked():
        config.classify.arms = {k: config.classify.arms[k] for k in ("ce", "source_replay")}
    runs = cross_validation.pipelines(config, FOLDS, workdir, workdir / "cache", "test")
    cross_validation.run(runs, workdir, False)
    return workdir, runs


@pytest.fixture(scope="module")
def inputs(finished):
    return [reporting.gather(run.context(), "test") for run in finished[1]]


def manifests(runs):
    return [manifest_lib.load(run.context().folder("prepare")) for run in runs]


def test_every_image_is_test_once_and_trains_nothing_there(finished):
    held = manifests(finished[1])
    tested = [name for made in held for name in np.array(made.ids)[made.rows("test")]]
    assert len(tested) == len(set(tested)) == 1797
    for run, made in zip(finished[1], held, strict=True):
        told = json.loads((run.context().folder("generator") / "generator.json").read_text())
        test = {made.image_sha256[row] for row in made.rows("test")}
        assert not test & set(told["seen"]) and len(told["seen"]) == len(made.rows("train"))


def test_the_report_is_that_of_all_images_under_their_own_fold(finished, inputs):
    report = json.loads((finished[0] / "report.json").read_text())
    labels = np.concatenate([fold.dataset.test_labels for fold in inputs])
    for arm, written in zip(range(2), report["arms"], strict=True):
        logits = np.concatenate([fold.arms[arm].runs[0].test_logits for fold in inputs])
        expected = metrics.balanced_accuracy(metrics.softmax(logits), labels)
        np.testing.assert_allclose(written["metrics"]["balanced_accuracy"]["values"][0], expected)
        seconds = sum(run.seconds for fold in inputs for run in fold.arms[arm].runs)
        np.testing.assert_allclose(written["ledger"]["seconds"], seconds)
    assert report["dataset"]["test_openings"] == 1
    assert (finished[0] / "report.html").exists()


def test_each_image_is_adjusted_by_the_prior_of_its_fold(inputs):
    whole = cross_validation.pooled(inputs)
    run, start = whole.arms[0].runs[0], 0
    for fold in inputs:
        own = fold.arms[0].runs[0]
        rows = slice(start, start := start + len(own.test_logits))
        np.testing.assert_array_equal(
            run.log_prior[rows], np.broadcast_to(own.log_prior, own.test_logits.shape)
        )


def test_val_which_is_test_in_other_folds_chooses_nothing(finished, inputs):
    held = manifests(finished[1])
    names = lambda made, split: set(np.array(made.ids)[made.rows(split)])
    assert names(held[0], "val") <= names(held[1], "test") | names(held[2], "test")
    as_pools = [
        dataclasses.replace(
            fold, arms=(fold.arms[0], dataclasses.replace(fold.arms[1], uses_pool=True))
        )
        for fold in inputs
    ]
    assert summary.rival(as_pools[0]) == ("ce", ["source_replay"])
    whole = cross_validation.pooled(as_pools)
    assert summary.rival(whole) == (None, ["source_replay"]) and not shown.by_val(whole)
    page = (finished[0] / "report.html").read_text()
    assert "there is no val to choose another by" in page and "best on val" not in page


def test_the_folds_are_told_apart_and_tested(finished, inputs):
    found = json.loads((finished[0] / "cross_validation.json").read_text())
    values = folds_lib.by_fold(inputs)
    name, metric = "source_replay", "accuracy"
    told = found["arms"][name][metric]
    test = told["test"]
    np.testing.assert_allclose(told["values"], values[name][metric])
    assert told["n"] == found["folds"] == FOLDS
    differences = values[name][metric] - values["ce"][metric]
    # n_test / n_train of k folds is 1 / (k - 1), however many of train the long tail leaves.
    assert max(np.sum(fold.dataset.train_counts) for fold in inputs) < found["n_train"] / 2
    error = np.sqrt((1 / FOLDS + 1 / (FOLDS - 1)) * np.var(differences, ddof=1))
    t = np.mean(differences) / error
    np.testing.assert_allclose(test["p"], 2 * stats.t.sf(abs(t), FOLDS - 1))
    half = stats.t.ppf(0.975, FOLDS - 1) * error
    np.testing.assert_allclose(test["ci95"], np.mean(differences) + np.array([-half, half]))
    assert test["p_holm"] == test["p_bh"] == test["p"]  # a family of one
    assert found["arms"]["ce"][metric]["test"] is None
    table = folds_lib.text_table(found)
    assert f"{FOLDS} folds" in table and f"(n={FOLDS} folds)" in table and "Holm p" in table


def test_classes_are_head_and_tail_by_the_mean_of_the_folds_counts(inputs):
    counts = np.array([fold.dataset.train_counts for fold in inputs])
    counts[:, 3] = (101, 99, 97)  # head in the first fold alone, as its own groups say
    counts[:, 4] = (30, 20, 1)  # tail in the last alone
    folds = [
        dataclasses.replace(
            fold,
            evaluate=dataclasses.replace(
                fold.evaluate, head_above=100, tail_below=20, group_by="counts"
            ),
            dataset=dataclasses.replace(
                fold.dataset,
                train_counts=own.tolist(),
                groups=longtail.groups_by_count(own, 100, 20),
            ),
        )
        for fold, own in zip(inputs, counts, strict=True)
    ]
    assert 3 in folds[0].dataset.groups["head"] and 4 in folds[0].dataset.groups["medium"]
    groups = cross_validation.pooled(folds).dataset.groups
    assert 3 in groups["medium"] and 4 in groups["tail"]
    assert sorted(sum(groups.values(), ())) == list(range(10))


def test_what_is_finished_is_not_trained_again(finished, monkeypatch):
    workdir, runs = finished
    monkeypatch.setattr("lt_jax.stages.run", None)
    cross_validation.run(runs, workdir, False)


def test_folds_of_other_runs_are_not_mixed(inputs):
    other = dataclasses.replace(inputs[1], arms=inputs[1].arms[:1])
    with pytest.raises(UserError, match="differ in their arms"):
        cross_validation.pooled([inputs[0], other])
    with pytest.raises(UserError, match="test split of two folds"):
        cross_validation.pooled([inputs[0], inputs[0]])


def test_saved_splits_are_refused(tmp_path):
    config = tiny()
    with config.unlocked():
        config.data.manifest = "somewhere"
    with pytest.raises(ConfigError, match=r"config\.data\.manifest: its splits are saved ones"):
        cross_validation.pipelines(config, FOLDS, tmp_path, tmp_path / "cache")
