"""What report.json says of an arm beyond its metrics: class by class, group level, paired tests."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lt_jax.evaluate import metrics, statistics
from lt_jax.evaluate.errors import EvaluationError
from lt_jax.evaluate.metrics import grouping
from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.evaluate.report.inputs import Dataset, ReportInputs
from lt_jax.evaluate.statistics import ArmPredictions, ArmStatistics, paired, tables
from lt_jax.evaluate.statistics.paired import PairedTests

# Of groups that are left out, so many are named.
NAMED = 5


@dataclasses.dataclass(frozen=True)
class Findings:
    """positive: class index, None unless there are two classes. level, by_group: the test set and
    the arms at group level, None where every group is one image or none has one label. tests,
    real_tests: against the baseline and against the best arm on real images, by arm."""

    positive: int | None
    level: grouping.GroupLevel | None
    by_group: Mapping[str, ArmStatistics] | None
    tests: Mapping[str, PairedTests]
    real_tests: Mapping[str, PairedTests]


def positive_class(name: str, classes: Sequence[str]) -> int | None:
    """The positive class of two: `config.evaluate.positive`, by default the second.

    Raises:
      EvaluationError: a name that is no class, or any name where there are not two classes.
    """
    if len(classes) != 2:
        if name:
            raise EvaluationError(
                f"config.evaluate.positive: got {name!r} with {len(classes)} classes; only of two "
                "classes is one the positive one: leave it empty"
            )
        return None
    if name and name not in classes:
        raise EvaluationError(
            f"config.evaluate.positive: got {name!r}; takes one of {', '.join(classes)}"
        )
    return classes.index(name) if name else 1


def find(
    inputs: ReportInputs,
    predictions: Sequence[ArmPredictions],
    truth: Truth,
    rival: str | None,
    challengers: Sequence[str],
) -> Findings:
    """Everything here, from the arms' predictions on test.

    Raises EvaluationError as `positive_class` and `grouping.by_group` do.
    """
    evaluate = inputs.evaluate
    positive = positive_class(evaluate.positive, inputs.dataset.classes)
    names = [arm.name for arm in predictions if arm.name != evaluate.baseline]
    test = lambda reference, whose: paired.against(
        predictions, truth, reference, whose, method=evaluate.mcnemar, positive=positive
    )
    level = by_group = None
    if truth.has_clusters:
        level = grouping.by_group(truth, evaluate.mixed_groups, inputs.dataset.test_groups)
    if level is not None:
        by_group = statistics.analyse(
            [_at_level(arm, truth, level) for arm in predictions],
            level.truth,
            evaluate.baseline,
            resamples=evaluate.resamples,
            permutations=0,
            seed=evaluate.seed,
            interval=evaluate.interval,
        )
    real = test(rival, challengers) if rival is not None else {}
    return Findings(positive, level, by_group, test(evaluate.baseline, names), real)


def _at_level(arm: ArmPredictions, truth: Truth, level: grouping.GroupLevel) -> ArmPredictions:
    means = grouping.group_means(arm.probabilities, truth.groups)
    return dataclasses.replace(arm, probabilities=means[:, level.rows])


def of_arm(
    found: Findings, name: str, plain: ArmStatistics, data: Dataset, truth: Truth
) -> dict[str, Any]:
    """The fields of an arm in report.json that are described at `report`."""
    entries = [_class(c, plain, data, truth) for c in range(truth.k)]
    macro = ("accuracy", "balanced_accuracy", "auroc_macro")
    return {
        "per_class": entries,
        "positive": None if found.positive is None else entries[found.positive],
        "score_intervals": {metric: plain.score_intervals[metric] for metric in macro},
        "metrics_by_group": _summaries(found.by_group, name),
        "paired_tests": _tests(found.tests.get(name), data),
        "paired_real_tests": _tests(found.real_tests.get(name), data),
    }


def _class(c: int, plain: ArmStatistics, data: Dataset, truth: Truth) -> dict[str, Any]:
    mine = truth.labels == c
    cells = {name: tables.cell_to_json(plain.per_class[name][c]) for name in metrics.PER_CLASS}
    return {
        "class": data.classes[c],
        "images": int(mine.sum()),
        "groups": len(np.unique(truth.groups[mine])),
        **cells,
        "sensitivity_wilson95": plain.score_intervals[f"sensitivity/{c}"],
        "auroc_score95": plain.score_intervals[f"auroc/{c}"],
    }


def _summaries(by_group: Mapping[str, ArmStatistics] | None, name: str) -> dict[str, Any] | None:
    if by_group is None:
        return None
    return {m: tables.cell_to_json(cell) for m, cell in by_group[name].summaries.items()}


def _tests(found: PairedTests | None, data: Dataset) -> dict[str, Any] | None:
    if found is None:
        return None
    delong = {data.classes[c]: tables.cell_to_json(test) for c, test in found.delong.items()}
    return {"mcnemar": tables.cell_to_json(found.mcnemar), "delong": delong}


def group_level(found: Findings, data: Dataset, truth: Truth) -> dict[str, Any] | None:
    """Groups with one label, and how many were left out and which; None where there is no level."""
    if found.level is None:
        return None
    names, codes = np.asarray(data.test_groups), found.level.left_out
    first = [names[np.flatnonzero(truth.groups == code)[0]] for code in codes[:NAMED]]
    return {
        "groups": len(found.level.rows),
        "left_out": len(codes),
        "left_out_first": [str(name) for name in first],
    }
