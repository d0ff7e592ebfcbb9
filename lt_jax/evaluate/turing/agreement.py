"""Agreement between readers, beyond what their habits would give by chance.

Cohen's kappa of two readers (Cohen, 1960) is (p_o - p_e) / (1 - p_e), with p_o the share of images
on which they agree and p_e the sum over categories of the product of their own shares. Fleiss' of m
readers (Fleiss, 1971) has as p_o the mean over images of the share of agreeing pairs,

    P_i = (sum_j n_ij^2 - m) / (m (m - 1)),    p_e = sum_j p_j^2,

n_ij being the readers who put image i in category j and p_j the share of all answers in j.

Both take weights, a column a resample, so that a bootstrap over images is a few products. Where
p_e is 1, everybody having put everything in one category, kappa is undefined: NaN.
"""

import numpy as np
from jaxtyping import Float, Int


def cohen(
    first: Int[np.ndarray, "n"], second: Int[np.ndarray, "n"], weights: Float[np.ndarray, "n r"]
) -> Float[np.ndarray, "r"]:
    """Cohen's kappa of two readers' categories (from 0), a value a column of image weights."""
    categories = np.arange(max(first.max(), second.max()) + 1)
    total = _total(weights)
    observed = (first == second) @ weights / total
    shares = [(one[None, :] == categories[:, None]) @ weights / total for one in (first, second)]
    return _kappa(observed, (shares[0] * shares[1]).sum(axis=0))


def fleiss(
    counts: Int[np.ndarray, "n q"], weights: Float[np.ndarray, "n r"]
) -> Float[np.ndarray, "r"]:
    """Fleiss' kappa, a value a column of image weights.

    Args:
      counts: readers who put each image in each of q categories; the same number for all images.
      weights: of the images.

    Raises:
      ValueError: fewer than two readers, or numbers of readers that differ.
    """
    readers = counts.sum(axis=1)
    m = int(readers[0])
    if m < 2 or (readers != m).any():
        raise ValueError(f"readers an image: {sorted(set(readers.tolist()))}; takes two or more")
    agreeing = ((counts**2).sum(axis=1) - m) / (m * (m - 1))
    total = _total(weights)
    shares = counts.T @ weights / (m * total)
    return _kappa(agreeing @ weights / total, (shares**2).sum(axis=0))


def _total(weights: Float[np.ndarray, "n r"]) -> Float[np.ndarray, "r"]:
    """Their sums; NaN for a resample without any of these images."""
    total = weights.sum(axis=0)
    return np.where(total > 0, total, np.nan)


def _kappa(
    observed: Float[np.ndarray, "r"], expected: Float[np.ndarray, "r"]
) -> Float[np.ndarray, "r"]:
    chance = 1 - expected
    defined = chance > 1e-12
    return np.where(defined, (observed - expected) / np.where(defined, chance, 1), np.nan)
