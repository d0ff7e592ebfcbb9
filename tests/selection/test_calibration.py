"""Folds, held-out scores, and thresholds between a class's own and the pooled."""

import numpy as np
import pytest

from lt_jax.selection.calibration import (
    CalibrationError,
    held_out_scores,
    stratified_folds,
    thresholds,
)
from lt_jax.selection.gaussian import Mahalanobis
from tests.selection.gaussians import gaussian_classes, score


def of_folds(scorer, features, logits, labels, folds, seed):
    """Scores of held-out images by fits to the rest."""

    def fit_and_score(rest, held):
        state = scorer.fit(features[rest], logits[rest], labels[rest])
        return score(scorer, state, features[held], logits[held], labels[held])

    return held_out_scores(fit_and_score, labels, folds, seed)


def test_folds_spread_every_class_and_hold_out_no_only_image():
    labels = np.repeat(np.arange(5), [53, 7, 5, 2, 1])
    labels = np.random.default_rng(0).permutation(labels)
    fold = stratified_folds(labels, 5, seed=0)
    for label in range(4):
        per_fold = np.bincount(fold[labels == label], minlength=5)
        assert per_fold.max() - per_fold.min() <= 1
    assert np.ptp(np.bincount(fold[fold >= 0], minlength=5)) <= 1
    assert fold[labels == 4].tolist() == [-1]
    np.testing.assert_array_equal(fold, stratified_folds(labels, 5, seed=0))
    assert np.any(fold != stratified_folds(labels, 5, seed=1))


def test_held_out_scores_come_from_fits_without_the_image():
    """Moving one image far away moves its own held-out score as if it had never been fitted."""
    features, logits, labels = gaussian_classes(0, [20, 6, 1], 4)
    scorer = Mahalanobis(3)
    scores = of_folds(scorer, features, logits, labels, 5, 3)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [26]
    fold = stratified_folds(labels, 5, seed=3)
    moved = features.copy()
    moved[21] += 1000
    again = of_folds(scorer, moved, logits, labels, 5, 3)
    # The state of its fold is unchanged, so that its fold mates score as before.
    mates = (fold == fold[21]) & (np.arange(27) != 21)
    np.testing.assert_array_equal(again[mates], scores[mates])
    assert again[21] > 1000 * scores[21]
    strangers = (fold != fold[21]) & (fold >= 0)
    assert np.all(again[strangers] != scores[strangers])


def test_pooling_limits():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 3], [500, 60, 3, 1])
    scores = generator.gamma(4.0, size=564) * np.asarray([1.0, 2.0, 5.0, 1.0])[labels]
    scores[-1] = np.nan
    own = thresholds(scores, labels, 4, 0.9, pooling=0.0)
    for label, count in ((0, 500), (1, 60)):
        rank = int(np.ceil(np.round((count + 1) * 0.9, 6)))
        assert own[label] == np.sort(scores[labels == label])[rank - 1]
    assert own[2] == scores[labels == 2].max()
    # Without pooling each class weighs alike in the pool, which class 3 is left to.
    weights = 1 / np.asarray([500, 60, 3])[labels[:-1]]
    order = np.argsort(scores[:-1])
    reached = np.cumsum(weights[order]) >= 0.9 * 3 - 1e-9
    assert own[3] == scores[:-1][order][np.argmax(reached)]

    flat = thresholds(scores, labels, 4, 0.9, pooling=1e6)
    instance = np.quantile(scores[:-1], 0.9, method="inverted_cdf")
    np.testing.assert_allclose(flat, np.full(4, instance), rtol=0.01)
    # A class with as many images as `pooling` lies halfway to the pool, which class 3 has.
    half = thresholds(scores, labels, 4, 0.9, pooling=60.0)
    np.testing.assert_allclose(half[1], 0.5 * own[1] + 0.5 * half[3], rtol=1e-6)


def test_keep_rates_nest():
    """A higher keep rate accepts all that a lower one did; a rate of one, all held-out images."""
    train = gaussian_classes(0, [80, 20, 4], 5)
    scores = of_folds(Mahalanobis(3), *train, 4, 0)
    rows = [thresholds(scores, train[2], 3, rate, 0.0) for rate in (0.0, 0.3, 0.9, 0.99, 1.0)]
    assert np.all(np.diff(np.stack(rows), axis=0) >= 0)
    assert np.all(scores <= rows[-1][train[2]] * (1 + 1e-6))


def test_several_scores_are_held_out_by_the_same_folds():
    labels = np.repeat([0, 1, 2], [6, 5, 1])
    rows = np.arange(12)
    found = held_out_scores(
        lambda rest, held: np.stack([rows[held], np.full(held.sum(), rest.sum())], 1), labels, 3, 0
    )
    assert found.shape == (12, 2)
    np.testing.assert_array_equal(found[:11, 0], rows[:11])
    assert np.isnan(found[11]).all() and (found[:11, 1] < 12).all()


def test_nothing_held_out_is_said():
    with pytest.raises(CalibrationError, match="no class has two train images"):
        thresholds(np.full(3, np.nan), np.arange(3), 3, 0.9, 20.0)
