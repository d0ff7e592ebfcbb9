"""Mahalanobis scores: shrinkage against scikit-learn, invariances, limits of few images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.selection import gaussian
from lt_jax.selection.gaussian import (
    MIN_SHRINKAGE,
    Mahalanobis,
    RelativeMahalanobis,
    ledoit_wolf,
)
from tests.selection.gaussians import gaussian_classes, per_class, score


@pytest.mark.parametrize(("count", "dimension"), [(400, 6), (30, 10), (5, 20), (3, 8)])
def test_ledoit_wolf_against_scikit_learn(count, dimension):
    from sklearn.covariance import LedoitWolf

    generator = np.random.default_rng(count)
    rows = generator.normal(size=(count, dimension)) * np.linspace(0.2, 30.0, dimension)
    rows -= rows.mean(axis=0)
    expected = LedoitWolf(assume_centered=True).fit(rows)
    padded = jnp.asarray(np.concatenate([rows, np.zeros((7, dimension))]), jnp.float32)
    covariance, rho = ledoit_wolf(padded, jnp.asarray(float(count)))
    assert expected.shrinkage_ > MIN_SHRINKAGE
    np.testing.assert_allclose(rho, expected.shrinkage_, rtol=1e-4)
    scale = np.abs(expected.covariance_).max()
    np.testing.assert_allclose(covariance, expected.covariance_, atol=1e-5 * scale)


def test_shrinkage_ignores_the_scale_of_features():
    rows = np.random.default_rng(0).normal(size=(20, 5)) * np.arange(1, 6)
    count = jnp.asarray(20.0)
    rhos = [ledoit_wolf(jnp.asarray(s * rows, jnp.float32), count)[1] for s in (1e-6, 1.0, 1e8)]
    np.testing.assert_allclose(rhos, [rhos[1]] * 3, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_scores_against_scikit_learn_s_distances(tied):
    from sklearn.covariance import LedoitWolf

    counts = np.asarray([60, 25])
    features, logits, labels = gaussian_classes(0, counts, 4, scales=[1.0, 2.0])
    scorer = Mahalanobis(2, tied=tied)
    state = scorer.fit(features, logits, labels)
    fresh = gaussian_classes(1, [6, 6], 4)
    means = np.stack([features[labels == k].mean(axis=0) for k in range(2)]).astype(np.float64)
    residuals = features - means[labels]
    expected = np.empty(12)
    for k in range(2):
        rows = residuals if tied else residuals[labels == k]
        freedom = len(rows) - (2 if tied else 1)
        fitted = LedoitWolf(assume_centered=True).fit(rows)
        difference = fresh[0][fresh[2] == k] - means[k]
        precision = np.linalg.inv(fitted.covariance_ * len(rows) / freedom)
        squared = np.einsum("bd,de,be->b", difference, precision, difference)
        expected[fresh[2] == k] = squared / 4 / (1 + 1 / counts[k])
    np.testing.assert_allclose(score(scorer, state, *fresh), expected, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_rotation_shift_and_scale_of_features_leave_scores_alone(tied):
    train, fresh = (gaussian_classes(seed, [40, 9], 6) for seed in (0, 1))
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    move = lambda f: (5 * f @ rotation + 20).astype(np.float32)
    scorer = Mahalanobis(2, tied=tied)
    plain = score(scorer, scorer.fit(*train), *fresh)
    moved = score(scorer, scorer.fit(move(train[0]), *train[1:]), move(fresh[0]), *fresh[1:])
    np.testing.assert_allclose(moved, plain, rtol=2e-3)


def test_fresh_images_score_about_one_in_every_class_however_few_it_has():
    counts = [400, 400, 2, 1]
    state_scores = []
    for seed in range(60):
        scorer = Mahalanobis(4)
        state = scorer.fit(*gaussian_classes(seed, counts, 5))
        fresh = gaussian_classes(1000 + seed, [20] * 4, 5)
        state_scores.append(score(scorer, state, *fresh).reshape(4, 20))
    per_class = np.mean(state_scores, axis=(0, 2))
    np.testing.assert_allclose(per_class, np.ones(4), rtol=0.12)


@pytest.mark.parametrize("tied", [True, False])
def test_an_image_at_its_class_s_mean_scores_nothing_and_elsewhere_more(tied):
    train = gaussian_classes(0, [30, 5], 6)
    scorer = Mahalanobis(2, tied=tied)
    state = scorer.fit(*train)
    labels = np.asarray([0, 1], np.int32)
    means = np.asarray(state.means)
    at_mean = score(scorer, state, means, np.zeros((2, 2), np.float32), labels)
    swapped = score(scorer, state, means, np.zeros((2, 2), np.float32), labels[::-1].copy())
    np.testing.assert_allclose(at_mean, [0.0, 0.0], atol=1e-8)
    assert np.all(swapped > 2)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("counts", [[40, 1], [40, 5], [3, 2]])
def test_fewer_images_than_dimensions_give_finite_ordered_scores(tied, counts):
    train = gaussian_classes(0, counts, 16)
    scorer = Mahalanobis(2, tied=tied)
    state = scorer.fit(*train)
    mean = np.asarray(state.means)[1:]
    direction = np.random.default_rng(0).normal(size=(1, 16)).astype(np.float32)
    path = mean + np.asarray([[0.5], [1.0], [4.0]], np.float32) * direction
    scores = score(scorer, state, path, np.zeros((3, 2), np.float32), np.ones(3, np.int32))
    assert np.all(np.isfinite(scores))
    np.testing.assert_allclose(scores / scores[1], [0.25, 1.0, 16.0], rtol=1e-3)


def test_two_images_take_the_pooled_covariance_not_their_own_line():
    features, logits, labels = gaussian_classes(0, [50, 2], 3)
    state = Mahalanobis(2, tied=False).fit(features, logits, labels)
    pooled = Mahalanobis(2).fit(features, logits, labels)
    np.testing.assert_allclose(state.whitening[1], pooled.whitening, rtol=1e-5)
    assert np.any(np.abs(state.whitening[0] - pooled.whitening) > 1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_identical_images_take_the_pooled_covariance_or_the_identity(tied):
    features, logits, labels = gaussian_classes(0, [50, 4], 3)
    features[labels == 1] = features[labels == 1][:1]
    scorer = Mahalanobis(2, tied=tied)
    state = scorer.fit(features, logits, labels)
    if not tied:
        pooled = Mahalanobis(2).fit(features, logits, labels)
        np.testing.assert_allclose(state.whitening[1], pooled.whitening, rtol=1e-5)
    # Nothing varies: plain squared distance.
    still = scorer.fit(np.full((4, 3), 7.0, np.float32), logits[:4], np.asarray([0, 0, 1, 1]))
    off = np.full((2, 3), 9.0, np.float32)
    scores = score(scorer, still, off, logits[:2], np.asarray([0, 1]))
    np.testing.assert_allclose(scores, np.full(2, 4.0 / 1.5), rtol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_a_dead_feature_does_not_break_the_factor(tied):
    features, logits, labels = gaussian_classes(0, [3000, 500], 8)
    features[:, 3] = 0.0
    scorer = Mahalanobis(2, tied=tied)
    state = scorer.fit(features, logits, labels)
    scores = score(scorer, state, features, logits, labels)
    assert np.all(np.isfinite(scores))
    alive = features[:1].copy()
    alive[0, 3] = 5.0
    assert score(scorer, state, alive, logits[:1], labels[:1])[0] > 100 * scores[0]


def test_shrinkage_has_a_floor_where_residuals_show_no_noise():
    """Two images of one class: residuals r and -r, of which Ledoit and Wolf's rho is nothing."""
    features, logits, labels = gaussian_classes(0, [2], 8)
    rho = ledoit_wolf(jnp.asarray(features - features.mean(axis=0)), jnp.asarray(2.0))[1]
    np.testing.assert_allclose(rho, MIN_SHRINKAGE, rtol=1e-6)
    scorer = Mahalanobis(1)
    scores = score(scorer, scorer.fit(features, logits, labels), 3 * features, logits, labels)
    assert np.all(np.isfinite(scores))
    assert np.all(scores > 0)


@pytest.mark.parametrize("tied", [True, False])
def test_score_is_jittable_and_row_by_row(tied):
    train, fresh = (gaussian_classes(seed, [30, 9, 5], 6) for seed in (0, 1))
    scorer = Mahalanobis(3, tied=tied)
    state = scorer.fit(*train)
    whole = score(scorer, state, *fresh)
    rows = [
        jax.jit(scorer.score)(state, *(jnp.asarray(a[i : i + 1]) for a in fresh))[0]
        for i in (0, 20, 43)
    ]
    np.testing.assert_allclose(rows, whole[[0, 20, 43]], rtol=1e-5)


@pytest.mark.parametrize("apart", [3.0, 0.7])
def test_relative_distance_of_new_images_is_standard_in_every_class_however_few_it_has(apart):
    """Of classes apart and of overlapping ones; as it stands, its mean is the class's own."""
    counts, scorer = [600, 300, 2, 1], RelativeMahalanobis(4)

    def standardised(seed, raw=False):
        state = scorer.fit(*gaussian_classes(seed, counts, 5, apart=apart))
        fresh = gaussian_classes(1000 + seed, [20] * 4, 5, apart=apart)
        return np.asarray((scorer.raw if raw else scorer.score)(state, *map(jnp.asarray, fresh)))

    means, variances = per_class(standardised, 4, 20, 150)
    np.testing.assert_allclose(means, np.zeros(4), atol=0.2)
    np.testing.assert_allclose(variances, np.ones(4), rtol=0.35)
    plain, _ = per_class(lambda seed: standardised(seed, raw=True), 4, 20, 30)
    assert np.ptp(plain) > 3


def test_relative_distance_against_scikit_learn_s():
    from sklearn.covariance import LedoitWolf

    features, logits, labels = gaussian_classes(0, [60, 25, 9], 4)
    scorer = RelativeMahalanobis(3)
    state = scorer.fit(features, logits, labels)
    fresh = gaussian_classes(1, [6, 6, 6], 4)

    def distance(rows, centre, residuals, freedom):
        fitted = LedoitWolf(assume_centered=True).fit(residuals)
        precision = np.linalg.inv(fitted.covariance_ * len(residuals) / freedom)
        return np.einsum("bd,de,be->b", rows - centre, precision, rows - centre)

    means = np.stack([features[labels == k].mean(axis=0) for k in range(3)]).astype(np.float64)
    centre = features.mean(axis=0, dtype=np.float64)[None]
    expected = distance(fresh[0], means[fresh[2]], features - means[labels], 91)
    expected -= distance(fresh[0], centre, features - centre, 93)
    found = np.asarray(scorer.raw(state, *map(jnp.asarray, fresh)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    # A rising line of it, of its own for each class.
    scores = score(scorer, state, *fresh).reshape(3, 6)
    slopes = np.diff(scores) / np.diff(expected.reshape(3, 6))
    np.testing.assert_allclose(
        slopes, 1 / np.asarray(state.spread)[:, None].repeat(5, 1), rtol=1e-2
    )


def test_what_is_far_from_all_classes_alike_counts_in_plain_distance_alone():
    """Off in a direction in which no class differs, where both Gaussians are as wide."""
    features, logits, labels = gaussian_classes(0, [400, 400], 6)
    rng = np.random.default_rng(5)
    alike = rng.normal(size=(len(labels), 1)).astype(np.float32)
    features = np.concatenate([features, alike], axis=1)
    off = features[:4].copy()
    off[:, 6] += 8.0
    scores = {}
    for scorer in (Mahalanobis(2), RelativeMahalanobis(2)):
        state = scorer.fit(features, logits, labels)
        moved = score(scorer, state, off, logits[:4], labels[:4])
        scores[type(scorer)] = moved - score(scorer, state, features[:4], logits[:4], labels[:4])
    assert np.all(scores[Mahalanobis] > 5)
    assert np.all(np.abs(scores[RelativeMahalanobis]) < 1)


def test_relative_distance_is_left_alone_by_rotation_shift_and_scale():
    train, fresh = (gaussian_classes(seed, [40, 9], 6) for seed in (0, 1))
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    move = lambda f: (5 * f @ rotation + 20).astype(np.float32)
    scorer = RelativeMahalanobis(2)
    plain = score(scorer, scorer.fit(*train), *fresh)
    moved = score(scorer, scorer.fit(move(train[0]), *train[1:]), move(fresh[0]), *fresh[1:])
    np.testing.assert_allclose(moved, plain, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("counts", [[40, 1], [3, 2], [1, 1], [8]])
def test_relative_distance_is_finite_with_few_images_dead_features_and_one_class(counts):
    features, logits, labels = gaussian_classes(0, counts, 16)
    features[:, 3] = 2.0
    scorer = RelativeMahalanobis(len(counts))
    state = scorer.fit(features, logits, labels)
    scores = score(scorer, state, *gaussian_classes(1, counts, 16))
    assert np.all(np.isfinite(scores))
    if len(counts) == 1:
        np.testing.assert_allclose(scores, scores[:1].repeat(8), atol=0.02)


def test_against_pytorch_ood(pytorch_ood, monkeypatch):
    """Without shrinkage, which it does not have; its covariances are sums, not means."""
    import torch

    monkeypatch.setattr(gaussian, "ledoit_wolf", lambda r, count: (r.T @ r / count, None))
    counts = np.asarray([301, 201])  # shapes of no other test: those are compiled with shrinkage
    features, logits, labels = gaussian_classes(0, counts, 5)
    fresh = gaussian_classes(1, [6, 6], 5)
    nearest = []
    for detector in (pytorch_ood.Mahalanobis(None), pytorch_ood.RMD(None)):
        detector.fit_features(torch.tensor(features), torch.tensor(labels).long())
        nearest.append(detector.predict_features(torch.tensor(fresh[0])).numpy())
    own = 2 * nearest[0]  # theirs is half of it; the classes are far apart, so it is the one meant
    background = own - nearest[1]
    plain, relative = Mahalanobis(2), RelativeMahalanobis(2)
    found = score(plain, plain.fit(features, logits, labels), *fresh)
    expected = own * 500 / 5 / (1 + 1 / counts[fresh[2]])
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    state = relative.fit(features, logits, labels)
    found = np.asarray(relative.raw(state, *map(jnp.asarray, fresh)))
    np.testing.assert_allclose(found, own * 500 - background * 501, rtol=1e-4, atol=1e-4)
