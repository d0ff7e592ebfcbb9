"""Maps: UMAP's weights and gradients as defined, groups kept apart, one seed one map."""

import numpy as np
import pytest
from scipy.optimize import check_grad

from lt_jax.errors import UserError
from lt_jax.evaluate.images import maps, umap


def clouds(n=40, groups=3, d=6, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(groups), n)
    return rng.normal(size=(n * groups, d)) + 12.0 * np.eye(groups, d)[labels], labels


def test_the_curve_is_that_of_umap_learn():
    # umap-learn's find_ab_params(1.0, 0.1), printed in its documentation.
    np.testing.assert_allclose(umap.curve(0.1), (1.57694, 0.89506), atol=1e-4)


def test_memberships_sum_to_log2_k_and_the_nearest_has_one():
    distances = np.sort(np.random.default_rng(0).random((20, 8)) + 0.1, axis=1)
    weights = umap.memberships(distances)
    np.testing.assert_allclose(weights.sum(axis=1), np.log2(8), rtol=1e-4)
    np.testing.assert_allclose(weights[:, 0], 1.0)
    assert (np.diff(weights, axis=1) <= 0).all()
    np.testing.assert_allclose(umap.memberships(1e4 * distances), weights, rtol=1e-4)


def test_points_that_are_equal_have_weights_too():
    weights = umap.memberships(np.zeros((3, 4)))
    np.testing.assert_allclose(weights, 1.0)
    placed = umap.embed(np.repeat(np.eye(3), 10, axis=0), 5, epochs=20)
    assert np.isfinite(placed).all()


def test_the_union_is_symmetric_and_of_probabilities():
    features, _ = clouds()
    k = 6
    graph = umap.graph(features, k).toarray()
    np.testing.assert_allclose(graph, graph.T)
    assert (np.diag(graph) == 0).all() and graph.max() <= 1 + 1e-12
    squares = ((features[:, None] - features[None]) ** 2).sum(axis=-1)
    np.fill_diagonal(squares, np.inf)
    nearest = np.argsort(squares, axis=1)[:, :k]
    rows = np.arange(len(features))[:, None]
    directed = np.zeros_like(graph)
    directed[rows, nearest] = umap.memberships(np.sqrt(squares[rows, nearest]))
    np.testing.assert_allclose(graph, directed + directed.T - directed * directed.T, atol=1e-9)


def test_forces_are_the_gradients_of_the_cross_entropy():
    a, b = umap.curve()
    w = lambda y: 1 / (1 + a * (y @ y) ** b)
    for y in ([0.3, -0.4], [2.0, 1.0], [-5.0, 0.1]):
        y = np.array(y)
        assert check_grad(lambda y: np.log(w(y)), umap.attraction, y) < 1e-5
        # Kept finite near 0, so that it is a little less than the gradient.
        ratio = 1e-3 / (y @ y)
        exact = umap.repulsion(y) * (1 + ratio)
        assert check_grad(lambda y: np.log(1 - w(y)), lambda _, e=exact: e, y) < 1e-5


def test_groups_stay_together_and_one_seed_is_one_map():
    features, labels = clouds()
    placed = umap.embed(features, 10, seed=3, epochs=100)
    np.testing.assert_array_equal(placed, umap.embed(features, 10, seed=3, epochs=100))
    assert not np.array_equal(placed, umap.embed(features, 10, seed=4, epochs=100))
    apart = ((placed[:, None] - placed[None]) ** 2).sum(axis=-1)
    np.fill_diagonal(apart, np.inf)
    assert (labels[apart.argmin(axis=1)] == labels).all()


@pytest.mark.parametrize("k", [1, 10])
def test_more_neighbours_than_points_are_refused(k):
    with pytest.raises(ValueError, match="10 points"):
        umap.graph(np.random.default_rng(0).normal(size=(10, 2)), k)


def test_maps_hold_their_trustworthiness_and_repeat_themselves():
    features, labels = clouds(20)
    n = len(labels)
    given = (features, labels, np.arange(n) % 3, tuple(map(str, range(n))), {"train": 99}, 5)
    found, again = maps.compute(*given), maps.compute(*given)
    assert set(found.maps) == {"tsne", "umap"}
    for name, held in found.maps.items():
        assert held.places.shape == (n, 2) and held.k == 15
        assert 0.8 < held.trustworthiness <= 1
        np.testing.assert_array_equal(held.places, again.maps[name].places)
    told = maps.summary(found)
    assert told["n"] == n and told["points"] == {"train": 20, "val": 20, "synthetic": 20}
    assert told["available"] == {"train": 99}
    assert maps.summary(None) is None


def test_few_points_have_no_map_and_features_that_are_none_are_refused():
    few = maps.LEAST - 1
    kinds, names = np.array([0, 0, 1, 1, 1, 2, 2]), tuple("abcdefg")
    given = (np.zeros(few, int), kinds, names, {}, 0)
    assert maps.compute(np.zeros((few, 3)), *given) is None
    features = np.zeros((few, 3))
    features[[3, 5, 6], 1] = np.nan
    told = r"features of 3 of 7 images are not finite \(1 val, 2 synthetic; the first: 'd'\)"
    with pytest.raises(UserError, match=told):
        maps.compute(features, *given)


def test_a_subset_keeps_rare_classes_and_kinds_whole():
    labels = np.repeat([0, 1, 2, 0], [500, 40, 3, 200])
    kinds = np.repeat([0, 0, 0, 2], [500, 40, 3, 200])
    chosen = maps.subset(labels, kinds, 0, most=143)
    assert len(chosen) <= 143 and (np.diff(chosen) > 0).all()
    count = lambda kind, label: int(((kinds[chosen] == kind) & (labels[chosen] == label)).sum())
    assert (count(0, 2), count(0, 1)) == (3, 40) and count(0, 0) == count(2, 0) == 50
    np.testing.assert_array_equal(chosen, maps.subset(labels, kinds, 0, most=143))
    np.testing.assert_array_equal(maps.subset(labels, kinds, 0, most=9999), np.arange(743))


def test_distances_survive_the_principal_components():
    features, _ = clouds(d=6)
    reduced = maps.principal(features, 50)
    distance = lambda x: np.linalg.norm(x[:, None] - x[None], axis=-1)
    np.testing.assert_allclose(distance(reduced), distance(features), atol=1e-9)
    assert maps.principal(features, 2).shape[1] == 2
