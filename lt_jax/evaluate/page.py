"""The report's figures and its page: one HTML file that holds its pictures and needs no script."""

import base64
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lt_jax.evaluate import (
    fidelity,
    figures,
    gallery,
    metrics,
    mixing,
    mixing_figures,
    nearness,
    tables,
)
from lt_jax.evaluate.inputs import (
    GROUPS,
    REASONS,
    Arm,
    ReportInputs,
    fidelity_summary,
    ledger,
    sorted_runs,
)
from lt_jax.evaluate.statistics import ArmStatistics, Comparison, Summary

# Curves that are drawn: key in a run's rows -> title.
CURVES = {"loss": "training loss", "val_balanced_accuracy": "balanced accuracy on val"}
# Beyond these, charts by class show the rarest ones: the tail is what the report is about.
MAX_CLASSES = 40
# Below so many test groups in a class, the page warns of its intervals.
FEW_GROUPS = 5
PAIRED = ("balanced_accuracy", "macro_f1", "auroc_macro", "recall_tail")


def draw(
    inputs: ReportInputs, plain: dict[str, ArmStatistics], folder: pathlib.Path
) -> dict[str, pathlib.Path]:
    """Writes the PNG files; returns name -> path, in the order of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, pathlib.Path] = {}

    def keep(name: str, figure: figures.Figure) -> None:
        drawn[name] = folder / f"{name}.png"
        figures.save(figure, drawn[name])

    data = inputs.dataset
    counts = np.asarray(data.train_counts)
    shown = np.sort(np.argsort(counts, kind="stable")[:MAX_CLASSES])
    names = [data.classes[c] for c in shown]
    accepted = _accepted(inputs)
    keep(
        "class_histogram",
        figures.class_histogram(
            names, counts[shown], None if accepted is None else accepted[shown]
        ),
    )
    for name, figure in _galleries(inputs):
        keep(name, figure)
    if (figure := _fidelity_figure(inputs)) is not None:
        keep("fidelity", figure)
    for name, figure in nearness.figures_of(inputs):
        keep(name, figure)
    for name, figure in mixing_figures.figures_of(inputs, MAX_CLASSES):
        keep(name, figure)
    if panels := _curves(inputs.arms):
        keep("learning_curves", figures.learning_curves(panels))
    recalls = {name: s.recall_per_class[:, shown] for name, s in plain.items()}
    keep("recall_per_class", figures.recall_dots(names, recalls, counts[shown]))
    if (figure := _forest(inputs, plain)) is not None:
        keep("paired_differences", figure)
    costs = [ledger(arm, inputs.costs) for arm in inputs.arms]
    own = np.array([float(c["seconds"]) for c in costs])
    shared = np.array([float((c["relies_on"] or {"seconds": 0})["seconds"]) for c in costs])
    keep("ledger", figures.ledger_bars([arm.name for arm in inputs.arms], own, shared))
    return drawn


def _accepted(inputs: ReportInputs) -> np.ndarray | None:
    if inputs.pool is None:
        return None
    by_class = {str(row["class"]): int(row["accepted"]) for row in inputs.pool.per_class}
    return np.array([by_class.get(name, 0) for name in inputs.dataset.classes])


def _galleries(inputs: ReportInputs) -> Iterator[tuple[str, figures.Figure]]:
    """Yields (name, figure): per class real beside accepted, then rejected."""
    pictures = inputs.gallery
    if pictures is None:
        return
    for c, name in enumerate(inputs.dataset.classes):
        real = pictures.real.get(name)
        images, scores = pictures.accepted.get(name, (None, ()))
        some = real if real is not None else images
        if some is not None:  # whichever is missing is shown as none
            real = some[:0] if real is None else real
            images = some[:0] if images is None else images
            sources = pictures.sources.get(name, ())
            figure = gallery.side_by_side(name, real, images, scores, sources)
            yield f"gallery_{c:03d}_accepted", figure
        images, scores, reasons = pictures.rejected.get(name, (None, (), ()))
        if images is not None and len(images):
            yield f"gallery_{c:03d}_rejected", gallery.rejected(name, images, scores, reasons)


def _fidelity_figure(inputs: ReportInputs) -> figures.Figure | None:
    """KID and recall by class; None where no class has images enough for either."""
    rows = _rarest(fidelity_summary(inputs.pool))[::-1]

    def both(name: str) -> np.ndarray:
        sides = ("matched", "floor")
        return np.array([[row[side][name] for row in rows] for side in sides], float)

    kid, recall = both("kid"), both("recall")
    if np.isnan(kid).all() and np.isnan(recall).all():
        return None
    panels = {
        "KID (lower is nearer)": (kid, both("kid_std")),
        "Recall": (recall, np.full_like(recall, np.nan)),
    }
    return figures.fidelity_marks([row["class"] for row in rows], panels)


def _rarest(found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The classes that are shown of a summary of fidelity, rarest first."""
    per_class = [] if found is None else found["per_class"]
    return sorted(per_class, key=lambda row: row["n_train"])[:MAX_CLASSES]


def _curves(arms: tuple[Arm, ...]) -> dict[str, dict[str, figures.Curve]]:
    """The drawn quantities, at the steps that all seeds of an arm have."""
    panels: dict[str, dict[str, figures.Curve]] = {}
    for key, title in CURVES.items():
        for arm in arms:
            rows = [
                {int(r["step"]): float(r[key]) for r in run.curves if r.get(key) is not None}
                for run in sorted_runs(arm)
            ]
            steps = sorted(set.intersection(*map(set, rows)))
            if steps:
                values = np.array([[row[step] for step in steps] for row in rows])
                panels.setdefault(title, {})[arm.name] = (np.array(steps), values)
    return panels


def _forest(inputs: ReportInputs, plain: dict[str, ArmStatistics]) -> figures.Figure | None:
    compared = {name: s.comparisons[metrics.PRIMARY] for name, s in plain.items() if s.comparisons}
    compared = {name: c for name, c in compared.items() if c.difference is not None}
    if not compared:
        return None
    return figures.forest(
        list(compared),
        [float(c.difference or 0.0) for c in compared.values()],
        [c.ci95 for c in compared.values()],
        [tables.format_p(c.p_holm) for c in compared.values()],
        f"Balanced accuracy minus {inputs.evaluate.baseline}, with Holm's p",
    )


def render(
    inputs: ReportInputs,
    written: Mapping[str, Any],
    plain: dict[str, ArmStatistics],
    adjusted: dict[str, ArmStatistics],
    drawn: Mapping[str, pathlib.Path],
) -> str:
    """The page as HTML; every text is escaped, every picture embedded."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["picture"] = _data_uri
    arms = written["arms"]
    return environment.get_template("report.html.jinja").render(
        report=written,
        groups=GROUPS,
        test_images=len(inputs.dataset.test_labels),
        drawn=drawn,
        galleries=[name for name in drawn if name.startswith("gallery_")],
        hidden_classes=max(0, len(inputs.dataset.classes) - MAX_CLASSES),
        tables={"plain": _table(plain), "adjusted": _table(adjusted)},
        paired=[tables.TITLES[metric] for metric in PAIRED],
        paired_rows=_paired_rows({name: s.comparisons for name, s in plain.items()}),
        real_rows=_paired_rows({name: s.against_rival for name, s in plain.items()}),
        rival=next((a["paired_real"]["baseline"] for a in arms if "paired_real" in a), None),
        doses=mixing.doses(arms, inputs.dataset, MAX_CLASSES),
        mixing=mixing.section(inputs, plain, MAX_CLASSES),
        protocol=protocol_rows(inputs.dataset.protocol),
        few_groups=_few_groups(written),
        one_seed=any(s.summaries[metrics.PRIMARY].n == 1 for s in plain.values()),
        one_seed_note=tables.ONE_SEED,
        reasons=list(dict.fromkeys([*REASONS, *written["pool"]["rejected"]])),
        class_columns=list(dict.fromkeys(k for row in written["pool"]["per_class"] for k in row)),
        ledger=_ledger_rows(written),
        fidelity_rows=_fidelity_rows(written["pool"]["fidelity"]),
        copies=nearness.table(written["pool"]["memorization"], inputs.dataset, MAX_CLASSES),
        least={"fd": fidelity.FD_LEAST, "nearest": fidelity.NEAREST_LEAST},
        config=json.dumps(written["config"], indent=2, ensure_ascii=False),
        evaluate=inputs.evaluate,
        number=_number,
    )


def _data_uri(path: pathlib.Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _table(arms: dict[str, ArmStatistics]) -> dict[str, Any]:
    """Heads, and rows of (arm, cells of main text and interval)."""
    table = tables.metrics_table({n: s.summaries for n, s in arms.items()}, metrics.METRICS)
    rows = []
    for name, *cells in table.rows:
        rows.append((name, [(tables.format_cell(c), _interval(c)) for c in cells]))
    return {"columns": table.columns, "rows": rows}


def _interval(cell: Summary) -> str:
    return "" if cell.mean is None else tables.format_interval(cell.ci95)


def _paired_rows(
    compared: Mapping[str, Mapping[str, Comparison]],
) -> list[tuple[str, list[tuple[str, str]]]]:
    return [
        (name, [tables.comparison_parts(comparisons[m]) for m in PAIRED])
        for name, comparisons in compared.items()
        if comparisons
    ]


def protocol_rows(protocol: str) -> list[tuple[str, str]]:
    """A JSON object as rows of (name, value), nested ones joined by a colon; else no rows.

    The skipped images are left out: the page lists them by themselves.
    """
    try:
        value = json.loads(protocol)
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


def _fidelity_rows(found: Mapping[str, Any] | None) -> list[tuple[str, str, list[Any]]]:
    """Rows of (class, its numbers of images, cells of synthetic above held-out real ones)."""
    if found is None:
        return []
    rows = []
    for row in _rarest(found):
        counts = f"{row['n_train']:,} train, {row['n_val']:,} val, {row['n_synthetic']:,} synthetic"
        nearest, closer = row["nearest"], row["nearest"]["closer_than_val"]
        cells = [
            *((_measure(row["matched"], m), _measure(row["floor"], m)) for m in fidelity.MEASURES),
            (_rounded(nearest["synthetic_median"]), _rounded(nearest["val_median"])),
            (_rounded(closer), "" if closer is None else "0.05"),
        ]
        rows.append((row["class"], f"{counts}; {row['n']:,} a side", cells))
    macro = found["macro"]
    mean = lambda part, m: _rounded(macro[part][m]["mean"])
    cells = [
        (mean("matched", m), f"{mean('floor', m)} (n={macro['floor'][m]['classes']})")
        for m in fidelity.MEASURES
    ]
    return [*rows, ("Mean", "over n classes", [*cells, ("", ""), ("", "")])]


def _measure(side: Mapping[str, float | None], name: str) -> str:
    error = side.get(f"{name}_std")
    return _rounded(side[name]) + ("" if error is None else f" ± {error:.2g}")


def _rounded(value: float | None) -> str:
    return "too few" if value is None else f"{value:.3g}"


def _few_groups(written: Mapping[str, Any]) -> list[str]:
    counts = zip(written["dataset"]["classes"], written["test_groups_per_class"], strict=True)
    return [f"{name} ({n})" for name, n in counts if 0 < n < FEW_GROUPS]


def _ledger_rows(written: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = []
    for arm in written["arms"]:
        own, shared = arm["ledger"], arm["ledger"]["relies_on"]
        rows.append(
            {
                "name": arm["name"],
                "runs": str(len(arm["seeds"])),
                "own": _cost(own),
                "wait": _wait(own),
                "shared": "none" if shared is None else _cost(shared),
            }
        )
    return rows


def _wait(cost: Mapping[str, Any]) -> str:
    if cost["data_wait"] is None or not cost["seconds"]:
        return "unknown"
    return f"{cost['data_wait'] / cost['seconds']:.1%}"


def _cost(cost: Mapping[str, Any]) -> str:
    flops = "FLOPs unknown" if cost["flops"] is None else f"{cost['flops']:.2e} FLOPs"
    return f"{cost['seconds']:,.0f} s, {cost['images']:,} images, {flops}"


def _number(value: Any) -> str:
    """A value of the selection table."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)
