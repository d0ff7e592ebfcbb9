"""What readers could tell: each one's accuracy, their agreement, and all of them together.

A reader's accuracy, sensitivity (synthetic images called synthetic) and specificity (real ones
called real) are shares of the images answered, with Wilson's interval (Wilson, 1927), and the exact
two-sided binomial test of accuracy against 0.5. d' and the criterion c are z(H) - z(F) and
-(z(H) + z(F)) / 2, with H and F the shares of synthetic and of real images called synthetic, each
(count + 0.5) / (n + 1), so that 0 and 1 stay finite (Hautus, 1995); c > 0: more often "real". Where
confidence was given, answers from surely real to surely synthetic are a scale of ten, whose AUC
(ties count half) asks more than the answers alone. What all could tell together: `together`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from lt_jax.evaluate.statistics import Summary, intervals
from lt_jax.evaluate.statistics.intervals import Proportion
from lt_jax.evaluate.turing import agreement, together
from lt_jax.evaluate.turing.study import MISSING, SYNTHETIC, Key, Results, named

ALONE = "one reader: agreement is undefined, and intervals say nothing of other readers"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value over n images with its 95% bootstrap interval; None where undefined."""

    value: float | None
    n: int
    ci95: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
      p: of the binomial test of accuracy against 0.5.
      d_prime: None without both real and synthetic images, as is the criterion.
      auc: of confidence, over the images with one; None where none was given.
      seconds: median an image; None where unknown.
    """

    name: str
    years: float | None
    images: int
    accuracy: Proportion
    sensitivity: Proportion
    specificity: Proportion
    p: float
    d_prime: float | None
    criterion: float | None
    auc: Estimate | None
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class Pair:
    """Cohen's kappa of two readers over the images that both answered, and how often they agree."""

    readers: tuple[str, str]
    agreement: Proportion
    kappa: Estimate


@dataclasses.dataclass(frozen=True)
class ByClass:
    """Means over readers in one class; `images` of it are in the study."""

    name: str
    images: int
    accuracy: Summary
    auc: Summary | None


@dataclasses.dataclass(frozen=True)
class Score:
    """Everything that is said of a study's results."""

    key: Key
    readers: tuple[Reader, ...]
    accuracy: Summary
    sensitivity: Summary
    specificity: Summary
    auc: Summary | None
    p: float
    pairs: tuple[Pair, ...]
    fleiss: Estimate | None
    classes: tuple[ByClass, ...]
    resamples: int


def score(key: Key, results: Sequence[Results], resamples: int = 10_000, seed: int = 0) -> Score:
    """Scores the readers of one study.

    Args:
      key: of the study.
      results: one a reader.
      resamples: of every bootstrap, and shuffles of the permutation test.
      seed: of both.

    Raises:
      StudyError: one reader's results are given twice.
    """
    names = named(results)
    truth = key.synthetic
    answers = np.stack([one.answers for one in results])
    confidence = np.stack([one.confidence for one in results])
    draws = together.Draws.of(truth, resamples, seed)
    readers = tuple(
        _reader(name, one, truth, draws.images) for name, one in zip(names, results, strict=True)
    )
    right, seen = answers == truth[None, :], answers != MISSING
    mean = lambda of: together.mean_accuracy(right, seen & of[None, :], draws)
    return Score(
        key=key,
        readers=readers,
        accuracy=mean(np.ones_like(truth)),
        sensitivity=mean(truth),
        specificity=mean(~truth),
        auc=together.mean_auc(answers, confidence, truth, np.ones_like(truth), draws),
        p=together.permutation_p(answers, truth, key.labels, resamples, seed),
        pairs=_pairs(names, answers, draws.images),
        fleiss=_fleiss(answers, draws.images),
        classes=tuple(
            ByClass(
                name,
                int(own.sum()),
                mean(own),
                together.mean_auc(answers, confidence, truth, own, draws),
            )
            for name, own in zip(
                key.classes, key.labels == np.arange(len(key.classes))[:, None], strict=True
            )
            if own.any()
        ),
        resamples=resamples,
    )


def d_prime(sensitivity: Proportion, specificity: Proportion) -> tuple[float, float] | None:
    """d' and criterion c; None without images of both kinds."""
    from scipy import stats

    if not sensitivity.n or not specificity.n:
        return None
    hits = stats.norm.ppf((sensitivity.successes + 0.5) / (sensitivity.n + 1))
    alarms = stats.norm.ppf((specificity.n - specificity.successes + 0.5) / (specificity.n + 1))
    return float(hits - alarms), float(-(hits + alarms) / 2)


def _share(hits: Bool[np.ndarray, "n"]) -> Proportion:
    return Proportion(int(hits.sum()), len(hits))


def _reader(
    name: str, one: Results, truth: Bool[np.ndarray, "n"], weights: Float[np.ndarray, "n r"]
) -> Reader:
    from scipy import stats

    seen = one.answers != MISSING
    right = one.answers == truth
    accuracy, sensitivity, specificity = (
        _share(right[seen & of]) for of in (np.ones_like(truth), truth, ~truth)
    )
    sizes = d_prime(sensitivity, specificity)
    rated = one.confidence > 0
    auc = None
    if rated.any():
        replicates = together.aucs(
            together.ratings(one.answers, one.confidence)[rated], truth[rated], weights[rated]
        )
        plain = together.aucs(
            together.ratings(one.answers, one.confidence)[rated],
            truth[rated],
            np.ones((int(rated.sum()), 1)),
        )
        auc = _estimate(plain, replicates, int(rated.sum()))
    known = one.seconds[~np.isnan(one.seconds)]
    return Reader(
        name=name,
        years=one.years,
        images=len(truth),
        accuracy=accuracy,
        sensitivity=sensitivity,
        specificity=specificity,
        p=float(stats.binomtest(accuracy.successes, accuracy.n).pvalue),
        d_prime=None if sizes is None else sizes[0],
        criterion=None if sizes is None else sizes[1],
        auc=auc,
        seconds=float(np.median(known)) if len(known) else None,
    )


def _pairs(
    names: Sequence[str], answers: Int[np.ndarray, "m n"], weights: Float[np.ndarray, "n r"]
) -> tuple[Pair, ...]:
    found = []
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            both = (answers[i] != MISSING) & (answers[j] != MISSING)
            n = int(both.sum())
            first, second = answers[i][both], answers[j][both]
            if n:
                plain = agreement.cohen(first, second, np.ones((n, 1)))
                kappa = _estimate(plain, agreement.cohen(first, second, weights[both]), n)
            else:
                kappa = Estimate(None, 0, None)
            found.append(Pair((names[i], names[j]), _share(first == second), kappa))
    return tuple(found)


def _fleiss(answers: Int[np.ndarray, "m n"], weights: Float[np.ndarray, "n r"]) -> Estimate | None:
    """Over the images that all have answered; None for one reader."""
    if len(answers) < 2:
        return None
    common = (answers != MISSING).all(axis=0)
    n = int(common.sum())
    if not n:
        return Estimate(None, 0, None)
    synthetic = (answers[:, common] == SYNTHETIC).sum(axis=0)
    counts = np.stack([len(answers) - synthetic, synthetic], axis=1)
    plain = agreement.fleiss(counts, np.ones((n, 1)))
    return _estimate(plain, agreement.fleiss(counts, weights[common]), n)


def _estimate(
    value: Float[np.ndarray, "1"], replicates: Float[np.ndarray, "r"], n: int
) -> Estimate:
    if np.isnan(value[0]):
        return Estimate(None, n, None)
    return Estimate(float(value[0]), n, intervals.percentile_interval(replicates))
