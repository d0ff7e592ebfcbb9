"""Every metric of a run as a function of sums over images that are linear in the groups' weights.

Hits and predictions per class, calibration gaps per bin, squared errors, nats and ranking rows are
such sums, so a run is sorted once into one sparse matrix [rows, g], and any number of resamples is
one product with weights [g, r]. A run's arithmetic depends on its own predictions and weights.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from lt_jax.evaluate.metrics import classification, ranking
from lt_jax.evaluate.metrics.buffers import Buffers
from lt_jax.evaluate.metrics.grouping import Truth

# Resamples a product: [rows, 128] float32 stays near a core's cache. Fixed, since draws follow it.
CHUNK = 128


def chunks(total: int) -> Iterator[slice]:
    """Slices of CHUNK, the last one shorter."""
    for start in range(0, total, CHUNK):
        yield slice(start, min(start + CHUNK, total))


@dataclasses.dataclass(frozen=True)
class Sums:
    """The weighted sums of r copies: counts [rows, r] (hits, predictions, labels of each class,
    gaps of each bin, squared error, nats) and what ranking takes."""

    counts: Float[np.ndarray, "rows r"]
    ranks: ranking.Ranks

    def taken_from(self, total: "Sums", buffers: Buffers | None = None) -> "Sums":
        """total - self, of copies whose weights add up to those of `total`."""
        return Sums(total.counts - self.counts, self.ranks.taken_from(total.ranks, buffers))


@dataclasses.dataclass(frozen=True)
class RunSums:
    """A run as a linear map from group weights to its sums.

    matrix: [rows, g] in float32: k hits, k predictions, k labels, then the ranking rows. real:
    [bins + 2, g] in float64, since sums of thousands of fractions would show float32's rounding:
    gaps, the squared error, the nats. starts: blocks of thresholds per class, see
    `ranking.RankRows`. counted: 3 k.
    """

    matrix: scipy.sparse.csr_matrix
    real: scipy.sparse.csr_matrix
    starts: Int[np.ndarray, "k_plus_1"]
    counted: int

    def at(self, weights: Float[np.ndarray, "g r"], buffers: Buffers | None = None) -> Sums:
        """The sums of every column of weights."""
        sums = self.matrix @ weights
        ranks = ranking.accumulate(sums[self.counted :], self.starts, buffers)
        return Sums(np.concatenate([sums[: self.counted], self.real @ weights]), ranks)


def run_sums(
    probabilities: Float[np.ndarray, "n k"],
    labels: Int[np.ndarray, "n"],
    groups: Int[np.ndarray, "n"],
    n_groups: int,
    bins: int,
    scores: Float[np.ndarray, "n k"] | None = None,
) -> RunSums:
    """Sorts one run's predictions into its linear map.

    Ranking figures are of `scores`, where they are given, in place of the probabilities.
    """
    k = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    bin_of, gap = classification.confidence_gaps(probabilities, labels, bins)
    error, nats = (
        classification.brier_per_image(probabilities, labels),
        classification.nats(probabilities, labels),
    )
    ones, last = np.ones(len(labels)), np.full(len(labels), bins)

    def rows(data: list[np.ndarray], row: list[np.ndarray], height: int) -> scipy.sparse.csr_matrix:
        at = (np.concatenate(row), np.tile(groups, len(row)))
        return scipy.sparse.csr_matrix((np.concatenate(data), at), shape=(height, n_groups))

    counted = rows(
        [predicted == labels, ones, ones], [labels, k + predicted, 2 * k + labels], 3 * k
    )
    real = rows([gap, error, nats], [bin_of, last, last + 1], bins + 2)
    scores = probabilities if scores is None else scores
    ranked = ranking.rank_rows(scores, labels, groups, n_groups)
    matrix = scipy.sparse.vstack([counted, ranked.matrix], dtype=np.float32)
    return RunSums(scipy.sparse.csr_matrix(matrix), real, ranked.starts, 3 * k)


def parts_of(
    sums: Sums,
    starts: Int[np.ndarray, "k_plus_1"],
    truth: Truth,
    buffers: Buffers | None = None,
) -> classification.Parts:
    """The parts of all metrics of every column: [r, k] per class, [r] otherwise."""
    k, bins = truth.k, truth.bins
    counts = sums.counts.astype(np.float64)
    hits, predicted, labelled = (counts[i * k : (i + 1) * k].T for i in range(3))
    total = labelled.sum(axis=1)
    ranked = ranking.areas(sums.ranks, starts, labelled.T, truth.specificity, buffers)
    auroc, auprc, sensitivity = (found.T for found in ranked)
    return classification.Parts(
        classification.Counts(hits, predicted, labelled),
        auroc,
        auprc,
        sensitivity,
        np.abs(counts[3 * k : 3 * k + bins]).sum(axis=0) / total,
        counts[3 * k + bins] / total,
        counts[3 * k + bins + 1] / total,
    )


def metric_rows(found: classification.Parts, truth: Truth) -> Float[np.ndarray, "q r"]:
    """Every metric, in the order of `classification.METRICS`."""
    values = classification.from_parts(found, truth.class_groups)
    return np.stack([values[name] for name in classification.METRICS])


def all_rows(found: classification.Parts, truth: Truth) -> Float[np.ndarray, "Q r"]:
    """`metric_rows`, then every class of every quantity of `classification.PER_CLASS`."""
    by_class = classification.per_class(found)
    rows = [by_class[name].T for name in classification.PER_CLASS]
    return np.concatenate([metric_rows(found, truth), *rows])


Rows = Callable[[classification.Parts, Truth], Float[np.ndarray, "q r"]]
