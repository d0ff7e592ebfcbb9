"""The tables of the page as text: heads, and rows of cells with a smaller line below."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lt_jax.evaluate import metrics
from lt_jax.evaluate.images import fidelity
from lt_jax.evaluate.report import shown
from lt_jax.evaluate.report.chart_pictures import MAX_CLASSES, rarest_rows
from lt_jax.evaluate.report.inputs import Dataset
from lt_jax.evaluate.statistics import ArmStatistics, tables
from lt_jax.evaluate.statistics.hypothesis import DeLong, McNemar
from lt_jax.evaluate.statistics.results import Comparison, Summary

# Below so many test groups in a class, the page warns of its intervals.
FEW_GROUPS = 5
# What an arm's runs may take more or less than the baseline's and still be of one budget.
SAME_COMPUTE = 0.05
PAIRED = ("balanced_accuracy", "macro_f1", "auroc_macro", "recall_tail")
SCORED = ("accuracy", "balanced_accuracy", "auroc_macro")  # that have score intervals

Grid = dict[str, Any]  # "columns", and "rows" of (head, small, cells of text and small)


def interval(ends: Sequence[float] | None) -> str:
    """An interval as report.json has it, as text."""
    return tables.format_interval(None if ends is None else (ends[0], ends[1]))


def _grid(
    columns: Sequence[str], rows: Sequence[tuple[str, str, Sequence[tuple[str, str]]]]
) -> Grid:
    return {"columns": list(columns), "rows": list(rows)}


def compute(arm: Mapping[str, Any]) -> str:
    """ "1.5 x FLOPs" where an arm's run takes others than the baseline's; "" where it does not, or
    where it is not known."""
    ratio = arm["ledger"]["flops_over_baseline"]
    if ratio is None or abs(ratio - 1) <= SAME_COMPUTE:
        return ""
    return f"{ratio:.3g} x FLOPs"


def arms(found: Mapping[str, ArmStatistics], written: Sequence[Mapping[str, Any]]) -> Grid:
    """Arms by every metric, marked where their runs are not of the baseline's compute."""
    below = {arm["name"]: compute(arm) for arm in written}
    table = tables.metrics_table({n: s.summaries for n, s in found.items()}, metrics.METRICS)
    rows = [
        (name, below[name], [_of_summary(cell) for cell in cells]) for name, *cells in table.rows
    ]
    return _grid(table.columns, rows)


def _of_summary(cell: Summary) -> tuple[str, str]:
    below = "" if cell.mean is None else tables.format_interval(cell.ci95)
    return tables.format_cell(cell), below


def score_intervals(arms: Sequence[Mapping[str, Any]]) -> Grid:
    """Arms by the metrics that have intervals of the trained runs alone."""
    rows = []
    for arm in arms:
        cells = []
        for metric in SCORED:
            ends = arm["score_intervals"][metric]
            mean = tables.format_cell(_summary(arm["metrics"][metric]))
            cells.append((tables.UNDEFINED if ends is None else interval(ends), mean))
        rows.append((arm["name"], "", cells))
    return _grid(["Arm", *(tables.TITLES[metric] for metric in SCORED)], rows)


def paired(compared: Mapping[str, Mapping[str, Comparison]], reference: str) -> Grid | None:
    """Arms minus the reference by some metrics; None where there is none to compare."""
    rows = [
        (name, "", [_of_comparison(comparisons[m]) for m in PAIRED])
        for name, comparisons in compared.items()
        if comparisons
    ]
    columns = [f"Arm minus {reference}", *(tables.TITLES[metric] for metric in PAIRED)]
    return _grid(columns, rows) if rows else None


def _of_comparison(cell: Comparison) -> tuple[str, str]:
    estimate, test = tables.comparison_parts(cell)
    effect = "" if cell.effect is None else f", g_z={cell.effect:+.2f}"
    alone = "" if cell.score95 is None else f", runs alone {interval(cell.score95)}"
    return estimate, test + effect + alone


def classes(arms: Sequence[Mapping[str, Any]], data: Dataset) -> list[tuple[str, Grid]]:
    """Of each arm its classes, the rarest first, by what is told class by class."""
    chosen = shown.classes(data.train_counts, MAX_CLASSES).tolist()
    columns = ["Class", *(tables.TITLES[name] for name in metrics.PER_CLASS)]
    return [
        (arm["name"], _grid(columns, [_of_class(arm["per_class"][c]) for c in chosen]))
        for arm in arms
    ]


def _of_class(entry: Mapping[str, Any]) -> tuple[str, str, list[tuple[str, str]]]:
    score = {"auroc": entry["auroc_score95"], "sensitivity": entry["sensitivity_wilson95"]}
    cells = []
    for name in metrics.PER_CLASS:
        text, below = _of_summary(_summary(entry[name]))
        if ends := score.get(name):
            below += f" runs alone {interval(ends)}"
        cells.append((text, below))
    return entry["class"], f"{entry['images']:,} images, {entry['groups']:,} groups", cells


def positive(arms: Sequence[Mapping[str, Any]]) -> Grid | None:
    """Arms by the figures of the positive class of two; None of other numbers of classes."""
    if arms[0]["positive"] is None:
        return None
    rows = [(arm["name"], "", _of_class(arm["positive"])[2]) for arm in arms]
    return _grid(["Arm", *(tables.TITLES[name] for name in metrics.PER_CLASS)], rows)


def by_group(arms: Sequence[Mapping[str, Any]]) -> Grid | None:
    """Arms by every metric at group level; None where there is no such level."""
    if any(arm["metrics_by_group"] is None for arm in arms):
        return None
    rows = [
        (
            arm["name"],
            "",
            [_of_summary(_summary(arm["metrics_by_group"][m])) for m in metrics.METRICS],
        )
        for arm in arms
    ]
    return _grid(["Arm", *(tables.TITLES[metric] for metric in metrics.METRICS)], rows)


def tests(
    arms: Sequence[Mapping[str, Any]], key: str, reference: str, data: Dataset
) -> Grid | None:
    """McNemar's and DeLong's tests (`key` of report.json) of arms against a reference; None where
    there are none. DeLong's of the rarest classes."""
    held = {arm["name"]: arm[key] for arm in arms if arm[key] is not None}
    if not held:
        return None
    names = [data.classes[c] for c in shown.classes(data.train_counts)]
    columns = [name for name in names if any(name in found["delong"] for found in held.values())]
    rows = []
    for name, found in held.items():
        delong = [
            _two_lines(tables.format_cell(tables.cell_from_json(DeLong, found["delong"][c])))
            if c in found["delong"]
            else (tables.UNDEFINED, "")
            for c in columns
        ]
        mcnemar = tables.format_cell(tables.cell_from_json(McNemar, found["mcnemar"]))
        rows.append((name, "", [_two_lines(mcnemar), *delong]))
    heads = [f"Arm against {reference}", "McNemar", *(f"DeLong, {name}" for name in columns)]
    return _grid(heads, rows)


def _two_lines(text: str) -> tuple[str, str]:
    """Cut before the p-value."""
    estimate, mark, rest = text.partition(", p")
    return estimate, mark.lstrip(", ") + rest


def _summary(cell: Mapping[str, Any]) -> Summary:
    return tables.cell_from_json(Summary, cell)


def protocol(text: str) -> list[tuple[str, str]]:
    """A JSON object as rows of (name, value), nested ones joined by a colon; else no rows.

    The skipped images are left out: the page lists them by themselves.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return []
    if not isinstance(value, dict):
        return []
    return list(_flat({name: item for name, item in value.items() if name != "skipped"}, ""))


def _flat(value: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
    for name, item in value.items():
        name = above + name.replace("_", " ")
        if isinstance(item, Mapping):
            yield from _flat(item, f"{name}: ")
        else:
            yield name, _sentence(item)


def _sentence(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_sentence(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(_sentence(item) for item in value) or "none"
    return "none" if value is None else str(value)


def fidelity_rows(found: Mapping[str, Any] | None) -> Grid | None:
    """Classes by measures of synthetic images, above those of held-out real ones."""
    if found is None:
        return None
    columns = ["Class", "FD", "KID", "Precision", "Recall", "Density", "Coverage"]
    rows = []
    for row in rarest_rows(found):
        counts = f"{row['n_train']:,} train, {row['n_val']:,} val, {row['n_synthetic']:,} synthetic"
        nearest, closer = row["nearest"], row["nearest"]["closer_than_val"]
        cells = [
            *((_measure(row["matched"], m), _measure(row["floor"], m)) for m in fidelity.MEASURES),
            (_rounded(nearest["synthetic_median"]), _rounded(nearest["val_median"])),
            (_rounded(closer), "" if closer is None else "0.05"),
        ]
        rows.append((row["class"], f"{counts}; {row['n']:,} a side", cells))
    macro = found["macro"]
    cells = [
        (over_classes(macro["matched"][m], "too few"), over_classes(macro["floor"][m], "too few"))
        for m in fidelity.MEASURES
    ]
    rows.append(("Mean", "± deviation over n classes", [*cells, ("", ""), ("", "")]))
    return _grid([*columns, "To the nearest train image", "Nearer than 95% of val"], rows)


def over_classes(entry: Mapping[str, Any], none: str = tables.UNDEFINED) -> str:
    """A mean over classes with their deviation and number, as `fidelity.macro` has it."""
    mean, spread = entry["mean"], entry["std"]
    text = none if mean is None else f"{mean:.3g}"
    return f"{text}{'' if spread is None else f' ± {spread:.2g}'} (n={entry['classes']})"


def _measure(side: Mapping[str, float | None], name: str) -> str:
    error = side.get(f"{name}_std")
    return _rounded(side[name]) + ("" if error is None else f" ± {error:.2g}")


def _rounded(value: float | None) -> str:
    return "too few" if value is None else f"{value:.3g}"


def few_groups(written: Mapping[str, Any]) -> list[str]:
    """Classes of few test groups, and how many."""
    counts = zip(written["dataset"]["classes"], written["test_groups_per_class"], strict=True)
    return [f"{name} ({n})" for name, n in counts if 0 < n < FEW_GROUPS]


def ledger(arms: Sequence[Mapping[str, Any]]) -> Grid:
    """Arms by what they cost."""
    rows = []
    for arm in arms:
        own, relies_on = arm["ledger"], arm["ledger"]["relies_on"]
        cells = [
            (str(len(arm["seeds"])), ""),
            (_cost(own), ""),
            (_ratio(own["flops_over_baseline"]), ""),
            (_wait(own), ""),
            ("none" if relies_on is None else _cost(relies_on), ""),
        ]
        rows.append((arm["name"], "", cells))
    heads = ("Runs", "Classifier runs, together", "FLOPs of a run over the baseline's")
    heads += ("Waiting for data, of these seconds",)
    last = "Generator, selection and policy, shared by the arms that rely on them"
    return _grid(["Arm", *heads, last], rows)


def _ratio(value: float | None) -> str:
    return tables.UNDEFINED if value is None else f"{value:.2f}"


def _wait(cost: Mapping[str, Any]) -> str:
    if cost["data_wait"] is None or not cost["seconds"]:
        return "unknown"
    return f"{cost['data_wait'] / cost['seconds']:.1%}"


def _cost(cost: Mapping[str, Any]) -> str:
    flops = "FLOPs unknown" if cost["flops"] is None else f"{cost['flops']:.2e} FLOPs"
    return f"{cost['seconds']:,.0f} s, {cost['images']:,} images, {flops}"


def number(value: Any) -> str:
    """A single value, such as one of the selection table."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)
