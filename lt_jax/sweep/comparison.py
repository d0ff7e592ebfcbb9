"""Arms of a sweep's trials against each other: means, spread, n, intervals, tests, what they cost.

An arm here is a set of overrides, seeds left out, with an arm of the classifier. On val and
policy_val all arms with the same images are compared with one of them as a report does it
(`statistics.analyse`): intervals over groups and seeds, a permutation test, Holm over the family.
On test there are the figures of the trials' own reports, side by side.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lt_jax.evaluate import statistics
from lt_jax.evaluate.metrics import METRICS, PRIMARY
from lt_jax.evaluate.statistics import ArmPredictions, Comparison, Summary, tables
from lt_jax.sweep import definition, measured
from lt_jax.sweep.measured import Run
from lt_jax.sweep.states import SweepError

SHOWN = ("accuracy", PRIMARY, "macro_f1", "auroc_macro", "recall_tail")
BASE = "as it is"  # the overrides of a trial without any


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
    """Runs that differ in their seed alone."""

    name: str
    varied: Mapping[str, Any]
    runs: tuple[Run, ...]

    def summary(self, metric: str) -> Summary:
        """Over seeds, without an interval."""
        values = [run.values[metric] for run in self.runs]
        return statistics.summarise(np.array([np.nan if v is None else v for v in values], float))

    @property
    def images(self) -> Any:
        """What tells whether two arms were measured on the same images."""
        truth = self.runs[0].truth
        return None if truth is None else (truth.labels.tobytes(), truth.groups.tobytes())


@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
    """All arms by name, the baseline among them, each with what is known of it."""

    split: str
    baseline: str
    arms: dict[str, Arm]
    summaries: dict[str, dict[str, Summary]]
    comparisons: dict[str, dict[str, Comparison]]


def arms_of(runs: Sequence[Run]) -> dict[str, Arm]:
    """Runs by overrides without seeds and by arm, in the runs' order; names are short and distinct.

    Raises SweepError where two runs of one arm have one seed.
    """
    seeded = definition.seed_fields(run.planned.trial.overrides for run in runs)
    overridden = (field for run in runs for field in run.planned.trial.overrides)
    fields = dict.fromkeys(field for field in overridden if field not in seeded)
    short = definition.short(fields)
    several = len({run.arm for run in runs}) > 1
    gathered: dict[str, list[Run]] = {}
    varied: dict[str, dict[str, Any]] = {}
    for run in runs:
        own = {f: v for f, v in run.planned.trial.overrides.items() if f not in seeded}
        name = definition.words(own, short) or BASE
        name = f"{name} / {run.arm}" if several else name
        gathered.setdefault(name, []).append(run)
        values = {short[field]: measured.value_of(run.planned, field) for field in fields}
        varied[name] = values | ({"arm": run.arm} if several else {})
    found = {}
    for name, mine in gathered.items():
        ordered = tuple(sorted(mine, key=lambda run: run.seed))
        seeds = [run.seed for run in ordered]
        if len(set(seeds)) < len(seeds):
            raise SweepError(f"{name}: its trials have seeds {seeds}; takes distinct ones")
        found[name] = Arm(name, varied[name], ordered)
    return found


def compare(runs: Sequence[Run], split: str, baseline: str = "") -> Compared:
    """Every arm, and its difference to the baseline where both are of the same images.

    Args:
      runs: of all trials on one split.
      split: its name.
      baseline: an arm's name as the table has it; "": the first trial's `config.evaluate.baseline`.
    """
    if not runs:
        raise SweepError("no trial has finished a classifier on this split; nothing to compare")
    arms = arms_of(runs)
    baseline = baseline or _first(arms)
    if baseline not in arms:
        raise SweepError(f"--baseline: got {baseline!r}; takes one of {'; '.join(arms)}")
    summaries = {name: {m: arm.summary(m) for m in METRICS} for name, arm in arms.items()}
    comparisons: dict[str, dict[str, Comparison]] = {}
    reference = arms[baseline]
    truth = reference.runs[0].truth
    if truth is not None:
        same = [arm for arm in arms.values() if arm.images == reference.images]
        evaluate = reference.runs[0].planned.trial.config["evaluate"]
        found = statistics.analyse(
            [_predictions(arm) for arm in same],
            truth,
            baseline,
            resamples=evaluate["resamples"],
            permutations=evaluate["permutations"],
            seed=evaluate["seed"],
            interval=evaluate["interval"],
        )
        summaries |= {name: held.summaries for name, held in found.items()}
        comparisons = {name: held.comparisons for name, held in found.items() if held.comparisons}
    return Compared(split, baseline, arms, summaries, comparisons)


def _first(arms: Mapping[str, Arm]) -> str:
    """The baseline arm of the first trial, or what it has."""
    first = next(iter(arms.values())).runs[0].planned
    wanted = first.trial.config["evaluate"]["baseline"]
    mine = [name for name, arm in arms.items() if arm.runs[0].planned.name == first.name]
    return next((name for name in mine if arms[name].runs[0].arm == wanted), mine[0])


def _predictions(arm: Arm) -> ArmPredictions:
    stacked = np.stack([run.probabilities for run in arm.runs if run.probabilities is not None])
    return ArmPredictions(arm.name, tuple(run.seed for run in arm.runs), stacked)


def table(found: Compared) -> tables.Table:
    """A row an arm: metrics, the difference to the baseline, and what a run costs."""
    rows = []
    for name, arm in found.arms.items():
        held = found.comparisons.get(name, {}).get(PRIMARY)
        versus: Any = held or ("" if name == found.baseline else tables.UNDEFINED)
        mark = f"{name} (baseline)" if name == found.baseline else name
        summaries = [found.summaries[name][metric] for metric in SHOWN]
        rows.append((mark, *summaries, versus, _cost(arm)))
    last = f"{tables.TITLES[PRIMARY]} minus {found.baseline}"
    columns = ("Arm", *(tables.TITLES[metric] for metric in SHOWN), last, "A run costs")
    return tables.Table(columns, tuple(rows), caption(found))


def caption(found: Compared) -> str:
    """What the table shows, and what it does not."""
    n = len(found.arms)
    if not found.comparisons:
        return (
            f"{n} arms on {found.split}: mean ± deviation over seeds; every figure is of a trial's "
            "own report, and differences are tested there"
        )
    return (
        f"{n} arms on {found.split}: mean ± deviation over seeds; difference with 95% interval "
        f"over groups and seeds, permutation p, Holm over {len(found.comparisons)} comparisons. "
        f"The best of {n} on {found.split} is flattered by being chosen."
    )


def _cost(arm: Arm) -> str:
    seconds = np.mean([run.own.seconds for run in arm.runs])
    flops = np.mean([run.own.flops for run in arm.runs])
    before = arm.runs[0].before
    return f"{seconds:.3g} s, {flops:.3g} FLOPs; stages before {before.flops:.3g} FLOPs"


def to_json(found: Compared) -> dict[str, Any]:
    """Every metric of every arm, with its overrides and trials."""
    cells = lambda held: {name: tables.cell_to_json(cell) for name, cell in held.items()}
    arms = [
        {
            "name": name,
            "varied": json.loads(json.dumps(arm.varied)),
            "trials": sorted({run.planned.name for run in arm.runs}),
            "seeds": [run.seed for run in arm.runs],
            "metrics": cells(found.summaries[name]),
            "paired": cells(found.comparisons.get(name, {})),
            "cost": [dataclasses.asdict(run.own) for run in arm.runs],
            "stages_before": dataclasses.asdict(arm.runs[0].before),
        }
        for name, arm in found.arms.items()
    ]
    return {"split": found.split, "baseline": found.baseline, "arms": arms}
