"""Kappas equal scikit-learn's and those of published examples."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from lt_jax.evaluate.turing import agreement

# Fleiss (1971), table 1: diagnoses of 30 patients by 6 psychiatrists. Of each patient: how many
# said depression, personality disorder, schizophrenia, neurosis, other.
DIAGNOSES = """00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050
02031 00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006"""
# Fleiss, Levin and Paik (2003), section 18.1: two raters, psychotic, neurotic, organic.
PSYCHOTIC = np.array([[75, 1, 4], [5, 4, 1], [0, 0, 10]])


def test_fleiss_worked_example():
    counts = np.array([[int(c) for c in row] for row in DIAGNOSES.split()])
    assert counts.shape == (30, 5) and (counts.sum(axis=1) == 6).all()
    assert counts.sum(axis=0).tolist() == [26, 26, 30, 55, 43]
    kappa = agreement.fleiss(counts, np.ones((30, 1)))
    assert kappa == pytest.approx([0.430], abs=5e-4)


def test_cohen_worked_example():
    """Fleiss, Levin and Paik's kappa of 0.68."""
    first, second = (
        np.concatenate([np.repeat(cell[axis], PSYCHOTIC[cell]) for cell in np.ndindex(3, 3)])
        for axis in (0, 1)
    )
    kappa = agreement.cohen(first, second, np.ones((100, 1)))
    assert kappa == pytest.approx([0.68], abs=5e-3)
    assert kappa == pytest.approx([cohen_kappa_score(first, second)], abs=1e-12)


@pytest.mark.parametrize("categories", [2, 4])
def test_weights_are_repetitions(categories):
    rng = np.random.default_rng(0)
    first = rng.integers(0, categories, 40)
    second = np.where(rng.random(40) < 0.6, first, rng.integers(0, categories, 40))
    weights = rng.integers(0, 4, (40, 3)).astype(float)
    got = agreement.cohen(first, second, weights)
    counts = np.eye(categories, dtype=int)[first] + np.eye(categories, dtype=int)[second]
    joint = agreement.fleiss(counts, weights)
    for r in range(3):
        rows = np.repeat(np.arange(40), weights[:, r].astype(int))
        assert got[r] == pytest.approx(cohen_kappa_score(first[rows], second[rows]), abs=1e-12)
        repeated = agreement.fleiss(counts[rows], np.ones((len(rows), 1)))
        assert joint[r] == pytest.approx(repeated[0], abs=1e-12)


def test_who_always_agrees_has_one_and_one_category_is_undefined():
    ones, both = np.ones(6, int), np.array([0, 1, 0, 1, 1, 0])
    plain = np.ones((6, 1))
    assert agreement.cohen(both, both, plain) == pytest.approx([1.0])
    assert agreement.cohen(both, 1 - both, plain) == pytest.approx([-1.0])
    assert agreement.cohen(ones, both, plain) == pytest.approx([0.0])
    assert np.isnan(agreement.cohen(ones, ones, plain))
    assert np.isnan(agreement.fleiss(np.tile([0, 3], (6, 1)), plain))


def test_fleiss_takes_the_same_number_of_readers_for_all():
    with pytest.raises(ValueError, match="readers an image"):
        agreement.fleiss(np.array([[2, 1], [1, 1]]), np.ones((2, 1)))
    with pytest.raises(ValueError, match="two or more"):
        agreement.fleiss(np.array([[1, 0], [0, 1]]), np.ones((2, 1)))
