"""ROC curves of scores, and the true positive rate at a low false positive rate.

What counts of a membership attack is whom it is sure of (Carlini et al. 2022, arXiv:2112.03570):

  TPR = max over thresholds c with #{negatives above c} <= fpr n of #{positives above c} / m   (1)

Scores of different folds come from different models (`cross_fitting`): each fold then has its own
threshold, n and m, and TPR is the mean over the folds. So is the curve, at each false positive rate
(vertical averaging: Fawcett 2006, Pattern Recognit Lett 27:861, section 8.2), so that the area
below it is the mean of the folds' areas. A fold of one kind compares nothing and is left out.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from lt_jax.evaluate.images.cross_fitting import comparable
from lt_jax.evaluate.statistics import intervals

FPR = 0.01
POINTS = 200  # of a curve, at most


def tpr_at(
    scores: Float[np.ndarray, "n"],
    positive: Bool[np.ndarray, "n"],
    groups: Int[np.ndarray, "n"],
    fold: Int[np.ndarray, "n"] | None = None,
    fpr: float = FPR,
) -> dict[str, Any]:
    """Equation (1): the highest true positive rate at a false positive rate of at most `fpr`.

    Args:
      scores: higher for positives; images tied at a threshold are above it together.
      positive: which images are.
      groups: codes, for the interval.
      fold: of each image, where scores of different folds are of different models.
      fpr: in [0, 1).

    Returns:
      {"fpr": asked, "tpr", "ci95": Wilson's, by the effective number of groups, the thresholds
      taken as given, "n", "n_negative": images, "resolved": whether one negative (of the fold with
      the fewest) is no more than `fpr` of them, "reason": None, or why not: then it is the rate at
      which none is passed}.
    """
    compared = comparable(positive, fold)
    hits, rates, fewest = np.zeros(len(scores)), [], len(scores)
    for own in compared:
        negatives = np.sort(scores[own][~positive[own]])[::-1]
        allowed = int(np.floor(fpr * len(negatives) + 1e-9))
        # Above the first negative that may not pass; a positive tied with it would pass with it.
        hits[own] = scores[own] > negatives[allowed]
        rates.append(hits[own][positive[own]].mean())
        fewest = min(fewest, len(negatives))
    among = np.concatenate([own[positive[own]] for own in compared])
    tpr = float(np.mean(rates))
    resolved = bool(fpr * fewest + 1e-9 >= 1)
    of = "non-members" if fold is None else "non-members in a fold"
    return {
        "fpr": fpr,
        "tpr": tpr,
        "ci95": intervals.wilson(tpr, intervals.effective_number(hits[among], groups[among])),
        "n": len(among),
        "n_negative": sum(int((~positive[own]).sum()) for own in compared),
        "resolved": resolved,
        "reason": None if resolved else f"{fewest} {of} do not resolve {fpr:.0%}: none passes",
    }


def curve(
    scores: Float[np.ndarray, "n"],
    positive: Bool[np.ndarray, "n"],
    fold: Int[np.ndarray, "n"] | None = None,
) -> dict[str, list[float]]:
    """False and true positive rates "fpr" and "tpr" from (0, 0) to (1, 1), at most POINTS of them;
    of folds their mean curve."""
    from sklearn.metrics import roc_curve

    curves = [roc_curve(positive[own], scores[own])[:2] for own in comparable(positive, fold)]
    false, true = curves[0] if len(curves) == 1 else _mean(curves)
    kept = np.unique(np.linspace(0, len(false) - 1, POINTS).round().astype(int))
    return {"fpr": false[kept].tolist(), "tpr": true[kept].tolist()}


def _mean(
    curves: list[tuple[Float[np.ndarray, "_"], Float[np.ndarray, "_"]]],
) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"]]:
    """Two points wherever a curve bends or rises: below and at the top of its steps."""
    at = np.unique(np.concatenate([false for false, _ in curves]))
    sides = np.mean([_sides(false, true, at) for false, true in curves], axis=0)
    return np.repeat(at, 2), sides.reshape(-1)


def _sides(
    false: Float[np.ndarray, "c"], true: Float[np.ndarray, "c"], at: Float[np.ndarray, "p"]
) -> Float[np.ndarray, "p 2"]:
    """True positive rates of a curve just before and just behind places in [0, 1]."""
    x, first = np.unique(false, return_index=True)
    last = np.append(first[1:], len(false)) - 1
    i = np.searchsorted(x, at, side="right") - 1  # the point at or before a place
    j = np.searchsorted(x, at, side="left")  # at or behind it
    share = (at - x[i]) / np.where(i == j, 1.0, x[j] - x[i])
    behind = true[last[i]] + share * (true[first[j]] - true[last[i]])
    return np.stack([np.where(i == j, true[first[i]], behind), behind], axis=1)
