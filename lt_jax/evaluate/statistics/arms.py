"""What an arm achieved and whether it differs from the baseline: mean, spread, interval, p-value.

Estimand: the mean over training seeds of a metric on the population of test groups. With one seed
it is the metric of that one run, and the interval says nothing of training noise.

Intervals are 95% intervals, percentile or BCa (`intervals`), of a two-way (pigeonhole) bootstrap:
each resample draws test groups with replacement within their classes (`resampling`, which says what
that can and cannot tell of a class with few groups), the same ones for all arms, and, where an arm
has more than one seed, its runs with replacement. With few seeds the part due to training noise is
small by about a factor (m - 1) / m in variance, which the two-way draw partly makes up by counting
the interaction twice (Owen, 2007). Beside them stand score intervals of what is a share or an AUROC
(`score_intervals`), and of its differences: of the trained runs alone, but sound with few groups.

p-values are of the paired group permutation test (`permutation`), on the runs whose seeds both arms
have, or on runs in order of seed where they share none; Holm's and Benjamini and Hochberg's
corrections are over the arms, per metric. Arms that are compared with a rival besides the baseline
are a family of their own. The test speaks of the trained runs, the interval of the recipe as well:
`Comparison.better` asks both. `Comparison.effect` is `hypothesis.paired_effect` over the seeds that
both arms have.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from lt_jax.evaluate import metrics
from lt_jax.evaluate.errors import EvaluationError
from lt_jax.evaluate.metrics import grouping
from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.evaluate.statistics import hypothesis, intervals, multiplicity, permutation, resampling
from lt_jax.evaluate.statistics.intervals import percentile_interval as percentile_interval
from lt_jax.evaluate.statistics.multiplicity import holm as holm
from lt_jax.evaluate.statistics.results import Comparison as Comparison
from lt_jax.evaluate.statistics.results import Summary as Summary
from lt_jax.evaluate.statistics.results import number
from lt_jax.evaluate.statistics.results import summarise as summarise
from lt_jax.evaluate.statistics.score_intervals import score_differences, score_intervals


@dataclasses.dataclass(frozen=True)
class ArmPredictions:
    """An arm's probabilities on the test set, runs in ascending order of seed."""

    name: str
    seeds: tuple[int, ...]
    probabilities: Float[np.ndarray, "m n k"]

    def __post_init__(self) -> None:
        """Refuses seeds that are missing, repeated or out of order."""
        distinct = list(self.seeds) == sorted(set(self.seeds))
        if not distinct or len(self.seeds) != len(self.probabilities):
            raise EvaluationError(
                f"arm {self.name!r}: seeds {self.seeds} for {len(self.probabilities)} runs; "
                "takes distinct ascending seeds, one a run"
            )


@dataclasses.dataclass(frozen=True)
class ArmStatistics:
    """What the report says of an arm.

    summaries: by metric. recall_per_class: [m, k]. comparisons, against_rival: with the baseline
    and the rival, by metric. per_class: a summary a class, by the names of `metrics.PER_CLASS`.
    score_intervals: see there.
    """

    summaries: dict[str, Summary]
    recall_per_class: Float[np.ndarray, "m k"]
    comparisons: dict[str, Comparison]
    against_rival: dict[str, Comparison] = dataclasses.field(default_factory=dict)
    per_class: dict[str, tuple[Summary, ...]] = dataclasses.field(default_factory=dict)
    score_intervals: dict[str, "intervals.Interval | None"] = dataclasses.field(
        default_factory=dict
    )


def _interval(ends: Float[np.ndarray, "2"]) -> tuple[float, float] | None:
    return None if np.isnan(ends).any() else (float(ends[0]), float(ends[1]))


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What intervals of an arm, and of its difference from another, are made of.

    values: every row of `sums.all_rows` by run [Q, m]. draws: of their mean over runs [Q, r].
    influence: of each group on that mean [Q, g], None where no method reads it.
    """

    seeds: tuple[int, ...]
    values: Float[np.ndarray, "Q m"]
    draws: Float[np.ndarray, "Q r"]
    influence: Float[np.ndarray, "Q g"] | None

    @property
    def runs(self) -> Float[np.ndarray, "Q m"]:
        """What each run contributes to the error of the mean."""
        return (self.values - self.values.mean(axis=1, keepdims=True)) / len(self.seeds)

    def intervals(self, method: str) -> Float[np.ndarray, "Q 2"]:
        """Of the mean over runs, every row."""
        both = None
        if self.influence is not None:
            both = np.concatenate([self.influence, self.runs], axis=1)
        return intervals.of_draws(method, self.draws, self.values.mean(axis=1), both)

    def difference(self, other: "Evidence", rows: int, method: str) -> Float[np.ndarray, "q 2"]:
        """Of self minus other, the first `rows` rows."""
        both = None
        if self.influence is not None and other.influence is not None:
            # Equal seeds are drawn alike, so that their runs' parts are those of differences.
            paired = self.seeds == other.seeds
            runs = [self.runs - other.runs] if paired else [self.runs, -other.runs]
            both = np.concatenate([self.influence - other.influence, *runs], axis=1)[:rows]
        estimates = (self.values.mean(axis=1) - other.values.mean(axis=1))[:rows]
        draws = self.draws[:rows] - other.draws[:rows]
        return intervals.of_draws(method, draws, estimates, both)


def evidence(
    arm: ArmPredictions, truth: Truth, resamples: int, seed: int, interval: str
) -> Evidence:
    """Values of an arm's runs and what their intervals take: see `Evidence`."""
    found = metrics.parts(arm.probabilities, truth.labels, truth.bins, truth.specificity)
    by_class = metrics.per_class(found)
    values = [*metrics.from_parts(found, truth.class_groups).values()]
    values += [by_class[name][:, c] for name in metrics.PER_CLASS for c in range(truth.k)]
    weights = resampling.seed_weights(arm.seeds, resamples, seed)
    runs = list(arm.probabilities)
    influence = None
    if interval == "bca":
        left_out = resampling.jackknife(runs, truth)
        influence = resampling.influence(left_out, grouping.group_classes(truth))
    draws = resampling.bootstrap(runs, truth, resamples, seed, weights)
    return Evidence(arm.seeds, np.stack(values), draws, influence)


def analyse(
    arms: Sequence[ArmPredictions],
    truth: Truth,
    baseline: str,
    *,
    rival: str | None = None,
    challengers: Sequence[str] = (),
    resamples: int = 2000,
    permutations: int = 2000,
    seed: int = 0,
    interval: str = "percentile",
) -> dict[str, ArmStatistics]:
    """Everything the report says of the arms, by name.

    Args:
      arms: predictions; names are distinct.
      truth: labels and groups of the test set.
      baseline: the arm that the others are compared with.
      rival: a second arm, which the challengers are compared with; chosen without the test set.
      challengers: names of arms; a family apart from the baseline's.
      resamples: bootstrap resamples.
      permutations: of the permutation test; 0 leaves the comparisons out.
      seed: of all draws.
      interval: "percentile" or "bca".
    """
    names = [arm.name for arm in arms]
    if len(set(names)) != len(names) or baseline not in names:
        raise EvaluationError(f"baseline {baseline!r}: takes one of the distinct arms {names}")
    found = {arm.name: evidence(arm, truth, resamples, seed, interval) for arm in arms}
    compared, against = {}, {}
    if permutations:
        by_name = {arm.name: arm for arm in arms}
        pairs = _Pairs(by_name, truth, found, permutations, seed, interval)
        compared = pairs.compare([name for name in names if name != baseline], baseline)
        if rival is not None:
            against = pairs.compare(challengers, rival)
    return {
        arm.name: _statistics(
            arm, truth, found[arm.name], interval, compared.get(arm.name, {}), against
        )
        for arm in arms
    }


def _statistics(
    arm: ArmPredictions,
    truth: Truth,
    found: Evidence,
    interval: str,
    compared: dict[str, Comparison],
    against: dict[str, dict[str, Comparison]],
) -> ArmStatistics:
    ends = found.intervals(interval)
    rows = [summarise(v, ci95=_interval(e)) for v, e in zip(found.values, ends, strict=True)]
    q, k = len(metrics.METRICS), truth.k
    by_class = {
        name: tuple(rows[q + i * k : q + (i + 1) * k]) for i, name in enumerate(metrics.PER_CLASS)
    }
    return ArmStatistics(
        dict(zip(metrics.METRICS, rows[:q], strict=True)),
        metrics.recall_per_class(arm.probabilities, truth.labels),
        compared,
        against.get(arm.name, {}),
        by_class,
        score_intervals(arm.probabilities, truth),
    )


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """What a comparison of any two arms takes: arms and what is known of them, by name."""

    arms: dict[str, ArmPredictions]
    truth: Truth
    found: dict[str, Evidence]
    permutations: int
    seed: int
    interval: str

    def compare(self, names: Sequence[str], reference: str) -> dict[str, dict[str, Comparison]]:
        """Every named arm minus the reference, by metric; one family a metric."""
        matched = {name: _matched_runs(self.arms[name], self.arms[reference]) for name in names}
        p = {
            name: permutation.permutation(runs, self.truth, self.permutations, self.seed)
            for name, runs in matched.items()
        }
        q, theirs = len(metrics.METRICS), self.found[reference]
        ends = {name: self.found[name].difference(theirs, q, self.interval) for name in names}
        told = self.arms[reference].probabilities
        score = {
            name: score_differences(self.arms[name].probabilities, told, self.truth)
            for name in names
        }
        compared: dict[str, dict[str, Comparison]] = {name: {} for name in names}
        for row, metric in enumerate(metrics.METRICS):
            adjusted = multiplicity.adjust({name: number(p[name][row]) for name in names})
            for name in names:
                mine = self.found[name]
                difference = float(mine.values[row].mean() - theirs.values[row].mean())
                compared[name][metric] = Comparison(
                    difference=number(difference),
                    ci95=None if math.isnan(difference) else _interval(ends[name][row]),
                    p=number(p[name][row]),
                    p_holm=adjusted[name][0],
                    n=len(matched[name]),
                    p_bh=adjusted[name][1],
                    effect=hypothesis.paired_effect(_by_seed(mine, theirs, row)),
                    score95=score[name].get(metric),
                )
        return compared


def _by_seed(mine: Evidence, theirs: Evidence, row: int) -> Float[np.ndarray, "m"]:
    """Differences of the seeds that both have."""
    common = [s for s in mine.seeds if s in theirs.seeds]
    pick = lambda found: found.values[row, [found.seeds.index(s) for s in common]]
    return pick(mine) - pick(theirs)


def _matched_runs(
    arm: ArmPredictions, reference: ArmPredictions
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of runs by common seed; by order of seed where the arms share none."""
    theirs = dict(zip(reference.seeds, reference.probabilities, strict=True))
    common = [
        (run, theirs[s]) for s, run in zip(arm.seeds, arm.probabilities, strict=True) if s in theirs
    ]
    return common or list(zip(arm.probabilities, reference.probabilities, strict=False))
