"""A pool in numbers: what each class asked for and got, which gates stopped the rest, and how far
from the gates the candidates lie. Each sheet is text, ready for a terminal.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from lt_jax.data.pool.reader import PoolReader
from lt_jax.data.pool.schema import GATES, VERDICTS

MEASURES = ("score", "label_probability", "cosine", "ms_ssim")  # columns that gates judge by
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_HEADS = ("min", "5%", "25%", "median", "75%", "95%", "max")
_ALL = "all"


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table of text: columns [c], rows [r] of c cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def shared(pool: PoolReader) -> Sheet:
    """What all records share."""
    info = pool.info
    rows = (
        ("records", f"{len(pool)}, {int(np.sum(pool.columns['shard'] >= 0))} with an image"),
        ("manifest", info.manifest_sha256[:12]),
        ("generator", info.generator[:12]),
        ("extractor", info.extractor[:12]),
        ("seed", str(info.seed)),
        ("sampler", f"{info.sampler}, guidance scale {info.guidance_scale:g}"),
        ("scores", ", ".join(info.scores) or "none"),
    )
    return Sheet("Pool", ("", ""), rows)


def got(pool: PoolReader) -> Sheet:
    """Wanted against got, and the verdicts, a class and in all; shares are of the candidates."""
    columns = ("class", "wanted", "got", "missing", "candidates", *VERDICTS)
    counts = np.stack([pool.counts(verdict) for verdict in VERDICTS], axis=1)
    wanted = np.array([[o.wanted, o.accepted, o.unmet] for o in pool.outcomes]).reshape(-1, 3)
    names = [*pool.info.classes, _ALL]
    rows = []
    sums = _with_sum(wanted).tolist(), _with_sum(counts).tolist()
    for name, asked, own in zip(names, *sums, strict=True):
        shares = [_share(count, sum(own)) for count in own]
        rows.append((name, *map(str, asked), str(sum(own)), *shares))
    return Sheet("Wanted, got, and the verdict on each candidate", columns, tuple(rows))


def gates(pool: PoolReader) -> Sheet:
    """Candidates that failed each gate, alone or among others; shares are of the candidates."""
    columns = ("class", "candidates", *(f"failed {gate}" for gate in GATES), "failed several")
    counts = np.array(
        [[o.generated, *(o.failed[g] for g in GATES), o.several] for o in pool.outcomes]
    ).reshape(-1, len(columns) - 1)
    rows = []
    for name, (candidates, *failed) in zip(
        [*pool.info.classes, _ALL], _with_sum(counts).tolist(), strict=True
    ):
        rows.append((name, str(candidates), *(_share(count, candidates) for count in failed)))
    return Sheet("Gates failed (a candidate may fail several)", columns, tuple(rows))


def quantiles(pool: PoolReader, measure: str) -> Sheet:
    """Quantiles of one of MEASURES over all candidates of a class, beside its gate."""
    values, labels = pool.columns[measure], pool.columns["label"]
    limits = thresholds(pool)[measure]
    rows = []
    for k, name in enumerate(pool.info.classes):
        own = values[(labels == k) & ~np.isnan(values)]
        gate = f"{limits[k]:.4g}" if len(limits) else "off"
        found = np.quantile(own, QUANTILES) if len(own) else np.array([])
        cells = [f"{value:.4g}" for value in found] or ["-"] * len(QUANTILES)
        rows.append((name, str(len(own)), *cells, gate))
    side = "least" if measure == "label_probability" else "most"
    return Sheet(f"Quantiles: {measure}", ("class", "n", *_HEADS, f"gate ({side})"), tuple(rows))


def unmet(pool: PoolReader) -> list[str]:
    """A line for each class that did not get what it asked for, with the reason."""
    return [
        f"{o.name}: {o.accepted} of {o.wanted}, {o.unmet} missing: {o.why}"
        for o in pool.outcomes
        if o.unmet
    ]


def thresholds(pool: PoolReader) -> dict[str, Float[np.ndarray, "_"]]:
    """The gate of each class [k] on each of MEASURES, empty where it is off."""
    info = pool.info
    held = {
        "score": info.thresholds,
        "label_probability": [info.least_label_probability] * len(info.classes),
        "cosine": info.cosine_thresholds,
        "ms_ssim": info.ms_ssim_thresholds,
    }
    return {name: np.array(limits, float) for name, limits in held.items()}


def of(pool: PoolReader) -> list[Sheet]:
    """All sheets."""
    return [shared(pool), got(pool), gates(pool), *(quantiles(pool, name) for name in MEASURES)]


def _with_sum(counts: np.ndarray) -> np.ndarray:
    """Counts [k c] with their sum as the last row."""
    return np.concatenate([counts, counts.sum(axis=0, keepdims=True)])


def _share(count: int, whole: int) -> str:
    return f"{count} ({100 * count / whole:.0f}%)" if whole else str(count)
