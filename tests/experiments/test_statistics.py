"""Coverage and size by simulation: quick checks here, the recorded ones marked slow.

A bound is the nominal value, or the span that the README records, and three standard errors of the
simulation, sqrt(p (1 - p) / simulations), beyond it.
"""

import math

import numpy as np
import pytest

from experiments.statistics import coverage, simulate, size
from lt_jax.evaluate.statistics import tables

BY_NAME = {design.name: design for design in coverage.DESIGNS}


def slack(p, simulations):
    return 3 * math.sqrt(p * (1 - p) / simulations)


def covers(found, low, high):
    n = found.n
    assert low - slack(low, n) <= found.share <= high + slack(high, n), found


def test_score_intervals_cover_with_two_images_in_a_class():
    held = coverage.coverage(BY_NAME["n = 50, imbalance 20"], 150, resamples=128)
    for name in ("accuracy", "auroc_macro", "auroc/2", "balanced_accuracy"):
        covers(held[name, "score"], 0.93, 0.99)
    # What the score intervals are for: two images, and a bootstrap knows next to nothing.
    assert held["sensitivity/2", "percentile"].share < 0.7 < held["sensitivity/2", "score"].share


def test_bootstrap_intervals_cover_with_enough_of_every_class():
    held = coverage.coverage(BY_NAME["n = 50, balanced"], 150, resamples=256)
    for method in ("percentile", "bca"):
        covers(held["accuracy", method], 0.93, 0.97)
        covers(held["auroc_macro", method], 0.92, 0.97)


def test_intervals_of_differences_cover_with_enough_of_every_class():
    held = coverage.paired_coverage(BY_NAME["n = 50, balanced"], 120, resamples=256)
    for name in ("accuracy", "balanced_accuracy", "auroc_macro"):
        for method in coverage.BOOTSTRAPS:
            covers(held[name, method], 0.92, 0.98)


def test_score_intervals_of_differences_cover_where_bootstraps_do_not():
    """Two images of the rarest class; of AUROCs they cover too much, and are meant to."""
    held = coverage.paired_coverage(BY_NAME["n = 50, imbalance 20"], 150, resamples=128)
    for name in ("accuracy", "balanced_accuracy"):
        covers(held[name, "score"], 0.92, 0.97)
    for name in ("balanced_accuracy", "auroc_macro", "auroc/2", "sensitivity/2"):
        assert held[name, "percentile"].share < held[name, "score"].share - 0.03, name
    assert held["auroc_macro", "score"].share > 0.95


def test_two_arms_on_one_test_set_share_half_of_their_noise():
    design = coverage.Design("alike", (2000, 2000), lean=0.0)
    first, second, truth = coverage.draw_pair(design, np.random.default_rng(0))
    logits = [np.log(p[:, 1] / p[:, 0])[truth.labels == 1] for p in (first, second)]
    np.testing.assert_allclose(np.corrcoef(*logits)[0, 1], 0.5, atol=0.06)
    np.testing.assert_allclose(np.mean(logits[1]) - np.mean(logits[0]), coverage.GAIN, atol=0.12)


def test_true_values_are_those_of_the_designs_class_shares():
    # Without lean all classes are alike: accuracy is every recall, and AUROC that of any class.
    alike = coverage.Design("alike", (30, 10), strength=1.0, lean=0.0)
    found = coverage.true_values(alike, 60_000)
    from scipy.stats import norm

    recall = norm.cdf(1 / math.sqrt(2))  # one logit above the other by 1, of deviation sqrt(2)
    for name in ("accuracy", "balanced_accuracy", "sensitivity/1"):
        np.testing.assert_allclose(found[name], recall, atol=0.006)
    np.testing.assert_allclose(found["auroc/1"], norm.cdf(1.0), atol=0.006)


def test_delong_keeps_its_size_alone_and_in_groups():
    covers(size.delong(25, 25, 600), 0.04, 0.06)
    covers(size.delong(50, 150, 600, a_group=3), 0.04, 0.06)


def test_mcnemar_mid_p_keeps_its_size_and_the_others_fall_short():
    # Exact, no simulation: between 4 and 6% from about 15 discordant images.
    for n, discordant in ((50, 0.3), (200, 0.1), (200, 0.3)):
        assert 0.04 <= size.mcnemar("mid_p", n, discordant) <= 0.06
    assert size.mcnemar("mid_p", 50, 0.1) < 0.04
    assert size.mcnemar("chi2", 200, 0.1) < size.mcnemar("exact", 200, 0.1) + 1e-3 < 0.04
    covers(size.mcnemar_groups(100, 3, 600), 0.04, 0.06)


def test_permutation_keeps_its_size():
    found = size.permutations(size.SMALL, 200, draws=127)
    for metric in ("auroc_macro", "brier"):
        covers(found[metric], 0.04, 0.06)
    assert found["accuracy"].share <= 0.05 + slack(0.05, 200)  # ties only lower it


def test_folds_are_not_independent_and_the_correction_allows_for_it():
    covers(size.folds("corrected", 300), 0.03, 0.06)
    assert size.folds("uncorrected", 300).share > 0.12
    # A learner that thins what it is given: the ratio of what it was given errs on the safe side.
    assert size.folds("corrected_3_fold_thinned", 300).share <= 0.05 + slack(0.05, 300)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["n = 50, imbalance 20", "50 groups of 2, imbalance 20"])
def test_recorded_coverage(name):
    held = coverage.coverage(BY_NAME[name], 1000)
    covers(held["accuracy", "score"], 0.93, 0.99)
    covers(held["auroc/2", "score"], 0.93, 0.99)
    covers(held["accuracy", "percentile"], 0.92, 0.97)


@pytest.mark.slow
def test_recorded_sizes():
    covers(size.folds("corrected", 2000), 0.04, 0.06)
    covers(size.delong(10, 190, 2000), 0.04, 0.07)
    for metric in ("balanced_accuracy", "auroc_macro", "brier"):
        covers(size.permutations(size.LARGE, 2000)[metric], 0.04, 0.06)


def test_tables_show_what_each_rate_is_out_of(monkeypatch):
    monkeypatch.setattr(coverage, "DESIGNS", (coverage.Design("tiny", (6, 3)),))
    coverage.true_values.cache_clear()
    text = tables.to_markdown(simulate.coverage_table(3, 100))
    assert "/3 = " in text and "tiny" in text and "sensitivity/1" in text
    monkeypatch.setattr(coverage, "PAIRED_DESIGNS", coverage.DESIGNS)
    text = tables.to_markdown(simulate.paired_table(3, 100))
    assert "/3 = " in text and "true difference +0." in text
