"""What the page shows of lesion detection: tables and figures, from `detection.summary` alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lt_jax.evaluate.metrics.average_precision import METRICS
from lt_jax.evaluate.report import figures
from lt_jax.evaluate.report.picture import Picture, numbers
from lt_jax.evaluate.statistics import tables
from lt_jax.evaluate.statistics.results import Comparison, Summary

TITLES = {
    "ap50": "AP at IoU 0.5",
    "ap": "AP at IoU 0.5:0.95",
    "ap50_small": "Small lesions, AP at 0.5",
    "ap_small": "Small lesions, AP at 0.5:0.95",
}


def table(written: Mapping[str, Any]) -> tables.Table:
    """Arms by METRICS, from `summary`."""
    rows = [
        (
            f"{arm['name']} (baseline)" if arm["name"] == written["baseline"] else arm["name"],
            *(tables.cell_from_json(Summary, arm["metrics"][name]) for name in METRICS),
        )
        for arm in written["arms"]
    ]
    return tables.Table(("Arm", *(TITLES[name] for name in METRICS)), tuple(rows))


def paired_table(written: Mapping[str, Any]) -> tables.Table:
    """Arms minus the baseline by METRICS, from `summary`; no rows where there is one arm."""
    rows = [
        (arm["name"], *(tables.cell_from_json(Comparison, arm["paired"][name]) for name in METRICS))
        for arm in written["arms"]
        if arm["name"] != written["baseline"]
    ]
    return tables.Table(("Arm", *(TITLES[name] for name in METRICS)), tuple(rows))


def section(written: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the page shows: rows of (arm, cells of two lines each); None where nothing was done."""
    if written is None:
        return None
    plain, paired = table(written), paired_table(written)
    return {
        "columns": plain.columns,
        "rows": [
            (name, [(tables.format_cell(cell), _interval(cell)) for cell in cells])
            for name, *cells in plain.rows
        ],
        "paired": [
            (name, [tables.comparison_parts(cell) for cell in cells])
            for name, *cells in paired.rows
        ],
        "ledger": [
            (arm["name"], arm["data"], len(arm["seeds"]), arm["ledger"]) for arm in written["arms"]
        ],
        "one_seed": plain.has_single_seed(),
    }


def _interval(cell: Summary) -> str:
    return "" if cell.mean is None else tables.format_interval(cell.ci95)


def pictures(written: Mapping[str, Any] | None) -> list[Picture]:
    """Of `summary`: average precision by arm, and the FROC curve."""
    if written is None:
        return []
    spread = ("mean", "std", "n")
    precisions = [
        (arm["name"], TITLES[name], *(cell[part] for part in spread), *(cell["ci95"] or _NONE))
        for arm in written["arms"]
        for name, cell in ((name, arm["metrics"][name]) for name in METRICS)
    ]
    found = [
        (arm["name"], at, *(cell[part] for part in spread), *(cell["ci95"] or _NONE))
        for arm in written["arms"]
        for at, cell in zip(written["false_positives_per_image"], arm["froc"], strict=True)
    ]
    columns = ("mean", "std", "seeds", "low", "high")
    return [
        Picture(
            "detection_precision",
            "Average precision by arm: means, intervals, seeds",
            precision(written),
            numbers(("arm", "average precision", *columns), precisions),
        ),
        Picture(
            "detection_froc",
            "Lesions found against false positives an image",
            froc(written),
            numbers(("arm", "false positives an image", *columns), found),
        ),
    ]


_NONE = (None, None)  # ends of no interval


def precision(written: Mapping[str, Any]) -> figures.Figure:
    """METRICS by arm: means with intervals, seeds as dots."""
    arms = written["arms"]
    figure = figures.new_figure(1.4 + 0.24 * len(METRICS) * (len(arms) + 1))
    axes = figure.add_subplot()
    for i, arm in enumerate(arms):
        look = figures.style(i)
        for q, name in enumerate(METRICS):
            cell, row = arm["metrics"][name], q * (len(arms) + 1) + i
            if cell["mean"] is None:
                axes.text(0.0, row, "no such lesion", fontsize=8, va="center", color=figures.GREY)
                continue
            if cell["ci95"] is not None:
                axes.hlines(row, *cell["ci95"], color=look["color"], linewidth=2)
            values = cell["values"]
            axes.scatter(values, [row] * len(values), s=12, alpha=0.4, color=look["color"])
            label = f"{arm['name']} (n={cell['n']})" if q == 0 else None
            marker = {"marker": look["marker"], "markersize": 6.5, "linestyle": "none"}
            axes.plot(cell["mean"], row, color=look["color"], label=label, **marker)
    middles = np.arange(len(METRICS)) * (len(arms) + 1) + (len(arms) - 1) / 2
    axes.set_yticks(middles, [TITLES[name].replace(", ", ",\n") for name in METRICS])
    axes.invert_yaxis()
    axes.set_xlabel("average precision: mean, 95% interval, seeds", fontsize=9)
    axes.grid(axis="x", alpha=0.25)
    figures.clean(axes)
    figures.legend_below(figure, axes)
    return figure


def froc(written: Mapping[str, Any]) -> figures.Figure:
    """Sensitivity against false positives an image, means over seeds with bands."""
    figure = figures.new_figure(3.6)
    axes = figure.add_subplot()
    at = written["false_positives_per_image"]
    for i, arm in enumerate(written["arms"]):
        look = figures.style(i)
        mean = [np.nan if cell["mean"] is None else cell["mean"] for cell in arm["froc"]]
        ends = [cell["ci95"] or (np.nan, np.nan) for cell in arm["froc"]]
        low, high = np.array(ends, float).T
        axes.fill_between(at, low, high, color=look["color"], alpha=0.15, linewidth=0)
        label = f"{arm['name']} (n={len(arm['seeds'])})"
        drawn: Any = {"label": label, "markersize": 4.5, **look}
        axes.plot(at, mean, **drawn)
    axes.set_xscale("log", base=2)
    axes.set_xticks(at, [f"{x:g}" for x in at])
    axes.set_xlabel("false positives an image, at most", fontsize=9)
    axes.set_ylabel("lesions found (IoU 0.5)", fontsize=9)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.25)
    figures.clean(axes)
    figures.legend_below(figure, axes)
    return figure
