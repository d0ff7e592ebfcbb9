"""The report's charts of the data, the arms and their costs, and its galleries, as pictures."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lt_jax.evaluate import metrics
from lt_jax.evaluate.report import figures, gallery, shown
from lt_jax.evaluate.report.inputs import (
    Arm,
    Pool,
    ReportInputs,
    fidelity_summary,
    ledger,
    sorted_runs,
)
from lt_jax.evaluate.report.picture import Numbers, Picture, numbers
from lt_jax.evaluate.statistics import ArmStatistics, tables

# Curves that are drawn: key in a run's rows -> title.
CURVES = {"loss": "training loss", "val_balanced_accuracy": "balanced accuracy on val"}
# Beyond these, charts by class show the rarest ones: the tail is what the report is about.
MAX_CLASSES = 40
GALLERIES = 12  # classes of which images are shown


def data(inputs: ReportInputs) -> Iterator[Picture]:
    """How many images each class has, and what they look like."""
    counts = np.asarray(inputs.dataset.train_counts)
    rarest = np.sort(shown.classes(counts, MAX_CLASSES))
    names = [inputs.dataset.classes[c] for c in rarest]
    accepted = _accepted(inputs)
    made = None if accepted is None else accepted[rarest]
    columns = ("class", "real, train") + (() if made is None else ("synthetic, accepted",))
    yield Picture(
        "class_histogram",
        "Train images of each class, with accepted synthetic ones",
        figures.class_histogram(names, counts[rarest], made),
        numbers(
            columns, zip(names, counts[rarest], *(() if made is None else (made,)), strict=True)
        ),
    )
    yield from _galleries(inputs)


def _accepted(inputs: ReportInputs) -> np.ndarray | None:
    if inputs.pool is None:
        return None
    by_class = {str(row["class"]): int(row["accepted"]) for row in inputs.pool.per_class}
    return np.array([by_class.get(name, 0) for name in inputs.dataset.classes])


def _galleries(inputs: ReportInputs) -> Iterator[Picture]:
    """Of the rarest classes real images beside accepted ones, then rejected ones."""
    pictures = inputs.gallery
    if pictures is None:
        return
    for c in shown.classes(inputs.dataset.train_counts, GALLERIES).tolist():
        name = inputs.dataset.classes[c]
        real = pictures.real.get(name)
        images, scores = pictures.accepted.get(name, (None, ()))
        some = real if real is not None else images
        if some is not None:  # whichever is missing is shown as none
            real = some[:0] if real is None else real
            images = some[:0] if images is None else images
            sources = pictures.sources.get(name, ())
            yield Picture(
                f"gallery_{c:03d}_accepted",
                f"{name}: real train images above accepted synthetic ones, with scores",
                gallery.side_by_side(name, real, images, scores, sources),
                gallery.side_by_side_numbers(real, images, scores, sources),
            )
        images, scores, reasons = pictures.rejected.get(name, (None, (), ()))
        if images is not None and len(images):
            yield Picture(
                f"gallery_{c:03d}_rejected",
                f"{name}: rejected synthetic images, with reasons and scores",
                gallery.rejected(name, images, scores, reasons),
                gallery.rejected_numbers(scores, reasons),
            )


def arms(inputs: ReportInputs, plain: Mapping[str, ArmStatistics]) -> Iterator[Picture]:
    """How the arms were trained, and what they achieve class by class and against the baseline."""
    if panels := _curves(inputs.arms):
        yield Picture(
            "learning_curves",
            "Training loss and balanced accuracy on val by step, by arm",
            figures.learning_curves(panels),
            _curve_numbers(panels),
        )
    counts = np.asarray(inputs.dataset.train_counts)
    rarest = np.sort(shown.classes(counts, MAX_CLASSES))
    names = [inputs.dataset.classes[c] for c in rarest]
    recalls = {name: s.recall_per_class[:, rarest] for name, s in plain.items()}
    yield Picture(
        "recall_per_class",
        "Recall of every class by arm: means, and seeds as dots",
        figures.recall_dots(names, recalls, counts[rarest]),
        numbers(
            ("arm", "class", "recall", "std", "seeds"),
            [
                (arm, name, *_spread(values[:, i]))
                for arm, values in recalls.items()
                for i, name in enumerate(names)
            ],
        ),
    )
    compared = {name: s.comparisons[metrics.PRIMARY] for name, s in plain.items() if s.comparisons}
    compared = {name: c for name, c in compared.items() if c.difference is not None}
    if compared:
        baseline = inputs.evaluate.baseline
        yield Picture(
            "paired_differences",
            f"Differences in balanced accuracy from {baseline}, with intervals and p-values",
            figures.forest(
                list(compared),
                [float(c.difference or 0.0) for c in compared.values()],
                [c.ci95 for c in compared.values()],
                [tables.format_p(c.p_holm) for c in compared.values()],
                f"Balanced accuracy minus {baseline}, with Holm's p",
            ),
            numbers(
                ("arm", "difference", "low", "high", "p", "Holm's p", "seeds"),
                [
                    (name, c.difference, *(c.ci95 or (None, None)), c.p, c.p_holm, c.n)
                    for name, c in compared.items()
                ],
            ),
        )


def _spread(values: np.ndarray) -> tuple[float, float, int]:
    several = len(values) > 1
    return float(values.mean()), float(values.std(ddof=1)) if several else np.nan, len(values)


def _curves(arms: tuple[Arm, ...]) -> dict[str, dict[str, figures.Curve]]:
    """The drawn quantities, at the steps that all seeds of an arm have."""
    panels: dict[str, dict[str, figures.Curve]] = {}
    for key, title in CURVES.items():
        for arm in arms:
            rows = [
                {int(r["step"]): float(r[key]) for r in run.curves if r.get(key) is not None}
                for run in sorted_runs(arm)
            ]
            steps = sorted(set.intersection(*map(set, rows)))
            if steps:
                values = np.array([[row[step] for step in steps] for row in rows])
                panels.setdefault(title, {})[arm.name] = (np.array(steps), values)
    return panels


def _curve_numbers(panels: Mapping[str, Mapping[str, figures.Curve]]) -> Numbers:
    rows = [
        (quantity, arm, step, *_spread(values[:, i]))
        for quantity, held in panels.items()
        for arm, (steps, values) in held.items()
        for i, step in enumerate(steps)
    ]
    return numbers(("quantity", "arm", "step", "mean", "std", "seeds"), rows)


def fidelity(pool: Pool | None) -> Iterator[Picture]:
    """KID and recall by class, where any class has images enough for either."""
    rows = rarest_rows(fidelity_summary(pool))[::-1]
    sides = ("matched", "floor")

    def both(name: str) -> np.ndarray:
        return np.array([[row[side][name] for row in rows] for side in sides], float)

    if not rows:
        return
    kid, recall = both("kid"), both("recall")
    if np.isnan(kid).all() and np.isnan(recall).all():
        return
    panels = {
        "KID (lower is nearer)": (kid, both("kid_std")),
        "Recall": (recall, np.full_like(recall, np.nan)),
    }
    names, shown_of_side = [row["class"] for row in rows], ("kid", "kid_std", "recall")
    yield Picture(
        "fidelity",
        "KID and recall of synthetic images by class, beside those of held-out real ones",
        figures.fidelity_marks(names, panels),
        numbers(
            ("class", "images", "a side", "KID", "its standard error", "recall"),
            [
                (row["class"], side, row["n"], *(row[side][part] for part in shown_of_side))
                for row in rows
                for side in sides
            ],
        ),
    )


def rarest_rows(found: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The classes that are shown of a summary of fidelity, rarest first."""
    per_class = [] if found is None else found["per_class"]
    return sorted(per_class, key=lambda row: row["n_train"])[:MAX_CLASSES]


def costs(inputs: ReportInputs) -> Iterator[Picture]:
    """Seconds by arm: its own, and those of what it relies on."""
    found = [ledger(arm, inputs.costs) for arm in inputs.arms]
    own = np.array([float(c["seconds"]) for c in found])
    shared = np.array([float((c["relies_on"] or {"seconds": 0})["seconds"]) for c in found])
    names = [arm.name for arm in inputs.arms]
    yield Picture(
        "ledger",
        "Seconds by arm: classifier runs, and the stages that they rely on",
        figures.ledger_bars(names, own, shared),
        numbers(
            ("arm", "classifier runs, s", "stages before, s"), zip(names, own, shared, strict=True)
        ),
    )
