"""Pictures of a pool, a class at a time: where its candidates lie, and what they look like."""

import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from lt_jax.data.pool import summary
from lt_jax.data.pool.export import folder_names
from lt_jax.data.pool.reader import PoolReader
from lt_jax.runtime import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Axes = Figure = object  # matplotlib is imported where it is used

COLUMNS, ROWS = 8, 3  # of tiles, for the images that passed and for the others each
_TILE, _BINS, _DPI = 0.8, 30, 120
_PASSED, _STOPPED, _GATE = "#0072B2", "#E69F00", "#D55E00"  # Okabe and Ito's palette


def write(
    pool: PoolReader, out: pathlib.Path, progress: Callable[[int], None] = lambda done: None
) -> list[pathlib.Path]:
    """Writes `<class>_histograms.png` and `<class>_samples.png` of each class with candidates.

    Args:
      out: a folder, made where it is missing; older pictures of the same names are replaced.
      progress: is told how many pictures are written.

    Raises:
      PoolError: an image of the pool is damaged.
      DiskFullError: no space left.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for k, name in enumerate(folder_names(pool.info.classes)):
        if (pool.columns["label"] == k).any():
            for kind, draw in (("histograms", histograms), ("samples", samples)):
                path = out / f"{name}_{kind}.png"
                with files.whole_file(path, "a picture of the pool") as stream:
                    draw(pool, k).savefig(stream, format="png", metadata={"Software": None})
                written.append(path)
                progress(len(written))
    return written


def histograms(pool: PoolReader, label: int) -> Figure:
    """How each measured quantity is distributed over the candidates of a class; its gate dashed."""
    own = pool.columns["label"] == label
    passed = _passed(pool)[own]
    measured = {name: pool.columns[name][own] for name in summary.MEASURES}
    shown = {name: values for name, values in measured.items() if np.isfinite(values).any()}
    figure = _figure(3.2 * max(len(shown), 1), 2.6)
    figure.suptitle(_plain(pool.info.classes[label]), fontsize=10, x=0.01, ha="left")
    limits = summary.thresholds(pool)
    for axes, (name, values) in zip(_row(figure, len(shown)), shown.items(), strict=True):
        known = np.isfinite(values)
        axes.hist(
            [values[known & passed], values[known & ~passed]],
            bins=_BINS,
            stacked=True,
            color=[_PASSED, _STOPPED],
            label=["passed all gates", "failed a gate"],
        )
        if len(limits[name]) and np.isfinite(limits[name][label]):
            axes.axvline(limits[name][label], color=_GATE, linestyle="--", label="gate")
        axes.set_xlabel(name, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    if shown:
        figure.axes[0].set_ylabel("candidates", fontsize=9)
        figure.axes[0].legend(fontsize=7, frameon=False)
    return figure


def samples(pool: PoolReader, label: int) -> Figure:
    """Images of a class from all over the pool: accepted ones, then rejected ones with the gates
    that they failed; scores above each.
    """
    own = np.flatnonzero(pool.columns["label"] == label)
    passed = _passed(pool)[own]
    name = pool.info.classes[label]
    parts = [
        (f"{name}: accepted or surplus (score)", _spread(pool.with_image(own[passed]))),
        (f"{name}: rejected (gates failed, score)", _spread(pool.with_image(own[~passed]))),
    ]
    tall = [-(-len(rows) // COLUMNS) for _, rows in parts]
    captions = (0.15, 0.45)  # a score; up to three gates and a score
    heights = [0.3 + (_TILE + above) * count for above, count in zip(captions, tall, strict=True)]
    figure = _figure(_TILE * COLUMNS + 0.2, sum(heights))
    boxes = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for box, (title, rows), count in zip(boxes, parts, tall, strict=True):
        shown = _plain(title if count else f"{title}: no images")
        box.suptitle(shown, fontsize=9, x=0.01, ha="left")
        if count:
            _tiles(box.subplots(count, COLUMNS, squeeze=False).ravel(), pool, rows)
    return figure


def _tiles(grid: np.ndarray, pool: PoolReader, rows: Int[np.ndarray, "n"]) -> None:
    for axes in grid:
        axes.set_axis_off()
    columns = pool.columns
    for axes, image, row in zip(grid, pool[rows], rows.tolist(), strict=False):
        # A single channel is grey; nearest, so that the pixels are those of the image.
        picture = image[..., 0] if image.shape[-1] == 1 else image
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        failed = str(columns["failed"][row]).replace(",", "\n")
        axes.set_title(f"{failed}\n{columns['score'][row]:.3g}".strip(), fontsize=6.5, pad=2)


def _passed(pool: PoolReader) -> Bool[np.ndarray, "n"]:
    return pool.columns["failed"] == ""


def _spread(rows: Int[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
    """As many rows as there are tiles, evenly spread."""
    count = min(len(rows), ROWS * COLUMNS)
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)] if count else rows


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MatplotlibFigure

    figure = MatplotlibFigure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _row(figure: Figure, count: int) -> list[Axes]:
    return list(figure.subplots(1, count, squeeze=False)[0]) if count else []


def _plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")
