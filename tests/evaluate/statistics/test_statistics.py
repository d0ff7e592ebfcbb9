"""Summaries, Holm's correction and comparisons."""

import numpy as np
import pytest

from lt_jax.evaluate import metrics, statistics
from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.evaluate.statistics import (
    ArmPredictions,
    Comparison,
    Summary,
    hypothesis,
    intervals,
    multiplicity,
    resampling,
)
from lt_jax.evaluate.statistics import arms as arms_lib

K = 3


def make(seeds_by_arm, strength_by_arm, n=120):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % K
    truth = Truth(labels, np.arange(n) // 2, {"head": [0], "medium": [1], "tail": [2]}, K)
    arms = []
    for name, seeds in seeds_by_arm.items():
        logits = rng.normal(size=(len(seeds), n, K)) + strength_by_arm[name] * np.eye(K)[labels]
        arms.append(ArmPredictions(name, seeds, metrics.softmax(logits)))
    return arms, truth


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
    assert intervals.percentile_interval(draws) is not None
    draws[:60] = np.nan
    assert intervals.percentile_interval(draws) is None


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


def test_comparisons_carry_both_corrections_and_the_effect():
    strengths = {"ce": 1.0, "a": 1.3, "b": 1.6, "c": 1.1}
    arms, truth = make(dict.fromkeys(strengths, (0, 1, 2, 3)), strengths)
    result = statistics.analyse(arms, truth, "ce", resamples=100, permutations=200)
    for metric in metrics.METRICS:
        found = [result[name].comparisons[metric] for name in ("a", "b", "c")]
        p = [c.p for c in found]
        np.testing.assert_allclose([c.p_holm for c in found], multiplicity.holm(p))
        np.testing.assert_allclose([c.p_bh for c in found], multiplicity.benjamini_hochberg(p))
    values = lambda name: np.array(result[name].summaries["accuracy"].values)
    expected = hypothesis.paired_effect(values("b") - values("ce"))
    np.testing.assert_allclose(result["b"].comparisons["accuracy"].effect, expected)


def test_the_effect_takes_common_seeds_alone():
    arms, truth = make(
        {"ce": (0, 1, 2, 3), "some": (1, 2, 3, 9), "none": (5, 6, 7)},
        {"ce": 1.0, "some": 2.0, "none": 2.0},
    )
    result = statistics.analyse(arms, truth, "ce", resamples=100, permutations=50)
    some, ce = (np.array(result[n].summaries["brier"].values) for n in ("some", "ce"))
    np.testing.assert_allclose(
        result["some"].comparisons["brier"].effect, hypothesis.paired_effect(some[:3] - ce[1:])
    )
    assert result["none"].comparisons["brier"].effect is None


@pytest.mark.parametrize("interval", ["percentile", "bca"])
def test_identical_arms_differ_by_nothing(interval):
    arms, truth = make({"ce": (0, 1, 2)}, {"ce": 1.0})
    twin = ArmPredictions("twin", (0, 1, 2), arms[0].probabilities)
    result = statistics.analyse(
        [*arms, twin], truth, "ce", resamples=100, permutations=50, interval=interval
    )
    for metric, found in result["twin"].comparisons.items():
        assert (found.difference, found.ci95, found.p, found.p_bh) == (0.0, (0.0, 0.0), 1.0, 1.0)
        assert found.effect is None and not found.better(metric)


def test_bca_intervals_hold_the_estimate_and_differ_from_percentiles():
    arms, truth = make({"ce": (0, 1, 2), "better": (0, 1)}, {"ce": 1.0, "better": 3.0})
    both = [
        statistics.analyse(arms, truth, "ce", resamples=400, permutations=50, interval=name)
        for name in ("percentile", "bca")
    ]
    for metric in ("accuracy", "balanced_accuracy", "auroc_macro", "brier"):
        plain, bca = (found["better"].summaries[metric] for found in both)
        assert bca.ci95[0] < bca.mean < bca.ci95[1] and bca.ci95 != plain.ci95
        assert bca.values == plain.values
        difference = both[1]["better"].comparisons[metric]
        assert difference.ci95[0] < difference.difference < difference.ci95[1]


def test_every_class_has_its_summaries():
    arms, truth = make({"ce": (0, 1)}, {"ce": 1.0})
    found = statistics.analyse(arms, truth, "ce", resamples=100, permutations=0)["ce"]
    assert set(found.per_class) == set(metrics.PER_CLASS)
    parts = metrics.per_class(metrics.parts(arms[0].probabilities, truth.labels))
    for name, cells in found.per_class.items():
        assert len(cells) == K
        for c, cell in enumerate(cells):
            np.testing.assert_allclose(cell.values, parts[name][:, c])
            assert cell.n == 2 and cell.ci95[0] <= cell.mean <= cell.ci95[1]
    np.testing.assert_allclose(found.recall_per_class, parts["sensitivity"])


def test_the_report_of_a_large_experiment_needs_bounded_memory_and_no_loop(monkeypatch):
    # Weights are drawn a chunk at a time: at no time are there all resamples of all groups.
    arms, truth = make({"ce": (0, 1)}, {"ce": 1.0}, n=300)
    widths = []
    original = resampling.group_weights
    monkeypatch.setattr(
        resampling,
        "group_weights",
        lambda g, classes, r: (widths.append(r), original(g, classes, r))[1],
    )
    statistics.analyse(arms, truth, "ce", resamples=1000, permutations=0)
    assert max(widths) <= resampling.CHUNK and sum(widths) == 1000


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
    pairs = arms_lib._matched_runs(arms[1], arms[0])
    assert len(pairs) == 2
    np.testing.assert_array_equal(pairs[0][1], arms[0].probabilities[1])
    np.testing.assert_array_equal(pairs[0][0], arms[1].probabilities[0])
    assert len(arms_lib._matched_runs(arms[2], arms[0])) == 2
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
    np.testing.assert_allclose(
        [c.p_holm for c in against], multiplicity.holm([c.p for c in against])
    )
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
    assert lower.better("ece") and lower.better("brier") and not lower.better("accuracy")


def test_unknown_baseline_and_unordered_seeds_are_refused():
    arms, truth = make({"ce": (0,)}, {"ce": 1.0})
    with pytest.raises(ValueError, match=r"baseline 'x'.*\['ce'\]"):
        statistics.analyse(arms, truth, "x")
    with pytest.raises(ValueError, match="ascending"):
        ArmPredictions("ce", (1, 0), np.zeros((2, 1, K)))
