"""The greedy choice is what its definition says, and within twice of the best there is."""

import itertools

import numpy as np
import pytest

from lt_jax.selection.diversity import farthest_point


def features(n, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def distances(x):
    unit = x.astype(float) / np.linalg.norm(x, axis=1, keepdims=True)
    return np.linalg.norm(unit[:, None] - unit[None], axis=2)


def test_each_row_is_the_farthest_from_those_before_it():
    x = features(40)
    rows = farthest_point(x, 12, 5)
    apart = distances(x)
    assert rows[0] == 5 and len(set(rows.tolist())) == 12
    for i in range(1, 12):
        nearest = apart[:, rows[:i]].min(axis=1)
        assert nearest[rows[i]] == pytest.approx(nearest.max())


@pytest.mark.parametrize("seed", range(3))
def test_within_twice_the_best_subset(seed):
    x = features(11, 2, seed)
    apart = distances(x)
    radius = lambda rows: apart[:, list(rows)].min(axis=1).max()
    best = min(radius(rows) for rows in itertools.combinations(range(11), 3))
    assert best <= radius(farthest_point(x, 3, seed)) <= 2 * best + 1e-6


def test_a_smaller_count_is_the_beginning_of_a_larger_one_and_lengths_do_not_matter():
    x = features(30)
    rows = farthest_point(x, 30, 3)
    assert sorted(rows.tolist()) == list(range(30))
    for count in (0, 1, 7):
        np.testing.assert_array_equal(farthest_point(x, count, 3), rows[:count])
    scaled = x * np.random.default_rng(1).uniform(0.5, 9, (30, 1)).astype(np.float32)
    np.testing.assert_array_equal(farthest_point(scaled, 10, 3), rows[:10])


def test_equal_images_come_last_and_ties_go_to_the_lowest_row():
    x = features(6)
    doubled = np.concatenate([x, x[::-1]])
    rows = farthest_point(doubled, 12, 0)
    assert set((rows[:6] % 12).tolist()) <= set(range(6))  # the first of two equal ones
    assert rows[6:].tolist() == [6, 7, 8, 9, 10, 11]
    cross = np.array([[1, 0], [0, 1], [0, -1], [-1, 0]], np.float32)
    assert farthest_point(cross, 4, 0).tolist() == [0, 3, 1, 2]


def test_what_cannot_be_chosen_is_refused():
    x = features(4)
    with pytest.raises(ValueError, match="count=5 of 4 images; takes 0 to 4"):
        farthest_point(x, 5, 0)
    with pytest.raises(ValueError, match="start=4; takes a row, 0 to 3"):
        farthest_point(x, 2, 4)
    x[2] = np.nan
    with pytest.raises(ValueError, match=r"1 images are not finite \(first: row 2\)"):
        farthest_point(x, 2, 0)
    assert farthest_point(np.zeros((0, 3), np.float32), 0).tolist() == []
