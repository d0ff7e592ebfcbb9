"""What finished trials have measured: metrics of every arm and seed on a split, and what they cost.

All from saved logits. On val and policy_val test labels stay masked; `on_test` logs that it opens
them.
"""

import dataclasses
import hashlib
import json
import pathlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from lt_jax import specs as specs_lib
from lt_jax.data import manifest as manifest_lib
from lt_jax.data.manifest import SplitManifest
from lt_jax.evaluate import metrics
from lt_jax.evaluate.metrics import grouping
from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.pipeline import Pipeline
from lt_jax.runtime import arrays, files
from lt_jax.runtime.artifacts import Spec
from lt_jax.runtime.ledger import Ledger
from lt_jax.sweep.definition import EXACT, Search, told
from lt_jax.sweep.states import Planned, State, SweepError


@dataclasses.dataclass(frozen=True, eq=False)
class Wanted:
    """One classifier that a trial is for.

    Attributes:
      key: of its artifact; classifiers of one key are one.
    """

    planned: Planned
    arm: str
    seed: int
    key: str


@dataclasses.dataclass(frozen=True, eq=False)
class Missing(Wanted):
    """A classifier that is not there, and where its trial stands."""

    state: State


@dataclasses.dataclass(frozen=True, eq=False)
class Run(Wanted):
    """A finished classifier on one split.

    Attributes:
      values: metrics by name; None where one is undefined.
      probabilities: [n, k].
      truth: of the split.
      images: a digest of the split's ids, labels and groups: equal where all of them are.
      own, before: costs of the run, and of the stages that it builds on.
    """

    values: dict[str, float | None]
    probabilities: np.ndarray
    truth: Truth
    images: str
    own: Ledger
    before: Ledger


def pipeline_of(planned: Planned) -> Pipeline:
    """The run of a trial."""
    line = shlex.join(["python", "-m", "lt_jax.sweep.trial", str(planned.folder)])
    config = ConfigDict(dict(planned.trial.config))
    return Pipeline(config, planned.workdir, planned.cache, line)


def of(planned: Planned, split: str) -> list[Run]:
    """Every finished classifier of a trial on val or policy_val."""
    run = pipeline_of(planned)
    found = [spec for spec in _classifiers(run) if run.store.done(spec)]
    if not found:
        return []
    manifest = _manifest(run).without_test_labels()
    if not len(manifest.rows(split)):
        raise SweepError(
            f"{planned.name}: its split {split} is empty; nothing can be compared there "
            f"(config.data.split.{split} above 0)"
        )
    return _on(split, found, planned, run, manifest)


def missing(planned: Planned, state: State, found: Iterable[Run]) -> list[Missing]:
    """The classifiers of a trial that are not among the found ones."""
    there = {(run.arm, run.seed) for run in found}
    named = [
        (*specs_lib.arm_and_seed(spec), spec.key) for spec in _classifiers(pipeline_of(planned))
    ]
    return [
        Missing(planned, arm, seed, key, state)
        for arm, seed, key in named
        if (arm, seed) not in there
    ]


def on_test(runs: Sequence[Run], log: pathlib.Path, reason: str) -> list[Run]:
    """The same classifiers on test. Opens the test labels; `log` gets a line a manifest."""
    opened: set[str] = set()
    found = []
    for held in runs:
        run = pipeline_of(held.planned)
        manifest = _manifest(run)
        if manifest.sha256 not in opened:
            manifest.open_test(log, reason)
            opened.add(manifest.sha256)
        name = f"classify/{held.arm}/seed{held.seed}"
        specs = [spec for spec in _classifiers(run) if spec.stage == name]
        found += _on("test", specs, held.planned, run, manifest)
    return found


def _classifiers(run: Pipeline) -> list[Spec]:
    return run.selected(["classify"])


def _manifest(run: Pipeline) -> SplitManifest:
    (prepare,) = run.selected(["prepare"])
    return manifest_lib.load(run.store.folder(prepare))


def images_of(manifest: SplitManifest, rows: np.ndarray) -> str:
    """A digest of some rows' ids, labels and groups, and of the classes' names."""
    held = [(manifest.ids[row], int(manifest.labels[row]), manifest.groups[row]) for row in rows]
    return hashlib.sha256(json.dumps([held, manifest.classes]).encode()).hexdigest()


def truth_of(manifest: SplitManifest, rows: np.ndarray, evaluate: Any) -> Truth:
    """Labels and groups of some rows, as `config.evaluate` has them ranked."""
    return Truth(
        labels=manifest.labels[rows],
        groups=grouping.group_codes([manifest.groups[row] for row in rows]),
        class_groups=manifest.groups_by_count(
            evaluate.head_above, evaluate.tail_below, evaluate.group_by
        ),
        k=len(manifest.classes),
        bins=evaluate.ece_bins,
        specificity=evaluate.specificity,
    )


def _on(
    split: str,
    classifiers: Sequence[Spec],
    planned: Planned,
    run: Pipeline,
    manifest: SplitManifest,
) -> list[Run]:
    rows = manifest.rows(split)
    truth = truth_of(manifest, rows, run.config.evaluate)
    ids, images = [manifest.ids[row] for row in rows], images_of(manifest, rows)
    runs = []
    for spec in classifiers:
        path = run.store.intact(spec) / "predictions.npz"
        saved = arrays.load(path)
        if [*saved[f"{split}_ids"]] != ids:
            raise SweepError(
                f"{path} holds other {split} images than the manifest; delete its folder"
            )
        logits = saved[f"{split}_logits"].astype(np.float64)
        probabilities = metrics.softmax(logits, str(path))
        values = metrics.evaluate(
            probabilities, truth.labels, truth.class_groups, truth.bins, truth.specificity
        )
        known = {name: _number(float(value)) for name, value in values.items()}
        wanted = planned, *specs_lib.arm_and_seed(spec), spec.key
        runs.append(Run(*wanted, known, probabilities, truth, images, *_costs(run, spec)))
    return runs


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _inputs(specs: dict[str, Spec], spec: Spec) -> dict[str, Spec]:
    """All that a stage builds on, by key."""
    found = {}
    for name in spec.inputs:
        found |= {specs[name].key: specs[name], **_inputs(specs, specs[name])}
    return found


def _costs(run: Pipeline, spec: Spec) -> tuple[Ledger, Ledger]:
    specs, before = {held.stage: held for held in run.specs}, Ledger()
    for held in _inputs(specs, spec).values():
        before.add(run.store.ledger(held))
    return run.store.ledger(spec), before


def total(trials: Iterable[Planned]) -> tuple[Ledger, int, int]:
    """What all finished stages of trials, done or not, have cost, each counted once; how many, and
    for how many uses."""
    cost, seen, uses = Ledger(), set[str](), 0
    for planned in trials:
        run = pipeline_of(planned)
        for spec in run.specs:
            if not run.store.done(spec) or spec.stage == "report":
                continue
            uses += 1
            if spec.key not in seen:
                seen.add(spec.key)
                cost.add(run.store.ledger(spec))
    return cost, len(seen), uses


def objective(planned: Planned, search: Search) -> float | None:
    """A finished trial's mean over seeds of what is searched for; None where it is undefined."""
    split, arm, metric = search.parts
    values = [run.values[metric] for run in of(planned, split) if run.arm == arm]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def write_table(runs: Mapping[str, Sequence[Run]], path: pathlib.Path) -> None:
    """One Parquet table of the runs by split: a row a trial, arm, seed and metric.

    Overrides are columns, by the field's path; costs are the run's own, and `stages_*` those of all
    that it builds on.
    """
    held = [run for mine in runs.values() for run in mine]
    fields = sorted({field for run in held for field in run.planned.trial.overrides})
    rows = [
        {
            "trial": run.planned.name,
            "arm": run.arm,
            "seed": run.seed,
            "split": split,
            "metric": metric,
            "value": value,
            **{field: value_of(run.planned, field) for field in fields},
            **dataclasses.asdict(run.own),
            "stages_seconds": run.before.seconds,
            "stages_flops": run.before.flops,
        }
        for split, mine in runs.items()
        for run in sorted(mine, key=lambda run: (run.planned.name, run.arm, run.seed))
        for metric, value in run.values.items()
    ]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for field in fields:  # a column has one type: of numbers, or of texts
        kinds = {type(value) for value in columns[field]}
        if not kinds <= {int, float}:
            columns[field] = [told(value, EXACT) for value in columns[field]]
        elif len(kinds) > 1:
            columns[field] = [float(value) for value in columns[field]]
    stream = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), stream)
    files.write_atomically(path, stream.getvalue().to_pybytes(), "the table of trials")


def value_of(planned: Planned, field: str) -> Any:
    """A field of a trial's config, overridden or not."""
    value: Any = planned.trial.config
    for name in field.removeprefix("config.").split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
