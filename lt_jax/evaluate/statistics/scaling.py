"""How many real images a pool is worth: where two curves over the number of images cross.

With r(n) the metric of real images alone at n of them, and s that of some way to train with
synthetic images on n_0 real ones, the pool is worth n* - n_0 real images, where

  n* = min {n : r(n) >= s}                                                                  (1)

r is measured at a few sizes; between them it is taken as linear in log n, and as never falling:
its running maximum, since a single dip would otherwise make n* jump. Beyond the sizes nothing is
known: where s is above r's last value n* is infinite ("more than the largest size"), where it is
below the first it is 0 ("less than the smallest").

For the interval (1) is solved in every bootstrap resample of test groups and seeds, which are the
same for both curves. Quantiles are of the resamples themselves (no interpolation), so that what is
unknown stays infinite or 0 and is never averaged with what is known. It speaks of test images and
seeds: one draw of train images is behind each size.
"""

import numpy as np
from jaxtyping import Float, Int


def crossing(
    sizes: Int[np.ndarray, "f"], real: Float[np.ndarray, "f *r"], other: Float[np.ndarray, "*r"]
) -> Float[np.ndarray, "*r"]:
    """n* of equation (1), resample by resample.

    Args:
      sizes: numbers of real images, ascending, two or more.
      real: the metric at each size, higher is better; resamples behind.
      other: s, in the same resamples.

    Returns:
      Numbers of real images in [sizes[0], sizes[-1]], 0 or infinity; NaN where a value is NaN.

    Raises:
      ValueError: fewer than two sizes, or not ascending.
    """
    if len(sizes) < 2 or (np.diff(sizes) <= 0).any() or sizes[0] < 1:
        raise ValueError(f"sizes {sizes.tolist()}: takes two or more, ascending, from 1")
    shape = other.shape
    curve = np.maximum.accumulate(real.reshape(len(sizes), -1), axis=0)
    level, logs = other.reshape(-1), np.log(sizes)
    above = curve >= level[None, :]
    reached = above.any(axis=0)
    upper = np.where(reached, above.argmax(axis=0), len(sizes) - 1)
    lower = np.maximum(upper - 1, 0)
    at = np.arange(len(level))
    rise = curve[upper, at] - curve[lower, at]
    part = np.where(rise > 0, (level - curve[lower, at]) / np.where(rise > 0, rise, 1.0), 1.0)
    found = np.exp(logs[lower] + part * (logs[upper] - logs[lower]))
    found = np.where(reached, found, np.inf)
    # At the first size itself r is known, and below it nothing.
    found = np.where(upper == 0, np.where(curve[0] > level, 0.0, float(sizes[0])), found)
    unknown = np.isnan(level) | np.isnan(curve).any(axis=0)
    return np.where(unknown, np.nan, found).reshape(shape)


def interval(values: Float[np.ndarray, "r"]) -> tuple[float, float] | None:
    """The 2.5% and 97.5% quantiles, each a value that occurs; None where over 5% are NaN."""
    defined = np.sort(values[~np.isnan(values)])
    if len(defined) < 0.95 * len(values):
        return None
    low, high = np.floor(0.025 * len(defined)), np.ceil(0.975 * len(defined)) - 1
    return float(defined[int(low)]), float(defined[int(high)])
