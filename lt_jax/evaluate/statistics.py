"""What an arm achieved and whether it differs from the baseline: mean, spread, interval, p-value.

Estimand: the mean over training seeds of a metric on the population of test groups. With one seed
it is the metric of that one run, and the interval says nothing of training noise.

Intervals are 95% percentile intervals of a two-way (pigeonhole) bootstrap: each resample draws test
groups with replacement within their classes (`resampling`, which says what that can and cannot
tell of a class with few groups), the same ones for all arms, and, where an arm has more than one
seed, its runs with replacement. With few seeds the part due to training noise is small by about a
factor (m - 1) / m in variance, which the two-way draw partly makes up by counting the interaction
twice (Owen, 2007).

p-values are of the paired group permutation test (`resampling.permutation`), on the runs whose
seeds both arms have, or on runs in order of seed where they share none; Holm's correction is over
the arms, per metric. Arms that are compared with a rival besides the baseline are a Holm family of
their own. The test speaks of the trained runs, the interval of the recipe as well:
`Comparison.better` asks both.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from lt_jax.evaluate import metrics, resampling

# An interval is withheld when more resamples than this left the metric without a class.
MAX_UNDEFINED = 0.05


@dataclasses.dataclass(frozen=True)
class Summary:
    """A metric of one arm over its seeds.

    mean: None where the metric is undefined on this test set.
    std: over seeds, n - 1 in the denominator; None for a single seed, which has no spread.
    n: number of seeds. ci95: (low, high) for the mean over seeds, or None. values: one a seed.
    """

    mean: float | None
    std: float | None
    n: int
    ci95: tuple[float, float] | None
    values: tuple[float | None, ...]

    def __post_init__(self) -> None:
        """Refuses a mean over nothing and a spread that one seed cannot have."""
        if self.n < 1 or self.n != len(self.values):
            raise ValueError(f"n = {self.n} with {len(self.values)} values; takes one value a seed")
        if (self.std is None) != (self.n == 1 or self.mean is None):
            raise ValueError(f"std = {self.std} with n = {self.n}: a spread takes two seeds")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An arm minus the baseline: difference of means over seeds, interval, p, Holm's p, seeds."""

    difference: float | None
    ci95: tuple[float, float] | None
    p: float | None
    p_holm: float | None
    n: int

    def better(self, metric: str, alpha: float = 0.05) -> bool:
        """Whether the arm beats the baseline: Holm's p below alpha AND the interval beyond zero.

        Where either is missing the answer is no. For ECE "beyond" is below zero.
        """
        if self.p_holm is None or self.ci95 is None or self.p_holm >= alpha:
            return False
        low, high = self.ci95
        return high < 0 if metric in metrics.LOWER_IS_BETTER else low > 0


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
            raise ValueError(
                f"arm {self.name!r}: seeds {self.seeds} for {len(self.probabilities)} runs; "
                "takes distinct ascending seeds, one a run"
            )


@dataclasses.dataclass(frozen=True)
class ArmStatistics:
    """Summaries by metric, recall of every class [m, k], comparisons with baseline and rival."""

    summaries: dict[str, Summary]
    recall_per_class: Float[np.ndarray, "m k"]
    comparisons: dict[str, Comparison]
    against_rival: dict[str, Comparison] = dataclasses.field(default_factory=dict)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the given order (Holm, 1979).

    The j-th smallest of m becomes max over i <= j of min(1, (m - i + 1) p_(i)).
    """
    order = np.argsort(p, kind="stable")
    adjusted, largest = [0.0] * len(p), 0.0
    for i, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - i) * float(p[index])))
        adjusted[index] = largest
    return adjusted


def percentile_interval(replicates: Float[np.ndarray, "r"]) -> tuple[float, float] | None:
    """The 2.5% and 97.5% quantiles of the defined resamples; None if over 5% are undefined."""
    defined = replicates[~np.isnan(replicates)]
    if len(defined) < (1 - MAX_UNDEFINED) * len(replicates):
        return None
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


def summarise(
    values: Float[np.ndarray, "m"], replicates: Float[np.ndarray, "r"] | None = None
) -> Summary:
    """Mean, spread and interval of a metric's values over seeds.

    Args:
      values: one a seed; NaN where the metric is undefined, which it then is for every seed.
      replicates: bootstrap draws of the mean, or None for no interval.
    """
    n, defined = len(values), not np.isnan(values).any()
    return Summary(
        mean=float(np.mean(values)) if defined else None,
        std=float(np.std(values, ddof=1)) if defined and n > 1 else None,
        n=n,
        ci95=percentile_interval(replicates) if defined and replicates is not None else None,
        values=tuple(_number(value) for value in values),
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def analyse(
    arms: Sequence[ArmPredictions],
    truth: resampling.Truth,
    baseline: str,
    *,
    rival: str | None = None,
    challengers: Sequence[str] = (),
    resamples: int = 2000,
    permutations: int = 2000,
    seed: int = 0,
) -> dict[str, ArmStatistics]:
    """Everything the report says of the arms, by name.

    Args:
      arms: predictions; names are distinct.
      truth: labels and groups of the test set.
      baseline: the arm that the others are compared with.
      rival: a second arm, which the challengers are compared with; chosen without the test set.
      challengers: names of arms; a Holm family apart from the baseline's.
      resamples: bootstrap resamples.
      permutations: of the permutation test; 0 leaves the comparisons out.
      seed: of all draws.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) != len(names) or baseline not in names:
        raise ValueError(f"baseline {baseline!r}: takes one of the distinct arms {names}")
    draws = _draws_of_means(arms, truth, resamples, seed)
    means, summaries = {}, {}
    for arm in arms:
        values = metrics.evaluate(arm.probabilities, truth.labels, truth.class_groups, truth.bins)
        means[arm.name] = np.array([np.mean(values[name]) for name in metrics.METRICS])
        summaries[arm.name] = {
            name: summarise(values[name], draws[arm.name][q])
            for q, name in enumerate(metrics.METRICS)
        }
    compared, against = {}, {}
    if permutations:
        pairs = _Pairs({arm.name: arm for arm in arms}, truth, means, draws, permutations, seed)
        compared = pairs.compare([name for name in names if name != baseline], baseline)
        if rival is not None:
            against = pairs.compare(challengers, rival)
    return {
        arm.name: ArmStatistics(
            summaries[arm.name],
            metrics.recall_per_class(arm.probabilities, truth.labels),
            compared.get(arm.name, {}),
            against.get(arm.name, {}),
        )
        for arm in arms
    }


def _draws_of_means(
    arms: Sequence[ArmPredictions], truth: resampling.Truth, resamples: int, seed: int
) -> dict[str, Float[np.ndarray, "q r"]]:
    """Bootstrap draws of each arm's mean over seeds: groups and runs resampled."""
    runs = [run for arm in arms for run in arm.probabilities]
    replicates = resampling.bootstrap(runs, truth, resamples, seed)
    draws, start = {}, 0
    for arm in arms:
        mine = replicates[start : start + len(arm.seeds)]
        weights = resampling.seed_weights(arm.seeds, resamples, seed)
        draws[arm.name] = np.einsum("mqr,mr->qr", mine, weights)
        start += len(arm.seeds)
    return draws


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """What a comparison of any two arms takes: arms, means [q] and draws [q, r] by name."""

    arms: dict[str, ArmPredictions]
    truth: resampling.Truth
    means: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]
    permutations: int
    seed: int

    def compare(self, names: Sequence[str], reference: str) -> dict[str, dict[str, Comparison]]:
        """Every named arm minus the reference, by metric; one Holm family a metric."""
        matched = {name: _matched_runs(self.arms[name], self.arms[reference]) for name in names}
        p = {
            name: resampling.permutation(runs, self.truth, self.permutations, self.seed)
            for name, runs in matched.items()
        }
        compared: dict[str, dict[str, Comparison]] = {name: {} for name in names}
        for q, metric in enumerate(metrics.METRICS):
            defined = [name for name in names if not np.isnan(p[name][q])]
            adjusted = dict(zip(defined, holm([p[name][q] for name in defined]), strict=True))
            for name in names:
                difference = self.means[name][q] - self.means[reference][q]
                interval = percentile_interval(self.draws[name][q] - self.draws[reference][q])
                compared[name][metric] = Comparison(
                    difference=_number(difference),
                    ci95=None if math.isnan(difference) else interval,
                    p=_number(p[name][q]),
                    p_holm=adjusted.get(name),
                    n=len(matched[name]),
                )
        return compared


def _matched_runs(
    arm: ArmPredictions, reference: ArmPredictions
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of runs by common seed; by order of seed where the arms share none."""
    theirs = dict(zip(reference.seeds, reference.probabilities, strict=True))
    common = [
        (run, theirs[s]) for s, run in zip(arm.seeds, arm.probabilities, strict=True) if s in theirs
    ]
    return common or list(zip(arm.probabilities, reference.probabilities, strict=False))
