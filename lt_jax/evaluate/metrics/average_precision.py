"""Average precision of detections by pycocotools, and of many reweighted copies of a test set.

pycocotools says once which detections of an image meet a lesion, at each IoU: by descending score,
each takes the free lesion that it overlaps most. Its average precision then depends on the images'
weights alone,

  TP(i) = sum of w over hits up to detection i,    N(i) = sum of w over detections up to i   (1)
  AP = 1/101 sum over recall r = 0, 0.01, ..., 1 of max over TP(i) / n >= r of TP(i) / N(i)  (2)

with the detections of all images in descending order of score and n the sum of w over lesions
(Lin et al. 2014, arXiv:1405.0312; the 101 points are the code's). `weighted` computes (2) for whole
columns of weights at once; with weights of 1 it is what pycocotools gives, and with whole numbers
what it gives of a set in which images are repeated so often (where no two detections of an image
have equal scores).

For small lesions, larger ones and the detections that meet them are left out, and so are unmatched
detections that are larger than small lesions are.

Conventions. Equal scores: images stand in the order of the test set, and in an image detections in
theirs, as pycocotools has it; a detection's weight counts at once. No detections: 0. No lesion (in
a class): undefined, NaN, and left out of the mean over classes. Empty images count through the
false positives found in them.
"""

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Float32, Int

from lt_jax.data.images import Box
from lt_jax.errors import UserError

IOUS = np.linspace(0.5, 0.95, 10)  # as pycocotools writes them
RECALLS = np.linspace(0.0, 1.0, 101)
FALSE_POSITIVES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # an image, of the FROC curve (LUNA16's)
METRICS: tuple[str, ...] = ("ap50", "ap", "ap50_small", "ap_small")
_ROUNDING = 1e-9  # of recalls, where weights are no whole numbers


class DetectionError(UserError, ValueError):
    """Detections or lesions that are no boxes, or do not fit each other."""


@dataclasses.dataclass(frozen=True, eq=False)
class Lesions:
    """What a set of n images says.

    Attributes:
      boxes: of each image, (x0, y0, x1, y1) in sides of the image.
      labels: the class [n] of each image's lesions.
      classes: number of classes.
      small_area: a lesion is small if its box takes at most this part of the image.
    """

    boxes: Sequence[Sequence[Box]]
    labels: Int[np.ndarray, "n"]
    classes: int
    small_area: float


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """Detections of n images, best first: where `scores` is 0 there is none."""

    boxes: Float32[np.ndarray, "n d 4"]
    scores: Float32[np.ndarray, "n d"]
    labels: Int[np.ndarray, "n d"]


@dataclasses.dataclass(frozen=True, eq=False)
class Matches:
    """The matching of one class and range of sizes, detections in descending order of score.

    Attributes:
      image: of each detection [m], its image.
      score: [m].
      hit: at each of IOUS [t m], whether it meets a lesion.
      counted: [t m], whether it counts at all.
      lesions: of each image [n], how many count.
    """

    image: Int[np.ndarray, "m"]
    score: Float[np.ndarray, "m"]
    hit: Bool[np.ndarray, "t m"]
    counted: Bool[np.ndarray, "t m"]
    lesions: Int[np.ndarray, "n"]


@dataclasses.dataclass(frozen=True, eq=False)
class Matched:
    """Matches of a run by class: of lesions of all sizes, and of small ones."""

    all: tuple[Matches, ...]
    small: tuple[Matches, ...]


def small_area(boxes: Sequence[Sequence[Box]], part: float) -> float:
    """The area, as part of the image, up to which lie `part` of these lesions' boxes.

    BUSGen's (Yu et al. 2025, arXiv:2501.06869) is 0.068, with 0.3 of its lesions below. To be taken
    of train lesions: nothing about test is chosen by looking at it.

    Raises:
      DetectionError: there is no box.
    """
    areas = [(x1 - x0) * (y1 - y0) for held in boxes for x0, y0, x1, y1 in held]
    if not areas:
        raise DetectionError("no box to take the size of small lesions from")
    return float(np.quantile(areas, part))


def match(found: Found, lesions: Lesions) -> tuple[Matched, dict[str, float]]:
    """Who meets whom, and METRICS as pycocotools gives them, NaN where it has -1.

    Raises:
      DetectionError: boxes or scores that are not finite, or numbers of images that differ.
    """
    _check(found, lesions)
    evaluation = _evaluate(found, lesions)
    parts = [
        tuple(_matches(evaluation, k, size, len(lesions.boxes)) for k in range(lesions.classes))
        for size in range(2)
    ]
    precision = evaluation.eval["precision"][..., 0]
    values = {}
    for size, suffix in enumerate(("", "_small")):
        values[f"ap50{suffix}"] = _mean(precision[:1, :, :, size])
        values[f"ap{suffix}"] = _mean(precision[:, :, :, size])
    return Matched(*parts), {name: values[name] for name in METRICS}


def _mean(precision: np.ndarray) -> float:
    """As pycocotools' `summarize` does it: -1 stands for what is undefined."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else float("nan")


def _check(found: Found, lesions: Lesions) -> None:
    n = len(lesions.boxes)
    if len(found.scores) != n or len(lesions.labels) != n:
        raise DetectionError(
            f"detections of {len(found.scores)} images and labels of {len(lesions.labels)}, for "
            f"{n} images; takes those of the same images in the same order"
        )
    bad = ~(np.isfinite(found.boxes).all(axis=(1, 2)) & np.isfinite(found.scores).all(axis=1))
    if bad.any():
        raise DetectionError(
            f"detections of image {int(bad.argmax())} (by order) hold NaN or infinity"
        )


def _evaluate(found: Found, lesions: Lesions) -> Any:
    """pycocotools' evaluation of both ranges of sizes, accumulated."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth: Any = COCO()
    said: Any = COCO()
    shared = {
        "images": [{"id": i} for i in range(len(lesions.boxes))],
        "categories": [{"id": k} for k in range(lesions.classes)],
    }
    labels = [[int(k)] * len(own) for k, own in zip(lesions.labels, lesions.boxes, strict=True)]
    given = found.scores > 0
    truth.dataset = {**shared, "annotations": _annotations(lesions.boxes, labels)}
    said.dataset = {
        **shared,
        "annotations": _annotations(
            [own[there].tolist() for own, there in zip(found.boxes, given, strict=True)],
            [own[there].tolist() for own, there in zip(found.labels, given, strict=True)],
            [own[there].tolist() for own, there in zip(found.scores, given, strict=True)],
        ),
    }
    evaluation = COCOeval(iouType="bbox")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints at every step
        truth.createIndex()
        said.createIndex()
        evaluation.cocoGt, evaluation.cocoDt = truth, said
        params = evaluation.params
        params.imgIds = list(range(len(lesions.boxes)))
        params.catIds = list(range(lesions.classes))
        params.iouThrs, params.recThrs = IOUS, RECALLS
        params.areaRng = [[0.0, 1e10], [0.0, lesions.small_area]]
        params.areaRngLbl = ["all", "small"]
        params.maxDets = [found.scores.shape[1]]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _annotations(
    boxes: Sequence[Sequence[Sequence[float]]],
    labels: Sequence[Sequence[int]],
    scores: Sequence[Sequence[float]] | None = None,
) -> list[dict[str, Any]]:
    """In pycocotools' form, numbered from 1: it takes 0 for "met by none"."""
    entries = []
    for image, (own, classes) in enumerate(zip(boxes, labels, strict=True)):
        for i, ((x0, y0, x1, y1), label) in enumerate(zip(own, classes, strict=True)):
            entry = {
                "id": len(entries) + 1,
                "image_id": image,
                "category_id": label,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
            }
            entries.append(entry if scores is None else {**entry, "score": scores[image][i]})
    return entries


def _matches(evaluation: Any, label: int, size: int, images: int) -> Matches:
    """One class and range of sizes, in the order in which pycocotools accumulates."""
    start = (2 * label + size) * images
    entries = [entry for entry in evaluation.evalImgs[start : start + images] if entry is not None]
    lesions = np.zeros(images, np.int64)
    for entry in entries:
        lesions[entry["image_id"]] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
    counts = [len(entry["dtScores"]) for entry in entries]
    image = np.repeat([entry["image_id"] for entry in entries], counts).astype(np.int64)
    none = np.zeros((len(IOUS), 0), bool)
    score = np.concatenate([np.zeros(0), *(entry["dtScores"] for entry in entries)])
    met = np.concatenate([none, *(entry["dtMatches"] > 0 for entry in entries)], axis=1)
    ignored = np.concatenate([none, *(entry["dtIgnore"] > 0 for entry in entries)], axis=1)
    order = np.argsort(-score, kind="stable")
    met, counted = met[:, order], ~ignored[:, order]
    return Matches(image[order], score[order], met & counted, counted, lesions)


def weighted(matched: Matched, weights: Float[np.ndarray, "n r"]) -> Float[np.ndarray, "q r"]:
    """METRICS of every column of weights of the images; NaN where no lesion has a weight."""
    rows = []
    for matches in (matched.all, matched.small):
        by_class = np.stack([_precision(own, weights) for own in matches])
        rows += [_over_classes(by_class[:, 0]), _over_classes(by_class.mean(axis=1))]
    return np.stack(rows)


def _over_classes(values: Float[np.ndarray, "k r"]) -> Float[np.ndarray, "r"]:
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)


def _precision(matches: Matches, weights: Float[np.ndarray, "n r"]) -> Float[np.ndarray, "t r"]:
    """Equation (2) at each of IOUS; NaN where there are no lesions."""
    weights = weights.astype(np.float64)
    number = matches.lesions @ weights
    whole = not np.any(weights % 1)
    values = np.zeros((len(IOUS), weights.shape[1]))
    # Only at hits is anything asked for: detections between two of them are summed by image.
    places = np.flatnonzero(matches.hit.any(axis=0))
    always = np.logical_and.reduce(matches.counted, axis=0)
    base = _between(matches.image, places, always, len(weights)) @ weights
    for t in range(len(IOUS)):
        at = matches.hit[t][places]
        if not at.any():
            continue
        more = matches.counted[t] & ~always
        added = base
        if more.any():
            added = base + _between(matches.image, places, more, len(weights)) @ weights
        reached = np.cumsum(added, axis=0)[at]
        hits = np.cumsum(weights[matches.image[places[at]]], axis=0)
        precision = hits / (reached + np.spacing(1))  # pycocotools' guard against 0 / 0
        # The best from here on, so that (2) takes the maximum over all recalls beyond r.
        best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        recall = hits / np.where(number > 0, number, 1.0)[None, :]
        # Exactly pycocotools' comparisons for whole weights; sums of fractions are rounded.
        passed = np.searchsorted(RECALLS, recall if whole else recall + _ROUNDING, side="right")
        first = np.diff(passed, axis=0, prepend=0)
        values[t] = (first * best).sum(axis=0) / len(RECALLS)
    return np.where(number > 0, values, np.nan)


def _between(
    image: Int[np.ndarray, "m"],
    places: Int[np.ndarray, "u"],
    among: Bool[np.ndarray, "m"],
    images: int,
) -> scipy.sparse.csr_matrix:
    """How many detections `among` all each image [u n] has from behind a place up to the next."""
    rows = np.searchsorted(places, np.arange(len(among)))
    held = among & (rows < len(places))  # behind the last hit nothing matters
    entries = (np.ones(int(np.count_nonzero(held))), (rows[held], image[held]))
    return scipy.sparse.csr_matrix(entries, (len(places), images))


def froc(matched: Matched, weights: Float[np.ndarray, "n r"]) -> Float[np.ndarray, "f r"]:
    """Sensitivity at IoU 0.5 with at most FALSE_POSITIVES an image, over all classes together.

    Of every column of weights; NaN where no lesion has a weight (Bunch et al., Proc. SPIE 127:124,
    1977). A detection that meets a lesion that is found already is a false positive.
    """
    image = np.concatenate([own.image for own in matched.all])
    hit = np.concatenate([own.hit[0] for own in matched.all])
    score = np.concatenate([own.score for own in matched.all])
    order = np.lexsort((image, -score))
    image, hit, weights = image[order], hit[order], weights.astype(np.float64)
    # Sensitivity rises at hits alone: what is wrong before each of them decides.
    places = np.flatnonzero(hit)
    wrong = np.cumsum(_between(image, places, ~hit, len(weights)) @ weights, axis=0)
    right = np.cumsum(weights[image[places]], axis=0)
    right = np.concatenate([np.zeros((1, weights.shape[1])), right])
    number = sum(matches.lesions @ weights for matches in matched.all)
    images = weights.sum(axis=0)
    columns = np.arange(weights.shape[1])
    values = []
    for most in FALSE_POSITIVES:
        within = (wrong <= most * images[None, :] + _ROUNDING).sum(axis=0)
        values.append(right[within, columns] / np.where(number > 0, number, 1.0))
    return np.where(number > 0, np.stack(values), np.nan)


def together(first: Matched, second: Matched) -> Matched:
    """Two runs on the same n images as one on 2 n, the second's behind the first's.

    Of equal scores, those of an earlier image stand first, whichever run they are of.
    """
    return Matched(
        tuple(_joined(*pair) for pair in zip(first.all, second.all, strict=True)),
        tuple(_joined(*pair) for pair in zip(first.small, second.small, strict=True)),
    )


def _joined(first: Matches, second: Matches) -> Matches:
    n = len(first.lesions)
    score = np.concatenate([first.score, second.score])
    own = np.concatenate([first.image, second.image])
    order = np.lexsort((own, -score))  # which is stable: within an image nothing is exchanged
    return Matches(
        image=np.concatenate([first.image, second.image + n])[order],
        score=score[order],
        hit=np.concatenate([first.hit, second.hit], axis=1)[:, order],
        counted=np.concatenate([first.counted, second.counted], axis=1)[:, order],
        lesions=np.concatenate([first.lesions, second.lesions]),
    )
