"""Cross-fitted scores: scikit-learn's AUROC, no bias without a difference, groups kept whole."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lt_jax.evaluate.images import cross_fitting
from lt_jax.evaluate.statistics import hypothesis, intervals


def test_the_area_is_scikit_learn_s_with_delong_s_interval():
    rng = np.random.default_rng(0)
    positive = rng.random(60) < 0.4
    scores = np.round(rng.normal(size=60) + positive, 1)  # with ties
    groups = rng.integers(0, 30, 60)
    found = cross_fitting.area(scores, positive, groups)
    assert found.auroc == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    _, covariance = hypothesis.delong_covariance(scores[None], positive, groups)
    half = 1.959963985 * np.sqrt(covariance[0, 0])
    np.testing.assert_allclose(found.ci95, (found.auroc - half, found.auroc + half), rtol=1e-8)
    assert (found.positives, found.negatives) == (positive.sum(), (~positive).sum())


def test_scores_of_different_folds_are_not_compared():
    """Each fold in perfect order at its own height: 1 by folds, less together."""
    positive = np.array([True, False] * 6)
    fold = np.repeat([0, 1, 2], 4)
    scores = positive + 10.0 * fold
    groups = np.arange(12)
    assert cross_fitting.area(scores, positive, groups, fold).auroc == 1
    assert cross_fitting.area(scores, positive, groups).auroc < 0.8


def test_perfect_order_has_newcombe_s_interval():
    positive = np.arange(40) < 20
    found = cross_fitting.area(positive.astype(float), positive, np.arange(40) // 2)
    assert found.auroc == 1 and found.p is None
    assert found.ci95 == intervals.auroc(1.0, 10, 10)
    assert found.ci95[0] < 0.95


def test_groups_stay_whole_and_both_kinds_are_spread():
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 30, 120)
    positive = groups % 2 == 0
    found = cross_fitting.fit(rng.normal(size=(120, 3)), positive, groups, 5, 0)
    for group in np.unique(groups):
        assert len(np.unique(found.fold[groups == group])) == 1
    for f in range(5):
        assert 0 < positive[found.fold == f].sum() < (found.fold == f).sum()
    assert len(found.strengths) == 5 and set(found.strengths) <= set(cross_fitting.STRENGTHS)


def test_no_image_moves_its_own_score():
    """Its features decide its score, its kind does not."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(50, 4))
    positive, groups = np.arange(50) < 25, np.arange(50)
    before = cross_fitting.fit(x, positive, groups, 5, 0)
    x[7] = 100.0
    after = cross_fitting.fit(x, positive, groups, 5, 0)
    same = (before.fold == before.fold[7]) & (np.arange(50) != 7)
    np.testing.assert_array_equal(before.scores[same], after.scores[same])


def centroids(x, positive, fold):
    """Scores of each fold along the line between the other folds' means: quick to fit."""
    scores = np.zeros(len(x))
    for f in np.unique(fold):
        others = fold != f
        line = x[others & positive].mean(axis=0) - x[others & ~positive].mean(axis=0)
        scores[fold == f] = x[fold == f] @ line
    return scores


@pytest.mark.parametrize(("n", "d"), [(50, 3), (50, 20), (15, 7)])
def test_the_interval_of_models_that_share_images_covers_one_half(n, d):
    """400 sets without a difference; by independent areas 17% would miss it."""
    positive, groups = np.arange(2 * n) < n, np.arange(2 * n)
    missed, areas = 0, []
    for i in range(400):
        rng = np.random.default_rng((i, n, d))
        fold = np.concatenate([rng.permutation(n) % 5, rng.permutation(n) % 5])
        scores = centroids(rng.normal(size=(2 * n, d)), positive, fold)
        found = cross_fitting.area(scores, positive, groups, fold)
        missed += not found.ci95[0] <= 0.5 <= found.ci95[1]
        areas.append(found.auroc)
    assert 0.02 < missed / 400 < 0.08
    assert abs(np.mean(areas) - 0.5) < 4 * np.std(areas) / np.sqrt(400)


def test_equal_kinds_have_an_area_of_one_half_and_its_interval_holds():
    """Over ten sets: the mean within its error, and no more misses than chance allows."""
    areas, missed = [], 0
    for i in range(10):
        rng = np.random.default_rng((3, i))
        x, positive = rng.normal(size=(60, 3)), np.arange(60) % 2 == 0
        groups = np.arange(60)
        fitted = cross_fitting.fit(x, positive, groups, 5, i)
        found = cross_fitting.area(fitted.scores, positive, groups, fitted.fold)
        areas.append(found.auroc)
        missed += not found.ci95[0] <= 0.5 <= found.ci95[1]
    assert abs(np.mean(areas) - 0.5) < 3.5 * np.std(areas) / np.sqrt(10)
    assert missed <= 3  # of 10, 5% each


def test_what_differs_is_found():
    rng = np.random.default_rng(4)
    positive = np.arange(80) < 40
    x = rng.normal(size=(80, 10))
    x[:, 3] += 2.0 * positive
    fitted = cross_fitting.fit(x, positive, np.arange(80), 5, 0)
    found = cross_fitting.area(fitted.scores, positive, np.arange(80), fitted.fold)
    assert found.auroc > 0.85 and found.ci95[0] > 0.7 and found.p < 1e-4


def test_few_groups_are_not_fitted():
    positive = np.arange(40) < 20
    groups = np.where(positive, np.arange(40) // 4, np.arange(40))  # five groups of positives
    assert cross_fitting.fit(np.zeros((40, 2)), positive, groups, 5, 0) is None
