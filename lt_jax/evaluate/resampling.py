"""Metrics of many reweighted copies of a test set at once: group bootstrap and group permutation.

Images of one group (patient, lesion) are not independent, so groups are resampled, never images.
All metrics of a run are functions of sums over images that are linear in the groups' weights (hits
and predictions per class, calibration gaps per bin, ranking rows), so a run is sorted once into one
sparse matrix [rows, g], and a chunk of resamples is one product with weights [g, r]. Results do not
depend on the number of threads: each run's arithmetic is its own.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import scipy.sparse
from jaxtyping import Float, Float32, Int

from lt_jax.evaluate import metrics, ranking

# Resamples a product: [rows, 128] float32 stays near a core's cache. Fixed, since draws follow it.
CHUNK = 128

ClassGroups = Mapping[str, Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Truth:
    """What the test set says.

    labels: class indices [n]. groups: group codes 0..g-1 [n], see `group_codes`.
    class_groups: class indices of head, medium and tail. k: number of classes. bins: of ECE.
    """

    labels: Int[np.ndarray, "n"]
    groups: Int[np.ndarray, "n"]
    class_groups: ClassGroups
    k: int
    bins: int = 15

    @property
    def n_groups(self) -> int:
        """Groups of test images."""
        return int(self.groups.max()) + 1


def group_codes(groups: Sequence[str] | Sequence[int] | np.ndarray) -> Int[np.ndarray, "n"]:
    """Names or numbers of groups as codes 0..g-1, by sorted value."""
    return np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)


@dataclasses.dataclass(frozen=True)
class RunSums:
    """A run as a linear map from group weights to the sums its metrics are made of.

    matrix: [rows, g]: k hits, k predictions, k labels, `bins` gaps, then the ranking rows.
    starts: thresholds' offsets per class, see `ranking.RankRows`.
    """

    matrix: scipy.sparse.csr_matrix
    starts: Int[np.ndarray, "k_plus_1"]


def run_sums(
    probabilities: Float[np.ndarray, "n k"],
    labels: Int[np.ndarray, "n"],
    groups: Int[np.ndarray, "n"],
    n_groups: int,
    bins: int,
) -> RunSums:
    """Sorts one run's predictions into its linear map."""
    k = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    bin_of, gap = metrics.confidence_gaps(probabilities, labels, bins)
    ones = np.ones(len(labels))
    row = np.concatenate([labels, k + predicted, 2 * k + labels, 3 * k + bin_of])
    data = np.concatenate([predicted == labels, ones, ones, gap]).astype(np.float32)
    counted = scipy.sparse.csr_matrix(
        (data, (row, np.tile(groups, 4))), shape=(3 * k + bins, n_groups)
    )
    ranked = ranking.rank_rows(probabilities, labels, groups, n_groups)
    matrix = scipy.sparse.vstack([counted, ranked.matrix], dtype=np.float32)
    return RunSums(scipy.sparse.csr_matrix(matrix), ranked.starts)


def metrics_of_sums(
    sums: Float[np.ndarray, "rows r"], starts: Int[np.ndarray, "k_plus_1"], truth: Truth
) -> Float[np.ndarray, "q r"]:
    """Every metric, in the order of `metrics.METRICS`, of every column of weighted sums."""
    k, bins = truth.k, truth.bins
    hits, predicted, labelled = (sums[i * k : (i + 1) * k].T.astype(np.float64) for i in range(3))
    counts = metrics.Counts(hits, predicted, labelled)
    gaps = np.abs(sums[3 * k : 3 * k + bins]).sum(axis=0, dtype=np.float64)
    auroc, auprc = ranking.areas(sums[3 * k + bins :], starts, labelled.T)
    recall = metrics.recall_of(counts)
    values = {
        "accuracy": metrics.accuracy_of(counts),
        "balanced_accuracy": metrics.mean_defined(recall),
        "macro_f1": metrics.mean_defined(metrics.f1_of(counts)),
        "auroc_macro": metrics.mean_defined(auroc.T),
        "auprc_macro": metrics.mean_defined(auprc.T),
        "ece": gaps / labelled.sum(axis=1),
    }
    for name in ("head", "medium", "tail"):
        values[f"recall_{name}"] = metrics.mean_defined(recall[:, list(truth.class_groups[name])])
    return np.stack([values[name] for name in metrics.METRICS])


def group_weights(
    generator: np.random.Generator, n_groups: int, resamples: int
) -> Float32[np.ndarray, "g r"]:
    """How often each group was drawn, n_groups draws with replacement a resample."""
    drawn = generator.integers(n_groups, size=(resamples, n_groups))
    cell = drawn * resamples + np.arange(resamples)[:, None]
    counts = np.bincount(cell.ravel(), minlength=n_groups * resamples)
    return counts.reshape(n_groups, resamples).astype(np.float32)


def _chunks(total: int) -> Iterator[slice]:
    for start in range(0, total, CHUNK):
        yield slice(start, min(start + CHUNK, total))


def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 1)


def bootstrap(
    probabilities: Sequence[Float[np.ndarray, "n k"]], truth: Truth, resamples: int, seed: int
) -> Float[np.ndarray, "m q r"]:
    """Metrics of every run on the same resampled test sets.

    Args:
      probabilities: one entry a run; runs of all arms together, so that differences are paired.
      truth: labels and groups.
      resamples: bootstrap resamples of the groups.
      seed: of the draws.

    Returns:
      [m, q, r]: runs, METRICS, resamples. NaN where a resample leaves a metric without a class.
    """
    generator = np.random.default_rng([seed, 0])
    g = truth.n_groups
    replicates = np.empty((len(probabilities), len(metrics.METRICS), resamples))
    with _pool() as pool:
        runs = list(
            pool.map(
                lambda p: run_sums(p, truth.labels, truth.groups, g, truth.bins), probabilities
            )
        )
        for chunk in _chunks(resamples):
            weights = group_weights(generator, g, chunk.stop - chunk.start)

            def replicate(run: RunSums, weights: np.ndarray = weights) -> np.ndarray:
                return metrics_of_sums(run.matrix @ weights, run.starts, truth)

            for i, values in enumerate(pool.map(replicate, runs)):
                replicates[i, :, chunk] = values
    return replicates


def seed_weights(seeds: Sequence[int], resamples: int, seed: int) -> Float[np.ndarray, "m r"]:
    """Weights (columns sum to one) of runs drawn with replacement, m of m a resample.

    The draw depends on the set of seeds, so that arms with equal seeds are drawn alike and arms
    with other seeds independently.
    """
    m = len(seeds)
    generator = np.random.default_rng([seed, 1, *(int(s) for s in seeds)])
    return generator.multinomial(m, np.full(m, 1 / m), size=resamples).T / m


def permutation(
    pairs: Sequence[tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n k"]]],
    truth: Truth,
    permutations: int,
    seed: int,
) -> Float[np.ndarray, "q"]:
    """Two-sided p-values of a paired group permutation test, for every metric.

    Null hypothesis: given the trained runs, each group's predictions by the two arms are
    exchangeable. Each permutation swaps the arms on a random half of the groups, alike in all
    pairs of runs; the statistic is the mean over pairs of metric(first) - metric(second).
    p = (1 + #{|permuted| >= |observed|}) / (1 + permutations), never zero and valid in finite
    samples (Phipson and Smyth, 2010).

    Args:
      pairs: predictions of the two arms, run by run.
      truth: labels and groups.
      permutations: random swaps.
      seed: of the swaps.

    Returns:
      [q] in (0, 1], NaN where the metric is undefined on this test set.
    """
    generator = np.random.default_rng([seed, 2])
    g, observed, exceed = truth.n_groups, None, np.zeros(len(metrics.METRICS))
    # Both arms as one set of 2n images: the first arm's groups are 0..g-1, the second's g..2g-1.
    labels = np.tile(truth.labels, 2)
    groups = np.concatenate([truth.groups, truth.groups + g])

    def prepare(pair: tuple[np.ndarray, np.ndarray]) -> tuple[RunSums, np.ndarray]:
        run = run_sums(np.concatenate(pair), labels, groups, 2 * g, truth.bins)
        return run, run.matrix @ np.ones((2 * g, 1), np.float32)

    def difference(prepared: tuple[RunSums, np.ndarray], weights: np.ndarray) -> np.ndarray:
        run, total = prepared
        first = run.matrix @ weights
        return metrics_of_sums(first, run.starts, truth) - metrics_of_sums(
            total - first, run.starts, truth
        )

    with _pool() as pool:
        runs = list(pool.map(prepare, pairs))

        def statistic(swap: np.ndarray) -> np.ndarray:
            weights = np.concatenate([1 - swap, swap])
            return np.mean(list(pool.map(lambda run: difference(run, weights), runs)), axis=0)

        observed = np.abs(statistic(np.zeros((g, 1), np.float32)))
        for chunk in _chunks(permutations):
            swap = generator.integers(2, size=(g, chunk.stop - chunk.start)).astype(np.float32)
            # Equal statistics may differ in their last bits; a tie counts against the difference.
            exceed += (np.abs(statistic(swap)) >= observed - 1e-6).sum(axis=1)
    p = (1 + exceed) / (1 + permutations)
    return np.where(np.isnan(observed[:, 0]), np.nan, p)
