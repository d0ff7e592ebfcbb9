"""Human readers beside classifiers: points against ROC curves, and reading with help or without.

A reader's answers, positive or not, are a point (FPR_i, TPR_i). With R_a(x) the ROC curve of arm a,
the mean over its runs (`curves`, equation 1), taken on the images that reader i answered,

  beyond a reader     d_i = R_a(FPR_i) - TPR_i        sensitivity at the reader's specificity (1)
  beyond readers      d = mean_i d_i                                                          (2)
  what help brings    h_i = s_i(aided) - s_i(alone)   s: accuracy, sensitivity, specificity,  (3)
                      on the images that reader i answered both ways, and their mean

A bootstrap redraws groups within their class (`resampling`) and runs. Of one reader the interval is
that of its 95% percentiles, p the two-sided one 2 (min(#{d* <= 0}, #{d* >= 0}) + 1) / (r + 1), at
most 1, and both say nothing of other readers; with help and without there is McNemar's test of
which images were right, too. These p-values are not corrected. Means over two or more readers speak
of other readers as well (Obuchowski and Rockette, 1995, ask the same of an analysis of variance):
their intervals and p are Student's of `few_readers`, p corrected over arms or metrics by Holm.
Simulated 1,000 times with 600 images and help whose mean is 0, but differs between readers by a
deviation of 0.08, nominal 95% intervals of 2, 3 and 6 readers cover 0.90, 0.95 and 0.95, and the
test rejects in 10, 6 and 5%; percentiles of m readers drawn from m: 0.76, 0.83, 0.90, and 20, 14,
8%. Two readers who differ are few even so.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from lt_jax.evaluate.metrics.grouping import Truth, group_classes
from lt_jax.evaluate.statistics import (
    curves,
    few_readers,
    hypothesis,
    intervals,
    multiplicity,
    resampling,
)
from lt_jax.evaluate.statistics.arms import ArmPredictions
from lt_jax.evaluate.statistics.results import Comparison

METRICS = ("accuracy", "sensitivity", "specificity")


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """What one reader said of the test images.

    Attributes:
      reader: a name.
      alone: 1 positive, 0 not, NaN not answered [n].
      aided: likewise with help; all NaN where there was none.
    """

    reader: str
    alone: Float[np.ndarray, "n"]
    aided: Float[np.ndarray, "n"]


@dataclasses.dataclass(frozen=True)
class Point:
    """A reader's operating point: shares, the n images that each is of, and their Wilson intervals,
    images counted by group."""

    images: int
    share: Mapping[str, float]
    n: Mapping[str, int]
    ci95: Mapping[str, intervals.Interval]


@dataclasses.dataclass(frozen=True)
class Study:
    """Readers beside arms.

    Attributes:
      alone, aided: points by reader; those who did not read so are missing.
      beyond: by arm, (2) over the readers; its n is theirs.
      beyond_each: by arm and reader, (1); their p are not corrected.
      help: by metric, the mean of (3) over those who read both ways, or empty.
      help_each: by reader and metric, (3); their p are not corrected.
      right: by reader, McNemar's test of the images that were right, aided first; not corrected.
    """

    alone: Mapping[str, Point]
    aided: Mapping[str, Point]
    beyond: Mapping[str, Comparison]
    beyond_each: Mapping[str, Mapping[str, Comparison]]
    help: Mapping[str, Comparison]
    help_each: Mapping[str, Mapping[str, Comparison]]
    right: Mapping[str, hypothesis.McNemar]


def study(
    readings: Sequence[Reading],
    arms: Sequence[ArmPredictions],
    label: int,
    truth: Truth,
    resamples: int = 2000,
    seed: int = 0,
    mcnemar: str = "mid_p",
) -> Study:
    """Compares readers with arms, and with themselves.

    Args:
      readings: one a reader.
      arms: predictions on the same images.
      label: index of the positive class.
      truth: labels and groups.
      resamples: of the bootstrap.
      seed: of the draws.
      mcnemar: the method of `hypothesis.mcnemar`.

    Raises:
      ValueError: a reader answered images of one kind only, or no reader is given.
    """
    positive = truth.labels == label
    _check(readings, positive)
    generator = np.random.default_rng([seed, 7])
    drawn = resampling.group_weights(generator, group_classes(truth), resamples)[truth.groups]
    # The first column is the test set itself.
    weights = np.concatenate([np.ones((len(positive), 1)), drawn], axis=1)
    alone = [one for one in readings if not np.isnan(one.alone).all()]
    both = [one for one in readings if not (np.isnan(one.alone) | np.isnan(one.aided)).all()]
    rates = [_rates(one.alone, positive, weights) for one in alone]
    gaps = {arm.name: _beyond(arm, label, alone, rates, positive, weights, seed) for arm in arms}
    gaps = {name: gap for name, gap in gaps.items() if len(gap)}
    gains = [_help(one, positive, weights) for one in both]
    helped = {metric: [gain[metric] for gain in gains] for metric in METRICS if both}
    mean = lambda found: _over_readers(np.stack(found), seed)
    each = lambda found, who: {
        one.reader: _of_one(draws) for one, draws in zip(who, found, strict=True)
    }
    by_metric = {metric: each(found, both) for metric, found in helped.items()}
    return Study(
        alone={one.reader: _point(one.alone, positive, truth) for one in alone},
        aided={
            one.reader: _point(one.aided, positive, truth)
            for one in readings
            if not np.isnan(one.aided).all()
        },
        beyond=_corrected({name: mean(found) for name, found in gaps.items()}),
        beyond_each={name: each(found, alone) for name, found in gaps.items()},
        help=_corrected({metric: mean(found) for metric, found in helped.items()}),
        help_each={
            one.reader: {metric: by_metric[metric][one.reader] for metric in METRICS}
            for one in both
        },
        right={one.reader: _right(one, positive, truth, mcnemar) for one in both},
    )


def _check(readings: Sequence[Reading], positive: Bool[np.ndarray, "n"]) -> None:
    if not readings:
        raise ValueError("no reader; takes one or more")
    for one in readings:
        both = np.where(np.isnan(one.aided), np.nan, one.alone)
        for how, answers in (("alone", one.alone), ("aided", one.aided), ("both ways", both)):
            asked = positive[~np.isnan(answers)]
            if len(asked) and (asked.all() or not asked.any()):
                kind = "positive" if asked.all() else "negative"
                raise ValueError(
                    f"reader {one.reader!r}, {how}: all {len(asked)} images answered are {kind}; "
                    "takes images of both kinds"
                )


def _rates(
    answers: Float[np.ndarray, "n"],
    positive: Bool[np.ndarray, "n"],
    weights: Float[np.ndarray, "n r"],
) -> dict[str, Float[np.ndarray, "r"]]:
    """The metrics of answered images in every column."""
    hit = answers == positive
    total: dict[str, Float[np.ndarray, "r"]] = {}
    for name, who in _among(answers, positive).items():
        held = weights[who].sum(axis=0)
        right = (weights[who] * hit[who][:, None]).sum(axis=0)
        total[name] = np.divide(right, held, out=np.full(len(held), np.nan), where=held > 0)
    return total


def _among(
    answers: Float[np.ndarray, "n"], positive: Bool[np.ndarray, "n"]
) -> dict[str, Bool[np.ndarray, "n"]]:
    """The answered images that each of METRICS is a share of."""
    asked = ~np.isnan(answers)
    kinds = (asked, asked & positive, asked & ~positive)
    return dict(zip(METRICS, kinds, strict=True))


def _point(answers: Float[np.ndarray, "n"], positive: np.ndarray, truth: Truth) -> Point:
    hit, among = (answers == positive).astype(np.float64), _among(answers, positive)
    ends = {name: intervals.share_of(hit, truth.groups, who) for name, who in among.items()}
    return Point(
        images=int(np.count_nonzero(~np.isnan(answers))),
        share={name: float(hit[who].mean()) for name, who in among.items()},
        n={name: int(who.sum()) for name, who in among.items()},
        ci95={name: found for name, found in ends.items() if found is not None},
    )


def _beyond(
    arm: ArmPredictions,
    label: int,
    readings: Sequence[Reading],
    rates: Sequence[Mapping[str, Float[np.ndarray, "r"]]],
    positive: Bool[np.ndarray, "n"],
    weights: Float[np.ndarray, "n r"],
    seed: int,
) -> list[Float[np.ndarray, "r"]]:
    """(1) of each reader, whose `rates` are given, in every column; the first has all runs."""
    m = len(arm.seeds)
    drawn = resampling.seed_weights(arm.seeds, weights.shape[1] - 1, seed)
    of_runs = np.concatenate([np.full((m, 1), 1 / m), drawn], axis=1)
    found = []
    for one, point in zip(readings, rates, strict=True):
        asked = ~np.isnan(one.alone)
        mine, kind = weights[asked], positive[asked]
        # A copy that lost all images of one kind has no curve.
        whole = (mine[kind].sum(axis=0) > 0) & (mine[~kind].sum(axis=0) > 0)
        gap = np.full(weights.shape[1], np.nan)
        at = np.clip(1 - point["specificity"][whole], 0, 1)
        of = np.stack(
            [
                curves.true_positive_rate(run[asked, label], kind, mine[:, whole], at)
                for run in arm.probabilities.astype(np.float64)
            ]
        )
        gap[whole] = (of * of_runs[:, whole]).sum(axis=0) - point["sensitivity"][whole]
        found.append(gap)
    return found


def _help(
    one: Reading, positive: np.ndarray, weights: np.ndarray
) -> dict[str, Float[np.ndarray, "r"]]:
    """(3) of one reader, in every column."""
    apart = np.isnan(one.alone) | np.isnan(one.aided)
    aided, alone = (
        _rates(np.where(apart, np.nan, how), positive, weights) for how in (one.aided, one.alone)
    )
    return {metric: aided[metric] - alone[metric] for metric in METRICS}


def _right(one: Reading, positive: np.ndarray, truth: Truth, method: str) -> hypothesis.McNemar:
    asked = ~(np.isnan(one.alone) | np.isnan(one.aided))
    aided, alone = (answers[asked] == positive[asked] for answers in (one.aided, one.alone))
    codes = np.unique(truth.groups[asked], return_inverse=True)[1].reshape(-1)
    return hypothesis.mcnemar(aided, alone, codes, method)


def _over_readers(found: Float[np.ndarray, "m r"], seed: int) -> Comparison:
    """The mean over readers; the first column is theirs, the others are resamples of images."""
    m, columns = found.shape
    if m == 1:
        return _of_one(found[0])
    drawn = few_readers.weights(np.random.default_rng([seed, 8]), m, columns - 1)
    error = few_readers.error(found[:, 0], found[:, 1:], drawn)
    return Comparison(error.mean, error.ci95, error.p, None, m)


def _of_one(draws: Float[np.ndarray, "r"]) -> Comparison:
    """Of one reader: the first entry is the estimate, the others are its resamples."""
    known = draws[1:][~np.isnan(draws[1:])]
    beyond = min((known <= curves.EDGE).sum(), (known >= -curves.EDGE).sum())
    p = float(min(1.0, 2 * (beyond + 1) / (len(known) + 1))) if len(known) else None
    interval = intervals.percentile_interval(draws[1:])
    return Comparison(float(draws[0]), interval, p, None, 1)


def _corrected(found: Mapping[str, Comparison]) -> dict[str, Comparison]:
    p = multiplicity.adjust({name: one.p for name, one in found.items()})
    return {
        name: dataclasses.replace(one, p_holm=p[name][0], p_bh=p[name][1])
        for name, one in found.items()
    }
