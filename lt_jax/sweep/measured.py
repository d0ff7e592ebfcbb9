"""What finished trials have measured: metrics of every arm and seed on a split, and what they cost.

On val and policy_val from saved logits, whose test labels stay masked; on test from the trials' own
reports alone, each of which logs that it opens the test labels.
"""

import dataclasses
import json
import pathlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from lt_jax.data import manifest as manifest_lib
from lt_jax.data.manifest import SplitManifest
from lt_jax.evaluate import metrics
from lt_jax.evaluate.metrics import grouping
from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.pipeline import Pipeline
from lt_jax.runtime import arrays, files
from lt_jax.runtime.artifacts import Spec
from lt_jax.runtime.ledger import Ledger
from lt_jax.sweep.definition import Search, told
from lt_jax.sweep.states import Planned, SweepError


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One classifier of one trial on one split.

    Attributes:
      values: metrics by name; None where one is undefined.
      probabilities: [n, k], None on the test split.
      truth: of the split, likewise.
      own, before: costs of the run, and of the stages that it builds on.
    """

    planned: Planned
    arm: str
    seed: int
    values: dict[str, float | None]
    probabilities: np.ndarray | None
    truth: Truth | None
    own: Ledger
    before: Ledger


def pipeline_of(planned: Planned) -> Pipeline:
    """The run of a trial."""
    line = shlex.join(["python", "-m", "lt_jax.sweep.trial", str(planned.folder)])
    config = ConfigDict(dict(planned.trial.config))
    return Pipeline(config, planned.workdir, planned.cache, line)


def of(planned: Planned, split: str) -> list[Run]:
    """Every finished classifier of a trial on val, policy_val or test."""
    run = pipeline_of(planned)
    specs = {spec.stage: spec for spec in run.specs}
    found = [name for name in specs if name.startswith("classify/") and run.store.done(specs[name])]
    if not found:
        return []
    if split == "test":
        return _of_report(planned, run, specs, found)
    manifest = manifest_lib.load(run.store.folder(specs["prepare"])).without_test_labels()
    rows = manifest.rows(split)
    if not len(rows):
        raise SweepError(
            f"{planned.name}: its split {split} is empty; nothing can be compared there "
            f"(config.data.split.{split} above 0)"
        )
    truth = truth_of(manifest, rows, run.config.evaluate)
    return [_on(split, stage, planned, run, specs, manifest, truth) for stage in found]


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
    stage: str,
    planned: Planned,
    run: Pipeline,
    specs: dict[str, Spec],
    manifest: SplitManifest,
    truth: Truth,
) -> Run:
    path = run.store.intact(specs[stage]) / "predictions.npz"
    saved = arrays.load(path)
    if [*saved[f"{split}_ids"]] != [manifest.ids[row] for row in manifest.rows(split)]:
        raise SweepError(f"{path} holds other {split} images than the manifest; delete its folder")
    probabilities = metrics.softmax(saved[f"{split}_logits"].astype(np.float64), str(path))
    values = metrics.evaluate(
        probabilities, truth.labels, truth.class_groups, truth.bins, truth.specificity
    )
    known = {name: _number(float(value)) for name, value in values.items()}
    return Run(
        planned, *_name(stage), known, probabilities, truth, *_costs(run, specs, specs[stage])
    )


def _of_report(
    planned: Planned, run: Pipeline, specs: dict[str, Spec], found: Sequence[str]
) -> list[Run]:
    """From a trial's report.json; nothing where it has none."""
    path = run.store.folder(specs["report"]) / "report.json"
    if not run.store.done(specs["report"]):
        return []
    arms = {arm["name"]: arm for arm in json.loads(path.read_text())["arms"]}
    runs = []
    for stage in found:
        name, seed = _name(stage)
        at = arms[name]["seeds"].index(seed)
        values = {metric: held["values"][at] for metric, held in arms[name]["metrics"].items()}
        runs.append(Run(planned, name, seed, values, None, None, *_costs(run, specs, specs[stage])))
    return runs


def _name(stage: str) -> tuple[str, int]:
    _, arm, seed = stage.split("/")
    return arm, int(seed.removeprefix("seed"))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _inputs(specs: dict[str, Spec], spec: Spec) -> dict[str, Spec]:
    """All that a stage builds on, by key."""
    found = {}
    for name in spec.inputs:
        found |= {specs[name].key: specs[name], **_inputs(specs, specs[name])}
    return found


def _costs(run: Pipeline, specs: dict[str, Spec], spec: Spec) -> tuple[Ledger, Ledger]:
    before = Ledger()
    for held in _inputs(specs, spec).values():
        before.add(run.store.ledger(held))
    return run.store.ledger(spec), before


def total(trials: Iterable[Planned]) -> tuple[Ledger, int, int]:
    """What all finished stages have cost, each counted once; how many, and for how many uses."""
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
        if len(kinds) > 1 or not kinds <= {int, float}:
            columns[field] = [told(value) for value in columns[field]]
    stream = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), stream)
    files.write_atomically(path, stream.getvalue().to_pybytes(), "the table of trials")


def value_of(planned: Planned, field: str) -> Any:
    """A field of a trial's config, overridden or not."""
    value: Any = planned.trial.config
    for name in field.removeprefix("config.").split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
