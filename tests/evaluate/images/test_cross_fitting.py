"""Cross-fitted scores: scikit-learn's AUROC, no bias without a difference, groups kept whole."""

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm
from sklearn.metrics import roc_auc_score

from lt_jax.evaluate.images import cross_fitting
from lt_jax.evaluate.statistics import intervals


def test_the_area_is_scikit_learn_s_with_newcombe_s_interval():
    rng = np.random.default_rng(0)
    positive = np.arange(60) < 24
    scores = np.round(rng.normal(size=60) + positive, 1)  # with ties
    found = cross_fitting.area(scores, positive, np.arange(60))
    assert found.auroc == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    assert found.ci95 == intervals.auroc(found.auroc, 24, 36)
    assert (found.positives, found.negatives) == (24, 36)
    paired = cross_fitting.area(scores, positive, np.arange(60) // 2)
    assert paired.ci95 == intervals.auroc(found.auroc, 12, 18) and paired.positive_groups == 12
    uneven = np.repeat(np.arange(21), [20, *[1] * 4, *[1] * 8, *[4] * 7, 0])
    wide = cross_fitting.area(scores, positive, uneven)  # one patient has 20 of the positives
    assert wide.ci95 == intervals.auroc(found.auroc, 24**2 / 404, 36**2 / 120)


def test_p_is_mann_and_whitney_s():
    """Exact where few, by the variance without a difference where many."""
    rng = np.random.default_rng(5)
    for m, n in ((4, 4), (9, 9), (2, 40), (30, 50)):
        positive = np.arange(m + n) < m
        scores = rng.normal(size=m + n) + 0.6 * positive
        found = cross_fitting.area(scores, positive, np.arange(m + n))
        few = m + n < 50
        options = {"method": "exact"} if few else {"method": "asymptotic", "use_continuity": False}
        reference = mannwhitneyu(scores[positive], scores[~positive], **options)
        assert found.p == pytest.approx(reference.pvalue, rel=1e-9), (m, n)


def test_a_small_class_in_nearly_perfect_order_is_not_sure_beyond_its_number():
    """Of 48,620 orders of 9 and 9 images no more than four are that far from 1/2."""
    positive = np.arange(18) < 9
    scores = np.arange(18)[::-1].astype(float)
    scores[[8, 9]] = scores[[9, 8]]
    found = cross_fitting.area(scores, positive, np.arange(18))
    assert found.auroc == pytest.approx(80 / 81)
    assert found.p == pytest.approx(4 / math.comb(18, 9)) and found.p >= 2 / math.comb(18, 9)
    assert found.ci95[0] < 0.77 and found.ci95[1] < 1


@pytest.mark.parametrize(("m", "n"), [(15, 15), (36, 36)])
def test_the_interval_covers_a_high_area(m, n):
    """AUROC 0.961 of two normals 2.5 apart; DeLong's interval covers 0.88."""
    truth = norm.cdf(2.5 / np.sqrt(2))
    positive, groups = np.arange(m + n) < m, np.arange(m + n)
    rng = np.random.default_rng(6)
    held = 0
    for _ in range(400):
        found = cross_fitting.area(rng.normal(size=m + n) + 2.5 * positive, positive, groups)
        held += found.ci95[0] <= truth <= found.ci95[1]
    assert held / 400 > 0.93


@pytest.mark.parametrize(("sizes", "m"), [([1] * 8, 4), ([1] * 12, 6), ([1] * 60, 30)])
def test_no_difference_is_seldom_taken_for_one(sizes, m):
    assert rejected(sizes, m, 600) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)


@pytest.mark.parametrize(("sizes", "m"), [([1, 2, 9] * 3, 5), ([1, 1, 3, 12] * 10, 20)])
def test_images_of_one_group_that_are_alike_are_not_taken_for_many(sizes, m):
    """With every image a unit of its own 30% and more would be rejected."""
    assert rejected(sizes, m, 600) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)
    assert rejected(sizes, m, 200, together=False) > 0.2


def rejected(sizes, m, times, together=True):
    """How often p < 0.05 without a difference: of groups of `sizes` in random order, each of images
    all alike, the first m are positives; `together` or not, when every image is its own group."""
    rng = np.random.default_rng((7, m, len(sizes)))
    found = 0
    for _ in range(times):
        of = np.repeat(np.arange(len(sizes)), rng.permutation(sizes))
        values = rng.normal(size=len(sizes))[of]
        groups = of if together else np.arange(len(of))
        found += cross_fitting.area(values, of < m, groups).p < 0.05
    return found / times


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
    assert found.auroc == 1 and 0 < found.p < 0.001
    assert found.ci95 == intervals.auroc(1.0, 10, 10)
    assert found.ci95[0] < 0.95


def test_folds_of_one_kind_compare_nothing_and_groups_of_both_are_refused():
    positive = np.array([True, True, False, False])
    with pytest.raises(ValueError, match="2 positives and 2 negatives in 2 folds"):
        cross_fitting.area(np.arange(4.0), positive, np.arange(4), np.array([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="a group has positives and negatives"):
        cross_fitting.area(np.arange(4.0), positive, np.array([0, 1, 1, 2]))


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
