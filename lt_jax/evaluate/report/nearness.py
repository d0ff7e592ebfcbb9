"""Copies of train images in the report: how near synthetic and real images come to train."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from lt_jax.evaluate.report import figures, gallery
from lt_jax.evaluate.report.inputs import Dataset, ReportInputs, memorization_summary
from lt_jax.evaluate.report.picture import Numbers, Picture, numbers

MEASURES = {"ms_ssim": "MS-SSIM", "cosine": "Cosine"}
SETS = {"val": "held-out real", "candidates": "candidates", "accepted": "accepted"}
CLOSEST = {
    "accepted": "Accepted, below the train image most like it (MS-SSIM, cosine)",
    "copies": "Stopped as copies, below that train image (MS-SSIM, cosine)",
}


def pictures(inputs: ReportInputs) -> Iterator[Picture]:
    """The distributions, and the closest pairs of which there are images."""
    found = memorization_summary(inputs.pool)
    if found is None:
        return
    panels = {
        f"{title} to the nearest train image": (
            np.asarray(found["edges"][measure]),
            {name: found["overall"][measure][s]["histogram"] for s, name in SETS.items()},
        )
        for measure, title in MEASURES.items()
    }
    yield Picture(
        "nearness",
        "Likeness to the nearest train image: held-out real images, candidates, accepted ones",
        histograms(panels),
        histogram_numbers(panels),
    )
    for name, title in CLOSEST.items():
        pairs = () if inputs.gallery is None else inputs.gallery.closest.get(name, ())
        if pairs:
            yield Picture(
                f"closest_{name}",
                title,
                gallery.closest(title, pairs),
                gallery.closest_numbers(pairs),
            )


Panels = Mapping[str, tuple[Float[np.ndarray, "e"], Mapping[str, Sequence[int]]]]


def histograms(panels: Panels) -> figures.Figure:
    """How near images of each set come to train: the share of the set in each bin.

    Args:
      panels: measure -> (edges of the bins, set -> counts [e - 1]). The first set, held-out real
        images, is filled; sets without an image are left out.
    """
    figure = figures.new_figure(0.4 + 2.3 * len(panels))
    all_axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, (measure, (edges, sets)) in zip(all_axes, panels.items(), strict=True):
        for i, (name, counts) in enumerate(sets.items()):
            total = np.sum(counts)
            if not total:
                continue
            look = {"color": figures.GREY, "fill": True, "alpha": 0.35}
            if i:
                dash = figures.DASHES[(i - 1) % len(figures.DASHES)]
                look = {"color": figures.PALETTE[i - 1], "linewidth": 1.6, "linestyle": dash}
            axes.stairs(np.asarray(counts) / total, edges, label=f"{name} (n={total:,})", **look)
        axes.set_xlabel(measure, fontsize=9)
        axes.set_ylabel("share of images", fontsize=9)
        axes.grid(alpha=0.25)
        figures.clean(axes)
    figures.legend_below(figure, all_axes[0])
    return figure


def histogram_numbers(panels: Panels) -> Numbers:
    """The numbers of `histograms`: a row a measure, set and bin."""
    rows = [
        (measure, name, edges[b], edges[b + 1], count, count / max(np.sum(counts), 1))
        for measure, (edges, sets) in panels.items()
        for name, counts in sets.items()
        for b, count in enumerate(counts)
    ]
    return numbers(("measure", "images", "from", "to", "count", "share"), rows)


def table(found: Mapping[str, Any] | None, data: Dataset, most: int) -> dict[str, Any] | None:
    """Heads, and rows of (class, its numbers of images, cells of a number and one below it).

    Of the `most` rarest classes, and of all together; "few" are those with too few val images.
    """
    if found is None:
        return None
    rank = {data.classes[c]: r for r, c in enumerate(np.argsort(data.train_counts, kind="stable"))}
    per_class = sorted(found["per_class"], key=lambda row: rank.get(row["class"], len(rank)))
    heads = [f"{title}, {what}" for title in MEASURES.values() for what in ("median", "highest")]
    return {
        "columns": ["Class", "Copies", "Accepted", *heads],
        "rows": [
            *(_row(row["class"], row) for row in per_class[:most]),
            _row("All", found["overall"]),
        ],
        "few": [row["class"] for row in per_class if row["val"] < (found["least_val"] or 0)],
    }


def _row(name: str, row: Mapping[str, Any]) -> tuple[str, str, list[tuple[str, str]]]:
    counts = f"{row['measured']:,} of {row['candidates']:,} candidates compared, {row['val']:,} val"
    share = f"{row['copies'] / row['measured']:.1%}" if row["measured"] else ""
    cells = [(f"{row['copies']:,}", share), (f"{row['accepted']:,}", "")]
    for measure in MEASURES:
        sets = row[measure]
        known = row.get("limits", {})  # of a class; of a measure that the gate goes by
        limit = f"; {_likeness(known[measure])}" if measure in known else ""
        cells += [
            (_likeness(sets["candidates"]["median"]), _likeness(sets["val"]["median"])),
            (_likeness(sets["accepted"]["max"]), _likeness(sets["val"]["max"]) + limit),
        ]
    return name, counts, cells


def _likeness(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
