"""The paired group permutation test, of every metric at once.

Ranking figures (AUROC, AP, sensitivity at a specificity) see of an arm's scores their order alone,
but of scores that are swapped between arms also how these are offset: a sound classifier with high
scores and another with low ones, mixed, rank badly both. For them it is therefore an image's ranks
among each arm's images that are swapped (Venkatraman and Begg 1996, Biometrika 83: 835-848).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.stats
from jaxtyping import Float, Float32

from lt_jax.evaluate import metrics
from lt_jax.evaluate.metrics import buffers, sums
from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.evaluate.statistics import resampling


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Two runs as one set of 2n images: the first's groups are 0..g-1, the second's g..2g-1."""

    run: sums.RunSums
    total: sums.Sums

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray, truth: Truth) -> "_Pair":
        g = truth.n_groups
        groups = np.concatenate([truth.groups, truth.groups + g])
        both = np.concatenate([first, second])
        ranks = np.concatenate([_ranks(first), _ranks(second)])
        run = sums.run_sums(both, np.tile(truth.labels, 2), groups, 2 * g, truth.bins, ranks)
        return cls(run, run.at(np.ones((2 * g, 1), np.float32)))

    def difference(
        self, weights: Float32[np.ndarray, "two_g r"], truth: Truth
    ) -> Float[np.ndarray, "q r"]:
        """metric(one arm) - metric(the other), the one holding the groups with weight 1."""
        mine = buffers.of_thread()
        one = self.run.at(weights, mine)
        other = one.taken_from(self.total, mine)  # what one arm has not, the other has
        values = [
            sums.metric_rows(sums.parts_of(side, self.run.starts, truth, mine), truth)
            for side in (one, other)
        ]
        return values[0] - values[1]


def _ranks(scores: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Of each class; ties get their mean."""
    return scipy.stats.rankdata(scores, axis=0)


def permutation(
    pairs: Sequence[tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n k"]]],
    truth: Truth,
    permutations: int,
    seed: int,
) -> Float[np.ndarray, "q"]:
    """Two-sided p-values of a paired group permutation test, for every metric.

    Null hypothesis: given the trained runs, each group's predictions by the two arms (for ranking
    figures their ranks) are exchangeable. Each permutation swaps the arms on a random half of the
    groups, alike in all pairs of runs; the statistic is the mean over pairs of metric(first) -
    metric(second).
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
    g = truth.n_groups
    runs = resampling.side_by_side(lambda pair: _Pair.of(pair[0], pair[1], truth), pairs)

    def statistic(swap: np.ndarray) -> np.ndarray:
        weights = np.concatenate([1 - swap, swap]).astype(np.float32)
        return np.abs(np.mean([run.difference(weights, truth) for run in runs], axis=0))

    observed = statistic(np.zeros((g, 1), np.int8))

    def exceeding(chunk: slice) -> np.ndarray:
        generator = np.random.default_rng([seed, 2, chunk.start])
        swap = generator.integers(2, size=(g, chunk.stop - chunk.start), dtype=np.int8)
        # Equal statistics may differ in their last bits (float32's, of ranking figures); a tie
        # counts against the difference.
        return (statistic(swap) >= observed - 1e-6).sum(axis=1)

    exceed = np.sum(resampling.side_by_side(exceeding, sums.chunks(permutations)), axis=0)
    p = (1 + exceed) / (1 + permutations)
    return np.where(np.isnan(observed[:, 0]), np.nan, p).reshape(len(metrics.METRICS))
