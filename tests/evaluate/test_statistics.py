"""Summaries, Holm's correction and comparisons."""

import numpy as np
import pytest

from lt_jax.evaluate import metrics, resampling, statistics
from lt_jax.evaluate.statistics import ArmPredictions, Comparison, Summary

K = 3


def make(seeds_by_arm, strength_by_arm, n=120):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % K
    truth = resampling.Truth(
        labels, np.arange(n) // 2, {"head": [0], "medium": [1], "tail": [2]}, K
    )
    arms = []
    for name, seeds in seeds_by_arm.items():
        logits = rng.normal(size=(len(seeds), n, K)) + strength_by_arm[name] * np.eye(K)[labels]
        arms.append(ArmPredictions(name, seeds, metrics.softmax(logits)))
    return arms, truth


def test_holm_against_a_worked_example():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04 -> running maximum.
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(statistics.holm([0.6, 0.7]), [1.0, 1.0])
    assert statistics.holm([]) == []


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.uniform(size=6) ** 3
        rejected = np.zeros(6, bool)
        for i, index in enumerate(np.argsort(p)):
            if p[index] > 0.05 / (6 - i):
                break
            rejected[index] = True
        np.testing.assert_array_equal(np.array(statistics.holm(list(p))) <= 0.05, rejected)


def test_summary_of_seeds():
    summary = statistics.summarise(np.array([0.2, 0.4, 0.9]), np.linspace(0, 1, 1001))
    assert summary.n == 3 and summary.values == (0.2, 0.4, 0.9)
    np.testing.assert_allclose(summary.mean, 0.5)
    np.testing.assert_allclose(summary.std, np.std([0.2, 0.4, 0.9], ddof=1))
    np.testing.assert_allclose(summary.ci95, (0.025, 0.975))


def test_one_seed_has_no_spread():
    assert statistics.summarise(np.array([0.3])).std is None
    with pytest.raises(ValueError, match="two seeds"):
        Summary(0.3, 0.0, 1, None, (0.3,))
    with pytest.raises(ValueError, match="two seeds"):
        Summary(0.3, None, 2, None, (0.3, 0.3))


def test_an_undefined_metric_is_none_and_its_interval_too():
    summary = statistics.summarise(np.array([np.nan, np.nan]), np.full(10, np.nan))
    assert (summary.mean, summary.std, summary.ci95) == (None, None, None)
    assert summary.values == (None, None)


def test_an_interval_is_withheld_where_many_resamples_are_undefined():
    draws = np.linspace(0, 1, 1000)
    draws[:40] = np.nan
    assert statistics.percentile_interval(draws) is not None
    draws[:60] = np.nan
    assert statistics.percentile_interval(draws) is None


def test_analyse_finds_the_better_arm_and_not_the_equal_one():
    arms, truth = make(
        {"ce": (0, 1, 2), "better": (0, 1, 2), "equal": (0, 1, 2)},
        {"ce": 1.0, "better": 3.0, "equal": 1.0},
    )
    result = statistics.analyse(arms, truth, "ce", resamples=300, permutations=300)
    assert result["ce"].comparisons == {}
    better = result["better"].comparisons["balanced_accuracy"]
    assert better.better("balanced_accuracy")
    assert not result["equal"].comparisons["balanced_accuracy"].better("balanced_accuracy")
    np.testing.assert_allclose(
        better.difference,
        result["better"].summaries["balanced_accuracy"].mean
        - result["ce"].summaries["balanced_accuracy"].mean,
    )
    assert better.ci95[0] < better.difference < better.ci95[1]
    assert better.p <= better.p_holm <= 2 * better.p + 1e-12
    assert result["ce"].recall_per_class.shape == (3, K)


def test_pairing_narrows_the_interval_of_arms_that_err_together():
    arms, truth = make({"ce": (0,), "other": (0,)}, {"ce": 1.0, "other": 1.0})
    p = arms[0].probabilities.copy()
    p[:, :6] = np.roll(p[:, :6], 1, axis=-1)
    arms = [arms[0], ArmPredictions("twin", (0,), p), arms[1]]
    result = statistics.analyse(arms, truth, "ce", resamples=300, permutations=50)
    width = lambda name: np.ptp(result[name].comparisons["accuracy"].ci95)
    alone = np.ptp(result["ce"].summaries["accuracy"].ci95)
    assert width("twin") < 0.6 * alone < 0.6 * width("other")


def test_runs_are_paired_by_common_seed_else_in_order():
    arms, truth = make(
        {"ce": (0, 1, 2), "some": (1, 2, 5), "none": (7, 8)}, {"ce": 1.0, "some": 1.0, "none": 1.0}
    )
    pairs = statistics._matched_runs(arms[1], arms[0])
    assert len(pairs) == 2
    np.testing.assert_array_equal(pairs[0][1], arms[0].probabilities[1])
    np.testing.assert_array_equal(pairs[0][0], arms[1].probabilities[0])
    assert len(statistics._matched_runs(arms[2], arms[0])) == 2
    result = statistics.analyse(arms, truth, "ce", resamples=100, permutations=50)
    assert result["some"].comparisons["ece"].n == 2


def test_a_rivals_challengers_are_a_holm_family_of_their_own():
    strengths = {"ce": 1.0, "bs": 2.0, "a": 2.2, "b": 2.4}
    arms, truth = make(dict.fromkeys(strengths, (0, 1)), strengths)
    result = statistics.analyse(
        arms, truth, "ce", rival="bs", challengers=["a", "b"], resamples=100, permutations=200
    )
    assert not result["ce"].against_rival and not result["bs"].against_rival
    against = [result[name].against_rival["balanced_accuracy"] for name in ("a", "b")]
    np.testing.assert_allclose([c.p_holm for c in against], statistics.holm([c.p for c in against]))
    alone = statistics.analyse(arms, truth, "bs", resamples=100, permutations=200)
    for name, comparison in zip(("a", "b"), against, strict=True):
        same = alone[name].comparisons["balanced_accuracy"]
        assert (comparison.difference, comparison.ci95) == (same.difference, same.ci95)
        assert comparison.p == same.p


def test_better_asks_for_holms_p_and_the_interval():
    assert Comparison(0.1, (0.05, 0.2), 0.01, 0.04, 3).better("accuracy")
    assert not Comparison(0.1, (0.05, 0.2), 0.01, 0.06, 3).better("accuracy")
    assert not Comparison(0.1, (-0.01, 0.2), 0.01, 0.04, 3).better("accuracy")
    assert not Comparison(0.1, None, 0.01, 0.04, 3).better("accuracy")


def test_a_lower_ece_is_better():
    lower = Comparison(-0.1, (-0.2, -0.05), 0.01, 0.01, 3)
    assert lower.better("ece") and not lower.better("accuracy")


def test_unknown_baseline_and_unordered_seeds_are_refused():
    arms, truth = make({"ce": (0,)}, {"ce": 1.0})
    with pytest.raises(ValueError, match=r"baseline 'x'.*\['ce'\]"):
        statistics.analyse(arms, truth, "x")
    with pytest.raises(ValueError, match="ascending"):
        ArmPredictions("ce", (1, 0), np.zeros((2, 1, K)))
