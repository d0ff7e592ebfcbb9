"""Reliability, curves and confusion: scikit-learn's numbers, and what weights and groups mean."""

import dataclasses

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import auc, confusion_matrix, precision_recall_curve, roc_curve

from lt_jax.evaluate import metrics
from lt_jax.evaluate.metrics.confusion import confusion
from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.evaluate.report import figures, picture
from lt_jax.evaluate.report import prediction_figures as charts
from lt_jax.evaluate.statistics import ArmPredictions, calibration, curves, intervals
from lt_jax.evaluate.statistics.results import Summary

N, K, M = 150, 3, 2


@pytest.fixture(scope="module")
def arm():
    rng = np.random.default_rng(0)
    labels = rng.choice(K, N, p=[0.6, 0.3, 0.1])
    logits = 1.5 * np.eye(K)[labels][None] + rng.normal(size=(M, N, K))
    # Rounded, so that scores are tied within and between classes.
    probabilities = np.round(metrics.softmax(logits), 2)
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    truth = Truth(labels, np.arange(N) // 2, {}, K, bins=10)
    return ArmPredictions("arm", (0, 1), probabilities), truth


def test_reliability_is_scikit_learn_s(arm):
    predictions, truth = arm
    one = predictions.probabilities[:1]
    found = calibration.reliability(one, truth)
    hit = one[0].argmax(axis=1) == truth.labels
    hits, confidence = calibration_curve(hit, one[0].max(axis=1), n_bins=10)
    held = found.images > 0
    np.testing.assert_allclose(found.hits[held], hits)
    np.testing.assert_allclose(found.confidence[held], confidence)
    assert found.images.sum() == N and np.isnan(found.hits[~held]).all() and (~held).any()


def test_ece_is_the_weighted_distance_from_the_diagonal(arm):
    predictions, truth = arm
    found = calibration.reliability(predictions.probabilities[:1], truth)
    gaps = np.nansum(found.images * np.abs(found.hits - found.confidence)) / N
    np.testing.assert_allclose(gaps, metrics.ece(predictions.probabilities[0], truth.labels, 10))


def test_groups_and_runs_that_repeat_each_other_narrow_no_interval(arm):
    predictions, truth = arm
    alone = dataclasses.replace(truth, groups=np.arange(N))
    once = calibration.reliability(predictions.probabilities[:1], alone)
    b = int(np.argmax(once.images))
    ends = intervals.wilson(once.hits[b], once.images[b])
    np.testing.assert_allclose((once.low[b], once.high[b]), ends)  # one image a group: Wilson's
    same = calibration.reliability(np.repeat(predictions.probabilities[:1], 5, axis=0), alone)
    np.testing.assert_allclose([same.low, same.high], [once.low, once.high])
    np.testing.assert_allclose(same.images, once.images)
    twice = np.repeat(predictions.probabilities[:1], 2, axis=1)
    doubled = Truth(np.repeat(truth.labels, 2), np.repeat(np.arange(N), 2), {}, K, bins=10)
    pairs = calibration.reliability(twice, doubled)
    np.testing.assert_allclose([pairs.low, pairs.high], [once.low, once.high])


@pytest.mark.parametrize("c", range(K))
def test_curves_are_scikit_learn_s_ties_included(arm, c):
    predictions, truth = arm
    scores, positive = predictions.probabilities[0][:, c], truth.labels == c
    tpr, precision = (x[:, 0] for x in curves.rates(scores, positive, np.ones((N, 1))))
    false, true, _ = roc_curve(positive, scores, drop_intermediate=False)
    x = curves.grid()
    at = np.interp(x, false, true)
    np.testing.assert_allclose(tpr, at, atol=1e-12)
    held, recall, _ = precision_recall_curve(positive, scores)
    expected = [held[np.flatnonzero(recall >= r - 1e-9)[-1]] for r in x[1:]]
    np.testing.assert_allclose(precision[1:], expected)
    assert len(np.unique(scores)) < N  # there are ties
    np.testing.assert_allclose(auc(x, tpr), auc(false, true), atol=0.01)


def test_a_weight_of_two_is_an_image_twice_and_of_zero_none(arm):
    predictions, truth = arm
    scores, positive = predictions.probabilities[1][:, 1], truth.labels == 1
    times = np.random.default_rng(1).integers(0, 3, N)
    weighted = curves.rates(scores, positive, times[:, None].astype(float))
    rows = np.repeat(np.arange(N), times)
    copied = curves.rates(scores[rows], positive[rows], np.ones((len(rows), 1)))
    for one, other in zip(weighted, copied, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)
    both = curves.rates(scores, positive, np.stack([np.ones(N), times], axis=1))
    np.testing.assert_allclose(both[0][:, 1], weighted[0][:, 0])  # columns do not meet


def test_a_curve_is_the_mean_over_runs_inside_its_band(arm):
    predictions, truth = arm
    found = curves.of_class([predictions], 1, truth, 200, 0)["arm"]
    for i, curve in enumerate((found.roc, found.pr)):
        alone = [
            curves.rates(run[:, 1], truth.labels == 1, np.ones((N, 1)))[i][:, 0]
            for run in predictions.probabilities
        ]
        np.testing.assert_allclose(curve.y, np.mean(alone, axis=0))
        assert (curve.low <= curve.high).all()
        inside = (curve.low - 1e-9 <= curve.y) & (curve.y <= curve.high + 1e-9)
        assert inside.mean() > 0.9
    assert (np.diff(found.roc.y) >= -1e-12).all() and found.roc.y[-1] == 1
    again = curves.of_class([predictions], 1, truth, 200, 0)["arm"]
    np.testing.assert_array_equal(again.roc.low, found.roc.low)


def test_a_perfect_ranking_has_no_band_and_an_absent_class_no_curve(arm):
    _, truth = arm
    perfect = ArmPredictions("arm", (0,), np.eye(K)[truth.labels][None])
    found = curves.of_class([perfect], 2, truth, 100, 0)["arm"]
    for curve in (found.roc, found.pr):
        np.testing.assert_allclose([curve.y, curve.low, curve.high], 1.0)
    none = dataclasses.replace(truth, labels=np.where(truth.labels == 2, 0, truth.labels))
    assert curves.of_class([perfect], 2, none, 100, 0) is None
    whole = dataclasses.replace(truth, labels=np.zeros(N, int))
    assert curves.of_class([perfect], 0, whole, 100, 0) is None


def test_confusion_is_scikit_learn_s_run_by_run(arm):
    predictions, truth = arm
    found = confusion(predictions.probabilities, truth.labels)
    for run, counts in zip(predictions.probabilities, found.counts, strict=True):
        np.testing.assert_array_equal(counts, confusion_matrix(truth.labels, run.argmax(axis=1)))
    recall = metrics.recall_per_class(predictions.probabilities, truth.labels)
    np.testing.assert_allclose(found.share[:, range(K), range(K)], recall)
    absent = confusion(predictions.probabilities, np.zeros(N, int))
    assert np.isnan(absent.share[:, 1:]).all() and (absent.counts[:, 1:] == 0).all()


def test_charts_show_the_numbers_beside_them(arm, tmp_path):
    predictions, truth = arm
    reliable = {"arm": calibration.reliability(predictions.probabilities, truth)}
    error = Summary(0.1, 0.01, 2, (0.05, 0.2), (0.09, 0.11))
    figure = charts.reliability_diagrams(reliable, {"arm": error})
    told = charts.reliability_numbers(reliable)
    drawn = figure.axes[0].containers[0].lines[0].get_xydata()
    kept = [(row[5], row[6]) for row in told.rows if row[4] > 0]
    np.testing.assert_allclose(drawn, kept)
    assert "ECE 0.100 ± 0.010 (n=2)" in figure.axes[0].get_title(loc="left")
    figures.save(figure, tmp_path / "a.png")
    found = curves.of_class([predictions], 1, truth, 100, 0)
    area = Summary(0.8, 0.1, 2, (0.7, 0.9), (0.7, 0.9))
    figure = charts.class_curves("b", found, {"arm": (area, area)}, {"arm": 0}, 0.3)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), found["arm"].roc.y)
    assert len(charts.curve_numbers(found).rows) == 2 * curves.POINTS
    (label,) = [text.get_text() for text in figure.legends[0].texts]
    assert label == "arm (n=2): AUROC 0.800 [0.70, 0.90], AP 0.800 [0.70, 0.90]"
    figures.save(figure, tmp_path / "b.png")
    counted = confusion(predictions.probabilities, truth.labels)
    figure = charts.confusion_matrix("arm (n=2)", ("a", "b", "c"), counted)
    told = charts.confusion_numbers(("a", "b", "c"), counted)
    np.testing.assert_allclose(
        np.ravel(figure.axes[0].images[0].get_array()), [row[3] for row in told.rows]
    )
    figures.save(figure, tmp_path / "c.png")
    assert isinstance(told, picture.Numbers) and len(told.rows) == K * K
