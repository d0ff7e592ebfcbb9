"""The report: report.json (schema version 1), figures/*.png and a self-contained report.html.

`write` computes every number from predictions and labels, draws the figures and writes the files,
report.json last and by rename, so that a folder with report.json holds a whole report.
In report.json, `dataset.groups` holds class names, as `dataset.classes` does; what is undefined is
null. Beyond the schema: `metrics_logit_adjusted`, `val_balanced_accuracy`,
`policy_val_balanced_accuracy`, `policy_val_minus_test`, `shares` (of rounds and classes, the mean
over seeds), `shares_by_seed`, `doses`, `unmet`, `uses_pool`, `uses_policy`, `ledger.data_wait`,
`ledger.relies_on` and, for pool arms, `paired_real` (against the arm on real images alone that is
best on val) per arm; `pool.fidelity` and `pool.memorization` (as described at
`inputs.fidelity_summary` and `inputs.memorization_summary`; null where it was not measured);
`mixing` (as described at `mixing.learning_summary`; null where no policy was learned); `costs`,
`skipped_images`, `absent_test_classes`, `test_groups_per_class`, `tau` and `summary`.
"""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lt_jax.evaluate import metrics, mixing, page, resampling, statistics, summary, tables
from lt_jax.evaluate.inputs import (
    GROUPS,
    REASONS,
    Arm,
    Dataset,
    Gallery,
    Learning,
    Pair,
    Pool,
    ReportInputs,
    Run,
    Source,
    StageCost,
    fidelity_summary,
    ledger,
    memorization_summary,
    sorted_runs,
)
from lt_jax.evaluate.metrics import PRIMARY
from lt_jax.evaluate.statistics import ArmPredictions, ArmStatistics, Comparison, Summary
from lt_jax.runtime import files

__all__ = [
    "Arm",
    "Dataset",
    "Gallery",
    "Learning",
    "Pair",
    "Pool",
    "ReportInputs",
    "Run",
    "Source",
    "StageCost",
    "read",
    "text_table",
    "write",
]

VERSION = 1


def write(inputs: ReportInputs, out: pathlib.Path) -> dict[str, Any]:
    """Writes report.json, report.html and figures/ into `out`.

    Returns:
      The content of report.json.

    Raises:
      ValueError: logits that are not finite (arm, seed and row are named), labels out of range.
    """
    plain = _analyse(inputs, tau=0.0, permutations=inputs.evaluate.permutations)
    adjusted = _analyse(inputs, tau=inputs.tau, permutations=0)
    report = strict(_report(inputs, plain, adjusted))
    out.mkdir(parents=True, exist_ok=True)
    drawn = page.draw(inputs, plain, out / "figures")
    html = page.render(inputs, report, plain, adjusted, drawn)
    files.write_atomically(out / "report.html", html, "the report")
    text = json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False)
    files.write_atomically(out / "report.json", text + "\n", "the report")
    return report


def read(path: pathlib.Path) -> dict[str, Any]:
    """A report.json; ValueError names the file where it is damaged or of another version."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); write the report again") from error
    if report.get("version") != VERSION:
        raise ValueError(f"{path}: version {report.get('version')!r}; this code reads {VERSION}")
    return report


def text_table(report: Mapping[str, Any]) -> str:
    """The arms' table of a report, for a terminal: in the report's order, the baseline marked."""
    chosen = ("accuracy", PRIMARY, "macro_f1", "auroc_macro", "recall_tail")
    rows = []
    for arm in report["arms"]:
        paired, name = arm["paired"], arm["name"]
        is_baseline = name == paired["baseline"]
        versus: tables.Cell = "" if is_baseline else tables.UNDEFINED
        if PRIMARY in paired:
            versus = Comparison(**{**paired[PRIMARY], "ci95": _interval(paired[PRIMARY])})
        cells = [_summary_from_json(arm["metrics"][metric]) for metric in chosen]
        rows.append((f"{name} (baseline)" if is_baseline else name, *cells, versus))
    baseline = report["arms"][0]["paired"]["baseline"]
    last = f"{tables.TITLES[PRIMARY]} minus {baseline}"
    columns = ("Arm", *(tables.TITLES[metric] for metric in chosen), last)
    return tables.to_text(tables.Table(columns, tuple(rows)))


def strict(value: Any) -> Any:
    """Plain JSON values: arrays and tuples as lists, NumPy numbers as Python's, NaN as None."""
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return strict(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, pathlib.PurePath):
        return str(value)
    return value


def _summary_from_json(value: Mapping[str, Any]) -> Summary:
    values = tuple(value["values"])
    return Summary(value["mean"], value["std"], value["n"], _interval(value), values)


def _interval(value: Mapping[str, Any]) -> tuple[float, float] | None:
    return None if value["ci95"] is None else (value["ci95"][0], value["ci95"][1])


def _analyse(inputs: ReportInputs, tau: float, permutations: int) -> dict[str, ArmStatistics]:
    evaluate = inputs.evaluate
    predictions = [_predictions(arm, tau) for arm in inputs.arms]
    rival, challengers = summary.rival(inputs) if permutations else (None, [])
    return statistics.analyse(
        predictions,
        _truth(inputs),
        evaluate.baseline,
        rival=rival,
        challengers=challengers,
        resamples=evaluate.resamples,
        permutations=permutations,
        seed=evaluate.seed,
    )


def _truth(inputs: ReportInputs) -> resampling.Truth:
    data = inputs.dataset
    return resampling.Truth(
        labels=data.test_labels,
        groups=resampling.group_codes(data.test_groups),
        class_groups=data.groups,
        k=len(data.classes),
        bins=inputs.evaluate.ece_bins,
    )


def _predictions(arm: Arm, tau: float) -> ArmPredictions:
    runs = sorted_runs(arm)
    probabilities = [
        metrics.softmax(
            metrics.logit_adjust(run.test_logits, run.log_prior, tau) if tau else run.test_logits,
            f"test predictions of arm {arm.name!r}, seed {run.seed}",
        )
        for run in runs
    ]
    return ArmPredictions(arm.name, tuple(run.seed for run in runs), np.stack(probabilities))


def _report(
    inputs: ReportInputs, plain: dict[str, ArmStatistics], adjusted: dict[str, ArmStatistics]
) -> dict[str, Any]:
    data = inputs.dataset
    absent = metrics.absent_classes(data.test_labels, len(data.classes))
    return {
        "version": VERSION,
        "command": inputs.command,
        "config": inputs.config,
        "environment": inputs.environment,
        "dataset": {
            "name": data.name,
            "classes": data.classes,
            "train_counts": data.train_counts,
            "groups": {name: [data.classes[c] for c in data.groups[name]] for name in GROUPS},
            "manifest_sha256": data.manifest_sha256,
            "protocol": data.protocol,
            "test_openings": data.test_openings,
        },
        "pool": _pool(inputs.pool),
        "mixing": mixing.learning_summary(inputs.learning),
        "arms": [_arm(arm, inputs, plain[arm.name], adjusted[arm.name]) for arm in inputs.arms],
        "summary": summary.paragraph(inputs, plain),
        "tau": inputs.tau,
        "costs": [
            {"name": c.name, "seconds": c.seconds, "images": c.images, "flops": c.flops}
            for c in inputs.costs
        ],
        "skipped_images": inputs.skipped,
        "absent_test_classes": [data.classes[c] for c in absent],
        "test_groups_per_class": resampling.groups_per_class(_truth(inputs)),
    }


def _pool(pool: Pool | None) -> dict[str, Any]:
    if pool is None:
        pool = Pool(0, 0, {})
    return {
        "generated": pool.generated,
        "accepted": pool.accepted,
        "rejected": {**dict.fromkeys(REASONS, 0), **pool.rejected},
        "per_class": pool.per_class,
        "fidelity": fidelity_summary(pool),
        "memorization": memorization_summary(pool),
    }


def _arm(
    arm: Arm, inputs: ReportInputs, plain: ArmStatistics, adjusted: ArmStatistics
) -> dict[str, Any]:
    recall = plain.recall_per_class
    several = len(recall) > 1
    splits = mixing.accuracies(arm, inputs.dataset, plain.summaries[PRIMARY])
    splits = {name: None if s is None else tables.cell_to_json(s) for name, s in splits.items()}
    shares = mixing.shares_of(arm)
    return {
        "name": arm.name,
        "controller": arm.controller,
        "loss": arm.loss,
        "seeds": [run.seed for run in sorted_runs(arm)],
        "metrics": {name: tables.cell_to_json(s) for name, s in plain.summaries.items()},
        "recall_per_class": {
            "mean": recall.mean(axis=0),
            "std": recall.std(axis=0, ddof=1) if several else [None] * recall.shape[1],
        },
        "paired": {
            "baseline": inputs.evaluate.baseline,
            **{name: tables.cell_to_json(c) for name, c in plain.comparisons.items()},
        },
        **_paired_real(inputs, plain),
        "ledger": ledger(arm, inputs.costs),
        "metrics_logit_adjusted": {
            name: tables.cell_to_json(s) for name, s in adjusted.summaries.items()
        },
        "val_balanced_accuracy": splits["val"],
        "policy_val_balanced_accuracy": splits["policy_val"],
        "policy_val_minus_test": splits["gap"],
        "shares": None if shares is None else shares.mean(axis=0),
        "shares_by_seed": shares,
        "doses": arm.doses,
        "unmet": arm.unmet,
        "uses_pool": arm.uses_pool,
        "uses_policy": arm.uses_policy,
    }


def _paired_real(inputs: ReportInputs, plain: ArmStatistics) -> dict[str, Any]:
    if not plain.against_rival:
        return {}
    compared = {name: tables.cell_to_json(c) for name, c in plain.against_rival.items()}
    return {"paired_real": {"baseline": summary.rival(inputs)[0], **compared}}
