"""Calibration on real train images: folds, keep rate, pooling limits; verdicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import SelectionConfig
from lt_jax.selection.ood import Mahalanobis
from lt_jax.selection.select import (
    Gates,
    Reason,
    calibrate,
    held_out_scores,
    judge,
    stratified_folds,
    thresholds,
)
from tests.selection.test_ood import gaussian_classes


def open_label_gate(**fields):
    return SelectionConfig(label_probability=0.0, **fields)


def verdict(gates, features, logits, labels):
    return jax.tree.map(np.asarray, judge(gates, *map(jnp.asarray, (features, logits, labels))))


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
    scores = held_out_scores(scorer, features, logits, labels, 5, seed=3)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [26]
    fold = stratified_folds(labels, 5, seed=3)
    moved = features.copy()
    moved[21] += 1000
    again = held_out_scores(scorer, moved, logits, labels, 5, seed=3)
    # The state of its fold is unchanged, so that its fold mates score as before.
    mates = (fold == fold[21]) & (np.arange(27) != 21)
    np.testing.assert_array_equal(again[mates], scores[mates])
    assert again[21] > 1000 * scores[21]
    strangers = (fold != fold[21]) & (fold >= 0)
    assert np.all(again[strangers] != scores[strangers])


@pytest.mark.parametrize("keep_rate", [0.8, 0.95])
@pytest.mark.parametrize("pooling", [0.0, 20.0])
def test_fresh_images_are_kept_at_the_asked_rate(keep_rate, pooling):
    counts = [400, 250, 150]
    features, logits, labels = gaussian_classes(0, counts, 8)
    config = open_label_gate(keep_rate=keep_rate, pooling=pooling)
    gates = calibrate(Mahalanobis(3), features, logits, labels, config, seed=0)
    fresh = gaussian_classes(1, [4000] * 3, 8)
    accepted = verdict(gates, *fresh).accepted.reshape(3, 4000)
    # 4 standard errors: of the fresh images, and of a quantile estimated from n_k.
    variance = keep_rate * (1 - keep_rate) * (1 / 4000 + 1 / np.asarray(counts))
    assert np.all(np.abs(accepted.mean(axis=1) - keep_rate) < 4 * np.sqrt(variance) + 0.01)


def test_tail_classes_keep_their_images_too():
    """Few images: a fit's own residuals would promise much more than fresh images get."""
    kept = []
    for seed in range(25):
        train = gaussian_classes(seed, [200, 5, 2, 1], 8)
        config = open_label_gate(keep_rate=0.9)
        gates = calibrate(Mahalanobis(4), *train, config, seed=seed)
        fresh = gaussian_classes(500 + seed, [100] * 4, 8)
        kept.append(verdict(gates, *fresh).accepted.reshape(4, 100).mean(axis=1))
    rates = np.mean(kept, axis=0)
    assert np.all(np.abs(rates - 0.9) < 0.07), rates


def test_planted_outliers_are_rejected_and_named():
    train = gaussian_classes(0, [300, 30], 6)
    gates = calibrate(Mahalanobis(2), *train, open_label_gate(keep_rate=0.95), seed=0)
    features, logits, labels = gaussian_classes(1, [50, 50], 6)
    features += 30 * np.random.default_rng(0).normal(size=(1, 6)).astype(np.float32)
    found = verdict(gates, features, logits, labels)
    assert not found.accepted.any()
    assert set(found.reason) == {Reason.OOD}
    swapped = verdict(gates, *gaussian_classes(1, [50, 50], 6)[:2], 1 - labels)
    assert not swapped.accepted.any()


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
    scores = held_out_scores(Mahalanobis(3), *train, 4, seed=0)
    rows = [thresholds(scores, train[2], 3, rate, 0.0) for rate in (0.0, 0.3, 0.9, 0.99, 1.0)]
    assert np.all(np.diff(np.stack(rows), axis=0) >= 0)
    assert np.all(scores <= rows[-1][train[2]] * (1 + 1e-6))


def test_verdicts_name_the_first_gate_failed():
    gates = Gates(
        scorer=Mahalanobis(2),
        fitted=Mahalanobis(2).fit(*gaussian_classes(0, [50, 50], 3)),
        thresholds=jnp.asarray([3.0, 3.0]),
        label_probability=jnp.asarray(0.6),
    )
    means = np.asarray(gates.fitted.means)
    features = np.stack([means[0], means[0] + 50, means[0], means[0] + 50, means[1] * np.nan])
    logit = np.log(0.7 / 0.3)
    logits = np.asarray([[logit, 0], [logit, 0], [0, logit], [0, logit], [0, 0]], np.float32)
    found = verdict(gates, features.astype(np.float32), logits, np.zeros(5, np.int32))
    assert found.reason.tolist() == [0, 1, 2, 1, 1]
    assert found.accepted.tolist() == [True, False, False, False, False]
    np.testing.assert_allclose(found.label_probability, [0.7, 0.7, 0.3, 0.3, 0.5], rtol=1e-5)


def test_judge_compiles_with_gates_as_an_argument():
    train, fresh = gaussian_classes(0, [60, 12], 4), gaussian_classes(1, [10, 10], 4)
    arrays = [jnp.asarray(array) for array in fresh]
    compiled = jax.jit(judge)
    for seed in (0, 1):
        gates = calibrate(Mahalanobis(2), *train, SelectionConfig(), seed=seed)
        together, eager = compiled(gates, *arrays), judge(gates, *arrays)
        np.testing.assert_array_equal(together.reason, eager.reason)
        np.testing.assert_allclose(together.scores, eager.scores, rtol=1e-5)
    assert compiled._cache_size() == 1


def test_classes_of_one_image_alone_cannot_be_calibrated():
    features, logits, labels = gaussian_classes(0, [1, 1, 1], 4)
    with pytest.raises(ValueError, match="no class has two train images"):
        calibrate(Mahalanobis(3), features, logits, labels, SelectionConfig(), seed=0)
    with pytest.raises(ValueError, match="no train image of class 3"):
        calibrate(Mahalanobis(4), *gaussian_classes(0, [9, 9, 9], 4), SelectionConfig(), seed=0)
