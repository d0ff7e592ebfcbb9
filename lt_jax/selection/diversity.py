"""A varied subset: greedy k-centre, which takes what is farthest from all that it has taken.

From a first row, each next one is argmax_i min_{j taken} |u_i - u_j|, u the features on the unit
sphere. The largest distance of any image from the nearest taken one is then at most twice the least
that any subset of the size can reach (Gonzalez 1985, Theor. Comput. Sci. 38:293).

In NumPy, on host: it runs once a class, each time on other numbers of images, and to compile a
program for each pair of sizes would take longer than the n x count distances.
"""

import numpy as np

from lt_jax.errors import UserError
from lt_jax.selection.sphere import unit
from lt_jax.shapes import Float, Int


class DiversityError(UserError, ValueError):
    """A subset that cannot be had."""


def farthest_point(
    features: Float[np.ndarray, "n d"], count: int, start: int = 0
) -> Int[np.ndarray, "m"]:
    """The rows of a varied subset, in the order in which they are taken; the same in every run.

    Args:
      features: of any length, finite; compared by direction.
      count: how many rows, 0 to n; the first ones are those of any smaller count.
      start: the row that is taken first. Ties are broken by the lowest row; of equal images, the
        second one comes after all that differ.

    Raises:
      DiversityError: a count or start out of range, or features that are not finite.
    """
    n = len(features)
    if not 0 <= count <= n:
        raise DiversityError(f"diversity: got count={count} of {n} images; takes 0 to {n}")
    if count and not 0 <= start < n:
        raise DiversityError(f"diversity: got start={start}; takes a row, 0 to {n - 1}")
    if bad := np.flatnonzero(~np.isfinite(features).all(axis=1)).tolist():
        raise DiversityError(
            f"diversity: the features of {len(bad)} images are not finite (first: row {bad[0]}); "
            "judge them before they are chosen from"
        )
    directions = unit(features.astype(np.float64))
    squared = np.full(n, np.inf)
    taken = np.zeros(count, np.int64)
    for i in range(count):
        taken[i] = start if i == 0 else np.argmax(squared)
        # By differences: equal images are at exactly 0, and taken ones below that for good.
        distance = np.square(directions - directions[taken[i]][None]).sum(axis=1)
        squared = np.minimum(squared, distance)
        squared[taken[i]] = -1.0
    return taken
