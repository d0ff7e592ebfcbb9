"""Picture grids of the report: real beside synthetic, accepted and rejected, with scores."""

import dataclasses
import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from lt_jax.evaluate.report import figures, tiles
from lt_jax.evaluate.report.inputs import Pair, Source
from lt_jax.evaluate.report.picture import Numbers, numbers

ImageSet = UInt8[np.ndarray, "_ h w c"]

COLUMNS = 6
TILE = 0.76  # inches
PITCH = (figures.WIDTH - 2 * tiles.MARGIN) / COLUMNS
LINE = 0.125  # of a caption
HEAD = 0.28  # of a part's title


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
) -> figures.Figure:
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


def side_by_side_numbers(
    real: ImageSet,
    synthetic: ImageSet,
    scores: Sequence[float],
    sources: Sequence[Source | None] = (),
) -> Numbers:
    """The numbers of `side_by_side`; a source is told by the class that it is of."""
    of = [*sources, *[None] * (len(synthetic) - len(sources))]
    rows = [("real, train", i + 1, None, "") for i in range(len(real))]
    rows += [
        ("synthetic, accepted", i + 1, score, "" if source is None else source.label)
        for i, (score, source) in enumerate(zip(scores, of, strict=True))
    ]
    return numbers(("kind", "image", "score", "made from a real image of"), rows)


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
    stacked: list[np.ndarray | None] = []
    shown: list[str] = []
    for start in range(0, len(below), COLUMNS):
        line = slice(start, start + COLUMNS)
        missing = COLUMNS - len(below[line])
        stacked += [*above[line], *[None] * missing, *below[line], *[None] * missing]
        shown += [*captions[line], *[""] * (missing + COLUMNS)]
    return Part(title, stacked, shown, tiers=2)


def closest(title: str, pairs: Sequence[Pair], rows: int = 2) -> figures.Figure:
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


def closest_numbers(pairs: Sequence[Pair]) -> Numbers:
    """The numbers of `closest`."""
    rows = [
        (i + 1, pair.label, pair.nearest.label, pair.ms_ssim, pair.cosine)
        for i, pair in enumerate(pairs)
    ]
    return numbers(("pair", "class", "class of the train image", "ms_ssim", "cosine"), rows)


def _origin(source: Source | None, name: str, word: str = "from") -> str:
    """The class of a source where it is another one, in lines no wider than a tile."""
    if source is None or source.label == name:
        return ""
    words = textwrap.wrap(f"{word} {source.label}", 14, max_lines=2, placeholder="…")
    return "\n".join([*words, ""])


def rejected(
    name: str, images: ImageSet, scores: Sequence[float], reasons: Sequence[str], rows: int = 2
) -> figures.Figure:
    """Rejected synthetic images of a class, each with its reason and score."""
    shown = [f"{why}\n{score:.2f}" for why, score in zip(reasons, scores, strict=True)]
    return _stack([Part(f"{name}: synthetic, rejected (reason, score)", list(images), shown)], rows)


def rejected_numbers(scores: Sequence[float], reasons: Sequence[str]) -> Numbers:
    """The numbers of `rejected`."""
    pairs = zip(reasons, scores, strict=True)
    rows = [(i + 1, reason, score) for i, (reason, score) in enumerate(pairs)]
    return numbers(("image", "reason", "score"), rows)


def _stack(parts: Sequence[Part], rows: int) -> figures.Figure:
    for part in parts:
        if len(part.images) != len(part.captions):
            raise ValueError(
                f"{part.title}: {len(part.images)} images with {len(part.captions)} scores"
            )
    tall = [min(rows * part.tiers, -(-len(part.images) // COLUMNS)) for part in parts]
    lines = [max((c.count("\n") + bool(c) for c in part.captions), default=0) for part in parts]
    # Captions are of the upper row of each tier alone.
    heights = [
        HEAD + (t * (TILE + 0.05) + -(-t // part.tiers) * line * LINE + 0.08 if t else 0.25)
        for t, line, part in zip(tall, lines, parts, strict=True)
    ]
    sheet = tiles.Sheet(sum(heights))
    top = 0.0
    for part, count, line, height in zip(parts, tall, lines, heights, strict=True):
        _grid(sheet, part, count, line, top)
        top += height
    return sheet.figure


def _grid(sheet: tiles.Sheet, part: Part, rows: int, lines: int, top: float) -> None:
    sheet.text(part.title, tiles.MARGIN, top + 0.06, 10)
    y = top + HEAD
    if rows == 0:
        sheet.text("none", tiles.MARGIN, y, 9, color=figures.GREY)
        return
    for row in range(rows):
        if row % part.tiers == 0:
            y += lines * LINE
        line = slice(row * COLUMNS, (row + 1) * COLUMNS)
        for i, (image, caption) in enumerate(
            zip(part.images[line], part.captions[line], strict=True)
        ):
            x = tiles.MARGIN + i * PITCH
            if image is not None:
                sheet.image(image, x, y, TILE)
            if caption:
                sheet.text(caption, x, y - 0.02, 7.5, va="bottom", linespacing=1.1)
        y += TILE + 0.05
