"""Adjusted p-values against worked examples, the procedures themselves and statsmodels."""

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from lt_jax.evaluate.statistics import multiplicity


def test_holm_against_a_worked_example():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04 -> running maximum.
    np.testing.assert_allclose(
        multiplicity.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02]
    )
    np.testing.assert_allclose(multiplicity.holm([0.6, 0.7]), [1.0, 1.0])
    assert multiplicity.holm([]) == []


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.uniform(size=6) ** 3
        rejected = np.zeros(6, bool)
        for i, index in enumerate(np.argsort(p)):
            if p[index] > 0.05 / (6 - i):
                break
            rejected[index] = True
        np.testing.assert_array_equal(np.array(multiplicity.holm(list(p))) <= 0.05, rejected)


def test_benjamini_hochberg_against_the_worked_example_of_its_paper():
    # Benjamini and Hochberg (1995), section 3.2: 15 endpoints of a trial of thrombolysis; at 0.05
    # the procedure rejects the four smallest, Bonferroni's and Holm's the three smallest.
    p = [
        *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459),
        *(0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0),
    ]
    assert np.sum(np.array(multiplicity.benjamini_hochberg(p)) <= 0.05) == 4
    assert np.sum(np.array(multiplicity.holm(p)) <= 0.05) == 3


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(multiplicity.holm, "holm"), (multiplicity.benjamini_hochberg, "fdr_bh")],
)
def test_adjusted_p_equal_statsmodels(ours, theirs):
    rng = np.random.default_rng(0)
    for m in (1, 2, 9, 40):
        p = np.round(rng.uniform(size=m) ** 2, 2)  # with ties and zeros
        np.testing.assert_allclose(ours(list(p)), multipletests(p, method=theirs)[1], atol=1e-15)
    assert ours([]) == []


def test_what_has_no_p_is_no_member_of_the_family():
    adjusted = multiplicity.adjust({"a": 0.01, "b": None, "c": 0.04})
    assert adjusted == {"a": (0.02, 0.02), "b": (None, None), "c": (0.04, 0.04)}
