"""How well lesions are found: average precision by arm, intervals, tests, curves.

Average precision is `average_precision`'s. All else is as for classifiers: the estimand is the mean
over training seeds on the population of test groups; 95% intervals are of a two-way bootstrap of
groups, drawn within the classes of their images, and runs (`resampling`, `statistics`); p-values
are of a paired permutation of groups between two arms, Holm's correction over the arms, a metric
at a time. A run's matches are made once; a resample or a permutation only weighs its images.

What `summary` returns is all that the page and the figures read.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lt_jax.config import EvaluateConfig
from lt_jax.evaluate.errors import EvaluationError
from lt_jax.evaluate.metrics import average_precision, grouping, sums
from lt_jax.evaluate.metrics.average_precision import (
    FALSE_POSITIVES,
    METRICS,
    Found,
    Lesions,
    Matched,
)
from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.evaluate.statistics import (
    hypothesis,
    intervals,
    multiplicity,
    resampling,
    results,
    tables,
)
from lt_jax.evaluate.statistics.results import Comparison, Summary


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One training: its detections of the test images, and its cost (see `inputs.Run`)."""

    seed: int
    found: Found
    seconds: float = 0.0
    images: int = 0
    flops: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
    """An arm with its runs; `data` says in a word or two what it is trained on."""

    name: str
    data: str
    runs: tuple[Run, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Detection:
    """All that this part of the report is made from.

    Attributes:
      arms: with predictions for the same n test images.
      baseline: name of the arm that the others are compared with.
      lesions: of the test images.
      labels: classes of the test images [n], within which groups are redrawn.
      groups: of the test images [n].
      classes: number of those classes.
      small_part: part of the train lesions that `lesions.small_area` cuts off.
    """

    arms: tuple[Arm, ...]
    baseline: str
    lesions: Lesions
    labels: Int[np.ndarray, "n"]
    groups: Sequence[str]
    classes: int
    small_part: float

    def __post_init__(self) -> None:
        """Raises EvaluationError for arms that cannot be compared."""
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names) or self.baseline not in names:
            raise EvaluationError(
                f"config.detect.baseline: got {self.baseline!r}; takes one of the distinct arms "
                f"{names}"
            )
        for arm in self.arms:
            seeds = [run.seed for run in arm.runs]
            if not seeds or seeds != sorted(set(seeds)):
                raise EvaluationError(
                    f"arm {arm.name!r}: seeds {seeds}; takes ascending ones, distinct"
                )


@dataclasses.dataclass(frozen=True, eq=False)
class ArmStatistics:
    """Summaries and comparisons of METRICS by name, and of sensitivity at FALSE_POSITIVES."""

    summaries: dict[str, Summary]
    froc: list[Summary]
    comparisons: dict[str, Comparison]


def summary(detection: Detection | None, evaluate: EvaluateConfig) -> dict[str, Any] | None:
    """What report.json holds; None where nothing was detected.

    Returns:
      {"baseline", "interval": always "percentile", "images", "lesions",
       "small": {"area", "part", "lesions"}, "false_positives_per_image": [...],
       "arms": [{"name", "data", "seeds", "metrics": {METRIC: {"mean", "std", "n", "ci95",
         "values"}}, "froc": [a sensitivity of each number of false positives, likewise],
         "paired": {"baseline", METRIC: {"difference", "ci95", "p", "p_holm", "p_bh", "n",
           "effect"}},
         "ledger": {"seconds", "images", "flops"}}]}
    """
    if detection is None:
        return None
    found = analyse(detection, evaluate)
    lesions = detection.lesions
    areas = [(x1 - x0) * (y1 - y0) for held in lesions.boxes for x0, y0, x1, y1 in held]
    return {
        "baseline": detection.baseline,
        "interval": "percentile",
        "images": len(lesions.boxes),
        "lesions": len(areas),
        "small": {
            "area": lesions.small_area,
            "part": detection.small_part,
            "lesions": int(np.sum(np.array(areas) <= lesions.small_area)),
        },
        "false_positives_per_image": list(FALSE_POSITIVES),
        "arms": [_arm(arm, detection.baseline, found[arm.name]) for arm in detection.arms],
    }


def _arm(arm: Arm, baseline: str, found: ArmStatistics) -> dict[str, Any]:
    flops = [run.flops for run in arm.runs]
    return {
        "name": arm.name,
        "data": arm.data,
        "seeds": [run.seed for run in arm.runs],
        "metrics": {name: tables.cell_to_json(cell) for name, cell in found.summaries.items()},
        "froc": [tables.cell_to_json(cell) for cell in found.froc],
        "paired": {
            "baseline": baseline,
            **{name: tables.cell_to_json(cell) for name, cell in found.comparisons.items()},
        },
        "ledger": {
            "seconds": sum(run.seconds for run in arm.runs),
            "images": sum(run.images for run in arm.runs),
            "flops": None if None in flops else sum(f for f in flops if f is not None),
        },
    }


def pooled(parts: Sequence[Detection | None]) -> Detection | None:
    """Folds as one: their test images in a row, runs joined by seed; None where a fold has none.

    Small is what is small by the mean of the folds' thresholds.

    Raises:
      EvaluationError: the folds have other arms or seeds.
    """
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    first = known[0]
    arms = []
    for i, arm in enumerate(first.arms):
        same = [part.arms[i] for part in known]
        seeds = [[run.seed for run in own.runs] for own in same]
        if any(own.name != arm.name for own in same) or any(own != seeds[0] for own in seeds):
            raise EvaluationError(
                f"detection: arm {arm.name!r} has other seeds or names in other folds"
            )
        runs = tuple(_pooled_run([own.runs[s] for own in same]) for s in range(len(arm.runs)))
        arms.append(dataclasses.replace(arm, runs=runs))
    lesions = Lesions(
        boxes=[held for part in known for held in part.lesions.boxes],
        labels=np.concatenate([part.lesions.labels for part in known]),
        classes=first.lesions.classes,
        small_area=float(np.mean([part.lesions.small_area for part in known])),
    )
    return dataclasses.replace(
        first,
        arms=tuple(arms),
        lesions=lesions,
        labels=np.concatenate([part.labels for part in known]),
        groups=[group for part in known for group in part.groups],
    )


def _pooled_run(parts: Sequence[Run]) -> Run:
    found = [run.found for run in parts]
    joined = {
        field.name: np.concatenate([getattr(own, field.name) for own in found])
        for field in dataclasses.fields(Found)
    }
    flops = [run.flops for run in parts if run.flops is not None]
    return Run(
        parts[0].seed,
        Found(**joined),
        sum(run.seconds for run in parts),
        sum(run.images for run in parts),
        sum(flops) if len(flops) == len(parts) else None,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Evidence:
    """Of an arm: matches of its runs, values [m q], and bootstrap draws [q r] of their mean."""

    arm: Arm
    matched: list[Matched]
    values: np.ndarray
    draws: np.ndarray


def analyse(detection: Detection, evaluate: EvaluateConfig) -> dict[str, ArmStatistics]:
    """Summaries and comparisons of every arm, by name.

    Raises:
      DetectionError: see `average_precision.match`.
    """
    truth = Truth(
        labels=detection.labels,
        groups=grouping.group_codes(detection.groups),
        class_groups={},
        k=detection.classes,
    )
    held = {arm.name: _evidence(arm, detection.lesions, truth, evaluate) for arm in detection.arms}
    base = held[detection.baseline]
    compared = {
        name: _compare(own, base, truth, evaluate)
        for name, own in held.items()
        if name != detection.baseline
    }
    for metric in METRICS:
        p = {name: own[metric].p for name, own in compared.items()}
        for name, (holm, bh) in multiplicity.adjust(p).items():
            compared[name][metric] = dataclasses.replace(
                compared[name][metric], p_holm=holm, p_bh=bh
            )
    found = {}
    for name, own in held.items():
        cells = [
            results.summarise(values, draws)
            for values, draws in zip(own.values.T, own.draws, strict=True)
        ]
        summaries = dict(zip(METRICS, cells, strict=False))
        found[name] = ArmStatistics(summaries, cells[len(METRICS) :], compared.get(name, {}))
    return found


def _evidence(arm: Arm, lesions: Lesions, truth: Truth, evaluate: EvaluateConfig) -> _Evidence:
    made = [average_precision.match(run.found, lesions) for run in arm.runs]
    ones = np.ones((len(truth.labels), 1))
    values = np.array(
        [[*own.values(), *average_precision.froc(run, ones)[:, 0]] for run, own in made]
    )
    matched = [run for run, _ in made]
    seeds = [run.seed for run in arm.runs]
    weights = resampling.seed_weights(seeds, evaluate.resamples, evaluate.seed)
    return _Evidence(arm, matched, values, _bootstrap(matched, weights, truth, evaluate))


def _compare(
    own: _Evidence, base: _Evidence, truth: Truth, evaluate: EvaluateConfig
) -> dict[str, Comparison]:
    """An arm minus the baseline; p-values are corrected where all arms are known."""
    mine, theirs = ([run.seed for run in held.arm.runs] for held in (own, base))
    common = [(mine.index(seed), theirs.index(seed)) for seed in mine if seed in theirs]
    pairs = common or list(zip(range(len(mine)), range(len(theirs)), strict=False))
    p = _permutation([(own.matched[i], base.matched[j]) for i, j in pairs], truth, evaluate)
    ends = intervals.percentile(own.draws - base.draws)
    compared = {}
    for q, metric in enumerate(METRICS):
        difference = float(own.values[:, q].mean() - base.values[:, q].mean())
        known = not math.isnan(difference)
        by_seed = np.array([own.values[i, q] - base.values[j, q] for i, j in common])
        compared[metric] = Comparison(
            difference=difference if known else None,
            ci95=_ends(ends[q]) if known else None,
            p=float(p[q]) if known else None,
            p_holm=None,
            n=len(pairs),
            effect=hypothesis.paired_effect(by_seed) if known else None,
        )
    return compared


def _ends(interval: np.ndarray) -> tuple[float, float] | None:
    return None if np.isnan(interval).any() else (float(interval[0]), float(interval[1]))


def _bootstrap(
    runs: Sequence[Matched],
    run_weights: Float[np.ndarray, "m r"],
    truth: Truth,
    evaluate: EvaluateConfig,
) -> Float[np.ndarray, "q r"]:
    """METRICS and sensitivities, the mean over runs; the same test sets are drawn for all arms."""
    classes = grouping.group_classes(truth)

    def replicate(chunk: slice) -> np.ndarray:
        generator = np.random.default_rng([evaluate.seed, 0, chunk.start])
        size = chunk.stop - chunk.start
        weights = resampling.group_weights(generator, classes, size)[truth.groups]
        measured = [
            np.concatenate(
                [average_precision.weighted(run, weights), average_precision.froc(run, weights)]
            )
            for run in runs
        ]
        return np.einsum("mqr,mr->qr", np.stack(measured), run_weights[:, chunk])

    return np.concatenate(
        resampling.side_by_side(replicate, sums.chunks(evaluate.resamples)), axis=-1
    )


def _permutation(
    pairs: Sequence[tuple[Matched, Matched]], truth: Truth, evaluate: EvaluateConfig
) -> Float[np.ndarray, "q"]:
    """Two-sided p of METRICS: groups exchanged between two arms, alike in all pairs of runs.

    As `permutation.permutation`: (1 + times as far as observed) / (1 + permutations).
    """
    both = [average_precision.together(*pair) for pair in pairs]

    def statistic(swap: np.ndarray) -> np.ndarray:
        first, second = np.concatenate([1 - swap, swap]), np.concatenate([swap, 1 - swap])
        weighted = average_precision.weighted
        return np.abs(
            np.mean([weighted(run, first) - weighted(run, second) for run in both], axis=0)
        )

    observed = statistic(np.zeros((len(truth.groups), 1)))

    def exceeding(chunk: slice) -> np.ndarray:
        generator = np.random.default_rng([evaluate.seed, 2, chunk.start])
        swap = generator.integers(2, size=(truth.n_groups, chunk.stop - chunk.start))[truth.groups]
        # Equal statistics may differ in their last bits; a tie counts against the difference.
        return (statistic(swap.astype(np.float64)) >= observed - 1e-9).sum(axis=1)

    exceed = np.sum(resampling.side_by_side(exceeding, sums.chunks(evaluate.permutations)), axis=0)
    p = (1 + exceed) / (1 + evaluate.permutations)
    return np.where(np.isnan(observed[:, 0]), np.nan, p)
