"""How sure the mean over a few readers is, who are drawn from all readers as images are from all.

A two-way bootstrap draws readers and, alike for all of them, images (and whatever else a replicate
is of, such as runs). With V_r the variance of the mean when readers alone are drawn, V_i images
alone and V_b both, each of the first two holds the variance of their interaction once and V_b three
times (Owen, 2007), so

  SE^2 = 2 (V_r + V_i) - V_b, though not below V_r or V_i                                      (1)

Readers are few: the interval is mean -+ t SE, and p is of mean / SE, with
(m - 1) (SE^2 / V_r)^2 degrees of freedom (Hillis, 2007)                                       (2)
where the percentiles of m readers drawn from m would leave out (m - 1) / m of their variance and
all that is unknown of it.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from lt_jax.evaluate.statistics.intervals import LEVEL, Interval

NOTHING = 1e-12  # a variance that is rounding


@dataclasses.dataclass(frozen=True)
class Error:
    """variance: (1), 0 where nothing varies. freedom: (2)."""

    mean: float
    variance: float
    freedom: float

    @property
    def ci95(self) -> Interval | None:
        """The interval of the mean; None where nothing varies."""
        from scipy import stats

        if self.variance < NOTHING:
            return None
        reach = float(stats.t.ppf((1 + LEVEL) / 2, self.freedom)) * self.variance**0.5
        return self.mean - reach, self.mean + reach

    @property
    def p(self) -> float | None:
        """Two-sided, of a mean of 0; where nothing varies 1 if it is 0, else None."""
        from scipy import stats

        if self.variance < NOTHING:
            return 1.0 if abs(self.mean) < 1e-9 else None
        return float(2 * stats.t.sf(abs(self.mean) / self.variance**0.5, self.freedom))


def weights(generator: np.random.Generator, m: int, resamples: int) -> Float[np.ndarray, "m r"]:
    """Weights of m readers, m - 1 draws a resample; columns sum to one."""
    draws = max(m - 1, 1)
    return generator.multinomial(draws, np.full(m, 1 / m), size=resamples).T / draws


def error(
    values: Float[np.ndarray, "m"],
    replicates: Float[np.ndarray, "m r"],
    weights: Float[np.ndarray, "m r"],
) -> Error:
    """Of the mean over two or more readers.

    Args:
      values: one a reader.
      replicates: the same on resampled images, which are alike for all readers; NaN: undefined.
      weights: of the readers in each resample, see `weights`.
    """
    m, mean = len(values), float(np.mean(values))
    images = replicates.mean(axis=0)
    if np.isnan(images).all():
        return Error(mean, 0.0, 1.0)
    of_readers = float(np.var(values, ddof=1)) / m
    of_images = float(np.nanvar(images))
    both = float(np.nanvar((weights * replicates).sum(axis=0)))
    variance = max(2 * (of_readers + of_images) - both, of_readers, of_images)
    if variance < NOTHING:
        return Error(mean, 0.0, 1.0)
    # Above a million, t is normal.
    freedom = (m - 1) * (variance / max(of_readers, 1e-3 * variance)) ** 2
    return Error(mean, variance, freedom)
