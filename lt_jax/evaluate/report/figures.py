"""Charts of the report: plain arrays in, a matplotlib Figure out.

Drawn through the object-oriented API, so that no state is shared and no display is needed. Sized to
be read at a phone's width, coloured with Okabe and Ito's palette; arms also differ by marker and
dash, so that no chart rests on colour alone.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Int

from lt_jax.runtime import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Axes = Figure = object  # matplotlib is imported where it is used

WIDTH = 5.0  # inches: at the width of a phone, 9-point text is still 9 pixels tall
DPI = 190
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#8C7A00")
MARKERS = "osD^vPX*<>"
DASHES = ("-", (0, (5, 2)), (0, (1, 1)), (0, (4, 1, 1, 1)))
GREY = "#666666"
CHART_COLOURS = 4096  # with antialiased edges; a photograph has more

Curve = tuple[Int[np.ndarray, "s"], Float[np.ndarray, "m s"]]
Measured = tuple[Float[np.ndarray, "2 k"], Float[np.ndarray, "2 k"]]


def new_figure(
    height: float, width: float = WIDTH, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """An empty figure of a size in inches, laid out so that nothing overlaps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MatplotlibFigure

    figure = MatplotlibFigure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a PNG and frees the figure.

    A chart has few colours, and is stored with a palette of 256; photographs keep theirs.
    """
    from PIL import Image

    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    image = Image.fromarray(np.ascontiguousarray(pixels))
    chart = image.getcolors(CHART_COLOURS) is not None
    if chart:
        image = image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    with files.whole_file(path, "a figure") as stream:
        image.save(stream, format="png", optimize=chart)  # of photographs it gains nothing
    figure.clear()


def style(index: int) -> dict[str, object]:
    """Colour, marker and dash of the index-th arm; distinct for the first forty arms."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[(index // len(PALETTE)) % len(DASHES)],
    }


def clean(axes: Axes, title: str = "") -> None:
    """Takes away what says nothing, and sets the title."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    if title:
        axes.set_title(title, fontsize=10, loc="left")


def legend_below(figure: Figure, axes: Axes, columns: int = 2) -> None:
    """One legend for the figure, of what is drawn on `axes`."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=columns, fontsize=9, frameon=False
        )


def _stacked(
    axes: Axes,
    first: Float[np.ndarray, "r"] | Int[np.ndarray, "r"],
    second: Float[np.ndarray, "r"] | Int[np.ndarray, "r"],
    labels: tuple[str, str],
) -> None:
    """Two horizontal bars a row, end to end, the second hatched."""
    rows = np.arange(len(first))
    axes.barh(rows, first, color=PALETTE[0], label=labels[0])
    axes.barh(
        rows,
        second,
        left=first,
        color=PALETTE[1],
        hatch="//",
        edgecolor="white",
        linewidth=0,
        label=labels[1],
    )


def class_histogram(
    classes: Sequence[str],
    real: Int[np.ndarray, "k"],
    synthetic: Int[np.ndarray, "k"] | None = None,
) -> Figure:
    """Train images a class, and the accepted synthetic ones stacked behind, most frequent first."""
    order = np.argsort(-real, kind="stable")
    figure = new_figure(1.1 + 0.27 * len(classes))
    axes = figure.add_subplot()
    rows = np.arange(len(classes))
    if synthetic is None:
        total = real[order]
        axes.barh(rows, total, color=PALETTE[0], label="real, train")
    else:
        total = real[order] + synthetic[order]
        _stacked(axes, real[order], synthetic[order], ("real, train", "synthetic, accepted"))
    for row, (index, end) in enumerate(zip(order, total, strict=True)):
        extra = f" + {synthetic[index]:,}" if synthetic is not None and synthetic[index] else ""
        axes.text(end, row, f" {real[index]:,}{extra}", va="center", fontsize=8.5)
    axes.set_yticks(rows, [str(classes[i]) for i in order.tolist()])
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.0, float(total.max())) * 1.22)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("images", fontsize=9)
    clean(axes)
    legend_below(figure, axes)
    return figure


def learning_curves(panels: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """One panel a quantity: each arm's mean over seeds, with a band of one standard deviation.

    Args:
      panels: quantity -> arm -> (steps [s], values [m, s]). NaN values leave a gap.
    """
    names = list(dict.fromkeys(arm for curves in panels.values() for arm in curves))
    figure = new_figure(0.3 + 2.4 * max(1, len(panels)) + 0.2 * ((len(names) + 1) // 2))
    all_axes = figure.subplots(max(1, len(panels)), squeeze=False)[:, 0]
    for axes, (quantity, curves) in zip(all_axes, panels.items(), strict=False):
        for arm, (steps, values) in curves.items():
            look = style(names.index(arm))
            mean = values.mean(axis=0)
            axes.plot(
                steps,
                mean,
                color=look["color"],
                linestyle=look["linestyle"],
                linewidth=1.6,
                label=f"{arm} (n={len(values)})",
                marker=look["marker"],
                markersize=4,
                markevery=max(1, len(steps) // 6),
            )
            if len(values) > 1:
                spread = values.std(axis=0, ddof=1)
                axes.fill_between(
                    steps,
                    mean - spread,
                    mean + spread,
                    color=look["color"],
                    alpha=0.15,
                    linewidth=0,
                )
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.25)
        clean(axes, quantity)
    legend_below(figure, all_axes[0])
    return figure


def recall_dots(
    classes: Sequence[str],
    recalls: Mapping[str, Float[np.ndarray, "m k"]],
    counts: Int[np.ndarray, "k"],
) -> Figure:
    """Recall of every class by arm: the mean over seeds as a mark, each seed as a faint dot.

    Args:
      classes: names.
      recalls: arm -> recall by seed and class, NaN for a class without test images.
      counts: train images a class, shown beside its name; rarest class last.
    """
    order = np.argsort(-counts, kind="stable")
    lane = 0.14
    pitch = max(0.42, lane * (len(recalls) + 1.5))
    figure = new_figure(1.2 + 0.2 * ((len(recalls) + 1) // 2) + pitch * len(classes) * 0.92)
    axes = figure.add_subplot()
    for a, (arm, values) in enumerate(recalls.items()):
        rows = np.arange(len(classes)) * pitch + (a - (len(recalls) - 1) / 2) * lane
        _seeds_and_mean(axes, rows, values[:, order], style(a), arm)
    for c in range(0, len(classes), 2):
        axes.axhspan((c - 0.5) * pitch, (c + 0.5) * pitch, color="#00000010", linewidth=0)
    axes.set_yticks(
        np.arange(len(classes)) * pitch, [f"{classes[i]}\n({counts[i]:,})" for i in order]
    )
    axes.set_ylim((len(classes) - 0.5) * pitch, -0.5 * pitch)
    axes.set_xlim(-0.03, 1.03)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("recall on test (train images in brackets)", fontsize=9)
    clean(axes)
    legend_below(figure, axes)
    return figure


def _seeds_and_mean(
    axes: Axes,
    rows: Float[np.ndarray, "k"],
    values: Float[np.ndarray, "m k"],
    look: Mapping[str, object],
    arm: str,
) -> None:
    color = look["color"]
    if len(values) > 1:
        at = np.broadcast_to(rows, values.shape)
        axes.scatter(values, at, s=10, alpha=0.35, color=color, linewidth=0)
        axes.hlines(rows, values.min(0), values.max(0), color=color, linewidth=1)
    axes.plot(
        values.mean(axis=0),
        rows,
        color=color,
        marker=look["marker"],
        linestyle="none",
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        label=f"{arm} (n={len(values)})",
    )


def forest(
    names: Sequence[str],
    differences: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    notes: Sequence[str],
    title: str,
) -> Figure:
    """Differences from the baseline with 95% intervals; `notes` (p-values) stand on the right."""
    figure = new_figure(1.2 + 0.36 * len(names))
    axes = figure.add_subplot()
    axes.axvline(0, color=GREY, linewidth=1, linestyle=(0, (4, 2)))
    for row, (difference, interval) in enumerate(zip(differences, intervals, strict=True)):
        apart = interval is not None and (interval[0] > 0 or interval[1] < 0)
        color = PALETTE[0] if apart else GREY
        if interval is not None:
            axes.hlines(row, *interval, color=color, linewidth=2)
        axes.plot(
            difference,
            row,
            marker="o",
            markersize=7,
            color=color,
            markerfacecolor=color if apart else "white",
            markeredgewidth=1.6,
        )
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(names)), list(notes), fontsize=9)
    right.spines["right"].set_visible(False)
    right.tick_params(length=0)
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel("difference, 95% interval (filled: beyond zero)", fontsize=9)
    clean(axes, title)
    return figure


def fidelity_marks(classes: Sequence[str], panels: Mapping[str, Measured]) -> Figure:
    """By class, synthetic images (matched) and below them held-out real ones (floor), with errors.

    Args:
      classes: names, from top to bottom.
      panels: measure -> (values of matched and of floor, their standard errors), drawn side by
        side; NaN where the images are too few, and where no error is known.
    """
    figure = new_figure(1.2 + 0.34 * len(classes))
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    rows = np.arange(len(classes))
    labels = ("synthetic (matched)", "real, held out (floor)")
    for axes, (measure, (values, errors)) in zip(all_axes, panels.items(), strict=True):
        for i in range(2):
            look, at = style(i), rows + (-0.17, 0.17)[i]
            ends = values[i] - errors[i], values[i] + errors[i]
            axes.hlines(at, *ends, color=look["color"], linewidth=1)
            axes.plot(
                values[i],
                at,
                color=look["color"],
                marker=look["marker"],
                linestyle="none",
                markersize=5.5,
                label=labels[i],
            )
        for row in np.flatnonzero(np.isnan(values).any(axis=0)):
            axes.text(
                0.5,
                row,
                "too few images",
                transform=axes.get_yaxis_transform(),
                ha="center",
                va="center",
                fontsize=8,
                color=GREY,
            )
        for row in rows[::2]:
            axes.axhspan(row - 0.5, row + 0.5, color="#00000010", linewidth=0)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="x", alpha=0.3)
        clean(axes, measure)
    all_axes[0].set_yticks(rows, list(classes))
    all_axes[0].set_ylim(len(classes) - 0.5, -0.5)
    legend_below(figure, all_axes[0])
    return figure


def ledger_bars(
    names: Sequence[str], own: Float[np.ndarray, "a"], shared: Float[np.ndarray, "a"]
) -> Figure:
    """Seconds by arm: its classifier runs, and the stages before them that it relies on."""
    figure = new_figure(1.3 + 0.3 * len(names))
    axes = figure.add_subplot()
    _stacked(axes, own, shared, ("classifier runs", "generator, selection, policy (shared)"))
    axes.set_yticks(range(len(names)), list(names))
    axes.invert_yaxis()
    axes.set_xlabel("seconds", fontsize=9)
    clean(axes)
    legend_below(figure, axes)
    return figure
