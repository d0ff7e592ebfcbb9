"""What the page shows of the audit, from what report.json holds of it (key `audit`)."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lt_jax.evaluate.images import fidelity
from lt_jax.evaluate.images.fidelity import MEASURES
from lt_jax.evaluate.report import audit_figures
from lt_jax.evaluate.report import sections as sections_lib
from lt_jax.evaluate.report.audit_figures import ATTACKERS, TRAINED_ON
from lt_jax.evaluate.report.picture import Numbers, Picture, numbers
from lt_jax.evaluate.statistics import tables
from lt_jax.evaluate.statistics.results import Summary

Part = Mapping[str, Any]
Cell = tuple[str, str]  # a text, and a smaller one below it

LIKENESS = {"cosine": "Cosine", "ms_ssim": "MS-SSIM"}
SIDES = {"probe": "synthetic against held-out real", "floor": "train against held-out real"}
ALT = {
    "nearness": "Likeness to the nearest train image: held-out real and accepted synthetic images",
    "membership": "ROC curves of guessing who was in train, and AUROC by noise time",
    "probe": "AUROC of a probe that tells synthetic from held-out real images, by class",
    "diversity": "Mean MS-SSIM between images of a class, synthetic and real",
    "accuracy_score": "Balanced accuracy by what the classifier was trained on",
}
TITLES = {
    "nearness": "Likeness to train images",
    "membership": "Who was in train, by the generator's loss",
    "probe": "Whether a classifier sees that an image is synthetic",
    "diversity": "Variety within a class",
    "accuracy_score": "What synthetic images alone teach",
    "inception": "Fidelity on Inception's features",
}


def pictures(found: Mapping[str, Part] | None, most: int) -> Iterator[Picture]:
    """Of each part that has a figure; of classes the first `most` measured."""
    for name, figure in audit_figures.figures_of(found or {}, most):
        part = name.removeprefix("audit_")
        yield Picture(name, ALT[part], figure, _NUMBERS[part]((found or {})[part]))


def _nearness(found: Part) -> Numbers:
    rows = []
    for measure, title in LIKENESS.items():
        held = found["accepted"][measure]
        edges = held["edges"]
        for side in ("val", "synthetic"):
            counts = held["overall"][side]["histogram"]
            rows += [(title, side, edges[b], edges[b + 1], count) for b, count in enumerate(counts)]
    return numbers(("measure", "images", "from", "to", "count"), rows)


def _membership(found: Part) -> Numbers:
    rows: list[tuple[Any, ...]] = [
        (f"ROC, {title}", x, y, None, None)
        for name, title in ATTACKERS.items()
        if found[name] is not None
        for x, y in zip(found[name]["roc"]["fpr"], found[name]["roc"]["tpr"], strict=True)
    ]
    rows += [
        ("AUROC by noise time", entry["time"], *_with_ends(entry, "auroc"))
        for entry in found["times"]
    ]
    return numbers(("what", "x", "y", "low", "high"), rows)


def _with_ends(entry: Part, name: str) -> tuple[float | None, float | None, float | None]:
    low, high = entry["ci95"] or (None, None)
    return entry[name], low, high


def _probe(found: Part) -> Numbers:
    rows = [
        (row["class"], title, *_with_ends(held, "auroc"), held["n_positive"], held["n_negative"])
        for row in found["classes"]
        for name, title in SIDES.items()
        if (held := row[name])
    ]
    return numbers(("class", "what", "AUROC", "low", "high", "images", "held-out images"), rows)


def _diversity(found: Part) -> Numbers:
    rows = [
        (row["class"], side, *_with_ends(held, "mean"), held["n"], held["pairs"])
        for row in found["classes"]
        for side in ("synthetic", "real")
        if (held := row[side])
    ]
    return numbers(("class", "images", "mean MS-SSIM", "low", "high", "n", "pairs"), rows)


def _accuracy_score(found: Part) -> Numbers:
    rows = [
        (split, TRAINED_ON[name], seed, value)
        for split in ("val", "test")
        for name, held in found.get(split, {}).items()
        for seed, value in zip(found["seeds"], held["values"], strict=True)
    ]
    return numbers(("split", "trained on", "seed", "balanced accuracy"), rows)


_NUMBERS: dict[str, Callable[[Part], Numbers]] = {
    "nearness": _nearness,
    "membership": _membership,
    "probe": _probe,
    "diversity": _diversity,
    "accuracy_score": _accuracy_score,
}


def sections(found: Mapping[str, Part] | None) -> list[dict[str, Any]]:
    """Of each part {"title", "name" of its picture, "columns", "rows" of (head, cells), "cost"}."""
    made = []
    for name, part in (found or {}).items():
        columns, rows = _TABLES[name](part)
        made.append(
            {
                "part": name,
                "title": TITLES[name],
                "name": f"audit_{name}",
                "columns": columns,
                "rows": rows,
                "cost": part.get("cost"),
            }
        )
    return made


Rows = tuple[list[str], list[tuple[str, list[Cell]]]]


def _likeness_table(found: Part) -> Rows:
    columns = ["Measure", "Median: synthetic", "KS distance", "Beyond every val image"]
    rows = []
    for measure, title in LIKENESS.items():
        entry = found["accepted"][measure]["overall"]
        median = (f"{entry['synthetic']['median']:.3f}", f"val {entry['val']['median']:.3f}")
        rows.append((title, [median, _ks(entry["ks"]), _beyond(entry["beyond"])]))
    return columns, rows


def _ks(ks: Part | None) -> Cell:
    if ks is None:
        return tables.UNDEFINED, ""
    nearer = f"nearer: {tables.format_p(ks['p_nearer'])} (n={ks['n']:,} and {ks['n_val']:,})"
    return f"{ks['statistic']:.3f}, {tables.format_p(ks['p'])}", nearer


def _beyond(beyond: Part | None) -> Cell:
    if beyond is None:
        return tables.UNDEFINED, ""
    share = f"{beyond['count']:,} of {beyond['n']:,} = {beyond['share']:.3f}"
    alike = f"{beyond['expected']:.3f} {sections_lib.interval(beyond['expected95'])} if alike"
    return f"{share}, {tables.format_p(beyond['p'])}", f"{alike} (n_val={beyond['n_val']:,})"


def _membership_table(found: Part) -> Rows:
    columns = ["Attacker", "AUROC", "TPR at 1% FPR"]
    rows = []
    for name, title in ATTACKERS.items():
        entry = found[name]
        if entry is None:
            reason = found["reasons"].get(name, "")
            rows.append((title, [(tables.UNDEFINED, reason), ("", "")]))
            continue
        tpr = entry["tpr"]
        ends = sections_lib.interval(tpr["ci95"]) if tpr["ci95"] else ""
        rows.append((title, [_area(entry), (f"{tpr['tpr']:.3f}", f"{ends} {tpr['reason'] or ''}")]))
    return columns, rows


def _area(entry: Part | None) -> Cell:
    if entry is None:
        return tables.UNDEFINED, ""
    counts = f"n={entry['n_positive']:,}+{entry['n_negative']:,}"
    ends = sections_lib.interval(entry["ci95"])
    test = tables.format_corrected(entry["p"], entry["p_holm"])
    return f"{entry['auroc']:.3f} {ends}", f"{test} ({counts})"


def _probe_table(found: Part) -> Rows:
    rows = [("all classes", found["overall"]), *((row["class"], row) for row in found["classes"])]
    cells = [(name, [_probed(row, side) for side in SIDES]) for name, row in rows]
    return ["Class", *SIDES.values()], cells


def _probed(row: Part, side: str) -> Cell:
    return _area(row[side]) if row[side] else (tables.UNDEFINED, row["reasons"].get(side, ""))


def _diversity_table(found: Part) -> Rows:
    rows = []
    for row in found["classes"]:
        cells = [_varied(row[side]) for side in ("synthetic", "real")]
        difference: Cell = (tables.UNDEFINED, row["reasons"].get("difference", ""))
        if row["difference"] is not None:
            difference = f"{row['difference']:+.3f}", sections_lib.interval(row["ci95"])
        rows.append((row["class"], [*cells, difference]))
    return ["Class", "Accepted synthetic", "Train", "Synthetic minus train"], rows


def _varied(side: Part | None) -> Cell:
    if side is None:
        return tables.UNDEFINED, ""
    ends = sections_lib.interval(side["ci95"])
    return f"{side['mean']:.3f} {ends}", f"{side['n']:,} images, {side['pairs']:,} pairs"


def _score_table(found: Part) -> Rows:
    splits = [split for split in ("val", "test") if split in found]
    names = [name for name in TRAINED_ON if name in found["val"]]
    rows = [
        (TRAINED_ON[name], [(_mean(found[split][name]), "") for split in splits]) for name in names
    ]
    return ["Trained on", *(f"Balanced accuracy on {split}" for split in splits)], rows


def _mean(held: Part) -> str:
    cell = Summary(held["mean"], held["std"], held["n"], None, tuple(held["values"]))
    return tables.format_cell(cell)


def _inception_table(found: Part) -> Rows:
    macro = fidelity.macro(found["classes"])
    rows: list[tuple[str, list[Cell]]] = [
        (
            measure,
            [
                (sections_lib.over_classes(macro[side][measure]), "")
                for side in ("matched", "floor")
            ],
        )
        for measure in MEASURES
    ]
    heads = ["Mean ± deviation over n classes", "Accepted synthetic", "Held-out real (floor)"]
    return heads, rows


_TABLES: dict[str, Callable[[Part], Rows]] = {
    "nearness": _likeness_table,
    "membership": _membership_table,
    "probe": _probe_table,
    "diversity": _diversity_table,
    "accuracy_score": _score_table,
    "inception": _inception_table,
}
