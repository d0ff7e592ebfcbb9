"""The gates: rates at which fresh images pass them, and the verdict on each image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import AugmentConfig, MemorizationConfig, SelectionConfig
from lt_jax.selection import memorization, ood, select
from lt_jax.selection.ood import Evidence
from tests.selection.gaussians import gaussian_classes

BLANK = np.zeros((1, 8, 8, 1), np.uint8)


def evidence(features, logits, labels):
    return Evidence(features=features, logits=logits, labels=labels)


def calibrated(train, held_out=None, seed=0, bank=None, **fields):
    """Gates that ask no probability of the label."""
    config = SelectionConfig(label_probability=0.0, **fields)
    held = None if held_out is None else evidence(*held_out)
    ensemble = ood.make(config, train[1].shape[1])
    fitted, limits = select.calibrate(ensemble, evidence(*train), held, config, seed)
    return select.Gates(
        ensemble=ensemble,
        memorization=config.memorization,
        fitted=fitted,
        thresholds=jnp.asarray(limits, jnp.float32),
        label_probability=jnp.asarray(0.0),
        bank=bank,
    )


def verdict(gates, features, logits, labels, images=None, own_groups=None):
    n = len(labels)
    images = np.broadcast_to(BLANK, (n, 8, 8, 1)) if images is None else images
    own_groups = np.full(n, -1, np.int32) if own_groups is None else own_groups
    told = evidence(*map(jnp.asarray, (features, logits, labels)))
    found = select.judge(gates, jnp.asarray(images), told, jnp.asarray(own_groups))
    return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("keep_rate", [0.8, 0.95])
@pytest.mark.parametrize("held_out", ["train", "policy_val"])
@pytest.mark.parametrize("pooling", [0.0, 20.0])
def test_fresh_images_are_kept_at_the_asked_rate(keep_rate, held_out, pooling):
    counts = [400, 250, 150]
    train = gaussian_classes(0, counts, 8)
    policy_val = gaussian_classes(7, counts, 8) if held_out == "policy_val" else None
    gates = calibrated(train, policy_val, keep_rate=keep_rate, pooling=pooling)
    fresh = gaussian_classes(1, [4000] * 3, 8)
    accepted = verdict(gates, *fresh).accepted.reshape(3, 4000)
    # 4 standard errors: of the fresh images, and of a quantile estimated from n_k.
    variance = keep_rate * (1 - keep_rate) * (1 / 4000 + 1 / np.asarray(counts))
    assert np.all(np.abs(accepted.mean(axis=1) - keep_rate) < 4 * np.sqrt(variance) + 0.01)


def test_an_extractor_that_knows_train_by_heart_is_calibrated_on_policy_val():
    """Train features are drawn in to their means: their own folds promise too little room."""
    features, logits, labels = gaussian_classes(0, [300, 300], 6)
    means = np.stack([features[labels == k].mean(axis=0) for k in range(2)])
    train = means[labels] + 0.3 * (features - means[labels]), logits, labels
    fresh = gaussian_classes(1, [2000] * 2, 6)
    by_train = verdict(calibrated(train), *fresh).accepted.mean()
    by_policy_val = verdict(calibrated(train, gaussian_classes(2, [300] * 2, 6)), *fresh)
    assert by_train < 0.3
    assert abs(by_policy_val.accepted.mean() - 0.9) < 0.05


def test_tail_classes_keep_their_images_too():
    """Few images: a fit's own residuals would promise much more than fresh images get."""
    kept = []
    for seed in range(25):
        train = gaussian_classes(seed, [200, 5, 2, 1], 8)
        gates = calibrated(train, seed=seed, keep_rate=0.9)
        fresh = gaussian_classes(500 + seed, [100] * 4, 8)
        kept.append(verdict(gates, *fresh).accepted.reshape(4, 100).mean(axis=1))
    rates = np.mean(kept, axis=0)
    assert np.all(np.abs(rates - 0.9) < 0.07), rates


def test_planted_outliers_are_rejected():
    train = gaussian_classes(0, [300, 30], 6)
    gates = calibrated(train, keep_rate=0.95)
    features, logits, labels = gaussian_classes(1, [50, 50], 6)
    far = features + 30 * np.random.default_rng(0).normal(size=(1, 6)).astype(np.float32)
    found = verdict(gates, far, logits, labels)
    assert not found.accepted.any()
    np.testing.assert_array_equal(found.passed, np.tile([False, True, True], (100, 1)))
    assert not verdict(gates, features, logits, 1 - labels).accepted.any()


def test_every_gate_has_its_say():
    train = gaussian_classes(0, [50, 50], 3)
    gates = calibrated(train).replace(
        thresholds=jnp.asarray([3.0, 3.0]), label_probability=jnp.asarray(0.6)
    )
    mean = np.asarray(gates.fitted.members[0].means)[0]
    features = np.stack([mean, mean + 50, mean, mean + 50, mean * np.nan]).astype(np.float32)
    logit = np.log(0.7 / 0.3)
    logits = np.asarray([[logit, 0], [logit, 0], [0, logit], [0, logit], [0, 0]], np.float32)
    found = verdict(gates, features, logits, np.zeros(5, np.int32))
    assert found.passed[:, :2].tolist() == [[1, 1], [0, 1], [1, 0], [0, 0], [0, 0]]
    assert found.passed[:, 2].all() and np.isnan(found.ms_ssim).all()  # there is no bank
    assert found.accepted.tolist() == [True, False, False, False, False]
    np.testing.assert_allclose(found.label_probability, [0.7, 0.7, 0.3, 0.3, 0.5], rtol=1e-5)
    np.testing.assert_array_equal(found.score, found.scores[:, 0])


@pytest.fixture(scope="module")
def bank():
    """Twenty train and forty val images of noise, features beside them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 16, 16, 1), dtype=np.uint8)
    features, logits, labels = gaussian_classes(3, [30, 30], 12)
    order = rng.permutation(60)
    features, labels = features[order], labels[order]
    train, val = slice(0, 20), slice(20, 60)
    config = MemorizationConfig(candidates=4)
    held = memorization.fit(
        config, images[train], features[train], np.arange(20, dtype=np.int32), images[val],
        features[val], labels[val], 2, 20.0, AugmentConfig(),
    )  # fmt: skip
    return held, images, features, logits, labels


def test_a_copy_is_stopped_unless_it_was_made_from_that_image(bank):
    held, images, features, logits, labels = bank
    copies = MemorizationConfig(candidates=4, similarity="ms_ssim")
    gates = calibrated(gaussian_classes(0, [60, 60], 12), bank=held, scores=(), memorization=copies)
    told = features, logits, labels, images  # twenty of train, forty of val
    found = verdict(gates, *told)
    assert not found.accepted[:20].any() and found.accepted[20:].mean() > 0.9
    assert found.passed[:, :2].all()
    assert found.nearest[:20].tolist() == list(range(20))
    np.testing.assert_allclose(found.ms_ssim[:20], 1.0, atol=1e-5)
    own = verdict(gates, *told, own_groups=np.arange(60, dtype=np.int32))
    assert own.accepted[:20].mean() > 0.7
    assert (own.nearest[:20] != np.arange(20)).all()
    np.testing.assert_array_equal(own.accepted[20:], found.accepted[20:])
    assert verdict(gates.replace(bank=None), *told).accepted.all()


def test_judge_compiles_with_gates_as_an_argument(bank):
    held, images, features, logits, labels = bank
    told = [jnp.asarray(array[:8]) for array in (features, logits, labels)]
    compiled = jax.jit(lambda *arguments: select.judge(*arguments))  # with a cache of its own
    for seed in (0, 1):
        gates = calibrated(gaussian_classes(seed, [60, 12], 12), seed=seed, bank=held)
        arguments = gates, jnp.asarray(images[:8]), evidence(*told), jnp.full(8, -1)
        together, eager = compiled(*arguments), select.judge(*arguments)
        np.testing.assert_array_equal(together.passed, eager.passed)
        np.testing.assert_allclose(together.score, eager.score, rtol=1e-5)
    assert compiled._cache_size() == 1


def test_several_scores_pass_at_the_asked_rate_too():
    train = gaussian_classes(0, [300, 200, 60], 8)
    gates = calibrated(train, scores=("mahalanobis", "knn", "residual"), keep_rate=0.9)
    found = verdict(gates, *gaussian_classes(1, [1000] * 3, 8))
    assert found.scores.shape == (3000, 3)
    assert ((found.score >= 0) & (found.score <= 1)).all()
    assert np.all(np.abs(found.accepted.reshape(3, 1000).mean(axis=1) - 0.9) < 0.08)


def test_without_a_score_every_image_passes_whatever_there_is_to_calibrate_on():
    gates = calibrated(gaussian_classes(0, [1, 1, 1], 4), scores=())
    assert verdict(gates, *gaussian_classes(1, [5, 5, 5], 4)).accepted.all()


def test_classes_that_cannot_be_calibrated():
    with pytest.raises(ValueError, match="no class has two train images"):
        calibrated(gaussian_classes(0, [1, 1, 1], 4))
    features, _, labels = gaussian_classes(0, [9, 9, 9], 4)
    with pytest.raises(ValueError, match="no train image of class 3"):
        calibrated((features, np.zeros((27, 4), np.float32), labels))
