"""p-values of a family of hypotheses, adjusted for their number."""

from collections.abc import Mapping, Sequence

import numpy as np


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the given order (Holm, Scand J Stat 1979).

    The j-th smallest of m becomes max over i <= j of min(1, (m - i + 1) p_(i)): the chance of any
    false rejection stays below alpha, whatever the dependence.
    """
    order = np.argsort(p, kind="stable")
    adjusted, largest = [0.0] * len(p), 0.0
    for i, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - i) * float(p[index])))
        adjusted[index] = largest
    return adjusted


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's step-up adjusted p-values, in the given order (JRSS B 1995).

    The j-th smallest of m becomes min over i >= j of min(1, m p_(i) / i): the expected share of
    false ones among the rejections stays below alpha where the tests are independent or positively
    dependent (Benjamini and Yekutieli, Ann Stat 2001), which comparisons with one baseline tend to
    be.
    """
    order = np.argsort(p, kind="stable")[::-1]
    adjusted, smallest, m = [0.0] * len(p), 1.0, len(p)
    for i, index in zip(range(m, 0, -1), order, strict=True):
        smallest = min(smallest, m * float(p[index]) / i)
        adjusted[index] = smallest
    return adjusted


def adjust(p: Mapping[str, float | None]) -> dict[str, tuple[float | None, float | None]]:
    """Holm's and Benjamini and Hochberg's p by name; what has no p is no member of the family."""
    known = {name: value for name, value in p.items() if value is not None}
    both = zip(holm(list(known.values())), benjamini_hochberg(list(known.values())), strict=True)
    return {**dict.fromkeys(p, (None, None)), **dict(zip(known, both, strict=True))}
