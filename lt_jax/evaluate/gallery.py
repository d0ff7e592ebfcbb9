"""Picture grids of the report: real beside synthetic, accepted and rejected, with scores."""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from lt_jax.evaluate import figures
from lt_jax.evaluate.inputs import Pair, Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure
else:
    Figure = SubFigure = object

ImageSet = UInt8[np.ndarray, "_ h w c"]

COLUMNS = 6
TILE = 0.8  # inches


@dataclasses.dataclass(frozen=True)
class Part:
    """Images under a title, each with a caption; None leaves its tile empty.

    tiers: how many rows of tiles belong together and are cut off together.
    """

    title: str
    images: Sequence[np.ndarray | None]
    captions: Sequence[str]
    tiers: int = 1


def side_by_side(
    name: str,
    real: ImageSet,
    synthetic: ImageSet,
    scores: Sequence[float],
    sources: Sequence[Source | None] = (),
    rows: int = 2,
) -> Figure:
    """Real train images of a class above accepted synthetic ones with their scores.

    Args:
      name: the class.
      real, synthetic: uint8 images, 1 or 3 channels; either may be empty.
      scores: of the synthetic images; higher is further from the real ones.
      sources: what each synthetic image was made from, or none at all. Where there are any, each
        synthetic image stands below its own.
      rows: of tiles a half, or of pairs of them; further images are left out.
    """
    shown = [f"{score:.2f}" for score in scores]
    title = f"{name}: synthetic, accepted (score, higher is further out)"
    part = Part(title, list(synthetic), shown)
    if any(sources):
        part = _pairs(name, synthetic, shown, sources)
    return _stack([Part(f"{name}: real, train", list(real), [""] * len(real)), part], rows)


def _pairs(
    name: str, images: ImageSet, scores: Sequence[str], sources: Sequence[Source | None]
) -> Part:
    """Lines of sources and lines of what was made of them in turn, captions above the former."""
    counts = len(images), len(scores), len(sources)
    if len(set(counts)) > 1:
        raise ValueError("{}: {} images with {} scores and {} sources".format(name, *counts))
    above = [None if source is None else source.image for source in sources]
    pairs = zip(sources, scores, strict=True)
    captions = [_origin(source, name) + score for source, score in pairs]
    return _two_lines(
        f"{name}: accepted (score), each below its real source", above, images, captions
    )


def _two_lines(
    title: str,
    above: Sequence[np.ndarray | None],
    below: Sequence[np.ndarray] | ImageSet,
    captions: Sequence[str],
) -> Part:
    """Lines of images and below each the line that belongs to it; captions are of the upper."""
    tiles: list[np.ndarray | None] = []
    shown: list[str] = []
    for start in range(0, len(below), COLUMNS):
        line = slice(start, start + COLUMNS)
        missing = COLUMNS - len(below[line])
        tiles += [*above[line], *[None] * missing, *below[line], *[None] * missing]
        shown += [*captions[line], *[""] * (missing + COLUMNS)]
    return Part(title, tiles, shown, tiers=2)


def closest(title: str, pairs: Sequence[Pair], rows: int = 2) -> Figure:
    """Train images, and below each the synthetic one that is most like it, with likenesses.

    Args:
      title: what pairs these are.
      pairs: in the order in which they are shown.
      rows: of pairs; further ones are left out.
    """
    captions = [
        f"{textwrap.shorten(pair.label, 14, placeholder='…')}\n"
        + _origin(pair.nearest, pair.label, "near")
        + f"{pair.ms_ssim:.3f}, {pair.cosine:.3f}"
        for pair in pairs
    ]
    above, below = [pair.nearest.image for pair in pairs], [pair.image for pair in pairs]
    return _stack([_two_lines(title, above, below, captions)], rows)


def _origin(source: Source | None, name: str, word: str = "from") -> str:
    """The class of a source where it is another one, in lines no wider than a tile."""
    if source is None or source.label == name:
        return ""
    words = textwrap.wrap(f"{word} {source.label}", 14, max_lines=2, placeholder="…")
    return "\n".join([*words, ""])


def rejected(
    name: str, images: ImageSet, scores: Sequence[float], reasons: Sequence[str], rows: int = 2
) -> Figure:
    """Rejected synthetic images of a class, each with its reason and score."""
    shown = [f"{why}\n{score:.2f}" for why, score in zip(reasons, scores, strict=True)]
    return _stack([Part(f"{name}: synthetic, rejected (reason, score)", list(images), shown)], rows)


def _stack(parts: Sequence[Part], rows: int) -> Figure:
    for part in parts:
        if len(part.images) != len(part.captions):
            raise ValueError(
                f"{part.title}: {len(part.images)} images with {len(part.captions)} scores"
            )
    tall = [min(rows * part.tiers, -(-len(part.images) // COLUMNS)) for part in parts]
    lines = [1 + max((c.count("\n") + bool(c) for c in part.captions), default=0) for part in parts]
    heights = [
        (0.35 if t else 0.55) + t * TILE + t / part.tiers * 0.14 * line
        for t, line, part in zip(tall, lines, parts, strict=True)
    ]
    figure = figures.new_figure(sum(heights))
    boxes = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for box, count, part in zip(boxes, tall, parts, strict=True):
        _grid(box, part, count)
    return figure


def _grid(box: SubFigure, part: Part, rows: int) -> None:
    box.suptitle(part.title, fontsize=10, x=0.01, ha="left")
    if rows == 0:
        box.text(0.02, 0.1, "none", fontsize=9, color=figures.GREY)
        return
    grid = box.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, caption in zip(grid, part.images, part.captions, strict=False):
        if image is not None:
            # A single channel is grey; nearest, so that the pixels are those of the image.
            picture = image[..., 0] if image.shape[-1] == 1 else image
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        if caption:
            axes.set_title(caption, fontsize=7.5, pad=2)
