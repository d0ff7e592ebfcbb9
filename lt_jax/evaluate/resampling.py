"""Metrics of many reweighted copies of a test set at once: group bootstrap and group permutation.

Images of one group (patient, lesion) are not independent, so groups are resampled, never images.
All metrics of a run are functions of sums over images that are linear in the groups' weights (hits
and predictions per class, calibration gaps per bin, ranking rows), so a run is sorted once into one
sparse matrix [rows, g], and a chunk of resamples is one product with weights [g, r]. Results do not
depend on the number of threads: each run's arithmetic is its own.

The bootstrap is stratified: groups are redrawn among those of their class (`group_classes`), so
that every resample holds every class and estimates the same macro average; drawn from all groups
alike, a class of 1, 2 or 3 groups would be missing from 37, 13 or 5% of resamples. Of a class's n
groups n - 1 are drawn and weighted by n / (n - 1) (Rao and Wu, JASA 1988), since n of n would
understate the variance by (n - 1) / n, by half where n = 2.

What follows for intervals: they are conditional on the class composition of the test set. With 2
or 3 groups in a class its variance is estimated without bias but from 1 or 2 differences, and
groups that all fare alike give no width at all, so that intervals that rest on such a class are
too narrow. Simulated with classes of 40, 20, 10 and n groups of 3 images, recall varying from group
to group, nominal 95% intervals covered (250 simulations, standard error up to 0.03)

    n                    2      3      6
    balanced accuracy    0.76   0.87   0.94
    recall of the class  0.47   0.62   0.89

A class of one group has no variance between groups to estimate: it is kept as it is in every
resample, and the interval speaks of the other classes alone. The permutation test does not rest on
that variance.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Float32, Int

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
    gaps = np.abs(sums[3 * k : 3 * k + bins]).sum(axis=0, dtype=np.float64)
    auroc, auprc = ranking.areas(sums[3 * k + bins :], starts, labelled.T)
    values = metrics.from_parts(
        metrics.Counts(hits, predicted, labelled),
        auroc.T,
        auprc.T,
        gaps / labelled.sum(axis=1),
        truth.class_groups,
    )
    return np.stack([values[name] for name in metrics.METRICS])


def groups_per_class(truth: Truth) -> Int[np.ndarray, "k"]:
    """Groups with an image of each class."""
    return _members(truth).sum(axis=0)


def _members(truth: Truth) -> Bool[np.ndarray, "g k"]:
    member = np.zeros((truth.n_groups, truth.k), bool)
    member[truth.groups, truth.labels] = True
    return member


def group_classes(truth: Truth) -> Int[np.ndarray, "g"]:
    """The class of every group: that of its labels which the fewest groups have.

    Ties go to the class with fewer images, then the lower index. A group of several labels thus
    stands with the rarest, which it is needed for. A class that occurs only beside rarer ones can
    still be missing from a resample, which is then left out, see `statistics.MAX_UNDEFINED`.
    """
    member = _members(truth)
    images = np.bincount(truth.labels, minlength=truth.k)
    rarest_first = np.lexsort((images, member.sum(axis=0)))
    return rarest_first[member[:, rarest_first].argmax(axis=1)]


def group_weights(
    generator: np.random.Generator, classes: Int[np.ndarray, "g"], resamples: int
) -> Float32[np.ndarray, "g r"]:
    """Weights of the groups in each resample: of a class's n groups n - 1 draws, times n / (n - 1).

    They sum to n in every class, with mean 1 and variance 1; a class's only group has weight 1.
    """
    weights = np.ones((len(classes), resamples), np.float32)
    for c in np.unique(classes):
        rows = np.flatnonzero(classes == c)
        n = len(rows)
        if n > 1:
            drawn = generator.multinomial(n - 1, np.full(n, 1 / n), size=resamples)
            weights[rows] = drawn.T * (n / (n - 1))
    return weights


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
      resamples: bootstrap resamples of the groups, class by class.
      seed: of the draws.

    Returns:
      [m, q, r]: runs, METRICS, resamples. NaN where a resample leaves a metric without a class.
    """
    generator = np.random.default_rng([seed, 0])
    classes, g = group_classes(truth), truth.n_groups
    replicates = np.empty((len(probabilities), len(metrics.METRICS), resamples))
    with _pool() as pool:
        runs = list(
            pool.map(
                lambda p: run_sums(p, truth.labels, truth.groups, g, truth.bins), probabilities
            )
        )
        for chunk in _chunks(resamples):
            weights = group_weights(generator, classes, chunk.stop - chunk.start)

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


@dataclasses.dataclass(frozen=True)
class _PairSums:
    """Two runs as one set of 2n images: the first's groups are 0..g-1, the second's g..2g-1."""

    run: RunSums
    total: Float[np.ndarray, "rows 1"]

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray, truth: Truth) -> "_PairSums":
        g = truth.n_groups
        groups = np.concatenate([truth.groups, truth.groups + g])
        both = np.concatenate([first, second])
        run = run_sums(both, np.tile(truth.labels, 2), groups, 2 * g, truth.bins)
        return cls(run, run.matrix @ np.ones((2 * g, 1), np.float32))

    def difference(
        self, swap: Float32[np.ndarray, "g r"], truth: Truth
    ) -> Float[np.ndarray, "q r"]:
        """metric(first) - metric(second), the groups with swap 1 exchanged."""
        first = self.run.matrix @ np.concatenate([1 - swap, swap])
        second = self.total - first
        starts = self.run.starts
        return metrics_of_sums(first, starts, truth) - metrics_of_sums(second, starts, truth)


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
    exceed = np.zeros(len(metrics.METRICS))
    with _pool() as pool:
        runs = list(pool.map(lambda pair: _PairSums.of(pair[0], pair[1], truth), pairs))

        def statistic(swap: np.ndarray) -> np.ndarray:
            return np.mean(list(pool.map(lambda run: run.difference(swap, truth), runs)), axis=0)

        observed = np.abs(statistic(np.zeros((truth.n_groups, 1), np.float32)))
        for chunk in _chunks(permutations):
            shape = (truth.n_groups, chunk.stop - chunk.start)
            swap = generator.integers(2, size=shape).astype(np.float32)
            # Equal statistics may differ in their last bits; a tie counts against the difference.
            exceed += (np.abs(statistic(swap)) >= observed - 1e-6).sum(axis=1)
    p = (1 + exceed) / (1 + permutations)
    return np.where(np.isnan(observed[:, 0]), np.nan, p)
