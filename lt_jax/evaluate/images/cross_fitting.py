"""A logistic score that tells two kinds of images apart, of each by a model that never saw it.

Folds are dealt by group, both kinds spread evenly (scikit-learn's StratifiedGroupKFold). In each,
features are standardised and a logistic regression with penalty |w|^2 / 2C, both kinds weighing
alike, is fitted to the other folds; C is chosen there, by folds by group of their own (nested:
Varma and Simon 2006, BMC Bioinformatics 7:91). The fold's images are then scored.

Scores of different folds come from different models. AUROC therefore compares images of one fold
alone, and is the mean over F folds; pairs across folds would be below 1/2 without any difference,
since a fold with more of one kind leaves fewer to its model. The interval of any area is Newcombe's
score interval (`intervals`, equation 5) from the numbers m and n of units of both kinds, and p is
that of 1/2, by the variance that the area has there:

  {t : |theta - t| <= 1.96 sqrt(V(t; m, n))},    V(1/2; m, n) = (m + n + 1) / (12 m n)      (1)

Units are groups, at their worst: of images that are all alike in a group, in groups of sizes s_g,
there are (sum s_g)^2 / sum s_g^2 (Kish), the groups where all are of one size. Where there are no
more than EXACT ways to deal the kinds to the groups, and MOST images, p is exact: the share of the
ways whose area is as far from 1/2. V(1/2) is the variance of Mann and Whitney's statistic;
DeLong's, at the estimate, vanishes as this nears 1, with intervals that cover 0.88 in place of 0.95
and p of 1e-171.

Of folds the units count half:

  theta = mean_f theta_f,    {t : |theta - t| <= 1.96 sqrt(V(t; m / 2, n / 2))}            (2)

Halving the numbers doubles the variance, which is what models that share images cost where nothing
differs. With D_f the difference between the kinds' means in fold f, theta_f - 1/2 goes as
D_f . sum_{g != f} D_g, so that each product D_f . D_g stands in two of the folds: F (F - 1) / 2
independent terms of twice the size, where independent models would have F (F - 1) terms. In 400
simulated sets of 10 to 50 images of each kind, (2) misses 1/2 in 4 to 6%, and the interval of
independent areas (LeDell, Petersen and van der Laan 2015, EJS 9:1583) in 17%. Where the kinds
differ clearly the models agree, and (2) is wide by a factor of up to 1.4.
"""

import dataclasses
import itertools
import math

import numpy as np
from jaxtyping import Bool, Float, Int

from lt_jax.evaluate.statistics import hypothesis, intervals
from lt_jax.evaluate.statistics.intervals import Interval
from lt_jax.runtime import faults

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C
LEAST = 10  # groups of each kind, below which nothing is fitted
INNER = 3  # folds in which C is chosen
EXACT = 50_000  # ways to deal kinds to groups; 9 and 9 have 48,620
MOST = 2_000  # images whose every pair is held in memory for that


@dataclasses.dataclass(frozen=True)
class Area:
    """An AUROC with its 95% interval; positives, negatives: images; groups: of each kind."""

    auroc: float
    ci95: Interval
    p: float
    positives: int
    negatives: int
    positive_groups: int
    negative_groups: int


@dataclasses.dataclass(frozen=True)
class CrossFitted:
    """scores [n]: log-odds of being positive, of a model that did not see the image's group.

    fold [n]: which one. strengths: the C chosen in each fold.
    """

    scores: Float[np.ndarray, "n"]
    fold: Int[np.ndarray, "n"]
    strengths: tuple[float, ...]


def area(
    scores: Float[np.ndarray, "n"],
    positive: Bool[np.ndarray, "n"],
    groups: Int[np.ndarray, "n"],
    fold: Int[np.ndarray, "n"] | None = None,
) -> Area:
    """AUROC of scores, ties counting half, with its interval by (1); of those in folds by (2).

    Args:
      scores: higher for positives.
      positive: which images are.
      groups: codes; a group's images are of one kind.
      fold: of each image, where scores of different folds are of different models.

    Returns:
      p is two-sided against 1/2: of scores in folds normal, of others exact or normal, see (1).

    Raises:
      ValueError: no image of either kind, a group of both, or a score that is NaN.
    """
    value = float(
        np.mean([_auroc(scores[own], positive[own]) for own in comparable(positive, fold)])
    )
    counts = [len(np.unique(groups[kind])) for kind in (positive, ~positive)]
    if sum(counts) > len(np.unique(groups)):
        raise ValueError("a group has positives and negatives; a group's images are of one kind")
    m, n = ((1.0 if fold is None else 0.5) * _units(groups[kind]) for kind in (positive, ~positive))
    few = len(scores) <= MOST and math.comb(sum(counts), counts[0]) <= EXACT
    if fold is None and few:
        p = _exact_p(scores, positive, groups)
    else:
        from scipy.stats import norm

        p = float(2 * norm.sf(abs(value - 0.5) / math.sqrt((m + n + 1) / (12 * m * n))))
    interval = intervals.auroc(value, m, n)
    return Area(value, interval, p, int(positive.sum()), int((~positive).sum()), *counts)


def comparable(
    positive: Bool[np.ndarray, "n"], fold: Int[np.ndarray, "n"] | None
) -> list[Int[np.ndarray, "m"]]:
    """Places of the images whose scores may be compared: of each fold that has both kinds, or all.

    Raises ValueError where no fold has.
    """
    every = np.zeros(len(positive), int) if fold is None else fold
    folds = [np.flatnonzero(every == f) for f in np.unique(every)]
    found = [own for own in folds if len(np.unique(positive[own])) == 2]
    if not found:
        raise ValueError(
            f"{int(positive.sum())} positives and {int((~positive).sum())} negatives in "
            f"{len(folds)} folds; an AUROC takes both in one"
        )
    return found


def _auroc(scores: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]) -> float:
    return float(hypothesis.components(scores[None], positive)[0][0])


def _units(groups: Int[np.ndarray, "n"]) -> float:
    sizes = np.unique(groups, return_counts=True)[1]
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def _exact_p(
    scores: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"], groups: Int[np.ndarray, "n"]
) -> float:
    """The share of all ways to deal the kinds to the groups with an area as far from 1/2."""
    of = np.unique(groups, return_inverse=True)[1].reshape(-1)
    member = np.eye(int(of.max()) + 1)[of]
    above = (np.sign(scores[:, None] - scores[None]) + 1) / 2
    won, sizes = member.T @ above @ member, member.sum(axis=0)  # won: pairs, of groups g and h
    kinds = np.array([bool(positive[of == g].all()) for g in range(len(sizes))])
    dealt = np.array([*itertools.combinations(range(len(sizes)), int(kinds.sum()))])
    is_first = np.zeros((len(dealt), len(sizes)))
    np.put_along_axis(is_first, dealt, 1.0, axis=1)

    def gaps(first: np.ndarray) -> np.ndarray:
        pairs = (first @ sizes) * ((1 - first) @ sizes)
        return np.abs(((first @ won) * (1 - first)).sum(axis=1) / pairs - 0.5)

    return float((gaps(is_first) >= gaps(kinds[None].astype(float)) - 1e-9).mean())


def fit(
    features: Float[np.ndarray, "n d"],
    positive: Bool[np.ndarray, "n"],
    groups: Int[np.ndarray, "n"],
    folds: int,
    seed: int,
) -> CrossFitted | None:
    """Out-of-fold scores of every image.

    Args:
      features: finite.
      positive: which of the two kinds each image is of.
      groups: codes; a group's images are in one fold.
      folds: at most; fewer where either kind has fewer groups than two a fold.
      seed: of the folds.

    Returns:
      None with fewer than LEAST groups of either kind.
    """
    fewest = min(len(np.unique(groups[kind])) for kind in (positive, ~positive))
    if fewest < LEAST:
        return None
    from sklearn.model_selection import StratifiedGroupKFold
    from threadpoolctl import threadpool_limits

    split = StratifiedGroupKFold(min(folds, fewest // 2), shuffle=True, random_state=seed)
    scores, fold = np.zeros(len(positive)), np.zeros(len(positive), int)
    strengths = []
    # Hundreds of small products: threads that wait for each other cost more than they bring, a
    # hundred times as much where other work has the cores.
    with threadpool_limits(1):
        for f, (train, test) in enumerate(split.split(features, positive, groups)):
            mean, scale = features[train].mean(axis=0), features[train].std(axis=0)
            standard = (features - mean[None]) / np.where(scale > 0, scale, 1.0)[None]
            strength = _strength(standard[train], positive[train], groups[train], seed)
            strengths.append(strength)
            scores[test] = _logistic(standard[train], positive[train], strength, standard[test])
            fold[test] = f
    return CrossFitted(scores, fold, tuple(strengths))


def _strength(
    features: Float[np.ndarray, "n d"],
    positive: Bool[np.ndarray, "n"],
    groups: Int[np.ndarray, "n"],
    seed: int,
) -> float:
    """The C of the highest mean AUROC over inner folds; the lowest of equals."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold

    split = StratifiedGroupKFold(INNER, shuffle=True, random_state=seed)
    totals = np.zeros(len(STRENGTHS))
    for train, test in split.split(features, positive, groups):
        if len(np.unique(positive[test])) < 2 or len(np.unique(positive[train])) < 2:
            continue  # groups of many images can leave a fold with one kind
        for i, strength in enumerate(STRENGTHS):
            faults.check("a cross-fitted score")
            found = _logistic(features[train], positive[train], strength, features[test])
            totals[i] += roc_auc_score(positive[test], found)
    return STRENGTHS[int(np.argmax(np.round(totals, 9)))]


def _logistic(
    features: Float[np.ndarray, "n d"],
    positive: Bool[np.ndarray, "n"],
    strength: float,
    others: Float[np.ndarray, "m d"],
) -> Float[np.ndarray, "m"]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000)
    return model.fit(features, positive).decision_function(others)
