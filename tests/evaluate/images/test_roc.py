"""ROC curves and rates at low false positive rates: naive loops, scikit-learn, folds apart."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from lt_jax.evaluate.images import cross_fitting, roc
from lt_jax.evaluate.statistics import intervals


def folds_of(seed, n=90):
    """Scores with ties, of five folds at heights of their own, one of positives alone; kinds."""
    rng = np.random.default_rng(seed)
    fold = rng.integers(0, 5, n)
    positive = (rng.random(n) < 0.4) | (fold == 4)
    return np.round(rng.normal(size=n) + positive, 1) + 10 * fold, positive, fold


@pytest.mark.parametrize("n", [100, 257])
def test_tpr_is_that_of_a_naive_loop_over_thresholds(n):
    rng = np.random.default_rng(n)
    positive = np.arange(2 * n) < n
    scores = np.round(rng.normal(size=2 * n) + 1.5 * positive, 1)  # with ties
    for fpr in (0.0, 0.01, 0.1, 0.5):
        best = 0.0
        for threshold in [*scores, np.inf]:
            above = scores >= threshold
            if above[~positive].mean() <= fpr:
                best = max(best, above[positive].mean())
        found = roc.tpr_at(scores, positive, np.arange(2 * n), fpr=fpr)
        assert found["tpr"] == pytest.approx(best)
        assert found["ci95"] == pytest.approx(intervals.wilson(best, n))


def test_too_few_non_members_for_one_percent_are_told():
    positive = np.arange(199) < 100
    found = roc.tpr_at(np.arange(199.0), positive, np.arange(199))
    assert not found["resolved"] and "99 non-members" in found["reason"] and found["tpr"] == 0
    whole = roc.tpr_at(np.arange(200.0), np.arange(200) < 100, np.arange(200))
    assert whole["resolved"] and whole["reason"] is None
    fold = np.arange(200) % 2
    halves = roc.tpr_at(np.arange(200.0), np.arange(200) < 100, np.arange(200), fold)
    assert not halves["resolved"] and "50 non-members in a fold" in halves["reason"]


def test_each_fold_in_perfect_order_at_its_own_height_is_perfect():
    positive, fold = np.tile([True, False], 100), np.repeat(np.arange(5), 40)
    scores = positive + 10.0 * fold
    together = roc.tpr_at(scores, positive, np.arange(200))
    assert together["tpr"] == 0.2  # those of the highest fold alone
    found = roc.tpr_at(scores, positive, np.arange(200), fold)
    assert found["tpr"] == 1 and found["ci95"] == intervals.wilson(1.0, 100)
    assert roc.curve(scores, positive, fold) == {"fpr": [0, 0, 1, 1], "tpr": [0, 1, 1, 1]}


def test_rates_of_folds_are_means_over_those_with_both_kinds():
    scores, positive, fold = folds_of(0)
    each = [
        roc.tpr_at(scores[fold == f], positive[fold == f], np.arange((fold == f).sum()), fpr=0.2)
        for f in range(4)
    ]
    found = roc.tpr_at(scores, positive, np.arange(90), fold, fpr=0.2)
    assert found["tpr"] == pytest.approx(np.mean([one["tpr"] for one in each]))
    assert found["n"] == sum(one["n"] for one in each) < positive.sum()


def test_the_mean_curve_has_the_mean_area_and_the_mean_height():
    for seed in range(5):
        scores, positive, fold = folds_of(seed)
        found = roc.curve(scores, positive, fold)
        x, y = np.array(found["fpr"]), np.array(found["tpr"])
        area = cross_fitting.area(scores, positive, np.arange(90), fold).auroc
        assert np.trapezoid(y, x) == pytest.approx(area, abs=1e-12)
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
        assert (np.diff(x) >= 0).all() and (np.diff(y) >= -1e-12).all()
        where = 0.31234  # no curve rises there
        curves = [roc_curve(positive[fold == f], scores[fold == f])[:2] for f in range(4)]
        mean = np.mean([np.interp(where, *curve) for curve in curves])
        assert np.interp(where, x, y) == pytest.approx(mean)


def test_the_curve_of_one_model_is_scikit_learn_s():
    scores, positive, _ = folds_of(1)
    found = roc.curve(scores, positive)
    false, true, _ = roc_curve(positive, scores)
    np.testing.assert_array_equal(found["fpr"], false)
    np.testing.assert_array_equal(found["tpr"], true)
    assert np.trapezoid(true, false) == pytest.approx(roc_auc_score(positive, scores))
