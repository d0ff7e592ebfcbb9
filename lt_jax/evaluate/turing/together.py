"""What all readers could tell together, and how sure that is.

Distinguishability is the mean accuracy over readers. Its interval speaks of other readers
and other images: it is the mean -+ t SE of `statistics.few_readers`, by a two-way bootstrap that
draws readers and, within real and synthetic apart, images (`resampling.group_weights`). Simulated
(2 to 6 readers, 60 to 300 images, either differing little or much) it covers 92 to 98%, and 89% at
the worst, two readers who differ much; a percentile interval 71 to 99%. For one reader it is the
percentile interval over images. Where nothing varies, all answers being right, there is none.

Its p is of a permutation test: if nobody can tell, real and synthetic are exchangeable within a
class, so the truth is shuffled there, alike for all readers, B times, and p = (1 + #{as far from
the mean of the shuffles}) / (1 + B) (Phipson and Smyth, 2010). It holds at any number of readers,
when answers are missing, and whatever the readers have in common; a binomial test of all answers
would take them for independent (at a level of 5% it rejects in 11 to 32% of such simulations, the
permutation test in 5%). It speaks of these readers.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from lt_jax.evaluate.statistics import Summary, few_readers, intervals, resampling, summarise
from lt_jax.evaluate.turing.study import MISSING, SYNTHETIC


@dataclasses.dataclass(frozen=True)
class Draws:
    """A two-way bootstrap: weights of images [n, r]; those of readers are drawn for any m."""

    images: Float[np.ndarray, "n r"]
    seed: int

    @classmethod
    def of(cls, truth: Bool[np.ndarray, "n"], resamples: int, seed: int) -> "Draws":
        """Images drawn within real and synthetic."""
        generator = np.random.default_rng([seed, 0])
        images = resampling.group_weights(generator, truth.astype(np.int64), resamples)
        return cls(images.astype(np.float64), seed)

    def readers(self, m: int) -> Float[np.ndarray, "m r"]:
        """Weights of m readers, m - 1 draws a resample; columns sum to one."""
        generator = np.random.default_rng([self.seed, 2, m])
        return few_readers.weights(generator, m, self.images.shape[1])


def permutation_p(
    answers: Int[np.ndarray, "m n"],
    truth: Bool[np.ndarray, "n"],
    labels: Int[np.ndarray, "n"],
    shuffles: int,
    seed: int,
) -> float:
    """p of the mean accuracy over readers, under truths shuffled within classes (see above)."""
    generator = np.random.default_rng([seed, 1])
    shuffled = np.empty((len(truth), shuffles), np.float64)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        columns = np.tile(truth[own][:, None], (1, shuffles))
        shuffled[own] = generator.permuted(columns, axis=0)
    # An answer is right where its sign, 1 or -1 (0: none), is that of the truth.
    signs = np.where(answers == MISSING, 0, np.where(answers == SYNTHETIC, 1, -1))
    weights = (signs / (signs != 0).sum(axis=1)[:, None]).mean(axis=0)
    centre = np.array([truth[labels == label].mean() for label in labels])
    away = lambda truths: np.abs(weights @ (truths - centre[:, None]))
    # Equal statistics may differ in their last bits; a tie counts against a difference.
    exceed = int((away(shuffled) >= away(truth[:, None].astype(np.float64)) - 1e-9).sum())
    return (1 + exceed) / (1 + shuffles)


def mean_accuracy(
    right: Bool[np.ndarray, "m n"], counted: Bool[np.ndarray, "m n"], draws: Draws
) -> Summary:
    """The mean over readers of the share of right answers among those counted."""
    able = np.asarray(counted.any(axis=1))  # who answered none of these has no share
    if not able.any():
        return Summary(None, None, 1, None, (None,))
    right, counted = right[able] & counted[able], counted[able]
    n = counted @ draws.images
    shares = np.divide(right @ draws.images, n, out=np.full_like(n, np.nan), where=n > 0)
    return over_readers(right.sum(axis=1) / counted.sum(axis=1), shares, draws.readers(len(right)))


def over_readers(
    values: Float[np.ndarray, "m"],
    replicates: Float[np.ndarray, "m r"],
    weights: Float[np.ndarray, "m r"],
) -> Summary:
    """The mean over readers with the interval of a two-way bootstrap (see above).

    Args:
      values: one a reader, in [0, 1].
      replicates: the same on resampled images, which are alike for all readers.
      weights: of the readers in each resample.
    """
    found = summarise(values)
    interval = intervals.percentile_interval(replicates.mean(axis=0))
    if len(values) == 1 or interval is None:
        varied = interval is not None and interval[0] < interval[1]
        return dataclasses.replace(found, ci95=interval if varied else None)
    ends = few_readers.error(values, replicates, weights).ci95
    if ends is None:
        return found
    return dataclasses.replace(found, ci95=(max(ends[0], 0.0), min(ends[1], 1.0)))


def ratings(
    answers: Int[np.ndarray, "*m n"], confidence: Int[np.ndarray, "*m n"]
) -> Int[np.ndarray, "*m n"]:
    """-5, surely real, to 5, surely synthetic."""
    return np.where(answers == SYNTHETIC, confidence, -confidence)


def aucs(
    ratings: Int[np.ndarray, "n"], truth: Bool[np.ndarray, "n"], weights: Float[np.ndarray, "n r"]
) -> Float[np.ndarray, "r"]:
    """The share of pairs in which the synthetic image is rated higher; NaN without such pairs."""
    synthetic, real = ratings[truth], ratings[~truth]
    above = np.sign(synthetic[:, None] - real[None, :]) / 2 + 0.5
    won = ((above @ weights[~truth]) * weights[truth]).sum(axis=0)
    pairs = weights[truth].sum(axis=0) * weights[~truth].sum(axis=0)
    return np.divide(won, pairs, out=np.full_like(pairs, np.nan), where=pairs > 0)


def mean_auc(
    answers: Int[np.ndarray, "m n"],
    confidence: Int[np.ndarray, "m n"],
    truth: Bool[np.ndarray, "n"],
    own: Bool[np.ndarray, "n"],
    draws: Draws,
) -> Summary | None:
    """The mean over readers of the AUC among these images; None where nobody gave confidence."""
    values, replicates = [], []
    for given, sure in zip(answers, confidence, strict=True):
        rated = own & (sure > 0)
        if (rated & truth).any() and (rated & ~truth).any():
            scale, answer = ratings(given, sure)[rated], truth[rated]
            values.append(aucs(scale, answer, np.ones((int(rated.sum()), 1)))[0])
            replicates.append(aucs(scale, answer, draws.images[rated]))
    if not values:
        return None
    return over_readers(np.array(values), np.stack(replicates), draws.readers(len(values)))
