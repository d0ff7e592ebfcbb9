"""Ensembles: ranks of held-out images, limits of pooling, one member and none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import SelectionConfig
from lt_jax.selection import ensemble as ensembles
from lt_jax.selection import ood, select
from lt_jax.selection.ensemble import Ensemble, Ranks
from tests.selection.gaussians import gaussian_classes

THREE = ("mahalanobis", "knn", "energy")


def evidence(seed, counts, dimension=5):
    features, _, labels = gaussian_classes(seed, counts, dimension)
    head = np.random.default_rng(7).normal(size=(dimension, len(counts)))
    return ood.Evidence(features, (features @ head).astype(np.float32), labels)


def make(scores=THREE, num_classes=2, **changes):
    return ood.make(SelectionConfig(scores=scores, **changes), num_classes)


def ranks(scores, labels, num_classes, pooling, each, classes):
    """`_rank` of one member's scores `each` against held-out `scores`."""
    ensemble = Ensemble((), num_classes, pooling=pooling)
    state = ensembles._ranks(np.asarray(scores, np.float32)[:, None], np.asarray(labels), ensemble)
    assert isinstance(state, Ranks)
    asked = jnp.asarray(each, jnp.float32), jnp.asarray(classes, jnp.int32)
    return np.asarray(ensembles._rank(state, 0, *asked))


def test_ranks_are_shares_of_the_class_s_own_images_where_nothing_is_pooled():
    held = [1.0, 2.0, 2.0, 4.0, 10.0, 20.0]
    labels = [0, 0, 0, 0, 1, 1]
    asked = [0.0, 1.0, 1.5, 2.0, 5.0, 15.0, 20.0, 99.0]
    classes = [0, 0, 0, 0, 0, 1, 1, 1]
    found = ranks(held, labels, 2, 0.0, asked, classes)
    np.testing.assert_allclose(found, [0, 0.125, 0.25, 0.5, 1, 0.5, 0.75, 1], atol=1e-6)


def test_ranks_are_shares_of_all_images_by_credibility_where_all_is_pooled():
    """A class of four weighs 4/14 and one of two 2/12 beside ten images of pooling."""
    held = [1.0, 2.0, 2.0, 4.0, 10.0, 20.0, np.nan]
    labels = [0, 0, 0, 0, 1, 1, 2]
    weights = np.asarray([4 / 14, 2 / 12])
    share = weights / weights.sum()
    found = ranks(held, labels, 3, 10.0, [5.0, 15.0, 3.0], [2, 2, 2])  # a class of none held out
    np.testing.assert_allclose(found, [share[0], share @ [1, 0.5], 0.75 * share[0]], atol=1e-6)
    found = ranks(held, labels, 3, 10.0, [5.0, 3.0], [0, 1])
    own = np.asarray([1.0, 0.0])
    pooled = np.asarray([share[0], 0.75 * share[0]])
    np.testing.assert_allclose(found, weights * own + (1 - weights) * pooled, atol=1e-6)


def test_combined_is_the_mean_of_ranks_and_each_is_its_member_s_own_score():
    known, fresh = evidence(0, [40, 12]), evidence(1, [9, 9])
    made = make()
    state = made.fit(known)
    combined, each = made.score(state, fresh)
    assert made.names == THREE and each.shape == (18, 3)
    labels = jnp.asarray(fresh.labels)
    expected = [ensembles._rank(state.ranks, i, each[:, i], labels) for i in range(3)]
    np.testing.assert_allclose(combined, np.mean(expected, axis=0), atol=1e-6)
    for i, name in enumerate(THREE):
        alone = make((name,))
        one, own = alone.score(alone.fit(known), fresh)
        np.testing.assert_array_equal(one, own[:, 0])
        np.testing.assert_allclose(each[:, i], one, rtol=1e-5, atol=1e-5)


def test_members_units_do_not_matter():
    """Logits a thousand times larger are as unusual as before."""
    known, fresh = evidence(0, [40, 12]), evidence(1, [9, 9])
    larger = lambda e: e.replace(logits=1024 * e.logits)
    made = make(("mahalanobis", "max_logit"))
    plain, each = made.score(made.fit(known), fresh)
    scaled, _ = made.score(made.fit(larger(known)), larger(fresh))
    np.testing.assert_allclose(scaled, plain, atol=1e-6)
    # And as large as features, which mahalanobis measures in their own spread.
    assert np.std(each[:, 0]) > 0


def test_ranks_of_new_images_are_uniform_which_those_of_fitted_ones_are_not():
    """As many dimensions as a third of the images: scores of those in a fit are far too low."""
    made = make(("mahalanobis", "energy"), pooling=1.0)
    found, seen = [], []
    for seed in range(4):
        known = evidence(seed, [60, 12], 24)
        state = made.fit(known)
        for rows, into in ((evidence(100 + seed, [60, 60], 24), found), (known, seen)):
            _, each = made.score(state, rows)
            rank = ensembles._rank(state.ranks, 0, each[:, 0], jnp.asarray(rows.labels))
            into.append(rank[:60] if rows is known else rank)
    found = np.asarray(found).reshape(4, 2, 60)
    np.testing.assert_allclose(found.mean(axis=(0, 2)), [0.5, 0.5], atol=0.1)
    np.testing.assert_allclose((found < 0.9).mean(axis=(0, 2)), [0.9, 0.9], atol=0.1)
    assert np.mean(seen) < 0.35


def test_the_same_images_give_the_same_state():
    known, made = evidence(0, [30, 5]), make()
    first, second = made.fit(known), made.fit(jax.tree.map(jnp.asarray, known))
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("counts", [[40, 1], [2, 1], [1, 1], [3, 2]])
def test_classes_of_one_image_are_ranked_among_all(counts):
    made = make()
    state = made.fit(evidence(0, counts))
    fresh = evidence(1, [6, 6])
    combined, each = made.score(state, fresh)
    assert np.all(np.isfinite(each)) and np.all((combined >= 0) & (combined <= 1))
    far = fresh.replace(features=fresh.features + 100, logits=fresh.logits - 1000)
    assert np.all(made.score(state, far)[0] >= combined)


def test_what_is_not_a_number_has_no_rank():
    made = make()
    state = made.fit(evidence(0, [30, 5]))
    fresh = evidence(1, [2, 2])
    fresh.features[1] = np.nan
    combined, each = made.score(state, fresh)
    np.testing.assert_array_equal(np.isnan(combined), [0, 1, 0, 0])
    np.testing.assert_array_equal(np.isnan(each[1]), [1, 1, 0])


def test_no_score_lets_every_image_be_equal():
    made = make(())
    state = made.fit(evidence(0, [30, 5]))
    combined, each = made.score(state, evidence(1, [2, 2]))
    np.testing.assert_array_equal(combined, np.zeros(4))
    assert each.shape == (4, 0) and made.names == () and not jax.tree.leaves(state)


def test_score_is_one_part_of_a_program_and_batches_do_not_matter():
    made = make()
    state = made.fit(evidence(0, [30, 5]))
    fresh = evidence(1, [8, 8])
    whole, _ = jax.jit(lambda s, e: made.score(s, e))(state, fresh)
    half, _ = made.score(state, jax.tree.map(lambda leaf: leaf[8:], fresh))
    np.testing.assert_allclose(half, whole[8:], atol=1e-6)


def test_errors_that_were_not_measured_are_asked_for():
    made = make(("mahalanobis", "denoising"))
    with pytest.raises(ood.FitError, match=r"'denoising' reads 'errors', which was not measured"):
        made.fit(evidence(0, [30, 5]))
    known = evidence(0, [30, 5]).replace(errors=np.ones((35, 2), np.float32))
    state = made.fit(known)
    with pytest.raises(ood.FitError, match=r"'denoising' reads 'errors'"):
        made.score(state, evidence(1, [2, 2]))
    combined, _ = made.score(state, known)
    assert np.all(np.isfinite(combined))


@pytest.mark.parametrize("held_out", [False, True])
def test_however_many_images_are_scored_a_few_at_a_time(monkeypatch, held_out):
    """A fold was scored in one call once, and took memory as the square of the train images."""
    known, config = evidence(0, [60, 25]), SelectionConfig(scores=THREE, folds=3)
    held = evidence(1, [30, 20]) if held_out else None
    seen, scored = [], Ensemble._scores

    def watched(self, states, told):
        seen.append(len(told.labels))
        return scored(self, states, told)

    limits, widest = [], []
    for chunk in (1000, 8):
        monkeypatch.setattr(ensembles, "CHUNK", chunk)
        monkeypatch.setattr(Ensemble, "_scores", watched)
        jax.clear_caches()
        ensemble = make(THREE, folds=3)
        limits.append(select.calibrate(ensemble, known, held, config, 0)[1])
        widest.append(max(seen))
        seen.clear()
    assert widest[0] >= 29 and widest[1] == 8
    np.testing.assert_allclose(limits[0], limits[1], rtol=1e-5)


def test_scores_of_rows_are_those_of_one_call_whatever_the_batches(monkeypatch):
    told = evidence(0, [20, 7])
    score = lambda e: jnp.asarray(e.features)[:, :2] + jnp.asarray(e.labels)[:, None]
    for rows in (np.arange(27), np.asarray([5, 3]), np.arange(0)):
        for chunk, width in ((1000, 0), (1000, 50), (4, 0), (4, 50)):
            monkeypatch.setattr(ensembles, "CHUNK", chunk)
            found = ensembles.score_rows(score, told, rows, width)
            assert len(found) == len(rows)
            if len(rows):
                np.testing.assert_array_equal(found, np.asarray(score(told))[rows])
