"""Picture grids of the report: real beside synthetic, accepted and rejected, with scores."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from lt_jax.evaluate import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure
else:
    Figure = SubFigure = object

ImageSet = UInt8[np.ndarray, "_ h w c"]

COLUMNS = 6
TILE = 0.8  # inches


def side_by_side(
    name: str, real: ImageSet, synthetic: ImageSet, scores: Sequence[float], rows: int = 2
) -> Figure:
    """Real train images of a class above accepted synthetic ones with their scores.

    Args:
      name: the class.
      real, synthetic: uint8 images, 1 or 3 channels; either may be empty.
      scores: of the synthetic images; higher is further from the real ones.
      rows: of tiles a half; further images are left out.
    """
    shown = [f"{score:.2f}" for score in scores]
    return _stack(
        [
            (f"{name}: real, train", real, [""] * len(real)),
            (f"{name}: synthetic, accepted (score, higher is further out)", synthetic, shown),
        ],
        rows,
    )


def rejected(
    name: str, images: ImageSet, scores: Sequence[float], reasons: Sequence[str], rows: int = 2
) -> Figure:
    """Rejected synthetic images of a class, each with its reason and score."""
    shown = [f"{why}\n{score:.2f}" for why, score in zip(reasons, scores, strict=True)]
    return _stack([(f"{name}: synthetic, rejected (reason, score)", images, shown)], rows)


def _stack(parts: Sequence[tuple[str, np.ndarray, Sequence[str]]], rows: int) -> Figure:
    for title, images, captions in parts:
        if len(images) != len(captions):
            raise ValueError(f"{title}: {len(images)} images with {len(captions)} scores")
    tall = [min(rows, -(-len(images) // COLUMNS)) for _, images, _ in parts]
    lines = [
        1 + max((c.count("\n") + bool(c) for c in captions), default=0) for _, _, captions in parts
    ]
    heights = [
        (0.35 if t else 0.55) + t * (TILE + 0.14 * line)
        for t, line in zip(tall, lines, strict=True)
    ]
    figure = figures.new_figure(sum(heights))
    boxes = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for box, count, (title, images, captions) in zip(boxes, tall, parts, strict=True):
        _grid(box, title, images, captions, count)
    return figure


def _grid(
    box: SubFigure, title: str, images: np.ndarray, captions: Sequence[str], rows: int
) -> None:
    box.suptitle(title, fontsize=10, x=0.01, ha="left")
    if rows == 0:
        box.text(0.02, 0.1, "none", fontsize=9, color=figures.GREY)
        return
    grid = box.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, caption in zip(grid, images, captions, strict=False):
        # A single channel is grey; nearest, so that the pixels are those of the image.
        picture = image[..., 0] if image.shape[-1] == 1 else image
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        if caption:
            axes.set_title(caption, fontsize=7.5, pad=2)
