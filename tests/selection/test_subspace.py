"""Residual and ViM: known subspaces, the published definition, rotation."""

import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.selection.subspace import Residual, ViM
from tests.selection.gaussians import gaussian_classes, score

SPREADS = np.asarray([5.0, 3.0, 1.0, 0.5, 0.1, 0.01])


def spread_classes(seed, count=400):
    """Two classes about the origin, of which direction i has SPREADS[i] in both."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 6)) * SPREADS
    labels = (np.arange(count) % 2).astype(np.int32)
    logits = 3 + rng.normal(size=(count, 2))
    return features.astype(np.float32), logits.astype(np.float32), labels


def raw(scorer, state, features, logits):
    return np.asarray(scorer.raw(state, jnp.asarray(features), jnp.asarray(logits)))


@pytest.mark.parametrize(
    ("explained", "principal"), [(0.0, 0), (0.6, 1), (0.9, 2), (0.99, 3), (1.0, 5)]
)
def test_residual_is_the_length_beside_the_first_directions(explained, principal):
    features, logits, labels = spread_classes(0)
    scorer = Residual(2, explained)
    state = scorer.fit(features, logits, labels)
    found = raw(scorer, state, features, logits)
    expected = np.linalg.norm((features - features.mean(axis=0))[:, principal:], axis=1)
    assert np.count_nonzero(np.asarray(state.beside).any(axis=0)) == 6 - principal
    # Directions of a sample are not quite the axes.
    assert np.corrcoef(found, expected)[0, 1] > 0.95
    np.testing.assert_allclose(found.mean(), expected.mean(), rtol=0.05)


def test_everything_explained_leaves_what_train_images_never_show():
    """Four images span three directions about their mean; they have no residual, others have."""
    features, logits, labels = gaussian_classes(0, [2, 2], 8)
    scorer = Residual(2, 1.0)
    state = scorer.fit(features, logits, labels)
    np.testing.assert_allclose(raw(scorer, state, features, logits), 0, atol=1e-5)
    inside = features[:1] + 7 * (features[1:2] - features[2:3])
    np.testing.assert_allclose(raw(scorer, state, inside, logits[:1]), 0, atol=1e-4)
    other = gaussian_classes(1, [2, 2], 8)[0]
    assert np.all(raw(scorer, state, other, logits) > 0.1)


def test_virtual_logits_are_as_large_as_the_largest_logits():
    features, logits, labels = spread_classes(0)
    scorer = ViM(2)
    state = scorer.fit(features, logits, labels)
    found = raw(scorer, state, features, logits)
    energy = np.log(np.exp(logits).sum(axis=1))
    np.testing.assert_allclose((found + energy).mean(), logits.max(axis=1).mean(), rtol=1e-5)
    residual = raw(Residual(2), state, features, logits)
    np.testing.assert_allclose(found + energy, state.alpha * residual, rtol=1e-4, atol=1e-5)
    # Logits below nothing have no virtual one.
    below = scorer.fit(features, logits - 20, labels)
    np.testing.assert_allclose(raw(scorer, below, features, logits - 20), 20 - energy, rtol=1e-5)


@pytest.mark.parametrize("kind", [Residual, ViM])
def test_further_from_the_subspace_is_further_out(kind):
    features, logits, labels = spread_classes(0)
    scorer = kind(2)
    state = scorer.fit(features, logits, labels)
    along, off = (np.repeat(features[:1], 4, axis=0) for _ in range(2))
    along[:, 0] += np.asarray([0.0, 5.0, 10.0, 20.0])
    off[:, 4] += np.asarray([0.0, 5.0, 10.0, 20.0])
    flat = (np.repeat(logits[:1], 4, axis=0), np.zeros(4, np.int32))
    assert np.all(np.diff(score(scorer, state, off, *flat)) > 1)
    assert np.ptp(score(scorer, state, along, *flat)) < 1.5


@pytest.mark.parametrize("kind", [Residual, ViM])
def test_rotation_and_shift_of_features_leave_scores_alone(kind):
    features, logits, labels = spread_classes(0)
    fresh = spread_classes(1, 20)
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))[0]
    move = lambda f: (f @ rotation + 20).astype(np.float32)
    scorer = kind(2)
    plain = score(scorer, scorer.fit(features, logits, labels), *fresh)
    moved = scorer.fit(move(features), logits, labels)
    np.testing.assert_allclose(
        score(scorer, moved, move(fresh[0]), *fresh[1:]), plain, rtol=1e-3, atol=2e-3
    )


def test_residual_and_vim_against_scikit_learn_s_principal_components():
    from scipy.special import logsumexp
    from sklearn.decomposition import PCA

    features, _, labels = gaussian_classes(0, [90, 30], 7)
    fresh = gaussian_classes(1, [8, 8], 7)[0]
    weights = np.random.default_rng(3).normal(size=(7, 2)).astype(np.float32)
    logits, fresh_logits = features @ weights + 9, fresh @ weights + 9
    fitted = PCA(0.8, svd_solver="full").fit(features.astype(np.float64))

    def residual(rows):
        beside = rows - fitted.inverse_transform(fitted.transform(rows.astype(np.float64)))
        return np.linalg.norm(beside, axis=1)

    alpha = logits.max(axis=1).mean(dtype=np.float64) / residual(features).mean()
    assert alpha > 0
    expected = {
        Residual: residual(fresh),
        ViM: alpha * residual(fresh) - logsumexp(fresh_logits.astype(np.float64), axis=1),
    }
    for kind, values in expected.items():
        state = kind(2, 0.8).fit(features, logits, labels)
        found = raw(kind(2, 0.8), state, fresh, fresh_logits)
        np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-4)


def test_against_pytorch_ood(pytorch_ood):
    """Features of mean 0 and logits without bias: both centre at the origin."""
    import torch

    features, _, labels = gaussian_classes(0, [90, 30], 7)
    features -= features.mean(axis=0)
    fresh = gaussian_classes(1, [8, 8], 7)[0]
    weights = np.random.default_rng(3).normal(size=(2, 7)).astype(np.float32)
    scorer = ViM(2, 0.8)
    state = scorer.fit(features, features @ weights.T, labels)
    principal = 7 - np.count_nonzero(np.asarray(state.beside).any(axis=0))
    detector = pytorch_ood.ViM(None, principal, torch.tensor(weights), torch.zeros(2))
    detector.fit_features(torch.tensor(features), torch.tensor(labels).long())
    expected = detector.predict_features(torch.tensor(fresh)).numpy()
    found = raw(scorer, state, fresh, fresh @ weights.T)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
