"""Group level: means over a group's images, and groups that have no one label."""

import numpy as np
import pytest

from lt_jax.errors import UserError
from lt_jax.evaluate.metrics import grouping
from lt_jax.evaluate.metrics.grouping import Truth

CLASS_GROUPS = {"head": [0], "medium": [], "tail": [1]}


def truth_of(labels, names):
    return Truth(np.array(labels), grouping.group_codes(names), CLASS_GROUPS, 2)


def test_group_means_are_means_over_a_groups_images():
    rng = np.random.default_rng(0)
    groups = np.array([2, 0, 1, 0, 2, 2])
    p = rng.dirichlet([1, 1, 1], size=(4, 6))
    got = grouping.group_means(p, groups)
    assert got.shape == (4, 3, 3)
    for g in range(3):
        np.testing.assert_allclose(got[:, g], p[:, groups == g].mean(axis=1))
    np.testing.assert_allclose(got[1], grouping.group_means(p[1], groups))


def test_groups_of_one_label_are_a_test_set_of_their_own():
    names = ["b", "a", "b", "c", "c", "d"]
    truth = truth_of([1, 0, 1, 0, 1, 1], names)
    assert truth.has_clusters
    level = grouping.by_group(truth)
    np.testing.assert_array_equal(level.rows, [0, 1, 3])  # a, b, d; c has two labels
    np.testing.assert_array_equal(level.truth.labels, [0, 1, 1])
    assert level.left_out == (2,) and not level.truth.has_clusters


def test_a_group_with_two_labels_is_an_error_that_names_it():
    names = ["b", "a", "b", "c", "c", "e", "e"]
    truth = truth_of([1, 0, 1, 0, 1, 1, 0], names)
    with pytest.raises(UserError, match=r"'c': its 2 images have the labels \[0, 1\].*1 further"):
        grouping.by_group(truth, "error", names)
    assert grouping.by_group(truth_of([1, 0, 1], ["b", "a", "b"]), "error").left_out == ()


def test_no_group_with_one_label_is_no_level():
    assert grouping.by_group(truth_of([0, 1, 1, 0], ["a", "a", "b", "b"])) is None
