"""Readers beside classifiers: against a loop over thresholds, by symmetry, and under no effect."""

import dataclasses

import numpy as np
import pytest

from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.evaluate.statistics import ArmPredictions, curves, reading, tables
from lt_jax.evaluate.statistics.reading import Reading

N = 120


def made(seed=0, skill=1.0, n=N):
    """Labels [n] of two classes, and an arm of two runs."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    scores = generator.normal(skill * labels, 1.0, (2, n)).round(1)  # with ties
    p = 1 / (1 + np.exp(-scores))
    truth = Truth(labels, np.arange(n), {}, 2)
    return truth, ArmPredictions("ce", (0, 1), np.stack([1 - p, p], axis=-1))


def said(name, alone, aided=None):
    """A reading of booleans."""
    unread = np.full(len(alone), np.nan)
    return Reading(name, alone.astype(float), unread if aided is None else aided.astype(float))


def by_hand(scores, positive, at):
    """Equation (1) of `curves` by a loop over thresholds."""
    x, y = [0.0], [0.0]
    for t in sorted(set(scores), reverse=True):
        x.append((scores >= t)[~positive].mean())
        y.append((scores >= t)[positive].mean())
    below = max(i for i in range(len(x)) if x[i] <= at)
    if below + 1 == len(x) or x[below] == at:
        return y[below]
    return y[below] + (at - x[below]) / (x[below + 1] - x[below]) * (y[below + 1] - y[below])


def test_the_curve_at_a_reader_s_false_positive_rate_is_that_of_a_loop():
    truth, arm = made()
    positive = truth.labels == 1
    at = np.array([0.0, 0.013, 0.5, 0.77, 1.0])
    for run in arm.probabilities:
        found = curves.true_positive_rate(run[:, 1], positive, np.ones((N, 5)), at)
        expected = [by_hand(run[:, 1], positive, x) for x in at]
        np.testing.assert_allclose(found, expected, atol=1e-7)


def test_a_reader_s_points_and_gaps_are_their_definitions_on_the_images_answered():
    truth, arm = made()
    generator = np.random.default_rng(1)
    answers = (generator.random(N) < 0.3 + 0.4 * truth.labels).astype(float)
    answers[generator.choice(N, 30, replace=False)] = np.nan
    unread = np.full(N, np.nan)
    found = reading.study([Reading("a", answers, unread)], [arm], 1, truth, resamples=50)
    asked = ~np.isnan(answers)
    positive = truth.labels[asked] == 1
    sensitivity, false = answers[asked][positive].mean(), answers[asked][~positive].mean()
    point = found.alone["a"]
    assert point.images == 90 and not found.aided and not found.help
    np.testing.assert_allclose(point.share["sensitivity"], sensitivity)
    np.testing.assert_allclose(point.share["specificity"], 1 - false)
    curve = [by_hand(run[asked, 1], positive, false) for run in arm.probabilities]
    gap = found.beyond_each["ce"]["a"]
    np.testing.assert_allclose(gap.difference, np.mean(curve) - sensitivity, atol=1e-8)
    assert gap.ci95[0] < gap.difference < gap.ci95[1]
    # One reader is all readers.
    np.testing.assert_allclose(found.beyond["ce"].difference, gap.difference)


def test_a_reader_who_answers_by_the_arm_s_threshold_lies_on_its_curve():
    truth, arm = made()
    arm = dataclasses.replace(arm, seeds=(0,), probabilities=arm.probabilities[:1])
    scores = arm.probabilities[0, :, 1]
    threshold = np.sort(scores[truth.labels == 0])[-20]  # the least that excludes this negative
    found = reading.study([said("same", scores > threshold)], [arm], 1, truth, resamples=200)
    gap = found.beyond["ce"]
    assert abs(gap.difference) < 1e-8 and gap.p > 0.5 and gap.ci95[0] > -1e-8


def test_help_that_mends_is_found_and_help_that_changes_nothing_is_not():
    truth, arm = made()
    generator = np.random.default_rng(2)
    alone = [generator.random(N) < 0.35 + 0.3 * truth.labels for _ in range(4)]
    mended = [np.where(generator.random(N) < 0.5, truth.labels == 1, one) for one in alone]
    both = list(zip(alone, mended, strict=True))
    helped = [said(str(i), *one) for i, one in enumerate(both)]
    found = reading.study(helped, [arm], 1, truth, resamples=400)
    assert found.help["accuracy"].p_holm < 0.05 and found.help["accuracy"].ci95[0] > 0
    assert found.help["accuracy"].n == 4 and set(found.right) == {"0", "1", "2", "3"}
    gain = [(two == truth.labels).mean() - (one == truth.labels).mean() for one, two in both]
    np.testing.assert_allclose(found.help["accuracy"].difference, np.mean(gain))
    same = [said(str(i), one, one) for i, one in enumerate(alone)]
    unmoved = reading.study(same, [arm], 1, truth, resamples=100).help["accuracy"]
    assert unmoved.difference == 0 and unmoved.p == 1.0


def test_tests_of_equal_readers_and_arm_hold_their_size():
    # Readers with the arm's own skill and noise of their own, all of it drawn anew: beyond is zero.
    rejected = 0
    for draw in range(150):
        truth, arm = made(seed=draw, n=160)
        generator = np.random.default_rng([draw, 1])
        own = [generator.normal(truth.labels, 1.0) > 0.5 for _ in range(5)]
        readers = [said(str(i), one) for i, one in enumerate(own)]
        rejected += reading.study(readers, [arm], 1, truth, resamples=199).beyond["ce"].p < 0.05
    assert rejected / 150 < 0.11


def of_no_help(draw, m, n=400, spread=0.08):
    """What help brought to m readers, whose mean in all readers is nothing."""
    generator = np.random.default_rng([draw, m])
    labels, easy = np.arange(n) % 2, generator.normal(0, 0.15, n)
    readers = []
    for name in range(m):
        gain = generator.normal(0, spread) / 2
        how = [generator.random(n) < 0.7 + easy + sign * gain for sign in (-1, 1)]
        readers.append(said(str(name), *(np.where(right, labels, 1 - labels) for right in how)))
    truth = Truth(labels, np.arange(n), {}, 2)
    return reading.study(readers, [], 1, truth, resamples=99).help["accuracy"]


@pytest.mark.parametrize(("m", "least"), [(2, 0.84), (3, 0.90)])
def test_intervals_over_few_readers_cover_the_mean_of_all(m, least):
    # Percentiles of m readers drawn from m cover 0.76 and 0.83.
    found = [of_no_help(draw, m) for draw in range(200)]
    assert np.mean([one.ci95[0] <= 0 <= one.ci95[1] for one in found]) >= least
    assert np.mean([one.p < 0.05 for one in found]) <= 1 - least


def test_mcnemar_s_test_is_that_which_was_asked_for_and_p_of_one_reader_is_called_uncorrected():
    truth, arm = made()
    generator = np.random.default_rng(3)
    alone, aided = (generator.random(N) < 0.3 + how * truth.labels for how in (0.2, 0.5))
    study = lambda **more: reading.study([said("a", alone, aided)], [arm], 1, truth, 50, **more)
    assert study().right["a"].method == "mid_p"
    chosen = study(mcnemar="chi2")
    assert chosen.right["a"].method == "chi2" and chosen.right["a"].p != study().right["a"].p
    assert "uncorrected (n=1*)" in tables.format_cell(chosen.help_each["a"]["accuracy"])


def test_images_of_one_kind_and_no_readers_are_refused():
    truth, arm = made()
    one_kind = np.where(truth.labels == 1, 1.0, np.nan)
    unread = np.full(N, np.nan)
    with pytest.raises(ValueError, match="'a', alone: all 60 images answered are positive"):
        reading.study([Reading("a", one_kind, unread)], [arm], 1, truth)
    # Both kinds alone and both kinds aided, but only positive ones both ways.
    aided = np.where((truth.labels == 1) | (np.arange(N) == 0), 1.0, np.nan)
    alone = np.where(np.arange(N) == 0, np.nan, 1.0)
    with pytest.raises(ValueError, match="'a', both ways: all 60 images answered are positive"):
        reading.study([Reading("a", alone, aided)], [arm], 1, truth)
    with pytest.raises(ValueError, match="no reader"):
        reading.study([], [arm], 1, truth)
