"""Intervals against SciPy, statsmodels, published examples and their own definitions."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from lt_jax.evaluate import metrics
from lt_jax.evaluate.metrics import grouping
from lt_jax.evaluate.statistics import intervals, resampling, score_intervals
from lt_jax.evaluate.statistics.intervals import Proportion


def test_percentile_is_numpys_quantile_row_by_row():
    draws = np.random.default_rng(0).normal(size=(3, 501)).astype(np.float32)
    draws[1, :20] = np.nan  # 4%: left out
    draws[2, :40] = np.nan  # 8%: too many
    got = intervals.percentile(draws)
    np.testing.assert_allclose(got[0], np.quantile(draws[0], [0.025, 0.975]), rtol=1e-6)
    np.testing.assert_allclose(got[1], np.nanquantile(draws[1], [0.025, 0.975]), rtol=1e-5)
    assert np.isnan(got[2]).all()
    assert intervals.percentile_interval(draws[2]) is None


@pytest.mark.parametrize("statistic", [np.mean, stats.skew])
def test_bca_equals_scipy_on_the_same_draws(statistic):
    sample = np.random.default_rng(0).exponential(size=30)
    reference = stats.bootstrap(
        (sample,), statistic, n_resamples=999, method="BCa", rng=np.random.default_rng(1)
    )
    left_out = np.array([statistic(np.delete(sample, i)) for i in range(30)])
    got = intervals.bca(
        reference.bootstrap_distribution[None],
        np.array([statistic(sample)]),
        (left_out.mean() - left_out)[None],
    )
    np.testing.assert_allclose(got[0], reference.confidence_interval, rtol=1e-6)


def test_bca_of_symmetric_draws_is_the_percentile_interval():
    draws = stats.norm.ppf((np.arange(2001) + 0.5) / 2001)[None]
    got = intervals.bca(draws, np.zeros(1), np.array([[-1.0, 0.0, 1.0]]))
    np.testing.assert_allclose(got, intervals.percentile(draws), atol=1e-6)


def test_bca_is_withheld_where_all_draws_lie_on_one_side():
    draws = np.linspace(1, 2, 100)[None]
    assert np.isnan(intervals.bca(draws, np.zeros(1), np.ones((1, 4)))).all()
    # All alike: no width, as (1) has none.
    alike = intervals.bca(np.ones((1, 100), np.float32), np.ones(1), np.zeros((1, 4)))
    np.testing.assert_array_equal(alike, [[1.0, 1.0]])


def test_acceleration_of_strata_and_of_tiny_contributions():
    parts = np.array([[3.0, -1, -2, 0.5, -0.5]])
    expected = (parts**3).sum() / (6 * (parts**2).sum() ** 1.5)
    np.testing.assert_allclose(intervals.acceleration(parts), expected)
    np.testing.assert_allclose(intervals.acceleration(1e-120 * parts), expected)
    np.testing.assert_array_equal(intervals.acceleration(np.zeros((1, 5))), 0.0)
    np.testing.assert_array_equal(intervals.acceleration(np.full((1, 5), np.nan)), 0.0)


def test_unknown_methods_are_refused():
    with pytest.raises(ValueError, match="'normal'; takes percentile"):
        intervals.of_draws("normal", np.zeros((1, 5)), np.zeros(1), None)
    with pytest.raises(ValueError, match="contributions"):
        intervals.of_draws("bca", np.zeros((1, 5)), np.zeros(1), None)


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (3, 7), (45, 50), (1, 1000)])
def test_wilson_equals_statsmodels(hits, n):
    expected = proportion_confint(hits, n, method="wilson")
    np.testing.assert_allclose(intervals.wilson(hits / n, n), expected, atol=1e-12)
    assert Proportion(hits, n).ci95 == intervals.wilson(hits / n, n)


def test_wilson_equals_newcombes_examples():
    # Newcombe (Stat Med 1998), table I, method 3: 81/263, 15/148, 0/20 and 1/29.
    for hits, n, expected in (
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ):
        np.testing.assert_allclose(intervals.wilson(hits / n, n), expected, atol=5e-5)


def test_a_share_of_no_trials_is_none_and_more_than_all_is_refused():
    assert (Proportion(0, 0).share, Proportion(0, 0).ci95) == (None, None)
    for bad in ((3, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="takes 0 to n"):
            Proportion(*bad)
    with pytest.raises(ValueError, match="n > 0"):
        intervals.wilson(0.5, 0)
    with pytest.raises(ValueError, match="of both"):
        intervals.auroc(0.5, 0, 3)


def test_effective_number_runs_from_groups_to_images():
    groups = np.repeat(np.arange(40), 3)
    rng = np.random.default_rng(0)
    together = np.repeat(rng.uniform(size=40) < 0.7, 3).astype(float)
    assert intervals.effective_number(together, groups) == 40.0
    alone = (rng.uniform(size=120) < 0.7).astype(float)
    assert 80 < intervals.effective_number(alone, groups) <= 120
    assert intervals.effective_number(alone, np.arange(120)) == 120.0
    assert intervals.effective_number(np.ones(120), groups) == 40.0
    assert intervals.effective_number(alone, np.zeros(120, int)) == 1.0
    even = np.tile([1.0, 0.0], 60)  # groups of two, one right each: they vary not at all
    assert intervals.effective_number(even, np.arange(120) // 2) == 120.0


def test_share_among_some_images():
    hits, groups = np.array([1.0, 0, 1, 1]), np.arange(4)
    among = np.array([True, True, False, True])
    np.testing.assert_allclose(intervals.share_of(hits, groups, among), intervals.wilson(2 / 3, 3))
    assert intervals.share_of(hits, groups, np.zeros(4, bool)) is None


@pytest.mark.parametrize(("area", "m", "n"), [(0.8, 12, 30), (0.97, 2, 48), (0.5, 9, 9)])
def test_ends_of_the_auroc_interval_solve_its_equation(area, m, n):
    low, high = intervals.auroc(area, m, n)
    assert 0 < low < area < high < 1
    for theta in (low, high):
        more = (m + n) / 2 - 1
        spread = (1 - theta) / (2 - theta) + theta / (1 + theta)
        variance = theta * (1 - theta) * (1 + more * spread) / (m * n)
        np.testing.assert_allclose(abs(area - theta), 1.959964 * np.sqrt(variance), rtol=1e-5)


def test_auroc_interval_at_the_ends_is_one_sided_and_symmetric():
    low, high = intervals.auroc(1.0, 5, 20)
    assert high == 1.0 and 0.5 < low < 1.0
    np.testing.assert_allclose(intervals.auroc(0.0, 5, 20), (0.0, 1 - low), atol=1e-6)


def test_mean_of_values_by_how_they_correlate():
    # One value is its own interval; k alike ones are narrower by the root of k, unless they move
    # as one, which makes their mean no better known than each.
    np.testing.assert_allclose(intervals.mean_of([(0.6, (0.4, 0.9))]), (0.4, 0.9))
    four = [(0.6, (0.4, 0.9))] * 4
    np.testing.assert_allclose(intervals.mean_of(four), (0.6 - 0.2 / 2, 0.6 + 0.3 / 2))
    np.testing.assert_allclose(intervals.mean_of(four, np.ones((4, 4))), (0.4, 0.9))
    assert intervals.mean_of([(0.0, (0.0, 0.9)), (1.0, (0.1, 1.0))])[0] >= 0


def test_score_intervals_of_an_arm():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [30, 12])
    p = metrics.softmax(rng.normal(size=(3, 42, 2)) + np.eye(2)[labels])
    truth = grouping.Truth(labels, np.arange(42), {"head": [0], "medium": [], "tail": [1]}, 2)
    found = score_intervals.score_intervals(p, truth)
    hit = (p.argmax(axis=-1) == labels).mean(axis=0)
    np.testing.assert_allclose(found["accuracy"], intervals.wilson(hit.mean(), 42))
    np.testing.assert_allclose(found["sensitivity/1"], intervals.wilson(hit[30:].mean(), 12))
    areas = metrics.parts(p, labels).auroc.mean(axis=0)
    np.testing.assert_allclose(found["auroc/1"], intervals.auroc(areas[1], 12, 30))
    # Two classes have one AUROC, and their mean is that.
    np.testing.assert_allclose(found["auroc_macro"], found["auroc/1"], rtol=1e-5)
    # A group's images count once.
    twice = grouping.Truth(np.tile(labels, 2), np.tile(np.arange(42), 2), truth.class_groups, 2)
    for name, ends in score_intervals.score_intervals(np.tile(p, (1, 2, 1)), twice).items():
        np.testing.assert_allclose(ends, found[name], rtol=0.03, err_msg=name)


def test_score_intervals_of_absent_classes_are_none():
    p = np.full((1, 4, 3), 1 / 3)
    class_groups = {"head": [0], "medium": [1], "tail": [2]}
    some = grouping.Truth(np.array([0, 0, 1, 1]), np.arange(4), class_groups, 3)
    found = score_intervals.score_intervals(p, some)
    assert found["sensitivity/2"] is None and found["auroc/2"] is None
    assert found["auroc_macro"] is not None and found["balanced_accuracy"] is not None
    alone = grouping.Truth(np.zeros(4, int), np.arange(4), class_groups, 3)
    found = score_intervals.score_intervals(p, alone)
    assert found["auroc_macro"] is None and found["auroc/0"] is None


def test_a_combination_of_two_shares_is_newcombe_s_interval_of_independent_ones():
    shares = [(k / n, intervals.wilson(k / n, n)) for k, n in ((56, 70), (48, 80))]
    expected = confint_proportions_2indep(56, 70, 48, 80, method="newcomb", compare="diff")
    found = intervals.combination(shares, np.array([1.0, -1.0]), np.eye(2))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def arm_of(right):
    """Probabilities of one run [1 n 2], in which these images [n] of class 0 are right."""
    return np.eye(2)[np.where(right, 0, 1)][None]


def test_difference_of_paired_shares_is_the_published_one():
    """Newcombe (Stat Med 1998; 17: 2635), method 10, of 36, 12, 2 and 0 pairs: 0.0569, 0.3404."""
    first, second = np.repeat([(1, 1), (1, 0), (0, 1)], [36, 12, 2], axis=0).T.astype(bool)
    class_groups = {"head": [0], "medium": [], "tail": [1]}
    truth = grouping.Truth(np.zeros(50, int), np.arange(50), class_groups, 2)
    found = score_intervals.score_differences(arm_of(first), arm_of(second), truth)
    for name in ("accuracy", "sensitivity/0", "balanced_accuracy"):
        np.testing.assert_allclose(found[name], (0.0569, 0.3404), atol=5e-5, err_msg=name)
    assert found["auroc_macro"] is None and found["sensitivity/1"] is None


def test_score_intervals_of_differences_turn_with_the_arms_and_narrow_with_what_they_share():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [40, 20, 8])
    truth = grouping.Truth(labels, np.arange(68), {"head": [0], "medium": [1], "tail": [2]}, 3)
    both, *own = rng.normal(size=(3, 68, 3))
    arms = [metrics.softmax(both + 0.5 * one + np.eye(3)[labels])[None] for one in own]
    apart = metrics.softmax(rng.normal(size=(68, 3)) + np.eye(3)[labels])[None]
    near = score_intervals.score_differences(*arms, truth)
    turned = score_intervals.score_differences(*arms[::-1], truth)
    far = score_intervals.score_differences(arms[0], apart, truth)
    for name, (low, high) in near.items():
        np.testing.assert_allclose(turned[name], (-high, -low), atol=1e-12, err_msg=name)
        assert high - low < far[name][1] - far[name][0], name
    itself = score_intervals.score_differences(arms[0], arms[0], truth)
    for name, (low, high) in itself.items():
        assert low <= 0 <= high and high - low < 0.7 * (near[name][1] - near[name][0]), name


def test_bca_of_a_stratified_bootstrap_needs_no_loop_and_moves_with_skew():
    # A recall near 1: the percentile interval is cut off there, BCa's reaches further down.
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [60, 20])
    hit = rng.uniform(size=80) < 0.93
    p = np.eye(2)[np.where(hit, labels, 1 - labels)]
    truth = grouping.Truth(labels, np.arange(80), {"head": [0], "medium": [], "tail": [1]}, 2)
    draws = resampling.bootstrap([p], truth, 2000, 0, np.ones((1, 2000)))
    classes = grouping.group_classes(truth)
    influence = resampling.influence(resampling.jackknife([p], truth), classes)
    row = metrics.METRICS.index("balanced_accuracy")
    recall = [hit[labels == c].mean() for c in range(2)]
    estimate = np.array([np.mean(recall)])
    # Sums of squared influences: the variance of a mean of two recalls, (n - 1) / n in each class.
    variance = sum(r * (1 - r) / n for r, n in zip(recall, (60, 20), strict=True)) / 4
    np.testing.assert_allclose((influence[row] ** 2).sum(), variance, rtol=1e-4)
    bca = intervals.bca(draws[[row]], estimate, influence[[row]])[0]
    plain = intervals.percentile(draws[[row]])[0]
    assert bca[0] < plain[0] and bca[0] < estimate[0] < bca[1] <= 1
