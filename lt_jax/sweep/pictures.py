"""A sweep as pictures, each with its numbers: parallel coordinates, and main effects by field."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lt_jax.evaluate.metrics import PRIMARY
from lt_jax.evaluate.report import figures
from lt_jax.evaluate.report.picture import Picture, numbers
from lt_jax.evaluate.statistics import tables
from lt_jax.sweep.comparison import Compared
from lt_jax.sweep.definition import EXACT, told

_TICKS = 8  # values of an axis that are written out


def draw(found: Compared, metric: str = PRIMARY) -> Iterator[Picture]:
    """Both, where anything was varied."""
    fields = _varied(found)
    if fields:
        yield _parallel(found, fields, metric)
        yield _main_effects(found, fields, metric)


def _varied(found: Compared) -> list[str]:
    """Fields of which there are two values or more."""
    names = dict.fromkeys(name for arm in found.arms.values() for name in arm.varied)
    return [name for name in names if len(set(_values(found, name))) > 1]


def _values(found: Compared, field: str) -> list[str]:
    return [told(arm.varied.get(field), EXACT) for arm in found.arms.values()]


def _axis(held: Sequence[Any]) -> tuple[np.ndarray, dict[float, str]]:
    """Where values lie on an axis of [0, 1], and what is written there.

    Numbers by size, in their logarithm where they span a factor of 30; anything else by its order.
    """
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in held):
        x = np.array(held, float)
        if x.min() > 0 and x.max() / x.min() >= 30:
            x = np.log(x)
        at = (x - x.min()) / max(float(np.ptp(x)), 1e-12)
        marks = dict(zip(at.tolist(), map(told, held), strict=True))
        return at, dict(sorted(marks.items()))
    names = [told(value, EXACT) for value in held]
    order = list(dict.fromkeys(names))
    step = 1 / max(len(order) - 1, 1)
    at = np.array([order.index(name) * step for name in names])
    return at, {i * step: name for i, name in enumerate(order)}


def _parallel(found: Compared, fields: Sequence[str], metric: str) -> Picture:
    """A line an arm through its values; the last axis is the metric, and so is the colour."""
    import matplotlib as mpl

    means = _means(found, metric)
    columns = [[arm.varied.get(field) for arm in found.arms.values()] for field in fields]
    axes_of = [_axis(column) for column in columns]
    spread = max(float(np.nanmax(means) - np.nanmin(means)), 1e-12)
    last = (means - np.nanmin(means)) / spread
    ends = {0.0: f"{np.nanmin(means):.3f}", 1.0: f"{np.nanmax(means):.3f}"}
    heights = np.column_stack([at for at, _ in axes_of] + [last])
    figure = figures.new_figure(3.4, max(figures.WIDTH, 1.3 * (len(fields) + 1)))
    axes = figure.add_subplot()
    colours = mpl.colormaps["viridis"]
    for i in np.argsort(last):
        if np.isfinite(last[i]):
            axes.plot(heights[i], color=colours(float(last[i])), alpha=0.75, linewidth=1.2)
    for j, marks in enumerate([marks for _, marks in axes_of] + [ends]):
        axes.axvline(j, color=figures.GREY, linewidth=0.8)
        for height, text in _some(marks):
            ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            axes.text(j + 0.02, height, text, fontsize=8, va="center", bbox=ground)
    axes.set_xticks(range(len(fields) + 1), [*fields, _title(metric)], fontsize=8)
    axes.set_yticks([])
    axes.spines[["left", "top", "right", "bottom"]].set_visible(False)
    rows = [
        (
            name,
            *(told(arm.varied.get(field), EXACT) for field in fields),
            *_cell(found, name, metric),
        )
        for name, arm in found.arms.items()
    ]
    return Picture(
        "parallel_coordinates",
        f"Every arm of the sweep as a line through its overrides, to its {_title(metric)} on "
        f"{found.split}",
        figure,
        numbers(("arm", *fields, metric, "std", "seeds"), rows),
    )


def _some(marks: Mapping[float, str]) -> list[tuple[float, str]]:
    """Marks that can be read beside each other."""
    held = list(marks.items())
    if len(held) <= _TICKS:
        return held
    chosen = np.linspace(0, len(held) - 1, _TICKS).round().astype(int)
    return [held[i] for i in chosen]


def _main_effects(found: Compared, fields: Sequence[str], metric: str) -> Picture:
    """The mean over arms at each value of a field, whatever the other fields; bars: deviation."""
    means = _means(found, metric)
    figure = figures.new_figure(0.6 + 2.1 * len(fields))
    rows = []
    panels = np.atleast_1d(figure.subplots(len(fields), sharey=True))
    for axes, field in zip(panels.tolist(), fields, strict=True):
        held = [arm.varied.get(field) for arm in found.arms.values()]
        at, marks = _axis(held)
        points = []
        for place, text in marks.items():
            mine = means[np.isclose(at, place) & np.isfinite(means)]
            if len(mine):
                std = float(mine.std(ddof=1)) if len(mine) > 1 else np.nan
                points.append((place, float(mine.mean()), 0.0 if np.isnan(std) else std))
                rows.append((field, text, float(mine.mean()), std, len(mine)))
        x, y, bars = np.array(points).T
        ordered = all(isinstance(value, int | float) for value in held)
        look: Any = {**figures.style(0), **({} if ordered else {"linestyle": "none"})}
        axes.errorbar(x, y, bars, capsize=2, **look)
        places, texts = zip(*_some(marks), strict=True)
        axes.set_xticks(places, texts)
        axes.set_xlabel(f"{field} ({len(found.arms)} arms)", fontsize=9)
        axes.grid(alpha=0.25)
        figures.clean(axes)
        axes.set_ylabel(_title(metric), fontsize=9)
    return Picture(
        "main_effects",
        f"Mean {_title(metric)} on {found.split} at each value of each field, over all arms that "
        "have it",
        figure,
        numbers(("field", "value", f"mean {metric}", "std over arms", "arms"), rows),
    )


def _title(metric: str) -> str:
    return tables.TITLES.get(metric, metric)


def _means(found: Compared, metric: str) -> np.ndarray:
    values = [found.summaries[name][metric].mean for name in found.arms]
    return np.array([np.nan if value is None else value for value in values], float)


def _cell(found: Compared, name: str, metric: str) -> tuple[Any, Any, int]:
    held = found.summaries[name][metric]
    return held.mean, held.std, held.n
