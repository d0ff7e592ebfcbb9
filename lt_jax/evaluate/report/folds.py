"""Metrics fold by fold, and the test over folds that allows for the train images they share.

Folds are one run each of the same arms and seeds, on test sets that have no group in common. A
fold's value is the mean over its seeds; a Summary's n is the number of folds, and its interval is
left out: the folds' deviation underestimates the variance of their mean, since their train sets
overlap, and no unbiased estimate exists (Bengio and Grandvalet, JMLR 5:1089, 2004). The p-value is
that of the corrected resampled t-test, corrected over the arms by Holm and by Benjamini and
Hochberg.

Its n_test / n_train is 1 / (k - 1) whatever the profile of train: n_train counts all images that
are not test. Nadeau and Bengio's correction is for what the folds' data have in common, of which
the learner is handed n_train images; to thin them to a long tail, or to set some aside as
policy_val and val, is a part of that learner, as early stopping would be. It leaves images out,
and so makes what folds are trained on no more alike: the test errs on the safe side, if at all
(its size by simulation is in experiments/statistics/README.md).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lt_jax.evaluate import metrics, statistics
from lt_jax.evaluate.report.inputs import ReportInputs, sorted_runs
from lt_jax.evaluate.statistics import Summary, hypothesis, multiplicity, tables
from lt_jax.evaluate.statistics.hypothesis import FoldTest

SHOWN = ("balanced_accuracy", "macro_f1", "auroc_macro")


def by_fold(folds: Sequence[ReportInputs]) -> dict[str, dict[str, np.ndarray]]:
    """Arm -> metric -> a value [j] of each fold, its mean over seeds; NaN where it is undefined."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for arm in range(len(folds[0].arms)):
        values = [_values(fold, arm) for fold in folds]
        found[folds[0].arms[arm].name] = {
            metric: np.array([value[metric] for value in values]) for metric in metrics.METRICS
        }
    return found


def _values(fold: ReportInputs, arm: int) -> dict[str, float]:
    data, runs = fold.dataset, sorted_runs(fold.arms[arm])
    where = f"test predictions of arm {fold.arms[arm].name!r}"
    probabilities = metrics.softmax(np.stack([run.test_logits for run in runs]), where)
    values = metrics.evaluate(
        probabilities,
        data.test_labels,
        data.groups,
        fold.evaluate.ece_bins,
        fold.evaluate.specificity,
    )
    return {name: float(np.mean(value)) for name, value in values.items()}


def compare(folds: Sequence[ReportInputs]) -> dict[str, Any]:
    """Every metric by fold, and every arm against the baseline.

    Returns:
      {"folds": j, "baseline": its name, "n_test": its mean size, "n_train": the images that are not
      test, before any are thinned out or held out as val, "arms": {name: {metric:
      {"mean", "std", "n", "values" by fold, "test": the fields of `hypothesis.FoldTest`, or None
      for the baseline and where a fold leaves the metric undefined}}}}.
    """
    baseline = folds[0].evaluate.baseline
    images = sum(len(fold.dataset.test_labels) for fold in folds)  # each is test once
    n_test = round(images / len(folds))
    n_train = images - n_test
    values = by_fold(folds)
    arms: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in values}
    for metric in metrics.METRICS:
        tests = {
            name: hypothesis.corrected_resampled_t(difference, n_train, n_test)
            for name in values
            if name != baseline
            and np.isfinite(difference := values[name][metric] - values[baseline][metric]).all()
        }
        adjusted = multiplicity.adjust({name: test.p for name, test in tests.items()})
        for name in values:
            summary = statistics.summarise(values[name][metric])
            told = None
            if test := tests.get(name):
                holm, bh = adjusted[name]
                told = tables.cell_to_json(dataclasses.replace(test, p_holm=holm, p_bh=bh))
            kept = {k: v for k, v in tables.cell_to_json(summary).items() if k != "ci95"}
            arms[name][metric] = {**kept, "test": told}
    return {
        "folds": len(folds),
        "baseline": baseline,
        "n_train": n_train,
        "n_test": n_test,
        "arms": arms,
    }


def text_table(found: Mapping[str, Any]) -> str:
    """For a terminal: mean and deviation over folds, and the difference to the baseline."""
    rows = []
    for name, values in found["arms"].items():
        cells: list[tables.Cell] = [name]
        for metric in SHOWN:
            held = {key: value for key, value in values[metric].items() if key != "test"}
            cells.append(tables.cell_from_json(Summary, {**held, "ci95": None}))
            cells.append(_versus(values[metric]["test"], name == found["baseline"]))
        rows.append(tuple(cells))
    columns = ["Arm"]
    for metric in SHOWN:
        columns += [tables.TITLES[metric], f"minus {found['baseline']}"]
    caption = (
        f"Over {found['folds']} folds (n), each the mean over its seeds; p of the corrected "
        "resampled t-test, Holm's and Benjamini and Hochberg's (BH) over the arms"
    )
    return tables.to_text(tables.Table(tuple(columns), tuple(rows), caption))


def _versus(test: Mapping[str, Any] | None, itself: bool) -> tables.Cell:
    if test is None:
        return "" if itself else tables.UNDEFINED
    return tables.cell_from_json(FoldTest, test)
