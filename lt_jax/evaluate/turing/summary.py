"""A study's score as tables for a terminal, and as JSON."""

import dataclasses
from typing import Any

from lt_jax.evaluate.statistics import Summary, tables
from lt_jax.evaluate.statistics.intervals import Proportion
from lt_jax.evaluate.turing.score import ALONE, Estimate, Reader, Score

VERSION = 2  # of the JSON


def to_text(score: Score) -> str:
    """Tables of the readers, of all of them, of their agreement, and by class."""
    key = score.key
    synthetic = int(key.synthetic.sum())
    head = (
        f"Study {key.study}: {len(key.items)} images, {len(key.items) - synthetic} real of "
        f"{key.split}, {synthetic} synthetic of generator {key.generator[:12]}"
    )
    parts = [head, *_partial(score), tables.to_text(_readers(score)), _together(score)]
    if len(score.readers) > 1:
        parts.append(tables.to_text(_agreement(score)))
    parts.append(tables.to_text(_classes(score)))
    if len(score.readers) == 1:
        parts.append(f"* {ALONE}")
    return "\n\n".join(parts)


def to_json(score: Score) -> dict[str, Any]:
    """Everything, as plain JSON values; undefined ones are null."""
    key = score.key
    values = dataclasses.asdict(score)
    values["key"] = {
        "study": key.study,
        "images": len(key.items),
        "synthetic": int(key.synthetic.sum()),
        **{name: getattr(key, name) for name in ("split", "seed", "manifest_sha256", "generator")},
    }
    for found, of in ((values["readers"], score.readers), (values["pairs"], score.pairs)):
        for entry, own in zip(found, of, strict=True):
            shares = {n: v for n, v in vars(own).items() if isinstance(v, Proportion)}
            entry |= {name: tables.cell_to_json(share) for name, share in shares.items()}
    values["note"] = ALONE if len(score.readers) == 1 else None
    return {"version": VERSION, **values}


def _partial(score: Score) -> list[str]:
    """A line for those who have not answered all."""
    some = [r for r in score.readers if r.accuracy.n < r.images]
    told = ", ".join(f"{r.name} ({r.accuracy.n} of {r.images})" for r in some)
    return [f"Partial results, scored on what was answered: {told}"] if some else []


def _readers(score: Score) -> tables.Table:
    columns = (
        "Reader", "Years", "Answered", "Accuracy", "Sensitivity", "Specificity", "Against 0.5",
        "d' (criterion)", "AUC of confidence", "Median time",
    )  # fmt: skip
    rows = tuple(_row(reader) for reader in score.readers)
    caption = "Readers (sensitivity: synthetic images called synthetic; 95% Wilson intervals)"
    return tables.Table(columns, rows, caption)


def _row(reader: Reader) -> tuple[str, ...]:
    sizes = tables.UNDEFINED
    if reader.d_prime is not None:
        sizes = f"{reader.d_prime:+.2f} ({reader.criterion:+.2f})"
    return (
        reader.name,
        "" if reader.years is None else f"{reader.years:g} y",
        f"{reader.accuracy.n} of {reader.images}",
        *(_share(p) for p in (reader.accuracy, reader.sensitivity, reader.specificity)),
        tables.format_p(reader.p),
        sizes,
        "not given" if reader.auc is None else _estimate(reader.auc),
        "unknown" if reader.seconds is None else f"{reader.seconds:.1f} s",
    )


def _together(score: Score) -> str:
    many = len(score.readers) > 1
    named = {
        "Distinguishability": score.accuracy,
        "Sensitivity": score.sensitivity,
        "Specificity": score.specificity,
        "AUC of confidence": score.auc,
    }
    rows = []
    for name, summary in named.items():
        if summary is not None:
            p = tables.format_p(score.p) if name == "Distinguishability" else ""
            rows.append((name, *_over_readers(summary), p))
    over = "readers and images" if many else "images"
    spread = "mean ± standard deviation over readers; " if many else ""
    caption = (
        f"All readers ({spread}95% interval of a bootstrap over {over}, {score.resamples:,} "
        f"resamples; p of {score.resamples:,} shuffles of the truth)"
    )
    table = tables.Table(("", "Mean", "95% interval", "Against 0.5"), tuple(rows), caption)
    return tables.to_text(table)


def _agreement(score: Score) -> tables.Table:
    rows = [
        (f"{pair.readers[0]}, {pair.readers[1]}", _share(pair.agreement), _estimate(pair.kappa))
        for pair in score.pairs
    ]
    if score.fleiss is not None:
        rows.append(("all (Fleiss)", "", _estimate(score.fleiss)))
    caption = (
        "Agreement (Cohen's kappa a pair, 95% interval of a bootstrap over images; of the share "
        "agreed on, Wilson's)"
    )
    return tables.Table(("Readers", "Agree on", "Kappa"), tuple(rows), caption)


def _classes(score: Score) -> tables.Table:
    rows = []
    for own in score.classes:
        auc = ("", "") if own.auc is None else _over_readers(own.auc)
        rows.append((own.name, own.images, *_over_readers(own.accuracy), *auc))
    columns = ("Class", "Images", "Accuracy", "95% interval", "AUC of confidence", "95% interval")
    width = 6 if any(own.auc is not None for own in score.classes) else 4
    caption = "By class (means over readers)"
    return tables.Table(columns[:width], tuple(row[:width] for row in rows), caption)


def _over_readers(summary: Summary) -> tuple[str, str]:
    """Mean over readers with spread and number, and its interval."""
    if summary.mean is None:
        return tables.UNDEFINED, ""
    return tables.format_cell(summary), tables.format_interval(summary.ci95)


def _share(of: Proportion) -> str:
    if of.share is None:
        return f"undefined (n={of.n})"
    return f"{of.share:.3f} {tables.format_interval(of.ci95)} (n={of.n})"


def _estimate(of: Estimate) -> str:
    if of.value is None:
        return f"undefined (n={of.n})"
    return f"{of.value:.3f} {tables.format_interval(of.ci95)} (n={of.n})"
