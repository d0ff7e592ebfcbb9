"""How often 95% intervals hold the true value, on test sets that are drawn anew each time.

A test set has a fixed number of groups of each class and as many images in each group. Class c's
logits are `strength` higher for its own images, those of the head class `lean` higher for all (what
training on a long tail does), and all share a normal effect of their group and class. True values
are those of an endless test set of the same composition, from 400,000 images of each class.

Differences are of a second arm, whose `strength` is GAIN higher, on the same images: half of the
variance of an image's noise, and a group's effect, are the same for both.
"""

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from lt_jax.evaluate import metrics
from lt_jax.evaluate.metrics import grouping
from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.evaluate.statistics import arms, intervals, resampling
from lt_jax.evaluate.statistics.intervals import Proportion
from lt_jax.evaluate.statistics.score_intervals import score_differences, score_intervals

BOOTSTRAPS = ("percentile", "bca")
METHODS = (*BOOTSTRAPS, "score")
GAIN = 0.5


@dataclasses.dataclass(frozen=True)
class Design:
    """groups: of each class, head first. a_group: images in each. shared: deviation of a group's
    effect on the logits, beside the images' own of 1."""

    name: str
    groups: tuple[int, ...]
    a_group: int = 1
    strength: float = 1.5
    lean: float = 0.5
    shared: float = 0.0


DESIGNS = (
    Design("n = 50, imbalance 20", (40, 8, 2)),
    Design("n = 50, imbalance 20, better model", (40, 8, 2), strength=3.0),
    Design("n = 50, two classes, imbalance 24", (48, 2), strength=1.2, lean=0.0),
    Design("n = 50, balanced", (17, 17, 16), lean=0.0),
    Design("n = 500, imbalance 20", (400, 80, 20)),
    Design("50 groups of 2, imbalance 20", (40, 8, 2), a_group=2, shared=1.0),
    Design("500 groups of 2, imbalance 20", (400, 80, 20), a_group=2, shared=1.0),
)
PAIRED_DESIGNS = tuple(
    design for design in DESIGNS if design.name != "n = 50, imbalance 20, better model"
)


def draw(design: Design, rng: np.random.Generator) -> tuple[Float[np.ndarray, "n k"], Truth]:
    """Probabilities, and the truth, of one test set."""
    truth = _truth(design)
    noise = rng.normal(size=(len(truth.labels), truth.k))
    return _answers(design, truth, noise + _effects(design, truth, rng)), truth


def draw_pair(
    design: Design, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n k"], Truth]:
    """The same of two arms, the second the better one."""
    truth = _truth(design)
    both, *own = rng.normal(size=(3, len(truth.labels), truth.k)) / np.sqrt(2)
    both += _effects(design, truth, rng)
    better = dataclasses.replace(design, strength=design.strength + GAIN)
    return _answers(design, truth, both + own[0]), _answers(better, truth, both + own[1]), truth


def _truth(design: Design) -> Truth:
    k = len(design.groups)
    labels = np.repeat(np.repeat(np.arange(k), design.groups), design.a_group)
    groups = np.repeat(np.arange(sum(design.groups)), design.a_group)
    class_groups = {"head": [0], "medium": list(range(1, k - 1)), "tail": [k - 1]}
    return Truth(labels, groups, class_groups, k)


def _effects(design: Design, truth: Truth, rng: np.random.Generator) -> Float[np.ndarray, "n k"]:
    if not design.shared:
        return np.zeros((len(truth.labels), truth.k))
    return design.shared * rng.normal(size=(truth.n_groups, truth.k))[truth.groups]


def _answers(
    design: Design, truth: Truth, noise: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, "n k"]:
    logits = noise + design.strength * np.eye(truth.k)[truth.labels]
    logits[:, 0] += design.lean
    return metrics.softmax(logits)


def quantities(k: int) -> tuple[str, ...]:
    """What is followed: macro metrics, and AUROC and sensitivity of the rarest class."""
    tail = k - 1
    return ("accuracy", "balanced_accuracy", "auroc_macro", f"auroc/{tail}", f"sensitivity/{tail}")


@functools.lru_cache
def true_values(design: Design, images: int = 400_000) -> dict[str, float]:
    """Of an endless test set with the design's class shares."""
    k, rng = len(design.groups), np.random.default_rng(7)
    even = dataclasses.replace(design, groups=(images // design.a_group,) * k)
    probabilities, truth = draw(even, rng)
    share = np.array(design.groups) / sum(design.groups)
    hit = probabilities.argmax(axis=1) == truth.labels
    recall = np.array([hit[truth.labels == c].mean() for c in range(k)])
    areas = []
    for c in range(k):
        score = np.sort(probabilities[truth.labels == c, c])
        below = [  # the chance that a negative of class d lies below a positive
            1 - np.searchsorted(score, probabilities[truth.labels == d, c]).mean() / len(score)
            for d in range(k)
        ]
        others = [d for d in range(k) if d != c]
        areas.append(float(np.average(np.array(below)[others], weights=share[others])))
    values = (share @ recall, recall.mean(), np.mean(areas), areas[-1], recall[-1])
    return dict(zip(quantities(k), map(float, values), strict=True))


def ends_of(
    probabilities: Float[np.ndarray, "n k"], truth: Truth, resamples: int, seed: int
) -> dict[tuple[str, str], intervals.Interval | None]:
    """Every quantity's interval by every method, of one run."""
    names = resampling.names(truth)
    rows = [names.index(name) for name in quantities(truth.k)]
    ones = np.ones((1, resamples))
    draws = resampling.bootstrap([probabilities], truth, resamples, seed, ones)[rows]
    found = metrics.parts(probabilities, truth.labels)
    by_class = metrics.per_class(found)
    values = {**metrics.from_parts(found, truth.class_groups)}
    values |= {f"{n}/{c}": v[c] for n, v in by_class.items() for c in range(truth.k)}
    estimates = np.array([float(values[name]) for name in quantities(truth.k)])
    left_out = resampling.jackknife([probabilities], truth)[rows]
    influence = resampling.influence(left_out, grouping.group_classes(truth))
    score = score_intervals(probabilities[None], truth)
    ends: dict[tuple[str, str], intervals.Interval | None] = {}
    for method in BOOTSTRAPS:
        found_ends = intervals.of_draws(method, draws, estimates, influence)
        for name, (low, high) in zip(quantities(truth.k), found_ends, strict=True):
            ends[name, method] = None if np.isnan(low) else (float(low), float(high))
    return ends | {(name, "score"): score[name] for name in quantities(truth.k)}


def coverage(
    design: Design, simulations: int, resamples: int = 1000, seed: int = 0
) -> dict[tuple[str, str], Proportion]:
    """How often the interval holds the true value, by (quantity, method).

    An interval that is withheld holds nothing; the number of them is small.
    """
    true, held = true_values(design), {}
    for s in range(simulations):
        probabilities, truth = draw(design, np.random.default_rng([seed, s]))
        for key, ends in ends_of(probabilities, truth, resamples, s).items():
            inside = ends is not None and ends[0] <= true[key[0]] <= ends[1]
            held[key] = held.get(key, 0) + inside
    return {key: Proportion(int(count), simulations) for key, count in held.items()}


def paired_coverage(
    design: Design, simulations: int, resamples: int = 1000, seed: int = 0
) -> dict[tuple[str, str], Proportion]:
    """How often a report's interval of the second arm minus the first holds the true difference,
    by (quantity, method); one run an arm."""
    true, held = true_differences(design), {}
    for s in range(simulations):
        *pair, truth = draw_pair(design, np.random.default_rng([seed, 1, s]))
        rows = [resampling.names(truth).index(name) for name in true]
        first, second = (
            arms.evidence(arms.ArmPredictions("", (0,), one[None]), truth, resamples, s, "bca")
            for one in pair
        )
        ends: dict[str, Iterable[intervals.Interval | None]] = {
            method: second.difference(first, len(second.values), method)[rows].tolist()
            for method in BOOTSTRAPS
        }
        score = score_differences(pair[1][None], pair[0][None], truth)
        ends["score"] = [score[name] for name in true]
        for method, found in ends.items():
            for (name, value), own in zip(true.items(), found, strict=True):
                inside = own is not None and own[0] <= value <= own[1]
                held[name, method] = held.get((name, method), 0) + inside
    return {key: Proportion(int(count), simulations) for key, count in held.items()}


def true_differences(design: Design) -> dict[str, float]:
    """Of the second arm minus the first."""
    better = true_values(dataclasses.replace(design, strength=design.strength + GAIN))
    return {name: better[name] - value for name, value in true_values(design).items()}


def paired_rows(
    designs: Iterable[Design], simulations: int, resamples: int
) -> list[tuple[str, str, float, dict[str, Proportion]]]:
    """(design, quantity, true difference, coverage by method)."""
    found = []
    for design in designs:
        covered = paired_coverage(design, simulations, resamples)
        for name, true in true_differences(design).items():
            by_method = {method: covered[name, method] for method in METHODS}
            found.append((design.name, name, true, by_method))
    return found


def rows(
    designs: Iterable[Design], simulations: int, resamples: int
) -> list[tuple[str, str, float, dict[str, Proportion]]]:
    """(design, quantity, true value, coverage by method)."""
    found = []
    for design in designs:
        covered, true = coverage(design, simulations, resamples), true_values(design)
        for name in quantities(len(design.groups)):
            by_method = {method: covered[name, method] for method in METHODS}
            found.append((design.name, name, true[name], by_method))
    return found
