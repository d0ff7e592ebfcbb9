"""Fields of the evaluation: how the arms are compared."""

import dataclasses

from lt_jax.config.fields import bounded, choice


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How the arms are compared."""

    baseline: str = "ce"
    head_above: int = bounded(100, 0)  # train count of a head class exceeds this (CIFAR-LT)
    tail_below: int = bounded(20, 0)  # train count of a tail class is below this
    group_by: str = choice("counts", "thirds")  # thirds: equal numbers of classes, by count
    resamples: int = bounded(2000, 100, 1_000_000)
    permutations: int = bounded(2000, 100, 1_000_000)
    ece_bins: int = bounded(15, 2, 1000)
    seed: int = bounded(0, 0)
