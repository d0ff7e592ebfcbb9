"""Images that selection should turn away, made of real ones; and how well a score tells them.

A set is near where its images are like those of the data set, and far where they are not. Each
image is judged as some class: the one that it is meant to show, where there is one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.ndimage
import scipy.stats

from lt_jax.evaluate import statistics
from lt_jax.evaluate.statistics import tables
from lt_jax.shapes import Float, Int, UInt8

ImagesU8 = UInt8[np.ndarray, "n h w c"]

NOISE = 64.0  # deviation of added noise, in gray levels


@dataclasses.dataclass(frozen=True)
class Outliers:
    """A named set of images, uint8 [n h w c]; `labels` [n], or None: as the extractor has them."""

    name: str
    near: bool
    images: ImagesU8
    labels: Int[np.ndarray, "n"] | None = None


def auroc(inliers: Float[np.ndarray, "n"], outliers: Float[np.ndarray, "m"]) -> float:
    """Chance that an outlier scores above an inlier, ties counted half; NaN counts as infinity.

    The Mann-Whitney statistic, by ranks, so that infinite scores are taken.
    """
    ranks = scipy.stats.rankdata(_known(np.concatenate([inliers, outliers])))
    n, m = len(inliers), len(outliers)
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def false_positive_rate(
    inliers: Float[np.ndarray, "n"], outliers: Float[np.ndarray, "m"], accepted: float = 0.95
) -> float:
    """Share of outliers that pass the lowest threshold which `accepted` of the inliers pass."""
    threshold = np.sort(_known(inliers))[int(np.ceil(accepted * len(inliers) - 1e-9)) - 1]
    return float(np.mean((_known(outliers) <= threshold) & ~np.isnan(outliers)))


def _known(scores: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(scores), np.inf, scores)


def corrupted(images: ImagesU8, labels: Int[np.ndarray, "n"], seed: int) -> list[Outliers]:
    """The same images with noise, blurred, their patches shuffled, and their gray inverted."""
    return [
        Outliers("noise", False, add_noise(images, seed), labels),
        Outliers("blur", False, blur(images), labels),
        Outliers("patches shuffled", False, shuffle_patches(images, seed), labels),
        Outliers("inverted", False, 255 - images, labels),
    ]


def add_noise(images: ImagesU8, seed: int) -> ImagesU8:
    """Gaussian noise of deviation `NOISE`, clipped."""
    rng = np.random.default_rng((seed, 0))
    return _quantized(images + rng.normal(0.0, NOISE, images.shape))


def blur(images: ImagesU8) -> ImagesU8:
    """A Gaussian of deviation a sixteenth of the side, one pixel at least."""
    deviation = max(images.shape[1] / 16, 1.0)
    smooth = scipy.ndimage.gaussian_filter(
        images.astype(np.float32), (0, deviation, deviation, 0), mode="nearest"
    )
    return _quantized(smooth)


def shuffle_patches(images: ImagesU8, seed: int, grid: int = 4) -> ImagesU8:
    """Each image's `grid` x `grid` patches in another order; the side is a multiple of `grid`."""
    rng = np.random.default_rng((seed, 1))
    n, side, _, channels = images.shape
    patch = side // grid
    cut = images.reshape(n, grid, patch, grid, patch, channels).swapaxes(2, 3)
    cut = cut.reshape(n, grid * grid, patch, patch, channels)
    moved = np.stack([patches[_other_order(rng, grid * grid)] for patches in cut])
    back = moved.reshape(n, grid, grid, patch, patch, channels).swapaxes(2, 3)
    return back.reshape(images.shape)


def _other_order(rng: np.random.Generator, size: int) -> np.ndarray:
    order = np.arange(size)
    while (order == np.arange(size)).all():
        order = rng.permutation(size)
    return order


def other_labels(labels: Int[np.ndarray, "n"], num_classes: int, seed: int) -> Int[np.ndarray, "n"]:
    """For each label another one, all others alike."""
    steps = np.random.default_rng((seed, 2)).integers(1, num_classes, len(labels))
    return ((labels + steps) % num_classes).astype(np.int32)


def blend(images: ImagesU8, labels: Int[np.ndarray, "n"], seed: int) -> ImagesU8:
    """The mean of each image and one of another class, drawn from all of those."""
    rng = np.random.default_rng((seed, 3))
    partners = [rng.choice(np.flatnonzero(labels != label)) for label in labels]
    return _quantized((images.astype(np.float32) + images[partners]) / 2)


def of_labels(images: ImagesU8, labels: np.ndarray, num_classes: int, seed: int) -> list[Outliers]:
    """Real images judged as another class, and blends judged as the class of one part."""
    wrong = other_labels(labels, num_classes, seed)
    return [
        Outliers("wrong label", True, images, wrong),
        Outliers("blend", True, blend(images, labels, seed), labels),
    ]


def bounds(sizes: Sequence[int]) -> list[slice]:
    """Where parts of these sizes lie, one behind the other."""
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _quantized(values: np.ndarray) -> ImagesU8:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def tables_of(results: Mapping[str, Any]) -> list[tables.Table]:
    """For each objective a table of AUROC and one of FPR, a column a set; n of a cell: seeds."""
    found = []
    for objective in dict.fromkeys(row["objective"] for row in results["found"]):
        rows = [row for row in results["found"] if row["objective"] == objective]
        # Near ones first; else as they came.
        sets = {row["set"]: row for row in sorted(rows, key=lambda row: not row["near"])}
        heads = (f"{name} ({row['n']} images)" for name, row in sets.items())
        columns = ("Score", *heads)
        for figure, title in (("auroc", "AUROC"), ("fpr95", "FPR at 95%")):
            cells = {
                (row["score"], row["set"]): statistics.summarise(np.array(row[figure], float))
                for row in rows
            }
            body = tuple(
                (score, *(cells.get((score, name), "") for name in sets))
                for score in dict.fromkeys(row["score"] for row in rows)
            )
            found.append(tables.Table(columns, body, f"{objective}, {title}"))
    return found
