"""The report: report.json (version 1), figures/*.png, tables/ and a self-contained report.html.

`write` computes every number from predictions and labels, draws the figures and writes the files,
report.json last and by rename, so that a folder with report.json holds a whole report.
In report.json, `dataset.groups` holds class names, as `dataset.classes` does; what is undefined is
null. A summary is {"mean", "std", "n", "ci95", "values"}, std null for one seed. Every comparison
(`paired`, `paired_real`) has beside "difference", "ci95", "p" and "n" (seeds paired) "p_holm" and
"p_bh", corrected over the arms, "effect", the standardised paired effect over seeds
(`hypothesis.paired_effect`; null for fewer than three), and "score95", the score interval of the
trained runs alone (`score_intervals`; null where the metric has none).

Beyond the schema, of an arm's statistics: `per_class`, a list of {"class", "images", "groups",
"auroc", "auprc", "sensitivity", "sensitivity_at_specificity", "f1": summaries,
"sensitivity_wilson95", "auroc_score95": score intervals of the trained runs (`intervals`)};
`positive`, that entry of the positive class of two (`config.evaluate.positive`, by default the
second), else null; `score_intervals` of "accuracy", "balanced_accuracy", "auroc_macro";
`metrics_by_group`, summaries by metric with a group's images averaged, null where every group is
one image (`group_level` tells "groups", and how many with several labels were "left_out", the first
named); `paired_tests` with the baseline and `paired_real_tests` with the arm of `paired_real`, each
{"mcnemar", "delong": by class} of the probabilities averaged over seeds, first the arm, then what
it is compared with, with the fields of `hypothesis.McNemar` and `hypothesis.DeLong`. `statistics`
holds the choices made: "interval", "specificity", "resamples", "permutations", "mcnemar",
"positive", and the kind of "bands" that ROC and PR curves have.

Further: `metrics_logit_adjusted`, `val_balanced_accuracy`,
`policy_val_balanced_accuracy`, `policy_val_minus_test`, `shares` (of rounds and classes, the mean
over seeds), `shares_by_seed`, `doses`, `unmet`, `uses_pool`, `uses_policy`, `ledger.data_wait`,
`ledger.flops_over_baseline` (of a run),
`ledger.relies_on` and, for pool arms, `paired_real` (against the arm on real images alone that is
best on val) per arm; `pool.fidelity` and `pool.memorization` (as described at
`inputs.fidelity_summary` and `inputs.memorization_summary`; null where it was not measured);
`mixing` (as described at `mixing.learning_summary`; null where no policy was learned); `detection`
(as described at `detection.summary`; null where no lesions were looked for); `audit` (by part of
`config.audit.parts`, as described at the functions of `lt_jax.auditing`; null where there was
none); `pictures` (as described at `explained.summary`; null where no network was asked); `costs`,
`skipped_images`, `absent_test_classes`, `test_groups_per_class`, `tau` and `summary`.
"""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lt_jax.evaluate import metrics, statistics
from lt_jax.evaluate.errors import EvaluationError
from lt_jax.evaluate.images import explained
from lt_jax.evaluate.metrics import PRIMARY, grouping
from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.evaluate.report import findings, mixing, page, sections, summary
from lt_jax.evaluate.report.findings import Findings
from lt_jax.evaluate.report.inputs import (
    GROUPS,
    REASONS,
    Arm,
    Pool,
    ReportInputs,
    fidelity_summary,
    ledger,
    memorization_summary,
    sorted_runs,
)
from lt_jax.evaluate.statistics import (
    ArmPredictions,
    ArmStatistics,
    Comparison,
    Summary,
    detection,
    tables,
)
from lt_jax.runtime import files

VERSION = 1


def write(inputs: ReportInputs, out: pathlib.Path) -> dict[str, Any]:
    """Writes report.json, report.html, figures/ and tables/ (arms.tex, arms.md) into `out`.

    Returns:
      The content of report.json.

    Raises:
      EvaluationError: logits that are not finite (arm, seed and row are named), labels out of
        range, a positive class that is none, or a group with several labels where that is an error.
    """
    predictions = tuple(predictions_of(arm) for arm in inputs.arms)
    found = findings.find(inputs, predictions, _truth(inputs), *summary.rival(inputs))
    plain = _analyse(inputs, tau=0.0, permutations=inputs.evaluate.permutations)
    adjusted = _analyse(inputs, tau=inputs.tau, permutations=0)
    report = strict(_report(inputs, plain, adjusted, found))
    out.mkdir(parents=True, exist_ok=True)
    content = page.Content(inputs, report, plain, adjusted, predictions, _truth(inputs))
    html = page.render(content, page.draw(content, out / "figures"))
    files.write_atomically(out / "report.html", html, "the report")
    _write_tables(report, out / "tables")
    text = json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False)
    files.write_atomically(out / "report.json", text + "\n", "the report")
    return report


def draws(inputs: ReportInputs) -> dict[str, dict[str, np.ndarray]]:
    """Bootstrap draws [r] of each arm's mean over seeds, by arm and metric; paired over arms."""
    evaluate, truth = inputs.evaluate, _truth(inputs)
    return {
        arm.name: dict(
            zip(
                metrics.METRICS,
                statistics.evidence(
                    predictions_of(arm), truth, evaluate.resamples, evaluate.seed, "percentile"
                ).draws,
                strict=False,  # behind them come the classes
            )
        )
        for arm in inputs.arms
    }


def read(path: pathlib.Path) -> dict[str, Any]:
    """A report.json; EvaluationError names the file where it is damaged or of another version."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise EvaluationError(f"{path}: not JSON ({error}); write the report again") from error
    if report.get("version") != VERSION:
        raise EvaluationError(
            f"{path}: version {report.get('version')!r}; this code reads {VERSION}"
        )
    return report


def text_table(report: Mapping[str, Any]) -> str:
    """The arms' table of a report, for a terminal."""
    return tables.to_text(arms_table(report))


def arms_table(report: Mapping[str, Any], caption: str = "") -> tables.Table:
    """The arms of a report, in its order, the baseline marked and subtracted; beside the name of
    an arm whose runs take more or less than the baseline's, by over 5%, the ratio of FLOPs."""
    chosen = ("accuracy", PRIMARY, "macro_f1", "auroc_macro", "recall_tail")
    rows = []
    for arm in report["arms"]:
        paired, name = arm["paired"], arm["name"]
        is_baseline = name == paired["baseline"]
        versus: tables.Cell = "" if is_baseline else tables.UNDEFINED
        if PRIMARY in paired:
            versus = tables.cell_from_json(Comparison, paired[PRIMARY])
        cells = [tables.cell_from_json(Summary, arm["metrics"][metric]) for metric in chosen]
        mark = "baseline" if is_baseline else sections.compute(arm)
        rows.append((f"{name} ({mark})" if mark else name, *cells, versus))
    baseline = report["arms"][0]["paired"]["baseline"]
    last = f"{tables.TITLES[PRIMARY]} minus {baseline}"
    columns = ("Arm", *(tables.TITLES[metric] for metric in chosen), last)
    return tables.Table(columns, tuple(rows), caption)


def _write_tables(report: Mapping[str, Any], folder: pathlib.Path) -> None:
    """arms.tex and arms.md, for who writes of it."""
    folder.mkdir(exist_ok=True)
    caption = (
        f"{report['dataset']['name']}: mean ± standard deviation over n seeds; in the last column "
        f"the difference of means with its 95% {report['statistics']['interval']} bootstrap "
        "interval, p of a paired permutation test, and p after Holm's correction over the arms."
    )
    if any(sections.compute(arm) for arm in report["arms"]):
        caption += " x FLOPs: of a run over the baseline's, where they differ by more than 5%."
    table = arms_table(report, caption)
    latex = f"% takes \\usepackage{{booktabs}}\n{tables.to_latex(table)}"
    for name, text in (("arms.tex", latex), ("arms.md", tables.to_markdown(table))):
        files.write_atomically(folder / name, text + "\n", "the report's tables")


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


def _analyse(inputs: ReportInputs, tau: float, permutations: int) -> dict[str, ArmStatistics]:
    evaluate = inputs.evaluate
    predictions = [predictions_of(arm, tau) for arm in inputs.arms]
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
        interval=evaluate.interval,
    )


def _truth(inputs: ReportInputs) -> Truth:
    data = inputs.dataset
    return Truth(
        labels=data.test_labels,
        groups=grouping.group_codes(data.test_groups),
        class_groups=data.groups,
        k=len(data.classes),
        bins=inputs.evaluate.ece_bins,
        specificity=inputs.evaluate.specificity,
    )


def predictions_of(arm: Arm, tau: float = 0.0) -> ArmPredictions:
    """Test probabilities of an arm's runs, by seed, `tau` times its label prior taken away.

    Raises EvaluationError for logits that are not finite.
    """
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
    inputs: ReportInputs,
    plain: dict[str, ArmStatistics],
    adjusted: dict[str, ArmStatistics],
    found: Findings,
) -> dict[str, Any]:
    data, truth = inputs.dataset, _truth(inputs)
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
        "detection": detection.summary(inputs.detection, inputs.evaluate),
        "audit": None if inputs.pool is None else inputs.pool.audit,
        "pictures": explained.summary(inputs.pictures, inputs.dataset.classes),
        "arms": [
            _arm(arm, inputs, plain[arm.name], adjusted[arm.name])
            | findings.of_arm(found, arm.name, plain[arm.name], data, truth)
            for arm in inputs.arms
        ],
        "group_level": findings.group_level(found, data, truth),
        "statistics": _choices(inputs, found),
        "summary": summary.paragraph(inputs, plain),
        "tau": inputs.tau,
        "costs": [
            {"name": c.name, "seconds": c.seconds, "images": c.images, "flops": c.flops}
            for c in inputs.costs
        ],
        "skipped_images": inputs.skipped,
        "absent_test_classes": [data.classes[c] for c in absent],
        "test_groups_per_class": grouping.groups_per_class(truth),
    }


def _choices(inputs: ReportInputs, found: Findings) -> dict[str, Any]:
    names = ("interval", "specificity", "resamples", "permutations", "mcnemar")
    positive = None if found.positive is None else inputs.dataset.classes[found.positive]
    chosen = {name: getattr(inputs.evaluate, name) for name in names}
    return {**chosen, "bands": "percentile", "positive": positive}  # of ROC and PR curves


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
        "ledger": {**ledger(arm, inputs.costs), "flops_over_baseline": _flops_ratio(arm, inputs)},
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


def _flops_ratio(arm: Arm, inputs: ReportInputs) -> float | None:
    """FLOPs of a run of the arm over those of a run of the baseline; None where one is unknown."""
    by_name = {other.name: other for other in inputs.arms}
    per_run = []
    for one in (arm, by_name[inputs.evaluate.baseline]):
        flops = ledger(one, ())["flops"]
        if not flops:
            return None
        per_run.append(flops / len(one.runs))
    return per_run[0] / per_run[1]


def _paired_real(inputs: ReportInputs, plain: ArmStatistics) -> dict[str, Any]:
    if not plain.against_rival:
        return {}
    compared = {name: tables.cell_to_json(c) for name, c in plain.against_rival.items()}
    return {"paired_real": {"baseline": summary.rival(inputs)[0], **compared}}
