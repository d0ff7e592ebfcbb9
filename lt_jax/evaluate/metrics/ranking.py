"""One-vs-rest ranking figures (AUROC, AP, sensitivity at a specificity) of many reweighted copies.

For one run and one class, let u_1 > ... > u_t be the distinct scores of the class's own images.
With weights w over images, write
  P_i  the weight of positives at u_i,              T_i = sum_{j <= i} P_j,
  A_i  the weight of negatives at or above u_i,
  E_i  the weight of negatives equal to u_i,
and P, N for the total weight of positives and negatives. Then
  AUROC = 1 - sum_i P_i (A_i - E_i / 2) / (P N)                 (Mann-Whitney, ties count half)  (1)
  AP    = sum_i (P_i / P) T_i / (T_i + A_i)                                                      (2)
  sensitivity at specificity s = sum_i (P_i / P) [A_i <= (1 - s) N]                              (3)
(1) and (2) are scikit-learn's `roc_auc_score` and `average_precision_score`, ties included; (3) is
the largest true positive rate among the points of `roc_curve` (none in between) whose false
positive rate is at most 1 - s. Images tied at a threshold fall on its positive side together, so a
tie can cost sensitivity; where even u_1 lets too many negatives pass, it is 0: the threshold above
all scores, whose specificity is 1.

P, A and E are linear in w, so one sparse matrix turns weights of any number of resamples into these
without a sort per resample. Thresholds stand in blocks of LENGTH, the i-th of every block side by
side (`[LENGTH, blocks, r]`), so that a cumulative sum is a few long additions: NumPy's own walks
the rows of a column with a stride, 5 times slower here.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from lt_jax.evaluate.metrics.buffers import Buffers, take

LENGTH = 16
# Of all negatives' weight, by which (3) may be missed: float32 sums of weights are not exact.
TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class RankRows:
    """The linear part: `matrix @ weights` holds P_i, A_i - A_{i-1} and E_i of every class.

    matrix: [rows, g]: LENGTH * blocks rows of P, as many of the steps of A, and as many of E unless
      no negative is tied with a positive.
    starts: [k + 1], class c owns blocks starts[c]:starts[c + 1], one at least.
    """

    matrix: scipy.sparse.csr_matrix
    starts: Int[np.ndarray, "k_plus_1"]


def rank_rows(
    scores: Float[np.ndarray, "n k"],
    labels: Int[np.ndarray, "n"],
    groups: Int[np.ndarray, "n"],
    n_groups: int,
) -> RankRows:
    """Sorts one run once. `groups` gives the column of the weights that each image shares."""
    k = scores.shape[1]
    ascending = [np.unique(scores[labels == c, c]) for c in range(k)]
    needed = [max(1, -(-len(u) // LENGTH)) for u in ascending]
    starts = np.concatenate([[0], np.cumsum(needed)])
    size = LENGTH * int(starts[-1])
    rows, columns = [], []
    for c, thresholds in enumerate(ascending):
        score, positive = scores[:, c], labels == c
        nearest = np.searchsorted(thresholds, score, side="right") - 1  # the largest u <= score
        passing = nearest >= 0
        tied = np.zeros(len(score), bool)
        tied[passing] = thresholds[nearest[passing]] == score[passing]
        i = len(thresholds) - 1 - nearest
        row = i % LENGTH * starts[-1] + starts[c] + i // LENGTH
        for kind, who in ((0, positive), (1, ~positive & passing), (2, ~positive & tied)):
            rows.append(row[who] + kind * size)
            columns.append(groups[who])
    row, column = np.concatenate(rows), np.concatenate(columns)
    kinds = 3 if (row >= 2 * size).any() else 2
    ones = np.ones(len(row), np.float32)
    matrix = scipy.sparse.csr_matrix((ones, (row, column)), shape=(kinds * size, n_groups))
    return RankRows(matrix, starts)


@dataclasses.dataclass(frozen=True)
class Ranks:
    """P, T, A and E (None without ties) by position in the block, block and resample."""

    at: Float[np.ndarray, "l b r"]
    above: Float[np.ndarray, "l b r"]
    passed: Float[np.ndarray, "l b r"]
    tied: Float[np.ndarray, "l b r"] | None

    def taken_from(self, total: "Ranks", buffers: Buffers | None = None) -> "Ranks":
        """total - self: all of it is linear in the weights."""
        less = lambda name, x, y: np.subtract(x, y, out=take(buffers, f"less {name}", y))
        tied = None
        if self.tied is not None and total.tied is not None:
            tied = less("tied", total.tied, self.tied)
        return Ranks(
            less("at", total.at, self.at),
            less("above", total.above, self.above),
            less("passed", total.passed, self.passed),
            tied,
        )


def accumulate(
    sums: Float[np.ndarray, "rows r"],
    starts: Int[np.ndarray, "k_plus_1"],
    buffers: Buffers | None = None,
) -> Ranks:
    """Turns `RankRows.matrix @ weights` into P, T, A and E; overwrites it."""
    blocks, r = int(starts[-1]), sums.shape[1]
    kinds = sums.reshape(-1, LENGTH, blocks, r)
    above = take(buffers, "above", kinds[0])
    above[:] = kinds[0]
    for steps in (above, kinds[1]):
        cumulate(steps, starts)
    return Ranks(kinds[0], above, kinds[1], kinds[2] if len(kinds) > 2 else None)


def cumulate(x: Float[np.ndarray, "l b r"], starts: Int[np.ndarray, "k_plus_1"]) -> None:
    """Cumulative sum over each class's thresholds, in place."""
    for i in range(1, len(x)):
        x[i] += x[i - 1]
    # In float64: a small class's sums must not carry the rounding of all classes before it.
    before = np.cumsum(x[-1], axis=0, dtype=np.float64)
    before -= x[-1]
    before -= np.repeat(before[starts[:-1]], np.diff(starts), axis=0)
    x += before.astype(x.dtype)[None]


def areas(
    ranks: Ranks,
    starts: Int[np.ndarray, "k_plus_1"],
    support: Float[np.ndarray, "k r"],
    specificity: float,
    buffers: Buffers | None = None,
) -> tuple[Float[np.ndarray, "k r"], Float[np.ndarray, "k r"], Float[np.ndarray, "k r"]]:
    """AUROC, average precision and sensitivity at `specificity` of every class, (1) to (3).

    Args:
      ranks: from `accumulate`.
      starts: `RankRows.starts`.
      support: weight of each class's images.
      specificity: in [0, 1].
      buffers: to work in.

    Returns:
      [k, r] each, NaN where a class has no weight (AUROC and sensitivity: or has all of it).
    """
    negatives = support.sum(axis=0)[None] - support
    per_class = lambda x: np.add.reduceat(x.astype(np.float64), starts[:-1], axis=0)
    product = lambda x, y: np.einsum("lbr,lbr->br", x, y)
    buffer = np.add(ranks.above, ranks.passed, out=take(buffers, "areas", ranks.at))
    # Nothing is retrieved only where no positive has weight, and there precision counts nothing;
    # eps, as dividing by less could overflow to inf * 0.
    np.maximum(buffer, np.finfo(buffer.dtype).eps, out=buffer)
    np.divide(ranks.above, buffer, out=buffer)
    precision = per_class(product(ranks.at, buffer))
    pairs = product(ranks.at, ranks.passed)
    if ranks.tied is not None:
        pairs = pairs - 0.5 * product(ranks.at, ranks.tied)
    limit = ((1 - specificity + TOLERANCE) * negatives).astype(buffer.dtype)
    np.less_equal(ranks.passed, np.repeat(limit, np.diff(starts), axis=0)[None], out=buffer)
    sensitive = per_class(product(ranks.at, buffer))
    both = (support > 0) & (negatives > 0)
    return (
        1 - _ratio(per_class(pairs), support * negatives, both),
        _ratio(precision, support, support > 0),
        _ratio(sensitive, support, both),
    )


def _ratio(top: np.ndarray, bottom: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=where)


def per_class(
    probabilities: Float[np.ndarray, "*m n k"],
    labels: Int[np.ndarray, "n"],
    specificity: float,
) -> Sequence[Float[np.ndarray, "*m k"]]:
    """AUROC, average precision and sensitivity of every class of every run, all images alike."""
    k = probabilities.shape[-1]
    support = np.bincount(labels, minlength=k).astype(np.float64)[:, None]
    shared = np.zeros(len(labels), int)  # one column: all images weigh one
    found = []
    for scores in probabilities.reshape(-1, *probabilities.shape[-2:]):
        rows = rank_rows(scores, labels, shared, 1)
        ranks = accumulate(rows.matrix @ np.ones((1, 1)), rows.starts)
        found.append([x[:, 0] for x in areas(ranks, rows.starts, support, specificity)])
    return [np.reshape([run[i] for run in found], (*probabilities.shape[:-2], k)) for i in range(3)]
