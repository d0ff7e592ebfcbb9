"""Charts of what networks show of themselves: maps of features, saliency, denoising strips."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from lt_jax.evaluate.images.explained import Answer, Pictures, Saliency, Strips
from lt_jax.evaluate.images.maps import KINDS, Map, Maps
from lt_jax.evaluate.report import figures, shown, tiles
from lt_jax.evaluate.report.inputs import Dataset
from lt_jax.evaluate.report.picture import Numbers, Picture, numbers

TITLES = {"tsne": "t-SNE", "umap": "UMAP-like"}
COLOURS = (*figures.PALETTE, "#882255", "#44AA99")
LOOKS = {
    "train": {"marker": "o", "s": 9, "linewidths": 0},
    "val": {"marker": "D", "s": 13, "linewidths": 0.6, "edgecolors": "black"},
    "synthetic": {"marker": "x", "s": 11, "linewidths": 0.8},
}
WORDS = {"train": "real, train", "val": "real, held out (val)", "synthetic": "synthetic, accepted"}
CELLS = 8  # of a side of the grid in which saliency is told in numbers
SHEET = 6  # examples of one picture
LINE = 0.13  # inches
TILE = 0.78


def pictures(found: Pictures | None, data: Dataset) -> Iterator[Picture]:
    """Of those parts that there are."""
    if found is None:
        return
    if found.maps is not None:
        for name, held in found.maps.maps.items():
            yield Picture(
                f"map_{name}",
                f"{TITLES[name]} map of features: real and synthetic images by class",
                feature_map(TITLES[name], found.maps, held, data),
                map_numbers(found.maps, held, data.classes),
            )
    if found.saliency is not None:
        whole = found.saliency
        for i in range(0, len(whole.examples), SHEET):
            part = dataclasses.replace(whole, examples=whole.examples[i : i + SHEET])
            yield Picture(
                f"saliency_{i // SHEET}",
                "Val images beside attention rollout and integrated gradients of each arm",
                saliency_sheet(part, data.classes),
                saliency_numbers(part, data.classes),
            )
    if found.strips is not None:
        yield Picture(
            "strips",
            "Estimates of the image at falling noise, a line a class, and the pool's own last",
            strip_sheet(found.strips, data.classes),
            strip_numbers(found.strips, data.classes),
        )


def feature_map(title: str, found: Maps, held: Map, data: Dataset) -> figures.Figure:
    """Points by class (colour) and kind (marker); of many classes the rarest have colours."""
    from matplotlib.patheffects import withStroke

    figure = figures.new_figure(5.5)
    axes = figure.add_subplot()
    rarest = shown.classes(data.train_counts, len(COLOURS))
    coloured = {int(c): COLOURS[i] for i, c in enumerate(np.sort(rarest))}
    ink = np.array([coloured.get(int(c), "#c4c4c4") for c in found.labels])
    for i, kind in enumerate(KINDS):
        own = found.kinds == i
        if own.any():
            axes.scatter(*held.places[own].T, c=ink[own], alpha=0.75, **LOOKS[kind])
            look = {**LOOKS[kind], "s": 22, "color": figures.GREY, "edgecolors": None}
            axes.scatter([], [], label=f"{WORDS[kind]} (n={own.sum():,})", **look)
    for c, colour in coloured.items():
        own = found.labels == c
        if own.any():
            x, y = np.median(held.places[own], axis=0)
            axes.text(
                x,
                y,
                data.classes[c],
                color=colour,
                fontsize=10,
                fontweight="bold",
                ha="center",
                va="center",
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )
    axes.set_xticks([])
    axes.set_yticks([])
    measure = f"trustworthiness {held.trustworthiness:.3f} (k={held.k}, n={len(found.labels):,})"
    figures.clean(axes, f"{title}: {measure}")
    figures.legend_below(figure, axes, 1)
    return figure


def map_numbers(found: Maps, held: Map, classes: Sequence[str]) -> Numbers:
    """A row a point."""
    rows = [
        (name, classes[label], KINDS[kind], round(float(x), 3), round(float(y), 3))
        for name, label, kind, (x, y) in zip(
            found.names, found.labels, found.kinds, held.places, strict=True
        )
    ]
    return numbers(("image", "class", "kind", "x", "y"), rows)


def saliency_sheet(found: Saliency, classes: Sequence[str]) -> figures.Figure:
    """A line an image: itself, then of each arm its rollout (where it has one) and attributions."""
    width = [1 + (answer.rollout is not None) for answer in found.examples[0].answers]
    words = 1 + len(found.arms)
    pitch = min(1.0, (figures.WIDTH - 2 * tiles.MARGIN) / (1 + sum(width)))
    tile = min(TILE, pitch - 0.06)
    line = words * LINE + tile + 0.14
    top = 3 * LINE + 0.12
    sheet = tiles.Sheet(top + line * len(found.examples))
    left = [tiles.MARGIN + pitch * (1 + sum(width[:i])) for i in range(len(width))]
    sheet.text("image", tiles.MARGIN, 0.06 + LINE, 8)
    for (arm, seed), x, columns in zip(found.arms, left, width, strict=True):
        sheet.text(f"{arm}, seed {seed}", x, 0.05, 8.5, fontweight="bold")
        for i, title in enumerate(("rollout", "integrated\ngradients")[-columns:]):
            sheet.text(title, x + i * pitch, 0.06 + LINE, 8)
    for row, example in enumerate(found.examples):
        y = top + line * row
        sheet.text(f"true: {classes[example.label]}", tiles.MARGIN, y, 8, fontweight="bold")
        for i, ((arm, _), answer) in enumerate(zip(found.arms, example.answers, strict=True)):
            right = answer.predicted == example.label
            said = f"{arm}: {classes[answer.predicted]} ({answer.probability:.2f})"
            mark = "right" if right else "wrong"
            colour = figures.PALETTE[2] if right else figures.PALETTE[3]
            sheet.text(f"{said}, {mark}", tiles.MARGIN, y + (i + 1) * LINE, 8, color=colour)
        y += words * LINE + 0.02
        sheet.image(example.image, tiles.MARGIN, y, tile)
        for answer, x in zip(example.answers, left, strict=True):
            if answer.rollout is not None:
                sheet.heat(answer.rollout, x, y, tile, float(answer.rollout.max()))
                x += pitch
            limit = float(np.quantile(np.abs(answer.attribution), 0.99))
            sheet.signed(answer.attribution, x, y, tile, limit)
    return sheet.figure


def saliency_numbers(found: Saliency, classes: Sequence[str]) -> Numbers:
    """A row an image, arm and method, the map summed over at most CELLS x CELLS blocks."""
    rows = []
    for example in found.examples:
        for (arm, seed), answer in zip(found.arms, example.answers, strict=True):
            for method, values in _methods(answer):
                blocks = blocked(values, CELLS)
                completeness = (
                    (answer.difference, answer.gap)
                    if method == "integrated gradients"
                    else (None, None)
                )
                rows.append(
                    (
                        *(example.name, classes[example.label], arm, seed),
                        *(classes[answer.predicted], answer.probability, method, *completeness),
                        f"{blocks.shape[0]}x{blocks.shape[1]}",
                        " ".join(f"{value:.4g}" for value in blocks.ravel()),
                    )
                )
    columns = (
        *("image", "class", "arm", "seed", "predicted", "probability", "method"),
        *("logit minus that of black", "gap of the sum", "blocks", "sums, row by row"),
    )
    return numbers(columns, rows)


def _methods(answer: Answer) -> Iterator[tuple[str, Float[np.ndarray, "_ _"]]]:
    if answer.rollout is not None:
        yield "rollout", answer.rollout
    yield "integrated gradients", answer.attribution


def blocked(values: Float[np.ndarray, "h w"], most: int) -> Float[np.ndarray, "_ _"]:
    """Sums over blocks, at most so many a side, as even as can be; the total stays."""
    for axis in range(2):
        size = values.shape[axis]
        starts = np.linspace(0, size, min(most, size) + 1).round().astype(int)[:-1]
        values = np.add.reduceat(values, starts, axis=axis)
    return values


def strip_sheet(found: Strips, classes: Sequence[str]) -> figures.Figure:
    """A line a class from noise to image, and behind it the pool's image of the same candidate."""
    columns = len(found.log_snr) + 1
    pitch = (figures.WIDTH - 2 * tiles.MARGIN - 0.08) / columns
    tile = min(TILE, pitch - 0.03)
    line, top = LINE + tile + 0.09, 2 * LINE + 0.1
    sheet = tiles.Sheet(top + line * len(found.strips))
    behind = figures.WIDTH - tiles.MARGIN - pitch + 0.03
    sheet.text("log-SNR", tiles.MARGIN, 0.04, 8)
    sheet.text("in the pool", behind + tile, 0.04 + LINE, 8, ha="right")
    for i, level in enumerate(found.log_snr):
        sheet.text(f"{level:+.1f}", tiles.MARGIN + i * pitch, 0.04 + LINE, 8)
    for row, strip in enumerate(found.strips):
        y = top + row * line
        sheet.text(classes[strip.label], tiles.MARGIN, y, 8, fontweight="bold")
        for i, image in enumerate(strip.estimates):
            sheet.image(image, tiles.MARGIN + i * pitch, y + LINE + 0.03, tile)
        sheet.image(strip.kept, behind, y + LINE + 0.03, tile)
    return sheet.figure


def strip_numbers(found: Strips, classes: Sequence[str]) -> Numbers:
    """A row a class and level: how far the estimate is from the last one, and from the pool's."""
    rows = []
    for strip in found.strips:
        for level, image in zip(found.log_snr, strip.estimates, strict=True):
            away = [_apart(image, other) for other in (strip.estimates[-1], strip.kept)]
            sigma = 1 / np.sqrt(1 + np.exp(level))
            rows.append((classes[strip.label], strip.index, level, sigma, *away))
    columns = ("class", "candidate", "log_snr", "sigma", "RMS to the last", "RMS to the pool's")
    return numbers(columns, rows)


def _apart(first: np.ndarray, second: np.ndarray) -> float:
    """Root mean square difference in levels of 255."""
    return float(np.sqrt(np.mean((first.astype(float) - second.astype(float)) ** 2)))
