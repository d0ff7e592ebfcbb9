"""Thresholds from scores of real images that the scorer has not seen.

Train rows are dealt into folds, each fold is scored by a fit to the others (cross-fitting), and the
threshold of class k is the score below which a share `keep_rate` of its held-out images lies:

  own_k = the ceil((m_k + 1) keep_rate)-th lowest of the m_k held-out scores, or the highest  (1)
  c_k = m_k / (m_k + pooling)                                                             (2)
  threshold_k = c_k own_k + (1 - c_k) pooled                                              (3)

(1) is the conformal quantile (Vovk et al. 2005, Algorithmic Learning in a Random World), by which a
fresh image of the class is accepted with probability at least keep_rate, as far as m_k can tell.
(2) is Buhlmann's credibility (1967, ASTIN Bulletin 4, 199-207). `pooled` is the keep_rate quantile
of all held-out scores, in which class k weighs c_k in sum: classes with many images weigh alike,
however many, and a class of two hardly counts. pooling = 0 leaves each class its own threshold; a
large pooling gives all of them the quantile of all images.

A class of one image cannot be held out: the image stays in every fit, and the class's threshold is
`pooled`. Nothing here takes more than arrays of scores, so nothing can be calibrated on other
images by mistake of type.
"""

from collections.abc import Callable

import numpy as np

from lt_jax.errors import UserError
from lt_jax.shapes import Bool, Float, Int


class CalibrationError(UserError, ValueError):
    """Too few images to calibrate on."""


def stratified_folds(labels: Int[np.ndarray, "n"], folds: int, seed: int) -> Int[np.ndarray, "n"]:
    """The fold of each row; -1 for the only image of a class, which no fold holds out.

    A class's rows, shuffled, are dealt to the folds in turn, and the next class goes on where it
    ended, so that folds differ by one row at most, in each class and in sum.
    """
    generator = np.random.default_rng(seed)
    fold = np.full(len(labels), -1)
    dealt = 0
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        if len(rows) > 1:
            fold[rows] = (dealt + np.arange(len(rows))) % folds
            dealt += len(rows)
    return fold


def held_out_scores(
    score: Callable[[Bool[np.ndarray, "n"], Bool[np.ndarray, "n"]], np.ndarray],
    labels: Int[np.ndarray, "n"],
    folds: int,
    seed: int,
) -> Float[np.ndarray, "n ..."]:
    """Each image's score by a fit without its fold; NaN for the only image of a class.

    Args:
      score: (rows to fit, rows to score) -> scores [h] or [h m] of the latter, in order.
      labels: from 0.
    """
    fold = stratified_folds(labels, folds, seed)
    scores: np.ndarray | None = None
    for held_out in (fold == number for number in range(folds)):
        if not held_out.any():
            continue
        found = np.asarray(score(~held_out, held_out))
        if scores is None:
            scores = np.full((len(labels), *found.shape[1:]), np.nan, np.float32)
        scores[held_out] = found
    return np.full(len(labels), np.nan, np.float32) if scores is None else scores


def thresholds(
    scores: Float[np.ndarray, "n"],
    labels: Int[np.ndarray, "n"],
    num_classes: int,
    keep_rate: float,
    pooling: float,
) -> Float[np.ndarray, "k"]:
    """Equations (1)-(3) from held-out scores, in which NaN stands for "not held out".

    Raises:
      CalibrationError: no image was held out.
    """
    known = ~np.isnan(scores)
    scores, labels = scores[known].astype(np.float64), labels[known]
    if not len(scores):
        raise CalibrationError(
            "selection: no class has two train images, so none can be held out to calibrate a "
            "threshold; lower imbalance_factor, train on more images, or calibrate on other ones "
            "(config.synthesize.selection.held_out=policy_val)"
        )
    counts = np.bincount(labels, minlength=num_classes)
    weight = credibility(counts, pooling)
    pooled = np.quantile(
        scores,
        keep_rate,
        method="inverted_cdf",
        weights=(weight / np.maximum(counts, 1))[labels],
    )
    own = np.full(num_classes, pooled)
    for label in np.flatnonzero(counts):
        rank = int(np.ceil((counts[label] + 1) * keep_rate - 1e-9))  # 1e-9: 10 * 0.9 is 9
        own[label] = np.sort(scores[labels == label])[min(max(rank, 1), counts[label]) - 1]
    return weight * own + (1 - weight) * pooled


def credibility(counts: Int[np.ndarray, "k"], pooling: float) -> Float[np.ndarray, "k"]:
    """Equation (2); 0 for a class without images, whatever the pooling."""
    return np.where(counts > 0, counts / np.maximum(counts + pooling, 1), 0.0)
