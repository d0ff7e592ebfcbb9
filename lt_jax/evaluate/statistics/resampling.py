"""Metrics of many reweighted copies of a test set at once: group bootstrap and group jackknife.

Images of one group (patient, lesion) are not independent, so groups are resampled, never images.
How a copy's metrics follow from the groups' weights is in `sums`; draws depend on the seed alone,
not on the number of threads, and the same groups are drawn for every run.

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
resample, and the interval speaks of the other classes alone. What holds up there are the score
intervals of `intervals`, which the report gives beside these; the permutation test does not rest on
that variance.
"""

import concurrent.futures
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Float32, Int

from lt_jax.evaluate import metrics
from lt_jax.evaluate.metrics import buffers
from lt_jax.evaluate.metrics import sums as sums_lib
from lt_jax.evaluate.metrics.grouping import Truth as Truth
from lt_jax.evaluate.metrics.grouping import group_classes as group_classes
from lt_jax.evaluate.metrics.grouping import group_codes as group_codes
from lt_jax.evaluate.metrics.grouping import groups_per_class as groups_per_class
from lt_jax.runtime import faults

A, B = TypeVar("A"), TypeVar("B")
CHUNK = sums_lib.CHUNK


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
            drawn = generator.integers(n, size=(n - 1, resamples))
            drawn *= resamples
            drawn += np.arange(resamples)[None]
            counts = np.bincount(drawn.reshape(-1), minlength=n * resamples)
            weights[rows] = counts.reshape(n, resamples) * (n / (n - 1))
    return weights


def seed_weights(seeds: Sequence[int], resamples: int, seed: int) -> Float[np.ndarray, "m r"]:
    """Weights (columns sum to one) of runs drawn with replacement, m of m a resample.

    The draw depends on the set of seeds, so that arms with equal seeds are drawn alike and arms
    with other seeds independently.
    """
    m = len(seeds)
    generator = np.random.default_rng([seed, 1, *(int(s) for s in seeds)])
    return generator.multinomial(m, np.full(m, 1 / m), size=resamples).T / m


def side_by_side(work: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """`work` of every item in order, on as many threads as there are cores; SIGTERM ends it."""

    def one(item: A) -> B:
        faults.check("a statistic")
        return work(item)

    todo = list(items)
    if len(todo) < 2:
        return [one(item) for item in todo]
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        return list(pool.map(one, todo))


def prepared(
    probabilities: Sequence[Float[np.ndarray, "n k"]], truth: Truth
) -> list[sums_lib.RunSums]:
    """The linear map of every run."""
    arguments = (truth.labels, truth.groups, truth.n_groups, truth.bins)
    return side_by_side(lambda p: sums_lib.run_sums(p, *arguments), probabilities)


def _values(
    runs: Sequence[sums_lib.RunSums], weights: np.ndarray, truth: Truth, rows: sums_lib.Rows
) -> Float[np.ndarray, "m q r"]:
    mine = buffers.of_thread()
    found = [sums_lib.parts_of(run.at(weights, mine), run.starts, truth, mine) for run in runs]
    return np.stack([rows(parts, truth) for parts in found])


def bootstrap(
    probabilities: Sequence[Float[np.ndarray, "n k"]],
    truth: Truth,
    resamples: int,
    seed: int,
    run_weights: Float[np.ndarray, "m r"] | None = None,
) -> np.ndarray:
    """Values of every run on the same resampled test sets, or of their mean.

    Memory: the draws returned, one float32 [n_groups, 128] and the sums of one run a thread.

    Args:
      probabilities: one entry a run.
      truth: labels and groups.
      resamples: bootstrap resamples of the groups, class by class.
      seed: of the draws; equal for all arms that are to be compared.
      run_weights: of the runs in each resample, such as `seed_weights`.

    Returns:
      Without `run_weights` METRICS of every run, float64 [m, q, r]; with them the weighted mean
      over runs of `sums.all_rows`, float32 [Q, r]. NaN where a resample leaves a value without a
      class.
    """
    runs, classes = prepared(probabilities, truth), group_classes(truth)

    def replicate(chunk: slice) -> np.ndarray:
        generator = np.random.default_rng([seed, 0, chunk.start])
        weights = group_weights(generator, classes, chunk.stop - chunk.start)
        if run_weights is None:
            return _values(runs, weights, truth, sums_lib.metric_rows)
        values = _values(runs, weights, truth, sums_lib.all_rows)
        mean = np.einsum("mqr,mr->qr", values, run_weights[:, chunk])
        return mean.astype(np.float32)

    return np.concatenate(side_by_side(replicate, sums_lib.chunks(resamples)), axis=-1)


def jackknife(
    probabilities: Sequence[Float[np.ndarray, "n k"]], truth: Truth
) -> Float[np.ndarray, "Q g"]:
    """The mean over runs of `sums.all_rows` without each group in turn.

    The other groups of its class are weighted by n / (n - 1), as in the bootstrap, so that the
    class composition stays; a class's only group is not left out.
    """
    runs, classes = prepared(probabilities, truth), group_classes(truth)
    sizes = np.bincount(classes)[classes]

    def replicate(chunk: slice) -> np.ndarray:
        mine = np.arange(chunk.start, chunk.stop)
        weights = np.ones((len(classes), len(mine)), np.float32)
        several = sizes[mine] > 1
        factor = np.where(several, sizes[mine] / np.maximum(sizes[mine] - 1, 1), 1.0)
        weights = np.where(classes[:, None] == classes[mine][None], factor[None], weights)
        weights[mine[several], np.flatnonzero(several)] = 0.0
        return _values(runs, weights.astype(np.float32), truth, sums_lib.all_rows).mean(axis=0)

    return np.concatenate(side_by_side(replicate, sums_lib.chunks(truth.n_groups)), axis=-1)


def influence(
    left_out: Float[np.ndarray, "Q g"], classes: Int[np.ndarray, "g"]
) -> Float[np.ndarray, "Q g"]:
    """Jackknife values as each group's contribution to the estimate's error.

    (n - 1) / n times the mean over its class of the values less its own; their squares add up to
    the variance, up to (n - 1) / n (Davison and Hinkley, 1997, section 3.2.1).
    """
    sizes = np.bincount(classes)
    totals = np.stack([np.bincount(classes, weights=row) for row in left_out])
    means = (totals / np.maximum(sizes, 1)[None])[:, classes]
    factor = (sizes - 1)[classes] / np.maximum(sizes, 1)[classes]
    # A class's only group was not left out: it has no part, also where nothing is defined.
    return np.where(factor[None] > 0, (means - left_out) * factor[None], 0.0)


def names(truth: Truth) -> list[str]:
    """Names of the rows of `sums.all_rows`: METRICS, then "auroc/0" and so on."""
    by_class = [f"{name}/{c}" for name in metrics.PER_CLASS for c in range(truth.k)]
    return [*metrics.METRICS, *by_class]
