"""The curves as pictures: metrics over real images, over doses, and the gain of each class."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lt_jax.evaluate.report import figures
from lt_jax.evaluate.statistics import tables

Points = Sequence[tuple[float, Mapping[str, Any]]]  # where, and a metric's summary


def draw(results: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Writes real_images.png, doses.png and gain_by_class.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in (
        ("real_images", _real_images(results)),
        ("doses", _doses(results)),
        ("gain_by_class", _gain(results)),
    ):
        if figure is not None:
            figures.save(figure, folder / f"{name}.png")


def _real_images(results: Mapping[str, Any]) -> figures.Figure:
    curves = {
        arm: [
            (size, results["arms"][f"{name}/{arm}"]["metrics"])
            for name, size in results["sizes"].items()
            if f"{name}/{arm}" in results["arms"]
        ]
        for arm in ("real", "synthetic")
    }
    return _panels(curves, "real train images")


def _doses(results: Mapping[str, Any]) -> figures.Figure | None:
    name = lambda dose: f"fraction_1/dose_{dose:g}".replace(".", "_")
    doses = [dose for dose, _ in results["gains"]]
    if not doses:
        return None
    points = [(dose, results["arms"][name(dose)]["metrics"]) for dose in doses]
    return _panels({"synthetic": points}, "synthetic images a real one", results)


def _panels(
    curves: Mapping[str, Points], where: str, results: Mapping[str, Any] | None = None
) -> figures.Figure:
    """One panel a metric over a logarithmic axis: means with their 95% intervals.

    With `results`, a band shows real images alone.
    """
    metrics = ("balanced_accuracy", "auroc_macro", "log_loss")
    figure = figures.new_figure(0.6 + 2.3 * len(metrics))
    for axes, metric in zip(figure.subplots(len(metrics)), metrics, strict=True):
        if results is not None:
            alone = results["arms"]["fraction_1/real"]["metrics"][metric]
            if alone["mean"] is not None:
                axes.axhline(alone["mean"], color=figures.GREY, linewidth=1.2, label="real alone")
            if alone["ci95"]:
                axes.axhspan(*alone["ci95"], color=figures.GREY, alpha=0.15, linewidth=0)
        for i, (arm, points) in enumerate(curves.items()):
            look = figures.style(i)
            at = np.array([point for point, _ in points], float)
            mean = np.array([found[metric]["mean"] for _, found in points], float)
            limits = np.array([found[metric]["ci95"] or (np.nan, np.nan) for _, found in points])
            axes.plot(at, mean, label=f"{arm} (n={points[0][1][metric]['n']})", **look)
            axes.fill_between(at, *limits.T, color=look["color"], alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.set_xlabel(where, fontsize=9)
        axes.grid(alpha=0.25)
        figures.clean(axes, tables.TITLES[metric])
        if metric == metrics[0]:
            figures.legend_below(figure, axes)
    return figure


def _gain(results: Mapping[str, Any]) -> figures.Figure | None:
    """Gain in recall by dose: a line a class, the rarest first; bars are deviations over seeds."""
    if not results["gains"]:
        return None
    doses = np.array([dose for dose, _ in results["gains"]])
    gains = np.array([values for _, values in results["gains"]], float)  # [d, m, k]
    counts = np.array(results["train_counts"])
    order = np.argsort(counts, kind="stable")
    # A class without a test image has no recall.
    order = order[~np.isnan(gains[:, :, order]).all(axis=(0, 1))][: len(figures.PALETTE)]
    figure = figures.new_figure(3.6 + 0.2 * ((len(order) + 1) // 2))
    axes = figure.add_subplot()
    axes.axhline(0, color=figures.GREY, linewidth=1, linestyle=(0, (4, 2)))
    for i, k in enumerate(order):
        label = f"{results['classes'][k]} ({counts[k]:,})"
        mean, spread = gains[:, :, k].mean(axis=1), gains[:, :, k].std(axis=1, ddof=1)
        look: dict[str, Any] = figures.style(i)
        axes.errorbar(doses, mean, spread, label=label, capsize=2, **look)
    axes.set_xscale("log")
    axes.set_xlabel("synthetic images a real one (train images in brackets)", fontsize=9)
    axes.grid(alpha=0.25)
    figures.clean(axes, f"recall over real images alone (n={gains.shape[1]})")
    figures.legend_below(figure, axes)
    return figure
