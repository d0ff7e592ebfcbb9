"""What every score holds to: one protocol, few images, what is refused; names of the config."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import SelectionConfig
from lt_jax.selection import ood
from lt_jax.selection.gaussian import Mahalanobis
from lt_jax.selection.neighbors import KNearest
from lt_jax.selection.standardize import PRIOR_FREEDOM, moments, standardize
from lt_jax.selection.subspace import ViM
from tests.selection.gaussians import gaussian_classes, per_class

NAMES = (
    "mahalanobis",
    "mahalanobis_per_class",
    "relative_mahalanobis",
    "knn",
    "residual",
    "vim",
    "energy",
    "max_softmax",
    "max_logit",
    "denoising",
)


def scorers(num_classes):
    ensemble = ood.make(SelectionConfig(scores=NAMES), num_classes)
    return dict(ensemble.members)


def evidence(seed, counts, dimension=6):
    """Gaussian features, logits a linear function of them, and errors that are positive."""
    features, _, labels = gaussian_classes(seed, counts, dimension)
    head = np.random.default_rng(7).normal(size=(dimension, len(counts)))
    errors = np.exp(0.3 * np.random.default_rng(seed).normal(size=(len(labels), 2)))
    logits = (features @ head).astype(np.float32)
    return ood.Evidence(features, logits, labels, errors.astype(np.float32))


def fit(scorer, known):
    return scorer.fit(getattr(known, scorer.reads), known.logits, known.labels)


def score(scorer, state, known):
    known = jax.tree.map(jnp.asarray, known)
    return scorer.score(state, getattr(known, scorer.reads), known.logits, known.labels)


def test_make_follows_the_config():
    made = ood.make(SelectionConfig(), 7)
    assert made.members == (("mahalanobis", Mahalanobis(7)),)
    config = SelectionConfig(
        scores=("vim", "knn", "vim"), neighbors=3, explained=0.5, folds=4, pooling=2.0
    )
    made = ood.make(config, 7)
    assert made.members == (("vim", ViM(7, 0.5)), ("knn", KNearest(7, 3)))
    assert (made.num_classes, made.folds, made.pooling) == (7, 4, 2.0)
    assert made == ood.make(config, 7) and hash(made) == hash(ood.make(config, 7))
    choices = SelectionConfig.__dataclass_fields__["scores"].metadata["choices"]
    assert tuple(scorers(2)) == NAMES == choices


@pytest.mark.parametrize("name", NAMES)
def test_states_are_float32_pytrees_that_score_row_by_row_under_jit(name):
    scorer = scorers(3)[name]
    assert isinstance(scorer, ood.Scorer)
    state = fit(scorer, evidence(0, [30, 9, 5]))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} <= {"float32", "int32"}
    fresh = evidence(1, [3, 2, 2])
    compiled = jax.jit(functools.partial(score, scorer))
    whole = compiled(state, fresh)
    assert (whole.shape, whole.dtype) == ((7,), jnp.float32)
    turned = compiled(state, jax.tree.map(lambda leaf: leaf[::-1].copy(), fresh))
    np.testing.assert_allclose(turned[::-1], whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("counts", [[40, 1], [3, 2], [1, 1]])
def test_few_images_identical_ones_and_dead_features_give_finite_scores(name, counts):
    """More dimensions than images too."""
    scorer = scorers(2)[name]
    fresh = evidence(1, [4, 4], 12)
    for kind in ("plain", "dead", "identical"):
        known = evidence(0, counts, 12)
        if kind == "dead":
            known.features[:, 5] = 7.0
            known.errors[:, 1] = 0.0
        if kind == "identical":
            for leaf in (known.features, known.logits, known.errors):
                leaf[:] = leaf[:1]
        scores = score(scorer, fit(scorer, known), fresh)
        assert np.all(np.isfinite(scores)), kind


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_fitted_is_refused(name):
    known = evidence(0, [10, 5])
    with pytest.raises(ood.FitError, match="no train image of class 2"):
        fit(scorers(3)[name], known)
    with pytest.raises(ood.FitError, match=r"labels lie in \[0, 1\]; 1 classes"):
        fit(scorers(1)[name], known)
    for leaf in (known.features, known.logits, known.errors):
        leaf[12, 1] = np.nan
    with pytest.raises(ood.FitError, match=r"1 train images are not finite \(first: row 12\)"):
        fit(scorers(2)[name], known)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_a_number_scores_none(name):
    scorer = scorers(2)[name]
    state = fit(scorer, evidence(0, [10, 5]))
    fresh = jax.tree.map(lambda leaf: leaf.copy(), evidence(1, [2, 2]))
    for leaf in (fresh.features, fresh.logits, fresh.errors):
        leaf[1] = np.nan
    np.testing.assert_array_equal(np.isnan(score(scorer, state, fresh)), [0, 1, 0, 0])


@pytest.mark.parametrize("between", [0.0, 0.3, 5.0])
def test_standardised_scores_of_new_images_mean_the_same_in_classes_of_any_size(between):
    """Where classes do not differ, differ little, and differ by more than their images."""
    counts = np.asarray([300, 60, 3, 1, 2, 5, 30, 1])

    def standardised(seed):
        rng = np.random.default_rng(seed)
        means = between * rng.normal(size=8)
        labels = np.repeat(np.arange(8), counts)
        state = moments(means[labels] + rng.normal(size=len(labels)), labels, 8)
        fresh = jnp.asarray(np.repeat(means, 5) + rng.normal(size=40), jnp.float32)
        return np.asarray(standardize(state, fresh, jnp.repeat(jnp.arange(8), 5)))

    means, variances = per_class(standardised, 8, 5, 300)
    np.testing.assert_allclose(means, np.zeros(8), atol=0.15)
    np.testing.assert_allclose(variances, np.ones(8), rtol=0.3)


def test_moments_lie_between_the_class_s_own_and_the_common_ones():
    labels = np.repeat([0, 1], [200, 4])
    rng = np.random.default_rng(0)
    scores = rng.normal(size=204)
    scores[:200] -= scores[:200].mean()
    # Classes that differ by less than chance: one mean. By much: their own, of four images too.
    scores[200:] += 0.1 - scores[200:].mean()
    near = moments(scores, labels, 2)
    np.testing.assert_allclose(near.means, [scores.mean()] * 2, atol=1e-6)
    scores[200:] += 50
    far = moments(scores, labels, 2)
    np.testing.assert_allclose(far.means, [0.0, 50.1], atol=0.02)
    within = (np.square(scores[:200]).sum() + np.square(scores[200:] - 50.1).sum()) / 202
    own = (np.square(scores[200:] - 50.1).sum() + PRIOR_FREEDOM * within) / (3 + PRIOR_FREEDOM)
    np.testing.assert_allclose(far.scales[1], np.sqrt(own + within / 4), rtol=1e-3)


def test_moments_of_what_never_varies_and_of_one_image_a_class_have_a_scale():
    labels = np.asarray([0, 0, 1, 2])
    still = moments(np.full(4, 3.0), labels, 3)
    np.testing.assert_array_equal(still.means, np.full(3, 3.0))
    np.testing.assert_array_equal(still.scales, np.ones(3))
    scores = np.asarray([1.0, 2.0, 6.0])
    single = moments(scores, np.arange(3), 3)
    np.testing.assert_allclose(single.means, np.full(3, 3.0))
    np.testing.assert_allclose(single.scales, np.full(3, scores.std()), rtol=1e-6)
