"""The linear head: scikit-learn's minimiser, less the prior; folded, it says the same."""

import jax
import numpy as np
import pytest

from lt_jax.classify import probe

COUNTS = np.array([60, 25, 9, 5])


@pytest.fixture(scope="module")
def data():
    """Features of very different scales, one of them dead, of four classes."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), COUNTS)
    centres = rng.normal(size=(4, 12))
    features = centres[labels] + rng.normal(size=(len(labels), 12))
    features = features * np.geomspace(0.1, 30, 12) + rng.normal(size=12) * 5
    features[:, 4] = 2.5
    return features.astype(np.float32), labels


@pytest.fixture(scope="module")
def head(data):
    return probe.fit(*data, 4, 300)


def centred(logits):
    """Logits as far as a softmax can tell."""
    logits = np.asarray(logits, np.float64)
    return logits - logits.mean(axis=1, keepdims=True)


def standard(features):
    scale = probe.standardisation(features)
    return (features - scale.mean) * scale.inverse


def test_it_is_logistic_regression_less_the_log_prior(data, head):
    from sklearn.linear_model import LogisticRegression

    features, labels = data
    x = standard(features)
    reference = LogisticRegression(C=1.0, tol=1e-9, max_iter=5000).fit(x, labels)
    expected = x @ reference.coef_.T + reference.intercept_ - np.log(COUNTS)
    found = features @ head.kernel + head.bias
    np.testing.assert_allclose(centred(found), centred(expected), atol=5e-3)
    assert np.abs(centred(expected)).max() > 3


def test_it_is_the_minimiser_of_the_balanced_objective(data, head):
    features, labels = data
    x, kernel = standard(features), np.float64(head.kernel)
    z = features.astype(np.float64) @ kernel + head.bias + np.log(COUNTS)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    errors = p / p.sum(axis=1, keepdims=True) - np.eye(4)[labels]
    scale = probe.standardisation(features)
    alive = scale.inverse > 0
    unfolded = np.zeros_like(kernel)
    unfolded[alive] = kernel[alive] / scale.inverse[alive, None]
    np.testing.assert_allclose(x.T @ errors + unfolded, 0, atol=1e-3)
    np.testing.assert_allclose(errors.sum(axis=0), 0, atol=1e-3)


def test_the_folded_head_says_what_the_unfolded_says(data):
    features, _ = data
    scale = probe.standardisation(features)
    rng = np.random.default_rng(1)
    unfolded = probe.Head(rng.normal(size=(12, 4)), rng.normal(size=4))
    folded = probe.fold(unfolded, scale)
    expected = standard(features) @ unfolded.kernel + unfolded.bias
    np.testing.assert_allclose(features @ folded.kernel + folded.bias, expected, atol=2e-4)
    assert folded.kernel.dtype == folded.bias.dtype == np.float32


def test_a_feature_that_does_not_vary_has_no_weight(data, head):
    features, labels = data
    assert not head.kernel[4].any() and head.kernel[[3, 5]].all()
    rng = np.random.default_rng(2)
    noisy = features.copy()
    noisy[:, 4] += 1e-6 * rng.normal(size=len(noisy)).astype(np.float32)  # of rounding's size
    np.testing.assert_allclose(probe.fit(noisy, labels, 4, 300).kernel[4], 0)
    constant = np.full((len(labels), 3), 7.0, np.float32)
    logits = constant[:1] @ (alone := probe.fit(constant, labels, 4, 50)).kernel + alone.bias
    np.testing.assert_allclose(centred(logits), 0, atol=1e-3)  # the prior is left out


def test_units_of_features_do_not_matter(data, head):
    features, labels = data
    factors, offsets = np.float32([4.0, 0.25] * 6), np.float32([1.0, -3.0] * 6)
    other = probe.fit(features * factors + offsets, labels, 4, 300)
    logits = (features * factors + offsets) @ other.kernel + other.bias
    np.testing.assert_allclose(
        centred(logits), centred(features @ head.kernel + head.bias), atol=2e-2
    )


def test_nothing_is_drawn_and_the_order_of_images_does_not_matter(data, head):
    features, labels = data
    again = probe.fit(features, labels, 4, 300)
    np.testing.assert_array_equal(again.kernel, head.kernel)
    np.testing.assert_array_equal(again.bias, head.bias)
    order = np.random.default_rng(3).permutation(len(labels))
    other = probe.fit(features[order], labels[order], 4, 300)
    logits = [features @ one.kernel + one.bias for one in (head, other)]
    np.testing.assert_allclose(centred(logits[0]), centred(logits[1]), atol=2e-2)


def test_more_steps_come_nearer(data, head):
    features, _ = data
    best = centred(features @ head.kernel + head.bias)
    errors = []
    for steps in (1, 5, 20):
        early = probe.fit(*data, 4, steps)
        errors.append(np.abs(centred(features @ early.kernel + early.bias) - best).max())
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0


def test_a_rare_class_is_found_that_the_prior_would_drown():
    """Two Gaussians one deviation apart, 400 images against 5: halves are theirs by right."""
    rng = np.random.default_rng(4)
    labels = np.repeat([0, 1], [400, 5])
    direction = np.array([1.0, 0.0, 0.0])
    features = rng.normal(size=(405, 3)) + np.outer(2.0 * labels, direction)
    head = probe.fit(features.astype(np.float32), labels, 2, 300)
    fresh = rng.normal(size=(2000, 3)) + np.outer(np.repeat([0, 2.0], 1000), direction)
    logits = fresh.astype(np.float32) @ head.kernel + head.bias
    recall = lambda z: (z[1000:].argmax(axis=1) == 1).mean()
    assert recall(logits) > 0.6
    assert recall(logits + np.log([400, 5])) < 0.3


def test_the_head_takes_its_place(data, head):
    own = {"kernel": np.zeros((12, 4)), "bias": np.zeros(4)}
    params = {"head": own, "norm": {"scale": np.ones(1)}}
    new = probe.attach(params, head)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    np.testing.assert_array_equal(new["head"]["kernel"], head.kernel)
    assert not params["head"]["kernel"].any() and new["norm"] is params["norm"]
    wider = {"head": {"kernel": np.zeros((13, 4)), "bias": np.zeros(4)}}
    with pytest.raises(ValueError, match=r"a head of \(12, 4\) for a network of \(13, 4\)"):
        probe.attach(wider, head)


def test_what_cannot_be_fitted_is_refused(data):
    features, labels = data
    with pytest.raises(probe.ProbeError, match=r"no train image of class 4 .*lower imbalance"):
        probe.fit(features, labels, 5, 10)
    broken = features.copy()
    broken[3, 2] = np.nan
    with pytest.raises(probe.ProbeError, match="not finite; the extractor diverged"):
        probe.fit(broken, labels, 4, 10)
