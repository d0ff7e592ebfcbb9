"""Arms of a sweep's trials against each other: means, spread, n, intervals, tests, what they cost.

An arm here is a set of overrides, seeds left out, with an arm of the classifier. All arms with the
same images are compared with one of them as a report does it (`statistics.analyse`): intervals over
groups and seeds, a permutation test, Holm over the family. Of any other arm there are its runs' own
figures. Whatever is left out, or is other than it seems, is a note.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lt_jax.evaluate import statistics
from lt_jax.evaluate.metrics import METRICS, PRIMARY
from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.evaluate.statistics import ArmPredictions, Comparison, Summary, tables
from lt_jax.sweep import definition, measured
from lt_jax.sweep.measured import Missing, Run, Wanted
from lt_jax.sweep.states import State, SweepError

SHOWN = ("accuracy", PRIMARY, "macro_f1", "auroc_macro", "recall_tail")
BASE = "as it is"  # the overrides of a trial without any
_MISSING = {State.DONE: "without a classifier"}  # others are told as they are
# Metrics that read more of the truth than labels; an arm of another such truth has its own.
_READ = {
    "class_groups": ("recall_head", "recall_medium", "recall_tail"),
    "bins": ("ece",),
    "specificity": ("sensitivity_at_specificity",),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
    """Runs that differ in their seed alone, and those that are missing."""

    name: str
    varied: Mapping[str, Any]
    runs: tuple[Run, ...]
    missing: tuple[Missing, ...] = ()

    def summary(self, metric: str) -> Summary:
        """Over seeds, without an interval."""
        values = [run.values[metric] for run in self.runs]
        return statistics.summarise(np.array([np.nan if v is None else v for v in values], float))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the runs, ascending."""
        return tuple(run.seed for run in self.runs)

    @property
    def images(self) -> set[str]:
        """What tells whether arms were measured on the same images: one digest, or more."""
        return {run.images for run in self.runs}

    @property
    def keys(self) -> tuple[tuple[int, str], ...]:
        """The classifiers by seed, those that are missing among them."""
        wanted: list[Wanted] = [*self.runs, *self.missing]
        return tuple(sorted((one.seed, one.key) for one in wanted))

    def apart(self, reference: Truth) -> list[str]:
        """Metrics that read another truth here than in the reference."""
        return [
            metric
            for field, read in _READ.items()
            if any(getattr(run.truth, field) != getattr(reference, field) for run in self.runs)
            for metric in read
        ]

    @property
    def told(self) -> str:
        """`2 of 3 seeds, failed: 2`, or nothing where none is missing."""
        if not self.missing:
            return ""
        count = f"{len(self.runs)} of {len(self.runs) + len(self.missing)} seeds"
        states: dict[str, list[str]] = {}
        for one in self.missing:
            states.setdefault(_MISSING.get(one.state, str(one.state)), []).append(str(one.seed))
        return "; ".join([count, *(f"{name}: {', '.join(held)}" for name, held in states.items())])


@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
    """All arms by name, the baseline among them, each with what is known of it.

    Attributes:
      arms: that have a run or more.
      empty: that have none.
      same: of arms whose classifiers are another one's, which that is; they are tested once.
      notes: sentences on what is left out or other than it seems.
    """

    split: str
    baseline: str
    arms: dict[str, Arm]
    summaries: dict[str, dict[str, Summary]]
    comparisons: dict[str, dict[str, Comparison]]
    empty: dict[str, Arm] = dataclasses.field(default_factory=dict)
    same: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def distinct(self) -> dict[str, Arm]:
        """Arms with classifiers of their own."""
        return {name: arm for name, arm in self.arms.items() if name not in self.same}

    @property
    def tested(self) -> int:
        """How many comparisons are Holm's family."""
        return sum(name in self.comparisons for name in self.distinct)


def arms_of(runs: Sequence[Run], missing: Sequence[Missing] = ()) -> dict[str, Arm]:
    """Runs by overrides without seeds and by arm, in the runs' order; names are short and distinct.

    Raises SweepError where two runs of one arm have one seed.
    """
    wanted: list[Any] = [*runs, *missing]
    seeded = definition.seed_fields(one.planned.trial.overrides for one in wanted)
    overridden = (field for one in wanted for field in one.planned.trial.overrides)
    short = definition.short(dict.fromkeys(field for field in overridden if field not in seeded))
    several = len({one.arm for one in wanted}) > 1
    gathered: dict[str, list[Any]] = {}  # by what an arm is, whatever it is called
    for one in wanted:
        identity = json.dumps([_own(one, seeded), one.arm], sort_keys=True)
        gathered.setdefault(identity, []).append(one)
    firsts = [(_own(held[0], seeded), held[0].arm) for held in gathered.values()]
    found = {}
    for name, held in zip(_names(firsts, short, several), gathered.values(), strict=True):
        held.sort(key=lambda one: one.seed)
        seeds = [one.seed for one in held]
        if len(set(seeds)) < len(seeds):
            raise SweepError(f"{name}: its trials have seeds {seeds}; takes distinct ones")
        values = {short[field]: measured.value_of(held[0].planned, field) for field in short}
        varied = values | ({"arm": held[0].arm} if several else {})
        there = tuple(one for one in held if isinstance(one, Run))
        absent = tuple(one for one in held if isinstance(one, Missing))
        found[name] = Arm(name, varied, there, absent)
    return found


def _own(one: Wanted, seeded: set[str]) -> dict[str, Any]:
    return {f: v for f, v in one.planned.trial.overrides.items() if f not in seeded}


def _names(
    arms: Sequence[tuple[Mapping[str, Any], str]], short: Mapping[str, str], several: bool
) -> list[str]:
    """A name an arm, with as few digits as tell them apart."""
    names: list[str] = []
    for digits in (definition.DIGITS, 6, 8, definition.EXACT):
        told = [definition.words(own, short, digits) or BASE for own, _ in arms]
        names = [f"{t} / {a}" if several else t for t, (_, a) in zip(told, arms, strict=True)]
        if len(set(names)) == len(names):
            return names
    return [json.dumps([own, arm]) for own, arm in arms]  # 1 and "1", which are told alike


def compare(arms: Mapping[str, Arm], split: str, baseline: str = "") -> Compared:
    """Every arm, and its difference to the baseline where both are of the same images.

    Args:
      arms: of all trials on one split, as from `arms_of`.
      split: its name.
      baseline: an arm's name as the table has it; "": the first trial's `config.evaluate.baseline`.
    """
    held = {name: arm for name, arm in arms.items() if arm.runs}
    if not held:
        raise SweepError("no trial has finished a classifier on this split; nothing to compare")
    baseline = baseline or _first(held)
    if baseline not in held:
        raise SweepError(f"--baseline: got {baseline!r}; takes one of {'; '.join(held)}")
    summaries = {name: {m: arm.summary(m) for m in METRICS} for name, arm in held.items()}
    comparisons: dict[str, dict[str, Comparison]] = {}
    same = _same(held, baseline)
    reference = held[baseline]
    pictured = {
        name: arm
        for name, arm in held.items()
        if arm.images == reference.images and len(arm.images) == 1
    }
    if pictured:
        truth = reference.runs[0].truth
        evaluate = reference.runs[0].planned.trial.config["evaluate"]
        analysed = statistics.analyse(
            [_predictions(arm) for name, arm in pictured.items() if name not in same],
            truth,
            baseline,
            resamples=evaluate["resamples"],
            permutations=evaluate["permutations"],
            seed=evaluate["seed"],
            interval=evaluate["interval"],
        )
        for name, arm in pictured.items():
            of, apart = analysed[same.get(name, name)], arm.apart(truth)
            keep = lambda cells, apart=apart: {m: c for m, c in cells.items() if m not in apart}
            if arm.seeds == pictured[same.get(name, name)].seeds:
                summaries[name] |= keep(of.summaries)
            if of.comparisons:
                comparisons[name] = keep(of.comparisons)
    empty = {name: arm for name, arm in arms.items() if not arm.runs}
    found = Compared(split, baseline, held, summaries, comparisons, empty, same)
    return dataclasses.replace(found, notes=tuple(_notes(found)))


def _first(arms: Mapping[str, Arm]) -> str:
    """The baseline arm of the first trial that is done, or what it has."""
    first = next(iter(arms.values())).runs[0].planned
    wanted = first.trial.config["evaluate"]["baseline"]
    mine = [name for name, arm in arms.items() if arm.runs[0].planned.name == first.name]
    return next((name for name in mine if arms[name].runs[0].arm == wanted), mine[0])


def _same(arms: Mapping[str, Arm], baseline: str) -> dict[str, str]:
    """Arms that no field which differs has touched: of which other arm their classifiers are."""
    # Of several that are one, the baseline stands for all, or the one with the most runs.
    order = sorted(arms, key=lambda name: (name != baseline, -len(arms[name].runs)))
    firsts: dict[str, str] = {}
    for name in order:
        firsts.setdefault(_identity(arms[name]), name)
    found = {name: firsts[_identity(arm)] for name, arm in arms.items()}
    return {name: first for name, first in found.items() if name != first}


def _identity(arm: Arm) -> str:
    """Classifiers, images and how these are measured."""
    read = [[getattr(run.truth, field) for field in _READ] for run in arm.runs[:1]]
    return json.dumps([arm.keys, sorted(arm.images), read], sort_keys=True)


def _predictions(arm: Arm) -> ArmPredictions:
    return ArmPredictions(arm.name, arm.seeds, np.stack([run.probabilities for run in arm.runs]))


def _notes(found: Compared) -> Iterator[str]:
    """What is left out of the comparison or is other than it seems, a sentence each."""
    reference = found.arms[found.baseline]
    for name, arm in (found.arms | found.empty).items():
        if arm.told:
            yield f"{name}: {arm.told}. Means are over the seeds that are there."
    for name, arm in found.distinct.items():
        if name != found.baseline and name in found.comparisons and arm.seeds != reference.seeds:
            yield (
                f"{name}: its difference is of the mean over seeds {_listed(arm.seeds)} from the "
                f"baseline's over {_listed(reference.seeds)}; p is of common seeds, or of runs in "
                "their order where there are none."
            )
    if len(reference.images) > 1:
        yield (
            f"Runs of the baseline were measured on different {found.split} images (does the split "
            "follow the seed?): figures are the runs' own, without interval or test."
        )
    else:
        other = [n for n, arm in found.distinct.items() if arm.images != reference.images]
        if other:
            yield (
                f"Measured on other {found.split} images than the baseline, or each run on others; "
                f"their own figures, without interval or test: {'; '.join(other)}."
            )
        truth = reference.runs[0].truth
        for name, arm in found.distinct.items():
            if name not in other and (apart := arm.apart(truth)):
                yield (
                    f"{name}: {', '.join(apart)} are by its own groups, bins or specificity, which "
                    "are not the baseline's; they are not compared."
                )
    for first in dict.fromkeys(found.same.values()):
        others = [name for name, of in found.same.items() if of == first]
        yield (
            f"{first}, tested once, is also {'; '.join(others)}: no field that differs touches "
            "these classifiers."
        )


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def table(found: Compared, searched: bool = False) -> tables.Table:
    """A row an arm: metrics, the difference to the baseline, and what a run costs."""
    rows: list[tuple[Any, ...]] = []
    for name, arm in found.distinct.items():
        held = found.comparisons.get(name, {}).get(PRIMARY)
        versus: Any = held or ("" if name == found.baseline else tables.UNDEFINED)
        mark = f"{name} (baseline)" if name == found.baseline else name
        summaries = [found.summaries[name][metric] for metric in SHOWN]
        rows.append((_marked(mark, arm), *summaries, versus, _cost(arm)))
    for name, arm in found.empty.items():
        rows.append((_marked(name, arm), *[tables.UNDEFINED] * (len(SHOWN) + 2)))
    last = f"{tables.TITLES[PRIMARY]} minus {found.baseline}"
    columns = ("Arm", *(tables.TITLES[metric] for metric in SHOWN), last, "A run costs")
    return tables.Table(columns, tuple(rows), caption(found, searched))


def _marked(name: str, arm: Arm) -> str:
    return f"{name} [{arm.told}]" if arm.missing else name


def caption(found: Compared, searched: bool = False) -> str:
    """What the table shows, and what it does not; `searched`: a search chose arms on this split."""
    n = len(found.distinct) + len(found.empty)
    parts = [f"{n} {'arm' if n == 1 else 'arms'} on {found.split}: mean ± deviation over seeds"]
    if found.tested:
        parts[0] += (
            "; difference with 95% interval over groups and seeds, permutation p, Holm over "
            f"{found.tested} comparisons"
        )
    elif n > 1:
        parts[0] += "; nothing is tested"
    if searched:
        parts.append(
            f"A search has chosen these arms on {found.split}: intervals, p-values and main "
            "effects do not hold for the best of them"
        )
    if n > 1 and found.split != "test":
        parts.append(f"The best of {n} on {found.split} is flattered by being chosen")
    return ". ".join(parts) + "."


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
            "seeds": list(arm.seeds),
            "missing": _missing(arm),
            "same_as": found.same.get(name),
            "metrics": cells(found.summaries[name]),
            "paired": cells(found.comparisons.get(name, {})),
            "cost": [dataclasses.asdict(run.own) for run in arm.runs],
            "stages_before": dataclasses.asdict(arm.runs[0].before),
        }
        for name, arm in found.arms.items()
    ]
    return {
        "split": found.split,
        "baseline": found.baseline,
        "arms": arms,
        "without_runs": {name: _missing(arm) for name, arm in found.empty.items()},
        "notes": list(found.notes),
    }


def _missing(arm: Arm) -> list[dict[str, Any]]:
    return [
        {"trial": one.planned.name, "seed": one.seed, "state": str(one.state)}
        for one in arm.missing
    ]
