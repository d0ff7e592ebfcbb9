"""Fields of the evaluation: how the arms are compared."""

import dataclasses

from lt_jax.config.fields import bounded, choice, each_of

PICTURES = ("maps", "saliency", "strips")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How the arms are compared."""

    baseline: str = "ce"
    head_above: int = bounded(100, 0)  # train count of a head class exceeds this (CIFAR-LT)
    tail_below: int = bounded(20, 0)  # train count of a tail class is below this
    group_by: str = choice("counts", "thirds")  # thirds: equal numbers of classes, by count
    resamples: int = bounded(2000, 100, 1_000_000)
    permutations: int = bounded(2000, 100, 1_000_000)
    # Of the bootstrap of arms' metrics and their differences, see
    # lt_jax.evaluate.statistics.intervals. Average precision, bands of ROC and PR curves, single
    # readers and the audit have percentile intervals whatever is asked for here.
    interval: str = choice("percentile", "bca")
    ece_bins: int = bounded(15, 2, 1000)
    specificity: float = bounded(0.9, 0.0, 1.0)  # at which sensitivity is read off the ROC curve
    positive: str = ""  # the positive class of two; empty: the second
    mcnemar: str = choice("mid_p", "exact", "chi2")  # chi2: with Edwards' continuity correction
    # A group with images of several classes has no label as a whole: at group level it is left out
    # and counted, or an error that names it.
    mixed_groups: str = choice("leave_out", "error")
    # What the report's stage asks networks for: maps of features, saliency, denoising strips.
    pictures: tuple[str, ...] = each_of(PICTURES, *PICTURES)
    seed: int = bounded(0, 0)
