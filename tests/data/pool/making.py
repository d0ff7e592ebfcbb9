"""Small pools for the tests: eight candidates of two classes, written in any parts."""

import numpy as np

from lt_jax.data.pool import PoolInfo, PoolReader, PoolWriter
from lt_jax.data.pool.schema import verdict_of

MANIFEST = "a" * 64
INFO = PoolInfo(
    generator="g" * 64,
    extractor="e" * 64,
    manifest_sha256=MANIFEST,
    seed=7,
    classes=("first", "second"),
    guidance_scale=1.5,
    sampler="ddim, 20 steps",
    thresholds=(1.5, 2.0),
    least_label_probability=0.1,
    scores=("knn", "mahalanobis"),
    cosine_thresholds=(0.9, float("inf")),
    ms_ssim_thresholds=(0.75, 0.5),
)
# Accepted: 0, 2, 4, 7 of class 0; 1, 5, 6 of class 1.
LABELS = np.array([0, 1, 0, 0, 0, 1, 1, 0], np.int32)
FAILED = ["", "", "", "ood,memorised", "", "", "", ""]


def pixels(channels: int = 3) -> np.ndarray:
    """An image of each candidate."""
    return np.random.default_rng(0).integers(0, 256, (8, 6, 5, channels), np.uint8)


def columns(indices) -> dict:
    """What is told of these candidates."""
    indices = np.asarray(indices)
    failed = [FAILED[i] for i in indices]
    return {
        "index": indices,
        "label": LABELS[indices],
        "source_label": LABELS[indices],
        "label_weight": np.ones(len(indices), np.float32),
        "conditions": [f'{{"source": "image {i}"}}' for i in indices],
        "score": np.where(indices == 3, np.float32(2), indices.astype(np.float32) / 8),
        "scores": [f'{{"knn": {i}}}' for i in indices],
        "label_probability": 1 - indices.astype(np.float32) / 8,
        "cosine": np.where(indices < 5, indices.astype(np.float32) / 10, np.float32(np.nan)),
        "ms_ssim": np.where(indices == 3, np.float32(0.8), np.float32(np.nan)),
        "nearest": [f"train {i}" if i < 5 else "" for i in indices],
        "failed": failed,
        "verdict": [verdict_of(gates) for gates in failed],
    }


def write(folder, parts, wanted=(8, 8), channels=3, keep_rejected=True, chosen=None) -> PoolReader:
    """A finished pool, written in these parts."""
    with PoolWriter(folder, INFO) as writer:
        for number, indices in enumerate(parts):
            told = columns(indices)
            kept = np.flatnonzero(np.array([keep_rejected or not f for f in told["failed"]]))
            writer.write(number, pixels(channels)[told["index"][kept]], told, kept)
        writer.finish(np.array(wanted), chosen)
    return PoolReader(folder, MANIFEST)
