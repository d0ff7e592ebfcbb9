"""A metric of one arm over its seeds, and of one arm against another: what tables print."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from lt_jax.evaluate import metrics
from lt_jax.evaluate.statistics import intervals


@dataclasses.dataclass(frozen=True)
class Summary:
    """A metric of one arm over its seeds.

    mean: None where the metric is undefined on this test set.
    std: over seeds, n - 1 in the denominator; None for a single seed, which has no spread.
    n: number of seeds. ci95: (low, high) for the mean over seeds, or None. values: one a seed.
    """

    mean: float | None
    std: float | None
    n: int
    ci95: tuple[float, float] | None
    values: tuple[float | None, ...]

    def __post_init__(self) -> None:
        """Refuses a mean over nothing and a spread that one seed cannot have."""
        if self.n < 1 or self.n != len(self.values):
            raise ValueError(f"n = {self.n} with {len(self.values)} values; takes one value a seed")
        if (self.std is None) != (self.n == 1 or self.mean is None):
            raise ValueError(f"std = {self.std} with n = {self.n}: a spread takes two seeds")


@dataclasses.dataclass(frozen=True)
class Share:
    """`successes` of n images that lie in groups, with an interval that allows for these (None:
    there is none). Of independent ones `intervals.Proportion` has its own."""

    successes: int
    n: int
    ci95: tuple[float, float] | None

    def __post_init__(self) -> None:
        """Refuses a share of nothing, and more successes than images."""
        if not 0 <= self.successes <= self.n or not self.n:
            raise ValueError(f"{self.successes} of {self.n}; takes 0 to n of at least one image")

    @property
    def share(self) -> float:
        """In [0, 1]."""
        return self.successes / self.n


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An arm minus the baseline.

    difference: of means over seeds, with its interval. p, p_holm, p_bh: as tested, and corrected
    over the arms by Holm and by Benjamini and Hochberg. n: seeds that were paired. effect: the
    standardised paired effect over common seeds, None where it is undefined. score95: the score
    interval of the difference, of the trained runs alone; None where the metric has none.
    """

    difference: float | None
    ci95: tuple[float, float] | None
    p: float | None
    p_holm: float | None
    n: int
    p_bh: float | None = None
    effect: float | None = None
    score95: tuple[float, float] | None = None

    def better(self, metric: str, alpha: float = 0.05) -> bool:
        """Whether the arm beats the baseline: Holm's p below alpha AND the interval beyond zero.

        Where either is missing the answer is no. "Beyond" is below zero where lower is better.
        """
        if self.p_holm is None or self.ci95 is None or self.p_holm >= alpha:
            return False
        low, high = self.ci95
        return high < 0 if metric in metrics.LOWER_IS_BETTER else low > 0


def summarise(
    values: Float[np.ndarray, "m"],
    replicates: Float[np.ndarray, "r"] | None = None,
    ci95: intervals.Interval | None = None,
) -> Summary:
    """Mean, spread and interval of a metric's values over seeds.

    Args:
      values: one a seed; NaN where the metric is undefined, which it then is for every seed.
      replicates: bootstrap draws of the mean, for their percentile interval.
      ci95: of the mean, where it is known already.
    """
    n, defined = len(values), not np.isnan(values).any()
    if replicates is not None:
        ci95 = intervals.percentile_interval(replicates)
    return Summary(
        mean=float(np.mean(values)) if defined else None,
        std=float(np.std(values, ddof=1)) if defined and n > 1 else None,
        n=n,
        ci95=ci95 if defined else None,
        values=tuple(number(value) for value in values),
    )


def number(value: float) -> float | None:
    """None for NaN."""
    return None if math.isnan(value) else float(value)
