"""How often tests at 5% reject two classifiers that are equally good."""

import bisect
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from lt_jax.evaluate import metrics
from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.evaluate.statistics import hypothesis, permutation
from lt_jax.evaluate.statistics.intervals import Proportion

ALPHA = 0.05
# Classes of the permutation test's sets: 50 images, imbalance 20; and ten times as many.
SMALL, LARGE = (40, 8, 2), (400, 80, 20)


def rate(rejects: Callable[[np.random.Generator], bool], simulations: int) -> Proportion:
    """How often, over that many draws, each from a generator of its own."""
    draws = (rejects(np.random.default_rng([11, s])) for s in range(simulations))
    return Proportion(sum(map(bool, draws)), simulations)


def delong(
    positives: int, negatives: int, simulations: int, a_group: int = 1, correlation: float = 0.5
) -> Proportion:
    """Scores of two classifiers with one AUROC of 0.8; `a_group` images share half their noise.

    Numbers are of groups; a group is of one class.
    """
    positive = np.repeat(np.arange(positives + negatives) < positives, a_group)
    groups = np.repeat(np.arange(positives + negatives), a_group)
    gap = math.sqrt(2) * 0.8416  # a shift of sqrt(2) Phi^-1(0.8) between unit normals

    def noise(rng: np.random.Generator, size: int) -> Float[np.ndarray, "2 size"]:
        own, common = rng.normal(size=(2, size)), rng.normal(size=(1, size))
        return math.sqrt(1 - correlation) * own + math.sqrt(correlation) * common

    def rejects(rng: np.random.Generator) -> bool:
        scores = noise(rng, len(positive))
        if a_group > 1:
            scores = math.sqrt(0.5) * (scores + noise(rng, positives + negatives)[:, groups])
        scores = scores + gap * positive
        p = hypothesis.delong(scores[0], scores[1], positive, groups).p
        return p is not None and p <= ALPHA

    return rate(rejects, simulations)


def mcnemar(method: str, n: int, discordant: float) -> float:
    """The size itself, summed over all outcomes: n images, each discordant with that chance.

    p falls as b and c part, so that of m discordant images the test rejects up to some b <= m / 2,
    and as many at the other end.
    """
    from scipy.stats import binom

    m = np.arange(n + 1)
    most = np.array([_most_extreme(method, int(count)) for count in m])
    rejected = np.where(most >= 0, 2 * binom.cdf(most, m, 0.5), 0.0)
    return float((binom.pmf(m, n, discordant) * rejected).sum())


def _most_extreme(method: str, m: int) -> int:
    """The largest b <= m / 2 that is rejected; -1 where none is."""
    rejected = lambda b: hypothesis.mcnemar(*_hits(b, m - b), method=method).p <= ALPHA
    return bisect.bisect_left(range(m // 2 + 1), True, key=lambda b: not rejected(b)) - 1


def _hits(b: int, c: int) -> tuple[Bool[np.ndarray, "m"], Bool[np.ndarray, "m"]]:
    first = np.arange(max(b + c, 1)) < b
    return first, ~first if b + c else first


def mcnemar_groups(n: int, a_group: int, simulations: int) -> Proportion:
    """Of n groups whose images share what makes them hard for the one or the other."""
    groups = np.repeat(np.arange(n), a_group)

    def rejects(rng: np.random.Generator) -> bool:
        latent = rng.normal(size=(2, n))[:, groups] + rng.normal(size=(2, n * a_group))
        first, second = latent < 1.0
        return hypothesis.mcnemar(first, second, groups).p <= ALPHA

    return rate(rejects, simulations)


def permutations(
    counts: tuple[int, ...], simulations: int, draws: int = 499
) -> dict[str, Proportion]:
    """Two arms of equal strength on the same images, one run each; by metric."""
    labels = np.repeat(np.arange(len(counts)), counts)
    k = len(counts)
    truth = Truth(labels, np.arange(len(labels)), {"head": [0], "medium": [1], "tail": [2]}, k)
    rejected = np.zeros(len(metrics.METRICS), int)
    for s in range(simulations):
        rng = np.random.default_rng([11, s])
        shared = rng.normal(size=(len(labels), k)) + 1.5 * np.eye(k)[labels]
        one, other = (metrics.softmax(shared + rng.normal(size=shared.shape)) for _ in range(2))
        rejected += permutation.permutation([(one, other)], truth, draws, s) <= ALPHA
    shares = (Proportion(int(count), simulations) for count in rejected)
    return dict(zip(metrics.METRICS, shares, strict=True))


def folds(test: str, simulations: int, n: int = 200, splits: int = 15, dims: int = 5) -> Proportion:
    """Nearest class means on two sets of features, alike in distribution, of two classes.

    test: "corrected" (splits of 90% and 10%), "uncorrected" (Student's t of the same, for
    comparison), "corrected_10_fold", "t_5x2" or "f_5x2"; "corrected_10_fold_thinned" and
    "corrected_3_fold_thinned", where the learner drops all but a fifth of its second class.
    """
    k = next((k for k in (3, 10) if f"_{k}_fold" in test), 0)

    def rejects(rng: np.random.Generator) -> bool:
        y = np.arange(n) % 2
        x = rng.normal(size=(2, n, dims)) + 0.35 * (2 * y - 1)[None, :, None]
        if test.endswith("5x2"):
            halves = [np.array_split(rng.permutation(n), 2) for _ in range(5)]
            d = np.array([[_gain(x, y, a, b), _gain(x, y, b, a)] for a, b in halves])
            found = (hypothesis.paired_t_5x2 if test == "t_5x2" else hypothesis.combined_f_5x2)(d)
            return found.p <= ALPHA
        if k:
            parts = np.array_split(rng.permutation(n), k)
        else:
            parts = [rng.permutation(n)[: n // 10] for _ in range(splits)]
        train = [np.setdiff1d(np.arange(n), part) for part in parts]
        sizes = (n - len(parts[-1]), len(parts[-1]))  # what the learner is given, not what it keeps
        if test.endswith("_thinned"):
            train = [_thinned(rows, y, rng) for rows in train]
        d = np.array([_gain(x, y, a, b) for a, b in zip(train, parts, strict=True)])
        sizes = (10**9, 1) if test == "uncorrected" else sizes
        return hypothesis.corrected_resampled_t(d, *sizes).p <= ALPHA

    return rate(rejects, simulations)


def _thinned(train: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All rows of class 0, and a fifth of those of class 1, drawn for this train set."""
    rare = rng.permutation(train[y[train] == 1])
    return np.concatenate([train[y[train] == 0], rare[: len(rare) // 5]])


def _gain(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """Accuracy of the first features' classifier minus that of the second's."""
    accuracy = []
    for features in x:
        means = [features[train][y[train] == c].mean(axis=0) for c in range(2)]
        towards = means[1] - means[0]
        score = features[test] @ towards - 0.5 * (means[0] + means[1]) @ towards
        accuracy.append(float(((score > 0) == y[test]).mean()))
    return accuracy[0] - accuracy[1]
