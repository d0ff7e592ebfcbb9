"""The audit of copies: how near candidates and held-out real images come to train, class by class.

A generator that makes new images comes as near to train as val does; one that copies comes nearer.
The audit sets the two distributions side by side, counts the copies, and names the closest pairs,
among what was accepted and among what the gate has stopped.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lt_jax.config import MemorizationConfig
from lt_jax.data.pool import GATES, schema
from lt_jax.selection import memorization
from lt_jax.selection.memorization import Bank
from lt_jax.shapes import Bool, Float, Int

MEASURES = ("cosine", "ms_ssim")
QUANTILES = {"p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}
BINS = 40
CLOSEST = 12  # pairs of each kind


def audit(
    config: MemorizationConfig,
    bank: Bank,
    columns: Mapping[str, np.ndarray],
    classes: Sequence[str],
    cosines: Mapping[int, float],
) -> dict[str, Any]:
    """What the gate has seen, as JSON.

    Args:
      config: of the gate.
      bank: by which candidates were judged.
      columns: of the pool: index, label, cosine, ms_ssim, nearest, failed, verdict.
      classes: names.
      cosines: by row of `closest`, the cosine of the image with the train image named `nearest`.
        The column `cosine` is of the nearest by features, which may be another one.

    Returns:
      {"similarity", "false_alarm": of the config, "least_val": val images from which on a class's
      threshold can be that of the asked share, None for a share of 0,
       "edges": {measure: [BINS + 1], of the histograms},
       "classes": [an entry a class], "overall": an entry of all classes,
       "closest": {"accepted" | "copies": [{"index", "class", "nearest": id of the train image,
         "cosine", "ms_ssim": of the two, the cosine None where it is not known}], most alike first
         by MS-SSIM, at most CLOSEST}}.
      An entry is {"class" and "limits": {measure} of those that the gate goes by (of a class),
      "candidates", "measured": those of them that were compared with train, "copies": those that
      the gate stopped, alone or among other gates, "accepted", "val": images,
       measure: {"candidates" | "accepted" | "val": {"n", *QUANTILES, "histogram": [BINS]}}}, with
      None for the quantiles of nothing.
    """
    seen = _Seen.of(bank, columns)
    limits = memorization.limits(config, bank)
    everything = (np.ones(len(columns["label"]), bool), np.ones(len(seen.val_labels), bool))
    share = memorization.share(config)
    return {
        "similarity": config.similarity,
        "false_alarm": config.false_alarm,
        "least_val": math.ceil(1 / share - 1 - 1e-9) if share else None,
        "edges": {name: edges.tolist() for name, edges in seen.edges.items()},
        "classes": [
            {"class": name, "limits": {m: float(own[k]) for m, own in limits.items()}}
            | seen.entry(columns["label"] == k, seen.val_labels == k)
            for k, name in enumerate(classes)
        ],
        "overall": seen.entry(*everything),
        "closest": {
            kind: [_pair(columns, row, classes, cosines) for row in rows.tolist()]
            for kind, rows in closest(columns).items()
        },
    }


def closest(columns: Mapping[str, np.ndarray]) -> dict[str, Int[np.ndarray, "m"]]:
    """Rows of the images most alike a train image by MS-SSIM, most alike first; at most CLOSEST.

    Of "accepted" images, and of "copies" that the gate stopped.
    """
    found = {}
    for kind, chosen in (("accepted", _accepted(columns)), ("copies", _copies(columns))):
        rows = np.flatnonzero(chosen & ~np.isnan(columns["ms_ssim"]))
        order = np.lexsort((columns["index"][rows], -columns["ms_ssim"][rows]))
        found[kind] = rows[order][:CLOSEST]
    return found


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What entries are made of: columns of the pool, and likenesses and classes of val."""

    columns: Mapping[str, np.ndarray]
    val: Mapping[str, np.ndarray]
    val_labels: np.ndarray
    edges: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, bank: Bank, columns: Mapping[str, np.ndarray]) -> "_Seen":
        val = {name: np.asarray(getattr(bank.val, name), float) for name in MEASURES}
        edges = {name: _edges(val[name], columns[name]) for name in MEASURES}
        return cls(columns, val, np.asarray(bank.val_labels), edges)

    def entry(self, own: Bool[np.ndarray, "n"], own_val: Bool[np.ndarray, "v"]) -> dict[str, Any]:
        """Counts and distributions of some candidates and some val images."""
        columns, kept = self.columns, own & _accepted(self.columns)
        counts = {
            "candidates": int(own.sum()),
            "measured": int((own & ~np.isnan(columns["ms_ssim"])).sum()),
            "copies": int((own & _copies(columns)).sum()),
            "accepted": int(kept.sum()),
            "val": int(own_val.sum()),
        }
        return counts | {
            name: {
                "candidates": _distribution(columns[name][own], edges),
                "accepted": _distribution(columns[name][kept], edges),
                "val": _distribution(self.val[name][own_val], edges),
            }
            for name, edges in self.edges.items()
        }


def _accepted(columns: Mapping[str, np.ndarray]) -> Bool[np.ndarray, "n"]:
    return columns["verdict"] == "accepted"


def _copies(columns: Mapping[str, np.ndarray]) -> Bool[np.ndarray, "n"]:
    return schema.failures(columns["failed"])[:, GATES.index("memorised")]


def _edges(*values: np.ndarray) -> Float[np.ndarray, "m"]:
    """Bins from the lowest that is not an outlier up to 1; what lies below is in the first."""
    known = np.concatenate([v[~np.isnan(v)] for v in values])
    low = float(np.quantile(known, 0.005)) if len(known) else 0.0
    return np.linspace(min(low, 1 - 1e-6), 1.0, BINS + 1)


def _distribution(values: np.ndarray, edges: Float[np.ndarray, "m"]) -> dict[str, Any]:
    known = values[~np.isnan(values)].astype(float)
    at = np.quantile(known, list(QUANTILES.values())).tolist() if len(known) else [None] * 4
    counts, _ = np.histogram(np.clip(known, edges[0], edges[-1]), edges)
    return {"n": len(known), **dict(zip(QUANTILES, at, strict=True)), "histogram": counts.tolist()}


def _pair(
    columns: Mapping[str, np.ndarray],
    row: int,
    classes: Sequence[str],
    cosines: Mapping[int, float],
) -> dict[str, Any]:
    return {
        "index": int(columns["index"][row]),
        "class": classes[int(columns["label"][row])],
        "nearest": str(columns["nearest"][row]),
        "cosine": cosines.get(row),
        "ms_ssim": float(columns["ms_ssim"][row]),
    }
