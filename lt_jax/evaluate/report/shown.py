"""Which arms and classes a chart shows where there are more than it can hold; test has no say."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from lt_jax.evaluate.report import summary
from lt_jax.evaluate.report.inputs import ReportInputs

ARMS = 4  # curves beside each other
CLASSES = 10  # of the curves and matrices that are drawn class by class


def arms(inputs: ReportInputs, most: int = ARMS) -> list[str]:
    """At most so many arms: the baseline, the best on val of real images alone and of the pool's,
    then the next on val; in the order of the report.

    Where val is not known of every arm, the first in that order, the baseline among them.
    """
    names = [arm.name for arm in inputs.arms]
    chosen = [inputs.evaluate.baseline, *_by_val(inputs), *names]
    kept = list(dict.fromkeys(chosen))[:most]
    return [name for name in names if name in kept]


def _by_val(inputs: ReportInputs) -> list[str]:
    data = inputs.dataset
    held = {arm.name: summary.on_val(arm, data) for arm in inputs.arms}
    means = {name: s.mean for name, s in held.items() if s is not None and s.mean is not None}
    if len(means) < len(held):
        return []
    kinds = ([arm for arm in inputs.arms if arm.uses_pool is pooled] for pooled in (False, True))
    best = [name for kind in kinds if (name := summary.best_on_val(kind, data)) is not None]
    return [*best, *sorted(means, key=lambda name: -means[name])]


def by_val(inputs: ReportInputs) -> bool:
    """Whether val has chosen what is shown."""
    return summary.best_on_val(inputs.arms, inputs.dataset) is not None


def best(inputs: ReportInputs) -> list[str]:
    """The baseline, and the arm that is best on val where that is known and another one."""
    found = summary.best_on_val(inputs.arms, inputs.dataset)
    return list(dict.fromkeys([inputs.evaluate.baseline, *([found] if found else [])]))


def classes(counts: Sequence[int] | np.ndarray, most: int = CLASSES) -> Int[np.ndarray, "c"]:
    """The `most` rarest classes in train, the rarest first."""
    return np.argsort(counts, kind="stable")[:most]
