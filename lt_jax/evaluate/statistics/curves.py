"""ROC and precision-recall curves of one class against the rest: means over runs, with bands.

With weights w of the images, thresholds falling and images of equal score passing together,

  ROC at false positive rate x   the true positive rate, linear between thresholds          (1)
  PR at recall x                 the precision at the first threshold that reaches x        (2)

(1) is vertical averaging (Fawcett, Pattern Recognition Letters 2006, section 8); between points of
(2) nothing is interpolated, which would flatter (Davis and Goadrich, ICML 2006). The curve of an
arm is the mean over its runs at each x. Bands are pointwise 95% percentile intervals of that mean
under the two-way bootstrap of groups and runs by which the report's other intervals are made
(`statistics`): at any one x the curve lies in it with that confidence, not everywhere at once.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int

from lt_jax.evaluate.metrics.grouping import Truth, group_classes
from lt_jax.evaluate.statistics import resampling
from lt_jax.evaluate.statistics.arms import ArmPredictions

POINTS = 101
RESAMPLES = 300  # of a band at most: its ends are drawn, not printed
TAIL = 0.025
EDGE = 1e-9  # by which a sum of weights may miss the recall or rate that it is


@dataclasses.dataclass(frozen=True)
class Curve:
    """y over x [p] of an arm and class, with its band; `runs` is y of each run."""

    x: Float[np.ndarray, "p"]
    y: Float[np.ndarray, "p"]
    low: Float[np.ndarray, "p"]
    high: Float[np.ndarray, "p"]
    runs: Float[np.ndarray, "m p"]


@dataclasses.dataclass(frozen=True)
class Curves:
    """Both curves of an arm and class."""

    roc: Curve
    pr: Curve


def of_class(
    arms: Sequence[ArmPredictions], label: int, truth: Truth, resamples: int, seed: int
) -> dict[str, Curves] | None:
    """The curves of each arm, by name, on the same resampled test sets.

    Args:
      arms: predictions.
      label: index of the class.
      truth: labels and groups.
      resamples: of the bands; no more than RESAMPLES are drawn.
      seed: of the draws.

    Returns:
      None where the class has no image in test, or all of them.
    """
    positive = truth.labels == label
    if positive.all() or not positive.any():
        return None
    r = min(resamples, RESAMPLES)
    generator = np.random.default_rng([seed, 3])
    drawn = resampling.group_weights(generator, group_classes(truth), r)[truth.groups]
    # The first column is the test set itself.
    weights = np.concatenate([np.ones((len(positive), 1)), drawn], axis=1)
    # A class that occurs only in groups of rarer classes may be missing from a copy.
    both = [weights[who].sum(axis=0) > 0 for who in (positive, ~positive)]
    weights = weights[:, np.logical_and(*both)]
    work = lambda arm: _arm(arm, label, positive, weights, seed)
    found = resampling.side_by_side(work, arms)
    return {arm.name: curves for arm, curves in zip(arms, found, strict=True)}


def _arm(
    arm: ArmPredictions,
    label: int,
    positive: Bool[np.ndarray, "n"],
    weights: Float[np.ndarray, "n r"],
    seed: int,
) -> Curves:
    both = [rates(run[:, label], positive, weights) for run in arm.probabilities]
    of_runs = resampling.seed_weights(arm.seeds, weights.shape[1] - 1, seed)
    roc, pr = (_banded(np.stack([run[i] for run in both]), of_runs) for i in range(2))
    return Curves(roc, pr)


def _banded(values: Float[np.ndarray, "m p r"], of_runs: Float[np.ndarray, "m d"]) -> Curve:
    """The first column is the estimate, the others are drawn, each with its weights of runs."""
    runs = values[..., 0]
    drawn = np.einsum("mpd,md->pd", values[..., 1:], of_runs)
    low, high = np.quantile(drawn, [TAIL, 1 - TAIL], axis=1)
    return Curve(grid(), runs.mean(axis=0), low, high, runs)


def grid() -> Float[np.ndarray, "p"]:
    """Where curves are evaluated: POINTS evenly in [0, 1]."""
    return np.linspace(0.0, 1.0, POINTS)


def rates(
    scores: Float[np.ndarray, "n"],
    positive: Bool[np.ndarray, "n"],
    weights: Float[np.ndarray, "n r"],
) -> tuple[Float[np.ndarray, "p r"], Float[np.ndarray, "p r"]]:
    """Equations (1) and (2) on `grid()` of one run, under every column of weights.

    Args:
      scores: higher for positives.
      positive: which images are.
      weights: of the images; every column has weight on both kinds.
    """
    up, down, tied = _passing(scores, positive, weights)
    negatives = weights[~positive].sum(axis=0)
    x = np.broadcast_to(grid()[:, None], (POINTS, weights.shape[1]))
    return _linear(up / up[-1], down / negatives, tied / negatives, x), _precision(up, down)


def true_positive_rate(
    scores: Float[np.ndarray, "n"],
    positive: Bool[np.ndarray, "n"],
    weights: Float[np.ndarray, "n r"],
    at: Float[np.ndarray, "r"],
) -> Float[np.ndarray, "r"]:
    """Equation (1) of one run, of every column of weights at a false positive rate of its own.

    A rate that misses a point of the curve by no more than EDGE is that point's.
    """
    up, down, tied = _passing(scores, positive, weights)
    negatives = weights[~positive].sum(axis=0)
    return _linear(up / up[-1], down / negatives, tied / negatives, at[None] + EDGE)[0]


def _passing(
    scores: Float[np.ndarray, "n"],
    positive: Bool[np.ndarray, "n"],
    weights: Float[np.ndarray, "n r"],
) -> tuple[Float[np.ndarray, "t r"], Float[np.ndarray, "t r"], Float[np.ndarray, "t r"]]:
    """Weight of positives and of negatives that pass each threshold, and of negatives tied there.

    Only at the distinct scores of positives, falling, does either curve rise: between them the ROC
    curve is level, and at one that negatives share it climbs while these pass.
    """
    rising = np.unique(scores[positive])
    row = len(rising) - np.searchsorted(rising, scores, side="right")  # the largest not above
    passing = row < len(rising)
    tied = passing & (rising[::-1][np.minimum(row, len(rising) - 1)] == scores)

    def sums(who: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "t r"]:
        ones = np.ones(int(who.sum()))
        shape = (len(rising), len(scores))
        return scipy.sparse.csr_matrix((ones, (row[who], np.flatnonzero(who))), shape) @ weights

    up, down = (np.cumsum(sums(who), axis=0) for who in (positive, ~positive & passing))
    return up, down, sums(~positive & tied)


def _linear(
    true: Float[np.ndarray, "t r"],
    false: Float[np.ndarray, "t r"],
    tied: Float[np.ndarray, "t r"],
    x: Float[np.ndarray, "p r"],
) -> Float[np.ndarray, "p r"]:
    """The true positive rate at every x; of equal false positive rates the highest."""
    none, one = np.zeros((1, true.shape[1])), np.ones((1, true.shape[1]))
    before = np.concatenate([none, true[:-1]])
    both = lambda first, second: np.stack([first, second], axis=1).reshape(-1, true.shape[1])
    across = np.concatenate([none, both(np.maximum(false - tied, 0.0), false), one])
    up = np.concatenate([none, both(before, true), one])
    behind = _places(across, x, "right")  # the first knot beyond x
    at, after = np.maximum(behind - 1, 0), np.minimum(behind, len(across) - 1)
    take = lambda of, rows: np.take_along_axis(of, rows, axis=0)
    step, rise = (take(of, after) - take(of, at) for of in (across, up))
    gone = x - take(across, at)
    part = np.divide(gone, step, out=np.zeros_like(step), where=step > 0)
    return take(up, at) + np.clip(part, 0, 1) * rise


def _precision(
    up: Float[np.ndarray, "t r"], down: Float[np.ndarray, "t r"]
) -> Float[np.ndarray, "p r"]:
    """The precision at the first threshold that reaches each recall; at 0, that finds anything."""
    x = grid() - EDGE
    x[0] = EDGE
    x = np.broadcast_to(x[:, None], (POINTS, up.shape[1]))
    at = np.minimum(_places(up / up[-1], x, "left"), len(up) - 1)
    found = np.take_along_axis(up, at, axis=0)
    return found / (found + np.take_along_axis(down, at, axis=0))


def _places(
    rising: Float[np.ndarray, "t r"], x: Float[np.ndarray, "p r"], side: Literal["left", "right"]
) -> Int[np.ndarray, "p r"]:
    """`np.searchsorted` column by column, in [0, 1], at once: columns stand apart."""
    t, r = rising.shape
    apart = 3.0 * np.arange(r)
    flat = (rising + apart[None]).T.reshape(-1)
    return np.searchsorted(flat, x + apart[None], side=side) - t * np.arange(r)[None]
