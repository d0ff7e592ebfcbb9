"""How varied images of a class are: the mean MS-SSIM of pairs, and its interval.

  d = mean of MS-SSIM(x_i, x_j) over pairs i < j of different groups                       (1)

of images of one class (Odena, Olah and Shlens 2017, arXiv:1610.09585, section 4.2): 1 where all are
the same picture, lower the more varied. A generator whose classes have collapsed is above the real
images of its class. MS-SSIM is that of `lt_jax.selection.similarity`, of gray pictures as they are:
not aligned, since a pair is not asked whether it is a copy. What a generator has learned of its
augmentation (shifts, above all) counts as variety here, and train images are shown without it.

Pairs share images, so that they are no sample of independent numbers: the interval comes from a
bootstrap of groups, in which group g drawn w_g times weighs its pairs by w_g (an image is not
paired with its own copies, nor with others of its group):

  d* = sum_{g != h} w_g w_h S_gh / sum_{g != h} w_g w_h N_gh                               (2)

with S_gh the sum and N_gh the number of pairs between groups. Of many images a random subset is
compared, with all of its pairs.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lt_jax.evaluate.statistics import intervals
from lt_jax.runtime import faults

CHUNK = 256  # resamples at a time


def largest(pairs: int) -> int:
    """How many images have at most `pairs` pairs; two at least."""
    return max(2, int((1 + math.sqrt(1 + 8 * pairs)) / 2))


def subset(n: int, pairs: int, rng: np.random.Generator) -> Int[np.ndarray, "m"]:
    """Sorted places of as many of n images as have at most `pairs` pairs (two at least)."""
    return np.sort(rng.permutation(n)[: largest(pairs)])


def summarise(
    likeness: Float[np.ndarray, "n n"],
    groups: Int[np.ndarray, "n"],
    resamples: int,
    seed: int,
) -> tuple[dict[str, Any] | None, Float[np.ndarray, "r"] | None]:
    """Equation (1), and the draws of (2).

    Args:
      likeness: MS-SSIM of each pair, symmetric; the diagonal is not read.
      groups: of each image.
      resamples: of the groups.
      seed: of the bootstrap.

    Returns:
      {"mean", "ci95" (percentile; None where resamples of few groups often leave no pair), "n":
      images, "groups", "pairs"} and the draws, NaN where no pair is left; None and None without a
      pair of different groups.
    """
    codes = np.unique(groups, return_inverse=True)[1].reshape(-1)
    g = int(codes.max(initial=-1)) + 1
    if g < 2:
        return None, None
    one = np.zeros((g, len(codes)))
    one[codes, np.arange(len(codes))] = 1.0
    sums, counts = one @ likeness @ one.T, np.outer(one.sum(axis=1), one.sum(axis=1))
    np.fill_diagonal(sums, 0.0)
    np.fill_diagonal(counts, 0.0)
    rng = np.random.default_rng(seed)
    draws = []
    for start in range(0, resamples, CHUNK):
        faults.check("audit diversity")
        size = min(CHUNK, resamples - start)
        weights = rng.multinomial(g, np.full(g, 1 / g), size=size).astype(float)
        top, bottom = (np.einsum("rg,gh,rh->r", weights, m, weights) for m in (sums, counts))
        draws.append(np.divide(top, bottom, out=np.full(size, np.nan), where=bottom > 0))
    drawn = np.concatenate(draws)
    entry = {
        "mean": float(sums.sum() / counts.sum()),
        "ci95": intervals.percentile_interval(drawn),
        "n": len(codes),
        "groups": g,
        "pairs": int(counts.sum() / 2),
    }
    return entry, drawn


def compared(
    synthetic: tuple[dict[str, Any] | None, Float[np.ndarray, "r"] | None],
    real: tuple[dict[str, Any] | None, Float[np.ndarray, "r"] | None],
) -> dict[str, Any]:
    """Both sides, and synthetic minus real with its interval: above 0, it is the less varied.

    Returns:
      {"synthetic", "real": entries of `summarise` or None, "difference", "ci95", "reasons": {what
      is None: why}}.
    """
    entry: dict[str, Any] = {"synthetic": synthetic[0], "real": real[0], "reasons": {}}
    for name, side in (("synthetic", synthetic), ("real", real)):
        if side[0] is None:
            entry["reasons"][name] = "fewer than two groups, which have no pair"
    entry |= {"difference": None, "ci95": None}
    if synthetic[0] and real[0] and synthetic[1] is not None and real[1] is not None:
        entry["difference"] = synthetic[0]["mean"] - real[0]["mean"]
        entry["ci95"] = intervals.percentile_interval(synthetic[1] - real[1])
    else:
        entry["reasons"]["difference"] = "takes both sides"
    return entry
