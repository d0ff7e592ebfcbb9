"""Score intervals of an arm, and of its difference from another: of shares, AUROCs, their means.

Of a difference the two arms' estimates are correlated, since the images are the same. Between the
recalls of one class that is the correlation of what is right in it, taken over all classes
together: of a class of two images it cannot be told. Between AUROCs it is that of the components of
DeLong's covariance.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.evaluate.statistics import hypothesis, intervals
from lt_jax.evaluate.statistics.intervals import Interval


@dataclasses.dataclass(frozen=True)
class _Scored:
    """A mean over runs, its interval, and what each group contributes to its error, up to a scale
    that shares, and areas, have in common."""

    value: float
    ends: Interval
    errors: Float[np.ndarray, "g"]


def score_intervals(
    probabilities: Float[np.ndarray, "m n k"], truth: Truth
) -> dict[str, Interval | None]:
    """Score intervals of the means over an arm's runs: sound with few groups, blind to training.

    Returns:
      "accuracy"; "sensitivity/c" and "auroc/c" of every class c; "balanced_accuracy" and
      "auroc_macro", made of these. None where the class is absent, or the AUROC undefined.
    """
    found = _scored(probabilities, truth)
    ends = {name: one.ends if one else None for name, one in found.items()}
    areas, recalls = _of(found, "auroc"), _of(found, "sensitivity")
    ends["balanced_accuracy"] = intervals.mean_of([(one.value, one.ends) for one in recalls])
    ends["auroc_macro"] = None
    if areas:
        parts = [(one.value, one.ends) for one in areas]
        ends["auroc_macro"] = intervals.mean_of(parts, _correlation(areas, areas, unknown=1.0))
    return ends


def score_differences(
    first: Float[np.ndarray, "m n k"], second: Float[np.ndarray, "l n k"], truth: Truth
) -> dict[str, Interval | None]:
    """Of the first arm's means minus the second's, by the names of `score_intervals`."""
    mine, theirs = _scored(first, truth), _scored(second, truth)
    ends: dict[str, Interval | None] = dict.fromkeys(mine)
    both = {n: (a, b) for n, a in mine.items() if a is not None and (b := theirs[n]) is not None}
    recalls = _of(mine, "sensitivity"), _of(theirs, "sensitivity")
    alike = _alike(*(np.concatenate([one.errors for one in arm]) for arm in recalls))
    for name, (a, b) in both.items():
        between = alike if name.startswith("sensitivity/") else _alike(a.errors, b.errors)
        ends[name] = _difference([a], [b], np.eye(1), np.full((1, 1), between), np.eye(1))
    one = np.eye(len(recalls[0]))
    ends["balanced_accuracy"] = _difference(*recalls, one, alike * one, one)
    ends["auroc_macro"] = None
    if areas := _of(mine, "auroc"):
        others = _of(theirs, "auroc")
        ends["auroc_macro"] = _difference(
            areas,
            others,
            _correlation(areas, areas, unknown=1.0),
            _correlation(areas, others, unknown=0.0),
            _correlation(others, others, unknown=1.0),
        )
    return ends


def _difference(
    mine: Sequence[_Scored],
    theirs: Sequence[_Scored],
    among_mine: Float[np.ndarray, "k k"],
    between: Float[np.ndarray, "k k"],
    among_theirs: Float[np.ndarray, "k k"],
) -> Interval:
    """Of the mean of k minus the mean of k, with the correlations of all."""
    weights = np.repeat([1.0, -1.0], len(mine)) / len(mine)
    parts = [(one.value, one.ends) for one in (*mine, *theirs)]
    correlation = np.block([[among_mine, between], [between.T, among_theirs]])
    low, high = intervals.combination(parts, weights, correlation)
    return max(-1.0, low), min(1.0, high)


def _scored(probabilities: Float[np.ndarray, "m n k"], truth: Truth) -> dict[str, _Scored | None]:
    """By name; None where the class is absent, or the AUROC undefined."""
    hit = (probabilities.argmax(axis=-1) == truth.labels[None]).mean(axis=0)
    found = {"accuracy": _share(hit, np.ones(len(hit), bool), truth)}
    classes = range(truth.k)
    found |= {f"sensitivity/{c}": _share(hit, truth.labels == c, truth) for c in classes}
    return found | {f"auroc/{c}": _area(probabilities[..., c], c, truth) for c in classes}


def _share(
    hit: Float[np.ndarray, "n"], among: Bool[np.ndarray, "n"], truth: Truth
) -> _Scored | None:
    ends = intervals.share_of(hit, truth.groups, among)
    if ends is None:
        return None
    mean = float(hit[among].mean())
    return _Scored(mean, ends, np.bincount(truth.groups, weights=np.where(among, hit - mean, 0.0)))


def _area(score: Float[np.ndarray, "m n"], c: int, truth: Truth) -> _Scored | None:
    """Groups count as units: those with a positive, and those with a negative."""
    mine = truth.labels == c
    units = [len(np.unique(truth.groups[who])) for who in (mine, ~mine)]
    if min(units) == 0:
        return None
    areas, v10, v01 = hypothesis.components(score, mine)
    area = float(areas.mean())
    error = np.empty(len(mine))
    error[mine] = (v10.mean(axis=0) - area) / v10.shape[1]
    error[~mine] = (v01.mean(axis=0) - area) / v01.shape[1]
    return _Scored(area, intervals.auroc(area, *units), np.bincount(truth.groups, weights=error))


def _of(found: dict[str, _Scored | None], kind: str) -> list[_Scored]:
    """Those of every class that are known."""
    return [one for name, one in found.items() if one and name.startswith(f"{kind}/")]


def _alike(mine: Float[np.ndarray, "g"], theirs: Float[np.ndarray, "g"]) -> float:
    """The correlation of two errors; 0 where one does not vary and thus tells nothing."""
    scale = math.sqrt(float(mine @ mine) * float(theirs @ theirs))
    return float(mine @ theirs) / scale if scale > math.ulp(1.0) else 0.0


def _correlation(
    mine: Sequence[_Scored], theirs: Sequence[_Scored], unknown: float
) -> Float[np.ndarray, "k k"]:
    """Of errors with errors; `unknown`, which should make the widest interval, where one does not
    vary and thus tells nothing.
    """
    rows, columns = (np.stack([one.errors for one in arm]) for arm in (mine, theirs))
    scale = np.sqrt(np.outer((rows**2).sum(axis=1), (columns**2).sum(axis=1)))
    known = scale > math.ulp(1.0)
    return np.where(known, rows @ columns.T / np.where(known, scale, 1.0), unknown)
