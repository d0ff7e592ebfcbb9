"""Diversity: identical images are at 1, pairs of one patient count nothing, direct resampling."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.auditing.pool import pairwise
from lt_jax.evaluate.images import diversity
from lt_jax.runtime import mesh
from lt_jax.selection import similarity


def images(seed, n, side=12):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 1)).astype(np.uint8)


def random_likeness(seed, n):
    x = np.random.default_rng(seed).random((n, n))
    return (x + x.T) / 2


def test_identical_images_are_at_one_and_varied_ones_below():
    same = np.repeat(images(0, 1), 5, axis=0)
    entry, draws = diversity.summarise(pairwise(same, 8, mesh.make_mesh(2)), np.arange(5), 200, 0)
    assert entry["mean"] == pytest.approx(1, abs=1e-5) and entry["pairs"] == 10
    np.testing.assert_allclose(draws[~np.isnan(draws)], 1, atol=1e-5)
    varied, _ = diversity.summarise(
        pairwise(images(1, 5), 8, mesh.make_mesh(2)), np.arange(5), 200, 0
    )
    assert varied["mean"] < 0.5
    compared = diversity.compared((entry, draws), (varied, _))
    assert compared["difference"] > 0.5 and compared["ci95"][0] > 0.3


def test_pairs_have_the_similarity_of_the_two():
    x = images(2, 6)
    found = pairwise(x, 6, mesh.make_mesh(1))
    planes = jnp.swapaxes(jnp.asarray(x[..., 0], jnp.float32), 0, 1)
    for i, j in itertools.combinations(range(6), 2):
        told = [similarity.describe(planes[:, k : k + 1]) for k in (i, j)]
        np.testing.assert_allclose(found[i, j], similarity.compare(*told)[0], atol=1e-5)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(pairwise(x[:4], 6, mesh.make_mesh(8)), found[:4, :4], atol=1e-6)


def test_mean_and_draws_are_those_of_loops_over_groups():
    likeness, groups = random_likeness(3, 9), np.array([0, 0, 1, 2, 2, 2, 3, 4, 5])
    entry, draws = diversity.summarise(likeness, groups, 300, 7)
    pairs = [(i, j) for i, j in itertools.combinations(range(9), 2) if groups[i] != groups[j]]
    assert entry["mean"] == pytest.approx(np.mean([likeness[pair] for pair in pairs]))
    assert entry["pairs"] == len(pairs) and entry["groups"] == 6
    rng = np.random.default_rng(7)
    weights = rng.multinomial(6, np.full(6, 1 / 6), size=diversity.CHUNK)
    for r in (0, 5):
        top = sum(weights[r][groups[i]] * weights[r][groups[j]] * likeness[i, j] for i, j in pairs)
        bottom = sum(weights[r][groups[i]] * weights[r][groups[j]] for i, j in pairs)
        assert draws[r] == pytest.approx(top / bottom)


def test_the_interval_covers_the_mean_of_the_population():
    """Images are points; pairs of near ones are alike."""
    truth = 2 / np.e  # the mean of exp(-|x - y|) over the unit square
    covered = 0
    for seed in range(200):
        x = np.random.default_rng((5, seed)).random(40)
        likeness = np.exp(-np.abs(x[:, None] - x[None]))
        entry, _ = diversity.summarise(likeness, np.arange(40), 400, seed)
        covered += entry["ci95"][0] <= truth <= entry["ci95"][1]
    # 95% of 200, within two and a half standard deviations.
    assert 182 <= covered <= 198


def test_classes_without_a_pair_have_reasons():
    none = diversity.summarise(np.ones((0, 0)), np.zeros(0, int), 100, 0)
    alone = diversity.summarise(np.ones((3, 3)), np.zeros(3, int), 100, 0)  # of one patient
    assert none == alone == (None, None)
    found = diversity.compared(
        none, diversity.summarise(random_likeness(0, 4), np.arange(4), 100, 0)
    )
    assert found["synthetic"] is None and found["difference"] is None
    assert set(found["reasons"]) == {"synthetic", "difference"}


def test_subsets_have_no_more_pairs_than_asked():
    for pairs in (1, 2, 3, 10, 2000):
        n = len(diversity.subset(10_000, pairs, np.random.default_rng(0)))
        assert n == diversity.largest(pairs)
        assert n * (n - 1) / 2 <= pairs < (n + 1) * n / 2
