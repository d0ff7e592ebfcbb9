"""Nearest neighbours: against scikit-learn, few images, exact expectations over subsets."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.selection import neighbors
from lt_jax.selection.neighbors import KNearest
from tests.selection.gaussians import gaussian_classes, per_class, score


def raw(scorer, state, fresh):
    return np.asarray(scorer.raw(state, *map(jnp.asarray, fresh)))


def test_distances_against_scikit_learn_within_each_class():
    from sklearn.neighbors import NearestNeighbors

    counts = [150, 20, 3]
    features, logits, labels = gaussian_classes(0, counts, 6)
    fresh = gaussian_classes(1, [5, 5, 5], 6)
    scorer = KNearest(3, neighbors=4)
    state = scorer.fit(features, logits, labels)
    found = raw(scorer, state, fresh)
    unit = lambda f: f / np.linalg.norm(f, axis=1, keepdims=True)
    expected = np.empty(15)
    for k in range(3):
        search = NearestNeighbors(n_neighbors=min(4, counts[k])).fit(unit(features[labels == k]))
        expected[fresh[2] == k] = search.kneighbors(unit(fresh[0][fresh[2] == k]))[0][:, -1]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    standardised = score(scorer, state, *fresh)
    means, spreads = np.asarray(state.means), np.asarray(state.spreads)
    np.testing.assert_allclose(
        standardised, (expected - means[fresh[2]]) / spreads[fresh[2]], rtol=1e-3, atol=1e-3
    )


def test_against_pytorch_ood(pytorch_ood):
    import torch

    features, logits, labels = gaussian_classes(0, [90], 5)
    fresh = gaussian_classes(1, [8], 5)
    detector = pytorch_ood.KNN(None, k=7)
    detector.fit_features(torch.tensor(features), torch.tensor(labels).long())
    scorer = KNearest(1, neighbors=7)
    found = raw(scorer, scorer.fit(features, logits, labels), fresh)
    np.testing.assert_allclose(found, detector.predict_features(torch.tensor(fresh[0])), rtol=1e-4)


def test_a_copy_is_at_no_distance_and_length_does_not_matter():
    features, logits, labels = gaussian_classes(0, [40, 9], 6)
    scorer = KNearest(2, neighbors=1)
    state = scorer.fit(features, logits, labels)
    np.testing.assert_allclose(raw(scorer, state, (features, logits, labels)), 0, atol=2e-7)
    fresh = gaussian_classes(1, [4, 4], 6)
    longer = (3.0 * fresh[0], *fresh[1:])
    np.testing.assert_allclose(raw(scorer, state, longer), raw(scorer, state, fresh), rtol=1e-5)
    # Near, but no copy: 2 - 2 cos would leave two digits of it.
    close = features + 1e-3 * fresh[0][:1]
    unit = lambda f: f / np.linalg.norm(f.astype(np.float64), axis=1, keepdims=True)
    expected = np.linalg.norm(unit(close) - unit(features), axis=1)
    np.testing.assert_allclose(raw(scorer, state, (close, logits, labels)), expected, rtol=1e-3)


def test_images_of_another_class_are_no_neighbours():
    features, logits, labels = gaussian_classes(0, [40, 9], 6)
    scorer = KNearest(2, neighbors=1)
    state = scorer.fit(features, logits, labels)
    swapped = raw(scorer, state, (features, logits, 1 - labels))
    assert swapped.min() > 0.1
    moved = features.copy()
    moved[labels == 0] += 5.0
    other = scorer.fit(moved, logits, labels)
    own = (features[labels == 1], logits[labels == 1], labels[labels == 1])
    np.testing.assert_allclose(raw(scorer, other, own), raw(scorer, state, own), atol=1e-6)


def test_rotated_features_have_the_same_scores():
    train, fresh = (gaussian_classes(seed, [40, 9], 6) for seed in (0, 1))
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    move = lambda f: (5 * f @ rotation).astype(np.float32)
    scorer = KNearest(2)
    plain = score(scorer, scorer.fit(*train), *fresh)
    moved = score(scorer, scorer.fit(move(train[0]), *train[1:]), move(fresh[0]), *fresh[1:])
    np.testing.assert_allclose(moved, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("n", "j"), [(1, 1), (3, 1), (3, 2), (4, 4), (6, 3)])
def test_weights_of_orders_are_those_of_all_subsets(n, j):
    distances = np.sort(np.random.default_rng(0).uniform(size=6))
    subsets = [sorted(s)[j - 1] for s in itertools.combinations(distances, n)]
    weights = neighbors._order_weights(6, n, j)
    np.testing.assert_allclose(weights @ distances, np.mean(subsets), rtol=1e-12)
    np.testing.assert_allclose(weights @ distances**2, np.mean(np.square(subsets)), rtol=1e-12)


def test_new_images_score_alike_in_every_class_however_few_it_has():
    """The 5th nearest of 500 is at half the distance of the only image of a class."""
    counts = [500, 400, 60, 6, 2, 1]
    scorer = KNearest(6)
    means = 20 * np.eye(6, 8)  # as far from the origin, so that classes are as wide on the sphere

    def draw(seed, counts):
        rng = np.random.default_rng(seed)
        labels = np.repeat(np.arange(6), counts).astype(np.int32)
        features = (means[labels] + rng.normal(size=(len(labels), 8))).astype(np.float32)
        return features, np.zeros((len(labels), 6), np.float32), labels

    def standardised(seed):
        return score(scorer, scorer.fit(*draw(seed, counts)), *draw(1000 + seed, [10] * 6))

    found, variances = per_class(standardised, 6, 10, 30)
    np.testing.assert_allclose(found, np.zeros(6), atol=0.35)
    np.testing.assert_allclose(variances, np.ones(6), rtol=0.4)
    state = scorer.fit(*draw(0, counts))
    assert state.means[5] > 1.5 * state.means[0]


def test_more_neighbours_than_images_take_the_furthest():
    features, logits, labels = gaussian_classes(0, [30, 3], 4)
    fresh = gaussian_classes(1, [0, 4], 4)
    many, three = KNearest(2, neighbors=500), KNearest(2, neighbors=3)
    states = [s.fit(features, logits, labels) for s in (many, three)]
    found = [raw(s, state, fresh) for s, state in zip((many, three), states, strict=True)]
    np.testing.assert_array_equal(found[0], found[1])


def test_anchors_stand_for_a_large_class():
    features, logits, labels = gaussian_classes(0, [900, 40], 4)
    state = KNearest(2).fit(features, logits, labels)
    unit = features[:900] / np.linalg.norm(features[:900], axis=1, keepdims=True)
    distances = np.sort(np.linalg.norm(unit[:, None] - unit[None], axis=2), axis=1)[:, 5]
    np.testing.assert_allclose(state.means[0], distances.mean(), rtol=0.1)
