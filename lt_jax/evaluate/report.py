"""The report: report.json (schema version 1), figures/*.png and a self-contained report.html.

`write` computes every number from predictions and labels, draws the figures and writes the files,
report.json last and by rename, so that a folder with report.json holds a whole report.
In report.json, `dataset.groups` holds class names, as `dataset.classes` does; what is undefined is
null. Beyond the schema: `metrics_logit_adjusted`, `val_balanced_accuracy`, `shares`, `doses`,
`uses_pool` and `ledger.relies_on` per arm; `costs`, `skipped_images`, `absent_test_classes`, `tau`
and `summary`.
"""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from lt_jax.evaluate import metrics, page, resampling, statistics, tables
from lt_jax.evaluate.inputs import (
    GROUPS,
    REASONS,
    Arm,
    Dataset,
    Gallery,
    Pool,
    ReportInputs,
    Run,
    StageCost,
    ledger,
    sorted_runs,
)
from lt_jax.evaluate.metrics import PRIMARY
from lt_jax.evaluate.statistics import ArmPredictions, ArmStatistics, Summary
from lt_jax.runtime import files

__all__ = [
    "Arm",
    "Dataset",
    "Gallery",
    "Pool",
    "ReportInputs",
    "Run",
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
    """The arms' table of a report, for a terminal."""
    chosen = ("accuracy", PRIMARY, "macro_f1", "auroc_macro", "recall_tail")
    summaries = {
        arm["name"]: {name: _summary_from_json(arm["metrics"][name]) for name in chosen}
        for arm in report["arms"]
    }
    return tables.to_text(tables.metrics_table(summaries, chosen))


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
    ci95 = None if value["ci95"] is None else (value["ci95"][0], value["ci95"][1])
    return Summary(value["mean"], value["std"], value["n"], ci95, tuple(value["values"]))


def _analyse(inputs: ReportInputs, tau: float, permutations: int) -> dict[str, ArmStatistics]:
    data, evaluate = inputs.dataset, inputs.evaluate
    truth = resampling.Truth(
        labels=data.test_labels,
        groups=resampling.group_codes(data.test_groups),
        class_groups=data.groups,
        k=len(data.classes),
        bins=evaluate.ece_bins,
    )
    return statistics.analyse(
        [_predictions(arm, tau) for arm in inputs.arms],
        truth,
        evaluate.baseline,
        resamples=evaluate.resamples,
        permutations=permutations,
        seed=evaluate.seed,
    )


def _predictions(arm: Arm, tau: float) -> ArmPredictions:
    runs = sorted_runs(arm)
    probabilities = [
        metrics.softmax(
            metrics.logit_adjust(run.test_logits, arm.log_prior, tau) if tau else run.test_logits,
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
        "arms": [_arm(arm, inputs, plain[arm.name], adjusted[arm.name]) for arm in inputs.arms],
        "summary": summary_paragraph(inputs, plain),
        "tau": inputs.tau,
        "costs": [
            {"name": c.name, "seconds": c.seconds, "images": c.images, "flops": c.flops}
            for c in inputs.costs
        ],
        "skipped_images": inputs.skipped,
        "absent_test_classes": [data.classes[c] for c in absent],
    }


def _pool(pool: Pool | None) -> dict[str, Any]:
    if pool is None:
        pool = Pool(0, 0, {})
    return {
        "generated": pool.generated,
        "accepted": pool.accepted,
        "rejected": {**dict.fromkeys(REASONS, 0), **pool.rejected},
        "per_class": pool.per_class,
    }


def _arm(
    arm: Arm, inputs: ReportInputs, plain: ArmStatistics, adjusted: ArmStatistics
) -> dict[str, Any]:
    recall = plain.recall_per_class
    several = len(recall) > 1
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
        "ledger": ledger(arm, inputs.costs),
        "metrics_logit_adjusted": {
            name: tables.cell_to_json(s) for name, s in adjusted.summaries.items()
        },
        "val_balanced_accuracy": _on_val(arm, inputs.dataset),
        "shares": arm.shares,
        "doses": arm.doses,
        "uses_pool": arm.uses_pool,
    }


def _on_val(arm: Arm, data: Dataset) -> dict[str, Any] | None:
    """Balanced accuracy on val, whose gap to test tells of choices made on val."""
    logits = [run.val_logits for run in sorted_runs(arm) if run.val_logits is not None]
    if data.val_labels is None or len(data.val_labels) == 0 or len(logits) < len(arm.runs):
        return None
    where = f"val predictions of arm {arm.name!r} (runs by ascending seed)"
    probabilities: Float[np.ndarray, "m v k"] = metrics.softmax(np.stack(logits), where)
    return tables.cell_to_json(
        statistics.summarise(metrics.balanced_accuracy(probabilities, data.val_labels))
    )


def summary_paragraph(inputs: ReportInputs, plain: dict[str, ArmStatistics]) -> str:
    """What the numbers say of balanced accuracy, in a few sentences."""
    data, baseline = inputs.dataset, inputs.evaluate.baseline
    groups = len(np.unique(np.asarray(data.test_groups)))
    cell = {name: tables.format_cell(s.summaries[PRIMARY]) for name, s in plain.items()}
    sentences = [
        f"On {data.name} ({len(data.classes)} classes, {len(data.test_labels):,} test images in "
        f"{groups:,} groups), the baseline {baseline} reaches a balanced accuracy of "
        f"{cell[baseline]}."
    ]
    others = {name: s for name, s in plain.items() if name != baseline}
    if not others:
        return f"{sentences[0]} There is no other arm to compare it with."
    better = [name for name, s in others.items() if s.comparisons[PRIMARY].better(PRIMARY)]
    if better:
        listed = ", ".join(
            f"{name} ({tables.comparison_parts(others[name].comparisons[PRIMARY])[0]})"
            for name in better
        )
        sentences.append(
            f"{len(better)} of {len(others)} arms beat it significantly (95% interval above zero "
            f"and Holm-corrected p below 0.05): {listed}."
        )
    else:
        sentences.append(
            f"None of the {len(others)} other arms beats it significantly (that would take an "
            "interval above zero and a Holm-corrected p below 0.05)."
        )
    defined = {n: s.summaries[PRIMARY].mean or 0.0 for n, s in plain.items()}
    best = max(defined, key=lambda name: defined[name])
    sentences.append(
        f"The highest mean is that of {best}, {cell[best]}; the highest of {len(plain)} is "
        "flattered by being chosen."
    )
    if any(s.summaries[PRIMARY].n == 1 for s in plain.values()):
        sentences.append(f"* {tables.ONE_SEED.capitalize()}.")
    return " ".join(sentences)
