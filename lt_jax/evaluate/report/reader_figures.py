"""The chart of human readers beside classifiers: ROC curves with bands, and the readers' points."""

from collections.abc import Mapping

from lt_jax.evaluate.report import figures
from lt_jax.evaluate.report.picture import Numbers, Picture, numbers
from lt_jax.evaluate.report.prediction_figures import curve_rows
from lt_jax.evaluate.statistics.curves import Curves
from lt_jax.evaluate.statistics.reading import Point, Study


def roc(name: str, found: Mapping[str, Curves], study: Study) -> Picture:
    """ROC curves of the arms for one class, hollow points alone, full ones with help."""
    figure = figures.new_figure(figures.WIDTH)
    axes = figure.add_subplot()
    for i, (arm, both) in enumerate(found.items()):
        style, curve = figures.style(i), both.roc
        axes.fill_between(
            curve.x, curve.low, curve.high, color=style["color"], alpha=0.13, linewidth=0
        )
        drawn = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 1.4}
        axes.plot(curve.x, curve.y, label=f"{arm} (n={len(curve.runs)})", **drawn)
    axes.plot([0, 1], [0, 1], color=figures.GREY, linewidth=0.8)
    for how, points, face in (("alone", study.alone, "white"), ("with help", study.aided, "black")):
        places = [_place(point) for point in points.values()]
        if places:
            x, y = zip(*places, strict=True)
            look = {"facecolors": face, "edgecolors": "black", "s": 36, "zorder": 3}
            axes.scatter(x, y, label=f"readers {how} (n={len(places)})", **look)
    for reader in study.help_each:
        both = [_place(study.alone[reader]), _place(study.aided[reader])]
        axes.plot(*zip(*both, strict=True), color="black", linewidth=0.8, zorder=2)
    for reader, point in study.alone.items():
        axes.annotate(reader, _place(point), (4, -9), textcoords="offset points", fontsize=7.5)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    axes.set_xlabel("1 - specificity", fontsize=9)
    axes.set_ylabel("sensitivity", fontsize=9)
    axes.grid(alpha=0.25)
    figures.clean(axes, f"{name}: readers and ROC curves")
    figures.legend_below(figure, axes)
    words = f"ROC curves of each arm for {name}, with bands, and each reader's operating point"
    return Picture("roc", words, figure, _numbers(found, study))


def _place(point: Point) -> tuple[float, float]:
    return 1 - point.share["specificity"], point.share["sensitivity"]


def _numbers(found: Mapping[str, Curves], study: Study) -> Numbers:
    rows = [(arm, "roc", *point) for arm, both in found.items() for point in curve_rows(both.roc)]
    ends = lambda point: point.ci95.get("sensitivity", (None, None))
    for how, points in (("alone", study.alone), ("with help", study.aided)):
        rows += [(name, how, *_place(point), *ends(point)) for name, point in points.items()]
    return numbers(("arm or reader", "what", "x", "y", "low", "high"), rows)
