"""The audit of copies: how near candidates and held-out real images come to train, class by class.

A generator that makes new images comes as near to train as val does; one that copies comes nearer.
The audit sets the two distributions side by side, counts the copies, and names the closest pairs,
among what was accepted and among what the gate has stopped.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lt_jax.config import MemorizationConfig
from lt_jax.data.pool import GATES, schema
from lt_jax.selection import memorization
from lt_jax.selection.memorization import Bank
from lt_jax.shapes import Bool, Float

MEASURES = ("cosine", "ms_ssim")
QUANTILES = {"p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}
BINS = 40
CLOSEST = 12  # pairs of each kind


def audit(
    config: MemorizationConfig,
    bank: Bank,
    columns: Mapping[str, np.ndarray],
    classes: Sequence[str],
) -> dict[str, Any]:
    """What the gate has seen, as JSON.

    Args:
      config: of the gate.
      bank: by which candidates were judged.
      columns: of the pool: index, label, cosine, ms_ssim, nearest, failed, verdict.
      classes: names.

    Returns:
      {"similarity", "false_alarm": of the config, "least_val": val images from which on a class's
      threshold can be that of the asked share, None for a share of 0,
       "edges": {measure: [BINS + 1], of the histograms},
       "classes": [an entry a class], "overall": an entry of all classes,
       "closest": {"accepted" | "copies": [{"index", "class", "nearest": id of the train image,
         "cosine", "ms_ssim"}], most alike first by MS-SSIM, at most CLOSEST}}.
      An entry is {"class" and "limits": {measure} (of a class), "candidates", "measured": those of
      them that were compared with train, "copies": those that the gate stopped, alone or among
      other gates, "accepted", "val": images,
       measure: {"candidates" | "accepted" | "val": {"n", *QUANTILES, "histogram": [BINS]}}}, with
      None for the quantiles of nothing.
    """
    label = columns["label"]
    copies = schema.failures(columns["failed"])[:, GATES.index("memorised")]
    accepted = columns["verdict"] == "accepted"
    val_labels = np.asarray(bank.val_labels)
    val = {name: np.asarray(getattr(bank.val, name), float) for name in MEASURES}
    edges = {name: _edges(val[name], columns[name]) for name in MEASURES}
    limits = {name: np.asarray(getattr(bank, f"{name}_limits"), float) for name in MEASURES}

    def entry(own: Bool[np.ndarray, "n"], own_val: Bool[np.ndarray, "v"]) -> dict[str, Any]:
        counts = {
            "candidates": int(own.sum()),
            "measured": int((own & ~np.isnan(columns["ms_ssim"])).sum()),
            "copies": int((own & copies).sum()),
            "accepted": int((own & accepted).sum()),
            "val": int(own_val.sum()),
        }
        return counts | {
            name: {
                "candidates": _distribution(columns[name][own], edges[name]),
                "accepted": _distribution(columns[name][own & accepted], edges[name]),
                "val": _distribution(val[name][own_val], edges[name]),
            }
            for name in MEASURES
        }

    entries = [
        {"class": name, "limits": {m: float(limits[m][k]) for m in MEASURES}}
        | entry(label == k, val_labels == k)
        for k, name in enumerate(classes)
    ]
    share = memorization.share(config)
    return {
        "similarity": config.similarity,
        "false_alarm": config.false_alarm,
        "least_val": math.ceil(1 / share - 1 - 1e-9) if share else None,
        "edges": {name: edges[name].tolist() for name in MEASURES},
        "classes": entries,
        "overall": entry(np.ones(len(label), bool), np.ones(len(val_labels), bool)),
        "closest": {
            "accepted": _closest(columns, accepted, classes),
            "copies": _closest(columns, copies, classes),
        },
    }


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


def _closest(
    columns: Mapping[str, np.ndarray], chosen: Bool[np.ndarray, "n"], classes: Sequence[str]
) -> list[dict[str, Any]]:
    rows = np.flatnonzero(chosen & ~np.isnan(columns["ms_ssim"]))
    order = np.lexsort((columns["index"][rows], -columns["ms_ssim"][rows]))
    return [
        {
            "index": int(columns["index"][row]),
            "class": classes[int(columns["label"][row])],
            "nearest": str(columns["nearest"][row]),
            "cosine": float(columns["cosine"][row]),
            "ms_ssim": float(columns["ms_ssim"][row]),
        }
        for row in rows[order][:CLOSEST]
    ]
