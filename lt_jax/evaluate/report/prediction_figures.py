"""Charts of what arms predict: reliability, ROC and precision-recall curves, confusion matrices."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lt_jax.evaluate.metrics.confusion import Confusion, confusion
from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.evaluate.report import figures, shown
from lt_jax.evaluate.report.inputs import ReportInputs
from lt_jax.evaluate.report.picture import Numbers, Picture, numbers
from lt_jax.evaluate.statistics import ArmPredictions, ArmStatistics, calibration, curves, tables
from lt_jax.evaluate.statistics.calibration import Reliability
from lt_jax.evaluate.statistics.curves import Curve, Curves
from lt_jax.evaluate.statistics.results import Summary

COLUMNS = 2  # reliability diagrams side by side
NAMED = 15  # classes of a matrix whose cells have their numbers in them


def pictures(
    inputs: ReportInputs,
    predictions: Sequence[ArmPredictions],
    plain: Mapping[str, ArmStatistics],
    truth: Truth,
    positive: int | None,
) -> Iterator[Picture]:
    """Of the arms and classes of `shown`; `positive` is the positive class of two."""
    names = shown.arms(inputs)
    arms = [arm for arm in predictions if arm.name in names]
    look = {arm.name: i for i, arm in enumerate(inputs.arms)}
    yield _reliability(arms, plain, truth)
    data, evaluate = inputs.dataset, inputs.evaluate
    rarest = shown.classes(data.train_counts).tolist() if positive is None else [positive]
    for c in rarest:
        found = curves.of_class(arms, c, truth, evaluate.resamples, evaluate.seed)
        if found is None:
            continue
        areas = {
            arm.name: (plain[arm.name].per_class["auroc"][c], plain[arm.name].per_class["auprc"][c])
            for arm in arms
        }
        share = float((truth.labels == c).mean())
        yield Picture(
            f"curves_{c:03d}",
            f"ROC and precision-recall curves of {data.classes[c]} against the rest, by arm",
            class_curves(data.classes[c], found, areas, look, share),
            curve_numbers(found),
        )
    matrices = {arm.name: arm for arm in predictions if arm.name in shown.best(inputs)}
    for i, (name, arm) in enumerate(matrices.items()):
        found = confusion(arm.probabilities, truth.labels)
        yield Picture(
            f"confusion_{i}",
            f"Confusion matrix of {name}: true classes by predicted ones",
            confusion_matrix(f"{name} (n={len(found.counts)})", data.classes, found),
            confusion_numbers(data.classes, found),
        )


def _reliability(
    arms: Sequence[ArmPredictions], plain: Mapping[str, ArmStatistics], truth: Truth
) -> Picture:
    found = {arm.name: calibration.reliability(arm.probabilities, truth) for arm in arms}
    errors = {name: plain[name].summaries["ece"] for name in found}
    return Picture(
        "calibration",
        "Reliability diagrams: share of hits by bin of confidence, a panel an arm",
        reliability_diagrams(found, errors),
        reliability_numbers(found),
    )


def reliability_diagrams(
    found: Mapping[str, Reliability], errors: Mapping[str, Summary]
) -> figures.Figure:
    """Hits against confidence above how many images each bin holds, a pair of panels an arm."""
    lines = -(-len(found) // COLUMNS)
    columns = min(COLUMNS, len(found))
    figure = figures.new_figure(0.2 + 3.1 * lines)
    grid = figure.subplots(
        2 * lines, columns, squeeze=False, sharex=True, height_ratios=[3, 1] * lines
    )
    for i, (name, held) in enumerate(found.items()):
        line, column = divmod(i, columns)
        above, below = grid[2 * line, column], grid[2 * line + 1, column]
        known = held.effective > 0
        above.plot([0, 1], [0, 1], color=figures.GREY, linewidth=0.8, linestyle=(0, (4, 2)))
        middle = held.confidence[known]
        lengths = np.array([held.hits - held.low, held.high - held.hits])[:, known]
        above.errorbar(
            middle,
            held.hits[known],
            yerr=np.maximum(lengths, 0.0),
            color=figures.PALETTE[0],
            marker="o",
            markersize=3.5,
            linewidth=1.2,
            elinewidth=1.0,
            capsize=2,
        )
        above.set(xlim=(0, 1), ylim=(-0.02, 1.02))
        above.grid(alpha=0.25)
        error = errors[name]
        interval = "" if error.ci95 is None else f" {tables.format_interval(error.ci95)}"
        figures.clean(above, f"{name}\nECE {tables.format_cell(error)}\n95%{interval}")
        above.title.set_fontsize(8.5)
        below.stairs(held.images, held.edges, fill=True, color=figures.PALETTE[5])
        figures.clean(below)
        below.tick_params(labelbottom=True)
        below.set_xlabel("confidence", fontsize=9)
        if column == 0:
            above.set_ylabel("share of hits", fontsize=9)
            below.set_ylabel("images", fontsize=9)
    for axes in grid[:, len(found) % columns :][-2:].ravel() if len(found) % columns else ():
        axes.set_visible(False)
    return figure


def reliability_numbers(found: Mapping[str, Reliability]) -> Numbers:
    """A row an arm and bin; images are the mean over runs."""
    rows = [
        (
            name,
            *(held.edges[b], held.edges[b + 1], held.images[b], held.effective[b]),
            *(held.confidence[b], held.hits[b], held.low[b], held.high[b]),
        )
        for name, held in found.items()
        for b in range(len(held.images))
    ]
    columns = ("arm", "from", "to", "images", "effective n", "confidence", "hits", "low", "high")
    return numbers(columns, rows)


def class_curves(
    name: str,
    found: Mapping[str, Curves],
    areas: Mapping[str, tuple[Summary, Summary]],
    look: Mapping[str, int],
    share: float,
) -> figures.Figure:
    """ROC beside precision-recall of one class.

    Args:
      name: of the class.
      found: by arm.
      areas: AUROC and average precision of each arm, for the legend.
      look: index of each arm's colour and dash.
      share: of the class in test: the precision of guessing.
    """
    # Laid out by hand, since there is one of these a class: a layout engine takes twice as long.
    below = 0.5 + 0.16 * len(found)
    height = below + 2.3
    figure = figures.new_figure(height, layout=None)
    places = [(left, below / height, 0.375, 2.0 / height) for left in (0.105, 0.605)]
    panels = [figure.add_axes(place) for place in places]
    for arm, both in found.items():
        style = figures.style(look[arm])
        drawn = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 1.4}
        words = ", ".join(
            f"{title} {_area(area)}"
            for title, area in zip(("AUROC", "AP"), areas[arm], strict=True)
        )
        label = f"{arm} (n={len(both.roc.runs)}): {words}"
        for axes, curve in zip(panels, (both.roc, both.pr), strict=True):
            axes.fill_between(
                curve.x, curve.low, curve.high, color=style["color"], alpha=0.13, linewidth=0
            )
            axes.plot(curve.x, curve.y, label=label, **drawn)
    panels[0].plot([0, 1], [0, 1], color=figures.GREY, linewidth=0.8)
    panels[1].axhline(share, color=figures.GREY, linewidth=0.8)
    panels[0].set(xlabel="false positive rate", ylabel="true positive rate")
    panels[1].set(xlabel="recall", ylabel="precision")
    for axes, title in zip(panels, (f"{name}: ROC", "precision-recall"), strict=True):
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.02, 1.02), xticks=(0, 0.5, 1))
        axes.xaxis.label.set_fontsize(9)
        axes.yaxis.label.set_fontsize(9)
        axes.grid(alpha=0.25)
        figures.clean(axes, title)
    handles, labels = panels[0].get_legend_handles_labels()
    look_of = {"fontsize": 7.5, "frameon": False, "handlelength": 2.4, "borderaxespad": 0.1}
    figure.legend(handles, labels, loc="lower left", **look_of)
    return figure


def _area(area: Summary) -> str:
    if area.mean is None:
        return tables.UNDEFINED
    ends = "" if area.ci95 is None else f" {tables.format_interval(area.ci95, 2)}"
    return f"{area.mean:.3f}{ends}"


def curve_numbers(found: Mapping[str, Curves]) -> Numbers:
    """A row an arm, curve and point."""
    rows = [
        (arm, kind, x, y, low, high)
        for arm, both in found.items()
        for kind, curve in (("roc", both.roc), ("precision_recall", both.pr))
        for x, y, low, high in curve_rows(curve)
    ]
    return numbers(("arm", "curve", "x", "mean over runs", "low", "high"), rows)


def curve_rows(curve: Curve) -> list[tuple[float, float, float, float]]:
    """x, mean, low and high of each point."""
    return [*zip(curve.x, curve.y, curve.low, curve.high, strict=True)]


def confusion_matrix(title: str, classes: Sequence[str], found: Confusion) -> figures.Figure:
    """Shares of the rows, means over runs; with counts in the cells where they are few."""
    share, counts = found.share.mean(axis=0), found.counts.mean(axis=0)
    k = len(classes)
    named = k <= NAMED
    figure = figures.new_figure(figures.WIDTH * (1.0 if k > 2 else 0.6))
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    size = min(8.0, 60 / k)
    for i, j in np.ndindex(k, k) if named else ():
        if not counts[i, j]:
            continue
        words = f"{100 * share[i, j]:.0f}%\n{counts[i, j]:.1f}".replace(".0", "")
        ink = "white" if share[i, j] > 0.55 else "black"
        axes.text(j, i, words, ha="center", va="center", fontsize=size, color=ink)
    if k <= 60:
        small = min(9.0, 260 / k)
        axes.set_xticks(range(k), list(classes), rotation=90 if k > 4 else 0, fontsize=small)
        axes.set_yticks(range(k), list(classes), fontsize=small)
    axes.set_xlabel("predicted", fontsize=9)
    axes.set_ylabel("true (share of the row, images below)" if named else "true", fontsize=9)
    axes.set_title(title, fontsize=10, loc="left")
    return figure


def confusion_numbers(classes: Sequence[str], found: Confusion) -> Numbers:
    """A row a cell; spread is over runs, None where there is one."""
    share, several = found.share, len(found.counts) > 1
    spread = share.std(axis=0, ddof=1) if several else np.full(share.shape[1:], np.nan)
    mean, counts = share.mean(axis=0), found.counts.mean(axis=0)
    rows = [
        (classes[i], classes[j], counts[i, j], mean[i, j], spread[i, j], len(found.counts))
        for i, j in np.ndindex(*mean.shape)
    ]
    columns = ("true", "predicted", "images, mean over runs", "share of the row", "std", "runs")
    return numbers(columns, rows)
