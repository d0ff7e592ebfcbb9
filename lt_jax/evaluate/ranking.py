"""One-vs-rest ranking areas (AUROC, average precision) as functions of weighted sums.

For one run and one class, let u_1 < ... < u_t be the distinct scores of the class's own images.
With weights w over images, write
  P_i  the weight of positives at u_i,
  B_i  the weight of negatives strictly below u_i,
  E_i  the weight of negatives equal to u_i,
and P, N for the total weight of positives and negatives. Then
  AUROC = sum_i P_i (B_i + E_i / 2) / (P N)                       (Mann-Whitney, ties count half)
  AP    = sum_i (P_i / P) T_i / (T_i + N - B_i),  T_i = sum_{j >= i} P_j
which is scikit-learn's `roc_auc_score` and `average_precision_score`, ties included. P, B and E are
linear in w, so one sparse matrix turns weights of any number of resamples into areas without a
sort per resample.
"""

import dataclasses
import itertools

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class RankRows:
    """The linear part: `matrix @ weights` holds P_i, the steps of B_i and E_i of every class.

    matrix: [rows, g], t thresholds over all classes: t rows of P, t of B_i - B_{i-1}, and t of E
      unless no negative is tied with a positive.
    starts: [k + 1], class c owns thresholds starts[c]:starts[c + 1], by ascending score.
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
    starts, kinds, rows, columns = [0], [], [], []
    for c in range(scores.shape[1]):
        score, positive = scores[:, c], labels == c
        thresholds = np.unique(score[positive])
        at = np.searchsorted(thresholds, score)
        inside = at < len(thresholds)
        tied = np.zeros(len(score), bool)
        tied[inside] = thresholds[at[inside]] == score[inside]
        # A negative tied with u_i is strictly below u_{i+1} and above: it enters B one step later.
        step = np.where(tied, at + 1, at)
        below = ~positive & (step < len(thresholds))
        for kind, who, row in ((0, positive, at), (1, below, step), (2, ~positive & tied, at)):
            kinds.append(np.full(who.sum(), kind))
            rows.append(row[who] + starts[-1])
            columns.append(groups[who])
        starts.append(starts[-1] + len(thresholds))
    t = starts[-1]
    row = np.concatenate(kinds) * t + np.concatenate(rows)
    column = np.concatenate(columns)
    blocks = 3 if (row >= 2 * t).any() else 2
    matrix = scipy.sparse.csr_matrix(
        (np.ones(len(row), np.float32), (row, column)), shape=(blocks * t, n_groups)
    )
    return RankRows(matrix, np.asarray(starts))


def areas(
    sums: Float[np.ndarray, "rows r"],
    starts: Int[np.ndarray, "k_plus_1"],
    support: Float[np.ndarray, "k r"],
) -> tuple[Float[np.ndarray, "k r"], Float[np.ndarray, "k r"]]:
    """AUROC and average precision of every class.

    Args:
      sums: `RankRows.matrix @ weights`, [2 t or 3 t, r].
      starts: `RankRows.starts`.
      support: weight of each class's images.

    Returns:
      auroc, auprc: [k, r], NaN where a class has no weight (AUROC: or has all of it).
    """
    t, total = starts[-1], support.sum(axis=0)
    auroc, auprc = np.full(support.shape, np.nan), np.full(support.shape, np.nan)
    floor = np.finfo(sums.dtype).eps
    for c, (start, stop) in enumerate(itertools.pairwise(starts)):
        if start == stop:
            continue
        at = sums[start:stop]
        below = cumulative(sums[t + start : t + stop])
        positives, negatives = support[c], total - support[c]
        above = cumulative(at)  # in place from here: these arrays are most of a bootstrap's time
        np.subtract(positives.astype(at.dtype)[None], above, out=above)
        above += at
        retrieved = above - below
        retrieved += negatives.astype(at.dtype)[None]
        # Nothing (but a rounding error) is retrieved only where no positive has weight, and there
        # precision counts nothing; eps, as dividing by less could overflow to inf * 0.
        np.maximum(retrieved, floor, out=retrieved)
        precision = np.divide(above, retrieved, out=retrieved)
        pairs = np.einsum("tr,tr->r", at, below)
        if len(sums) > 2 * t:
            pairs += 0.5 * np.einsum("tr,tr->r", at, sums[2 * t + start : 2 * t + stop])
        defined = positives > 0
        np.divide(np.einsum("tr,tr->r", at, precision), positives, out=auprc[c], where=defined)
        np.divide(pairs, positives * negatives, out=auroc[c], where=defined & (negatives > 0))
    return auroc, auprc


def cumulative(x: Float[np.ndarray, "t r"]) -> Float[np.ndarray, "t r"]:
    """Cumulative sum over rows, like `np.cumsum(x, axis=0)`.

    NumPy walks the rows of a column with a stride, which is 5 times slower here than products of
    16 rows with a triangle of ones, offset by the blocks' running totals.
    """
    t, block = len(x), 16
    whole = t - t % block
    if whole < 4 * block:
        return np.cumsum(x, axis=0)
    out = np.empty_like(x)
    blocks = out[:whole].reshape(-1, block, x.shape[1])
    np.matmul(np.tri(block, dtype=x.dtype), x[:whole].reshape(blocks.shape), out=blocks)
    blocks[1:] += np.cumsum(blocks[:-1, -1], axis=0)[:, None]
    if whole < t:
        out[whole:] = out[whole - 1] + np.cumsum(x[whole:], axis=0)
    return out
