"""Tests of two classifiers: published examples, statsmodels, and what must hold at the edges."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from lt_jax.evaluate.statistics import hypothesis

# DeLong, DeLong and Clarke-Pearson (1988): ovarian cancer, 43 complete records of albumin, total
# protein, K-G score and the outcome, as printed in SAS/STAT's example "Comparing Receiver Operating
# Characteristic Curves" of PROC LOGISTIC, whose output the expected figures are.
OVARIAN = """3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0
2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1
3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1
3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1
4.2 7.7 6 1  3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1
3.7 6.9 5 1  3.6 6.6 5 1"""


def ovarian():
    data = np.array(OVARIAN.split(), float).reshape(-1, 4)
    scores = np.stack([data[:, 0], 10 - data[:, 2], data[:, 1]])  # albumin, K-G, protein
    return scores, data[:, 3] == 1


def test_delong_equals_the_papers_own_data():
    (albumin, kg, protein), positive = ovarian()
    scores, covariance = hypothesis.delong_covariance(np.stack([albumin, kg, protein]), positive)
    np.testing.assert_allclose(scores, [0.7366, 0.7258, 0.6478], atol=5e-5)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), [0.0927, 0.1028, 0.1000], atol=6e-5)
    for other, difference, se, chi2, p in (
        (albumin, 0.0108, 0.0953, 0.0127, 0.9102),
        (protein, -0.0780, 0.1046, 0.5554, 0.4561),
    ):
        found = hypothesis.delong(other, kg, positive)
        np.testing.assert_allclose(found.difference, difference, atol=5e-5)
        np.testing.assert_allclose(found.se, se, atol=5e-5)
        np.testing.assert_allclose((found.difference / found.se) ** 2, chi2, atol=1e-4)
        np.testing.assert_allclose(found.p, p, atol=5e-5)
    found = hypothesis.delong(protein, kg, positive)
    np.testing.assert_allclose(found.ci95, (-0.2830, 0.1271), atol=1e-4)


def components(score, positive):
    """All pairs, one by one."""
    x, y = score[positive], score[~positive]
    psi = np.array([[(a > b) + 0.5 * (a == b) for b in y] for a in x])
    return psi.mean(axis=1), psi.mean(axis=0)


@pytest.mark.parametrize("decimals", [1, 6])
def test_clustered_covariance_equals_the_sums_over_clusters(decimals):
    # Obuchowski (1997), written out cluster by cluster; rounding makes ties.
    rng = np.random.default_rng(0)
    groups = rng.integers(18, size=50)
    positive = rng.uniform(size=50) < 0.4
    scores = np.round(rng.normal(size=(2, 50)) + positive + rng.normal(size=18)[groups], decimals)
    theta, got = hypothesis.delong_covariance(scores, positive, groups)
    m, n = positive.sum(), (~positive).sum()
    parts = [components(s, positive) for s in scores]
    np.testing.assert_allclose(theta, [v10.mean() for v10, _ in parts])
    expected = np.zeros((2, 2))
    clusters = np.unique(groups)
    with_positives = np.unique(groups[positive])
    with_negatives = np.unique(groups[~positive])
    for r, s in itertools.product(range(2), repeat=2):
        total = {"10": 0.0, "01": 0.0, "11": 0.0}
        for g in clusters:
            d10 = [(parts[q][0] - theta[q])[groups[positive] == g].sum() for q in (r, s)]
            d01 = [(parts[q][1] - theta[q])[groups[~positive] == g].sum() for q in (r, s)]
            total["10"] += d10[0] * d10[1]
            total["01"] += d01[0] * d01[1]
            total["11"] += d10[0] * d01[1] + d10[1] * d01[0]
        i10, i01, i = len(with_positives), len(with_negatives), len(clusters)
        expected[r, s] = (
            i10 / (i10 - 1) * total["10"] / m**2
            + i01 / (i01 - 1) * total["01"] / n**2
            + i / (i - 1) * total["11"] / (m * n)
        )
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_one_image_a_group_is_delongs_own_covariance():
    rng = np.random.default_rng(1)
    positive = np.arange(40) < 15
    scores = np.round(rng.normal(size=(2, 40)) + positive, 1)
    theta, plain = hypothesis.delong_covariance(scores, positive)
    parts = [components(s, positive) for s in scores]
    expected = np.cov([p[0] for p in parts]) / 15 + np.cov([p[1] for p in parts]) / 25
    np.testing.assert_allclose(plain, expected)
    shuffled = hypothesis.delong_covariance(scores, positive, rng.permutation(40))[1]
    np.testing.assert_allclose(shuffled, plain)
    # Each image twice in one group: twice the images, no more information.
    twice = hypothesis.delong_covariance(
        np.tile(scores, 2), np.tile(positive, 2), np.tile(np.arange(40), 2)
    )
    np.testing.assert_allclose(twice[0], theta)
    np.testing.assert_allclose(twice[1], plain)


def test_delong_at_the_edges():
    score = np.array([0.9, 0.4, 0.8, 0.3, 0.2])
    positive = np.array([True, True, False, False, False])
    alike = hypothesis.delong(score, 10 * score + 1, positive)
    assert (alike.difference, alike.se, alike.p) == (0.0, 0.0, 1.0)
    perfect = np.where(positive, 1.0, 0.0)
    apart = hypothesis.delong(perfect, np.zeros(5), positive)  # AUROC 1 against 1/2, no variance
    assert apart.difference == 0.5 and apart.se == 0 and apart.p is None and apart.ci95 is None
    single = hypothesis.delong(score[1:], perfect[1:], positive[1:])
    assert single.se is None and single.p is None and single.positives == 1
    grouped = hypothesis.delong(score, perfect, positive, np.array([0, 0, 1, 1, 2]))
    assert grouped.se is None and grouped.groups == 3  # both positives are of one group
    with pytest.raises(ValueError, match="5 positives and 0 negatives"):
        hypothesis.delong(score, score, np.ones(5, bool))
    with pytest.raises(ValueError, match="NaN"):
        hypothesis.delong(score, np.where(positive, np.nan, 1.0), positive)


def right(both, first, second, neither):
    """Two vectors of hits with these counts."""
    a = np.repeat([True, True, False, False], [both, first, second, neither])
    b = np.repeat([True, False, True, False], [both, first, second, neither])
    return a, b


def test_mcnemar_equals_the_worked_example_of_fagerland():
    # Fagerland, Lydersen and Laake (2013), table 1: 1 and 7 discordant of 21.
    first, second = right(1, 1, 7, 12)
    for method, p in (("exact", 0.0703), ("mid_p", 0.0391)):
        np.testing.assert_allclose(hypothesis.mcnemar(first, second, method=method).p, p, atol=5e-5)
    np.testing.assert_allclose(hypothesis.mcnemar(first, second).odds_ratio, 1 / 7)


@pytest.mark.parametrize(("b", "c"), [(3, 9), (9, 3), (40, 22), (0, 5), (6, 0), (4, 4)])
def test_mcnemar_equals_statsmodels(b, c):
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.proportion import proportion_confint

    first, second = right(30, b, c, 11)
    table = np.array([[30, b], [c, 11]])
    exact = hypothesis.mcnemar(first, second, method="exact")
    np.testing.assert_allclose(exact.p, mcnemar(table, exact=True).pvalue)
    if b != c:  # Edwards' correction does not go below zero
        expected = mcnemar(table, exact=False, correction=True).pvalue
        np.testing.assert_allclose(hypothesis.mcnemar(first, second, method="chi2").p, expected)
    mid = hypothesis.mcnemar(first, second)
    weight = 0.5 if b == c else 1.0
    np.testing.assert_allclose(mid.p, exact.p - weight * stats.binom.pmf(b, b + c, 0.5))
    low, high = proportion_confint(b, b + c, method="beta")
    np.testing.assert_allclose(mid.odds_ci95[0], low / (1 - low), atol=1e-12)
    if c == 0:
        assert mid.odds_ratio is None and mid.odds_ci95[1] is None
    else:
        np.testing.assert_allclose(mid.odds_ci95[1], high / (1 - high))


def test_mcnemar_of_groups():
    rng = np.random.default_rng(0)
    first, second = rng.uniform(size=(2, 60)) < 0.6
    alone = hypothesis.mcnemar(first, second, rng.permutation(60))
    assert alone.method == "mid_p"  # every group is one image
    groups = np.arange(60) // 3
    found = hypothesis.mcnemar(first, second, groups)
    d = np.array([first[groups == g].sum() - second[groups == g].sum() for g in range(20)])
    np.testing.assert_allclose(found.p, stats.chi2.sf(d.sum() ** 2 / (d**2).sum(), 1))
    assert found.method == "groups" and found.groups == 20 and found.odds_ci95 is None
    # Each image twice in a group: as often told, as much known.
    twice = hypothesis.mcnemar(np.tile(first, 2), np.tile(second, 2), np.tile(np.arange(60), 2))
    b, c = (first & ~second).sum(), (~first & second).sum()
    np.testing.assert_allclose(twice.p, stats.chi2.sf((b - c) ** 2 / (b + c), 1))


@pytest.mark.parametrize("method", hypothesis.MCNEMAR)
def test_no_discordant_images_have_p_one_and_no_odds(method):
    first, _ = right(5, 0, 0, 3)
    found = hypothesis.mcnemar(first, first, method=method)
    assert (found.p, found.odds_ratio, found.odds_ci95) == (1.0, None, None)
    with pytest.raises(ValueError, match="mid_p, exact, chi2"):
        hypothesis.mcnemar(first, first, method="asymptotic")


def test_corrected_t_equals_scikit_learns_example():
    # scikit-learn's gallery, "Statistical comparison of models using grid search": support vector
    # machines with kernels rbf and linear, 10 times 10 folds of 100 moons; "Corrected t-value:
    # 0.750, p-value: 0.227" (one-sided), "Uncorrected t-value: 2.611".
    from sklearn.datasets import make_moons
    from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
    from sklearn.svm import SVC

    x, y = make_moons(noise=0.352, random_state=1, n_samples=100)
    folds = RepeatedStratifiedKFold(n_splits=10, n_repeats=10, random_state=0)
    rbf, linear = (
        cross_val_score(SVC(kernel=kernel, random_state=0), x, y, scoring="roc_auc", cv=folds)
        for kernel in ("rbf", "linear")
    )
    found = hypothesis.corrected_resampled_t(rbf - linear, 90, 10)
    np.testing.assert_allclose(found.statistic, 0.750, atol=5e-4)
    np.testing.assert_allclose(found.p / 2, 0.227, atol=5e-4)
    plain = stats.ttest_1samp(rbf - linear, 0).statistic
    np.testing.assert_allclose(plain, 2.611, atol=5e-4)
    np.testing.assert_allclose(found.statistic, plain / math.sqrt(1 + 100 * 10 / 90))


def test_corrected_t_without_overlap_is_students():
    d = np.random.default_rng(0).normal(0.3, 1, 12)
    found = hypothesis.corrected_resampled_t(d, 10**12, 1)
    expected = stats.ttest_1samp(d, 0)
    np.testing.assert_allclose((found.statistic, found.p), expected, rtol=1e-6)
    np.testing.assert_allclose(found.ci95, expected.confidence_interval(), rtol=1e-6)


@pytest.mark.parametrize(
    ("statistic", "p"), [(2.571, 0.050), (-1.539, 0.184)]
)  # Dietterich's bound; mlxtend's example of paired_ttest_5x2cv
def test_five_times_two_folds_t(statistic, p):
    rng = np.random.default_rng(0)
    d = rng.normal(size=(5, 2))
    s2 = ((d - d.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    np.testing.assert_allclose(
        hypothesis.paired_t_5x2(d).statistic, d[0, 0] / math.sqrt(s2.sum() / 5)
    )
    d += statistic * math.sqrt(s2.sum() / 5) - d[0, 0]  # moves all, the spreads stay
    found = hypothesis.paired_t_5x2(d)
    np.testing.assert_allclose((found.statistic, found.p), (statistic, p), atol=5e-4)
    # The interval is that of the difference that is told: the first, not the mean of ten.
    np.testing.assert_allclose((found.difference, np.mean(found.ci95)), d[0, 0])


@pytest.mark.parametrize(
    ("statistic", "p"), [(4.74, 0.050), (1.053, 0.509), (34.934, 0.001)]
)  # Alpaydin's bound; mlxtend's examples of combined_ftest_5x2cv
def test_five_times_two_folds_f(statistic, p):
    d = np.random.default_rng(0).normal(size=(5, 2))
    centred = d - d.mean(axis=1, keepdims=True)
    spread = (centred**2).sum()
    found = hypothesis.combined_f_5x2(d)
    np.testing.assert_allclose(found.statistic, (d**2).sum() / (2 * spread))
    # The same spreads about means that give this statistic.
    level = math.sqrt(max(0.0, 2 * spread * statistic - spread) / 10)
    found = hypothesis.combined_f_5x2(centred + level)
    np.testing.assert_allclose((found.statistic, found.p), (statistic, p), atol=5e-4)


def test_folds_at_the_edges():
    for test in (hypothesis.paired_t_5x2, hypothesis.combined_f_5x2):
        assert (test(np.zeros((5, 2))).statistic, test(np.zeros((5, 2))).p) == (0.0, 1.0)
        assert test(np.ones((5, 2))).p == 0.0
        with pytest.raises(ValueError, match=r"fold \[1, 0\] is not finite"):
            test(np.array([[0, 0], [np.nan, 0], [0, 0], [0, 0], [0, 0]]))
    same = hypothesis.corrected_resampled_t(np.zeros(4), 90, 10)
    assert (same.statistic, same.p, same.ci95) == (0.0, 1.0, (0.0, 0.0))
    with pytest.raises(ValueError, match="two or more"):
        hypothesis.corrected_resampled_t(np.zeros(1), 90, 10)
    with pytest.raises(ValueError, match="class absent"):
        hypothesis.corrected_resampled_t(np.array([0.1, np.nan]), 90, 10)
    with pytest.raises(ValueError, match="n_test = 0"):
        hypothesis.corrected_resampled_t(np.zeros(4), 90, 0)


def test_paired_effect_is_unbiased_where_cohens_is_not():
    # Normal differences with a standardised mean of 0.8: over 20,000 draws of m = 4 the mean of
    # J d_z is 0.8; d_z's own is 0.8 / J, a fifth higher. Its standard error is under 0.007.
    draws = np.random.default_rng(0).normal(0.8, 1, (20_000, 4))
    effects = [hypothesis.paired_effect(d) for d in draws]
    np.testing.assert_allclose(np.mean(effects), 0.8, atol=0.03)
    d = draws[0]
    factor = hypothesis.paired_effect(d) / (d.mean() / d.std(ddof=1))
    np.testing.assert_allclose(factor, 0.7236, atol=1e-4)  # Hedges (1981), table of c(m), m = 3


def test_paired_effect_is_undefined_without_spread_or_seeds():
    assert hypothesis.paired_effect(np.array([0.1, 0.2])) is None
    assert hypothesis.paired_effect(np.array([0.1, 0.1, 0.1])) is None
    assert hypothesis.paired_effect(np.array([0.1, np.nan, 0.1])) is None
    assert hypothesis.paired_effect(np.zeros(0)) is None
