"""Score intervals of an arm: of what is a share or an AUROC, and of means of these."""

import math

import numpy as np
from jaxtyping import Float

from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.evaluate.statistics import hypothesis, intervals
from lt_jax.evaluate.statistics.intervals import Interval


def score_intervals(
    probabilities: Float[np.ndarray, "m n k"], truth: Truth
) -> dict[str, Interval | None]:
    """Score intervals of the means over an arm's runs: sound with few groups, blind to training.

    Returns:
      "accuracy"; "sensitivity/c" and "auroc/c" of every class c; "balanced_accuracy" and
      "auroc_macro", made of these. None where the class is absent, or the AUROC undefined.
    """
    hit = (probabilities.argmax(axis=-1) == truth.labels[None]).mean(axis=0)
    everywhere = np.ones(len(hit), bool)
    return {
        "accuracy": intervals.share_of(hit, truth.groups, everywhere),
        **_recalls(hit, truth),
        **_areas(probabilities, truth),
    }


def _recalls(hit: Float[np.ndarray, "n"], truth: Truth) -> dict[str, Interval | None]:
    found: dict[str, Interval | None] = {}
    known: list[tuple[float, Interval]] = []
    for c in range(truth.k):
        mine = truth.labels == c
        ends = found[f"sensitivity/{c}"] = intervals.share_of(hit, truth.groups, mine)
        if ends is not None:
            known.append((float(hit[mine].mean()), ends))
    found["balanced_accuracy"] = intervals.mean_of(known)
    return found


def _areas(probabilities: Float[np.ndarray, "m n k"], truth: Truth) -> dict[str, Interval | None]:
    """Groups count as units: those with a positive, and those with a negative."""
    found: dict[str, Interval | None] = {f"auroc/{c}": None for c in range(truth.k)}
    known: list[tuple[float, Interval]] = []
    errors = []
    for c in range(truth.k):
        mine = truth.labels == c
        units = [len(np.unique(truth.groups[who])) for who in (mine, ~mine)]
        if min(units) == 0:
            continue
        areas, v10, v01 = hypothesis.components(probabilities[..., c], mine)
        area = float(areas.mean())
        ends = found[f"auroc/{c}"] = intervals.auroc(area, *units)
        known.append((area, ends))
        error = np.empty(len(mine))
        error[mine] = (v10.mean(axis=0) - area) / v10.shape[1]
        error[~mine] = (v01.mean(axis=0) - area) / v01.shape[1]
        errors.append(np.bincount(truth.groups, weights=error))
    if known:
        correlation = _correlation(np.stack(errors))
        found["auroc_macro"] = intervals.mean_of(known, correlation)
    return {"auroc_macro": None, **found}


def _correlation(errors: Float[np.ndarray, "k g"]) -> Float[np.ndarray, "k k"]:
    """Of the rows; 1, the widest interval, where a row does not vary and thus tells nothing."""
    covariance = errors @ errors.T
    deviation = np.sqrt(np.diag(covariance))
    scale = np.outer(deviation, deviation)
    known = scale > math.ulp(1.0)
    return np.where(known, covariance / np.where(known, scale, 1.0), 1.0)
