"""Every arm against a reference by McNemar's and DeLong's tests.

Both take one prediction an image: the arm's probabilities averaged over its seeds, the ensemble
that one would use. They thus speak of other models than `statistics.Comparison`, whose estimate is
the mean of the seeds' metrics, and of test images alone, training noise averaged out.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.evaluate.statistics import hypothesis, multiplicity
from lt_jax.evaluate.statistics.arms import ArmPredictions
from lt_jax.evaluate.statistics.hypothesis import DeLong, McNemar

T = TypeVar("T", McNemar, DeLong)


@dataclasses.dataclass(frozen=True)
class PairedTests:
    """An arm (first) against the reference (second).

    mcnemar: of top-1 predictions. delong: by class index, of one-vs-rest AUROCs; for two classes of
    the positive one alone, as the other's is the same.
    """

    mcnemar: McNemar
    delong: dict[int, DeLong]


def against(
    arms: Sequence[ArmPredictions],
    truth: Truth,
    reference: str,
    names: Sequence[str],
    *,
    method: str = "mid_p",
    positive: int | None = None,
) -> dict[str, PairedTests]:
    """The named arms against the reference.

    p-values are corrected over the arms (McNemar), and over arms and classes (DeLong).

    Args:
      arms: predictions, the reference's among them.
      truth: labels and groups.
      reference: name of an arm.
      names: of the arms to compare with it.
      method: of McNemar's test where every group is one image, see `hypothesis.mcnemar`.
      positive: for two classes the one that DeLong's test is of; None: every class that has
        images with and without it.
    """
    mean = {arm.name: arm.probabilities.mean(axis=0) for arm in arms}
    theirs, labels = mean[reference], truth.labels
    groups = truth.groups if truth.has_clusters else None
    classes = range(truth.k) if positive is None else (positive,)
    rated = [c for c in classes if 0 < int((labels == c).sum()) < len(labels)]
    right = {name: p.argmax(axis=1) == labels for name, p in mean.items()}
    mcnemar = {
        name: hypothesis.mcnemar(right[name], right[reference], groups, method) for name in names
    }
    delong = {
        (name, c): hypothesis.delong(mean[name][:, c], theirs[:, c], labels == c, groups)
        for name in names
        for c in rated
    }
    by_arm = multiplicity.adjust({name: test.p for name, test in mcnemar.items()})
    by_both = multiplicity.adjust({f"{n}/{c}": test.p for (n, c), test in delong.items()})
    return {
        name: PairedTests(
            _corrected(mcnemar[name], by_arm[name]),
            {c: _corrected(delong[name, c], by_both[f"{name}/{c}"]) for c in rated},
        )
        for name in names
    }


def _corrected(test: T, adjusted: tuple[float | None, float | None]) -> T:
    return dataclasses.replace(test, p_holm=adjusted[0], p_bh=adjusted[1])
