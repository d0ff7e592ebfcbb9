"""Figures of the audit, from what report.json holds of it (key `audit`), part by part."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lt_jax.evaluate.report import figures, nearness

TITLES = {"cosine": "Cosine", "ms_ssim": "MS-SSIM"}
ATTACKERS = {"mean": "mean over times", "calibrated": "learned"}
TRAINED_ON = {
    "real": "real images",
    "synthetic": "as many synthetic",
    "synthetic_all": "all synthetic",
}


def figures_of(
    found: Mapping[str, Mapping[str, Any]], most: int = 40
) -> Iterator[tuple[str, figures.Figure]]:
    """Yields (name, figure) of each part that there is; of classes the first `most` measured."""
    draw = {
        "nearness": likeness,
        "membership": attack,
        "probe": lambda part: probe(part, most),
        "diversity": lambda part: diversity(part, most),
        "accuracy_score": accuracy_score,
    }
    for name, part in found.items():
        if name in draw and (figure := draw[name](part)) is not None:
            yield f"audit_{name}", figure


def likeness(found: Mapping[str, Any]) -> figures.Figure:
    """Likeness to the nearest train image: held-out real images and accepted synthetic ones, as
    many of each class of both."""
    panels = {}
    for measure, title in TITLES.items():
        held = found["accepted"][measure]
        sets = {
            "held-out real": held["overall"]["val"]["histogram"],
            "accepted": held["overall"]["synthetic"]["histogram"],
        }
        panels[f"{title} to the nearest train image"] = (np.asarray(held["edges"]), sets)
    return nearness.histograms(panels)


def attack(found: Mapping[str, Any]) -> figures.Figure:
    """ROC curves of the attackers, on logarithmic axes; and AUROC by noise time, with intervals."""
    figure = figures.new_figure(6.2)
    curves, levels = figure.subplots(2, 1)
    low = 0.5 / max(found["non_members"], 1)
    for i, (name, title) in enumerate(ATTACKERS.items()):
        entry = found[name]
        if entry is None:
            continue
        fpr, tpr = (np.maximum(entry["roc"][side], low) for side in ("fpr", "tpr"))
        label = f"{title}: AUROC {entry['auroc']:.3f}"
        dash = figures.DASHES[i]
        curves.plot(fpr, tpr, color=figures.PALETTE[i], linestyle=dash, label=label)
    curves.plot([low, 1], [low, 1], color=figures.GREY, linewidth=0.8, label="guessing")
    curves.set(
        xscale="log", yscale="log", xlabel="false positive rate", ylabel="true positive rate"
    )
    curves.legend(fontsize=8, frameon=False)
    sizes = f"{found['members']:,} members, {found['non_members']:,} others"
    figures.clean(curves, f"Who was in train, by loss ({sizes})")
    times = [entry["time"] for entry in found["times"]]
    _marks(levels, times, found["times"], vertical=True)
    levels.axhline(0.5, color=figures.GREY, linewidth=0.8)
    levels.set(xlabel="noise time", ylabel="AUROC")
    figures.clean(levels, "By the loss at one time, with 95% intervals")
    return figure


def probe(found: Mapping[str, Any], most: int = 40) -> figures.Figure | None:
    """AUROC of synthetic against held-out images by class, beside that of train against these;
    None where no class has one."""
    rows = [row for row in found["classes"] if row["probe"] or row["floor"]][:most][::-1]
    if not rows:
        return None
    figure = figures.new_figure(1.3 + 0.32 * len(rows))
    axes = figure.add_subplot()
    at = np.arange(len(rows))
    for i, (name, title) in enumerate(
        (("probe", "synthetic against held-out real"), ("floor", "train against held-out real"))
    ):
        kept = [j for j, row in enumerate(rows) if row[name]]
        entries = [rows[j][name] for j in kept]
        _marks(axes, at[kept] + 0.15 * (1 - 2 * i), entries, index=i, label=title)
    axes.axvline(0.5, color=figures.GREY, linewidth=0.8)
    axes.set_yticks(at, [row["class"] for row in rows])
    axes.set_xlabel("AUROC of a linear probe; 0.5: nothing tells them apart", fontsize=9)
    figures.clean(axes)
    figures.legend_below(figure, axes, 1)
    return figure


def diversity(found: Mapping[str, Any], most: int = 40) -> figures.Figure | None:
    """Mean MS-SSIM of pairs by class, synthetic and real; None where no class has pairs."""
    rows = [row for row in found["classes"] if row["synthetic"] or row["real"]][:most][::-1]
    if not rows:
        return None
    figure = figures.new_figure(1.3 + 0.32 * len(rows))
    axes = figure.add_subplot()
    at = np.arange(len(rows))
    for i, (name, title) in enumerate((("synthetic", "accepted synthetic"), ("real", "train"))):
        kept = [j for j, row in enumerate(rows) if row[name]]
        entries = [{**rows[j][name], "auroc": rows[j][name]["mean"]} for j in kept]
        _marks(axes, at[kept] + 0.15 * (1 - 2 * i), entries, index=i, label=title)
    axes.set_yticks(at, [row["class"] for row in rows])
    axes.set_xlabel("mean MS-SSIM between images of a class; lower is more varied", fontsize=9)
    figures.clean(axes)
    figures.legend_below(figure, axes, 2)
    return figure


def accuracy_score(found: Mapping[str, Any]) -> figures.Figure:
    """Balanced accuracy of each seed, by what the classifier was trained on; means as bars."""
    split = "test" if "test" in found else "val"
    rows = [name for name in TRAINED_ON if name in found[split]][::-1]
    figure = figures.new_figure(0.9 + 0.4 * len(rows))
    axes = figure.add_subplot()
    for at, name in enumerate(rows):
        held = found[split][name]
        axes.barh(at, held["mean"], color=figures.PALETTE[0], alpha=0.35)
        dots = np.full(len(held["values"]), at)
        axes.plot(held["values"], dots, "o", color=figures.PALETTE[0], markersize=4)
    axes.set_yticks(np.arange(len(rows)), [TRAINED_ON[name] for name in rows])
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"balanced accuracy on {split}, a dot a seed", fontsize=9)
    figures.clean(axes)
    return figure


def _marks(
    axes: figures.Axes,
    at: Sequence[float] | np.ndarray,
    entries: Sequence[Mapping[str, Any]],
    index: int = 0,
    label: str = "",
    vertical: bool = False,
) -> None:
    """Values with their intervals, where there are such."""
    values = np.array([entry["auroc"] for entry in entries], float)
    ends = [entry["ci95"] or (value, value) for entry, value in zip(entries, values, strict=True)]
    sides = np.array(ends, float).reshape(-1, 2).T
    # Of a percentile interval the value itself may lie outside.
    lengths = np.maximum([values - sides[0], sides[1] - values], 0.0)
    style: dict[str, Any] = {**figures.style(index), "linestyle": "none", "markersize": 5}
    style["label"] = label or None
    if vertical:
        axes.errorbar(at, values, yerr=lengths, **style)
    else:
        axes.errorbar(values, at, xerr=lengths, **style)
