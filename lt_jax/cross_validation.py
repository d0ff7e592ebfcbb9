r"""Cross-validation without leaks: every fold trains everything anew, and all images are test once.

    python -m lt_jax.cross_validation --config=configs/digits.py --workdir=runs/cv --folds=5

Groups are dealt into folds class by class (`data.splits`). In fold i the images of part i are the
locked test split, and generator, extractor, selection, policy and classifiers are trained on the
others: a run of its own in `fold<i>/`, whose finished stages are kept in `cache/`, so that a second
command with one more arm trains that arm alone.

At the end each fold's test labels are opened once, and the report in the workdir is that of all
images, each under the logits of the fold that had never seen it:

- Means, intervals and p-values come from the pooled images, groups resampled as in any report. They
  take the folds' classifiers as one: what AUROC ranks are scores of several networks, whose scales
  may differ, so that it may lie below the mean over folds or above it.
- Head, medium and tail are by the mean of the folds' train counts; by fold, by its own counts.
- val is left out of it: every val image is test in another fold, so that what val chose would be
  chosen by test. No arm is called the best; arms with a pool are held against the baseline alone,
  and charts with room for some arms show the first. Accuracies on policy_val are shown beside
  those on test, but choose nothing.
- `cross_validation.json` has every metric by fold, and the corrected resampled t-test of each arm
  against the baseline over the folds (Nadeau and Bengio, Machine Learning 52:239, 2003), which
  allows for the train images that folds share.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from lt_jax import command, reporting
from lt_jax.config import ConfigError, EvaluateConfig
from lt_jax.data import longtail
from lt_jax.evaluate import report as report_lib
from lt_jax.evaluate.errors import EvaluationError
from lt_jax.evaluate.report import folds as folds_lib
from lt_jax.evaluate.statistics import detection
from lt_jax.pipeline import Pipeline
from lt_jax.runtime import distributed, files
from lt_jax.specs import STAGES

Folds = Sequence[report_lib.ReportInputs]


def configured(values: ConfigDict, folds: int, fold: int) -> ConfigDict:
    """The config of one fold."""
    config: Any = values.copy_and_resolve_references()
    with config.unlocked():
        config.data.split.update(folds=folds, fold=fold)
    return config


def pipelines(
    values: Any, folds: int, workdir: pathlib.Path, cache: pathlib.Path, line: str = ""
) -> list[Pipeline]:
    """A run a fold of the ConfigDict `values`, in `workdir/fold<i>`.

    Raises:
      ConfigError: the config reuses saved splits, which folds are to replace.
    """
    if values.data.manifest:
        raise ConfigError(
            "config.data.manifest: its splits are saved ones, but cross-validation draws its own; "
            "leave it empty"
        )
    return [
        Pipeline(configured(values, folds, fold), workdir / f"fold{fold}", cache, line)
        for fold in range(folds)
    ]


def run(runs: Sequence[Pipeline], workdir: pathlib.Path, accept_config_change: bool) -> None:
    """Trains every fold, opens each test split once, and writes the pooled report."""
    for fold in runs:
        fold.run([stage for stage in STAGES if stage != "report"], accept_config_change)
    distributed.on_first(lambda: _report(runs, workdir))


def _report(runs: Sequence[Pipeline], workdir: pathlib.Path) -> None:
    inputs = [reporting.gather(fold.context(), "cross-validation") for fold in runs]
    whole = pooled(inputs)
    report = report_lib.write(whole, workdir)
    found = report_lib.strict(folds_lib.compare(inputs))
    text = json.dumps(found, indent=1, allow_nan=False)
    files.write_atomically(workdir / "cross_validation.json", text + "\n", "the folds' metrics")
    print(report_lib.text_table(report))
    print(folds_lib.text_table(found))
    print(f"report: {workdir / 'report.html'}")


def pooled(folds: Folds) -> report_lib.ReportInputs:
    """One report's inputs of all folds: test images and logits in a row, costs added up.

    Pool, policy and pictures are those of no fold; they are in each fold's own artifacts. val is
    set aside, since all of it is test in other folds: nothing can be chosen by it.

    Raises:
      EvaluationError: the folds have other classes, arms or seeds, or an image twice.
    """
    first = folds[0]
    _check(folds)
    return dataclasses.replace(
        first,
        dataset=_dataset([fold.dataset for fold in folds], first.evaluate),
        arms=tuple(_arm([fold.arms[i] for fold in folds]) for i in range(len(first.arms))),
        pool=None,
        gallery=None,
        costs=tuple(
            _added([fold.costs[i] for fold in folds], first.costs[i])
            for i in range(len(first.costs))
        ),
        skipped=first.skipped,
        learning=None,
        detection=detection.pooled([fold.detection for fold in folds]),
    )


def _check(folds: Folds) -> None:
    for name, of in _ALIKE.items():
        if any(of(fold) != of(folds[0]) for fold in folds):
            raise EvaluationError(f"folds differ in their {name}: they are of other configs")
    groups = [set(np.asarray(fold.dataset.test_groups).tolist()) for fold in folds]
    if len(set.union(*groups)) < sum(map(len, groups)):
        raise EvaluationError("a group is in the test split of two folds")


_ALIKE: dict[str, Callable[[report_lib.ReportInputs], Any]] = {
    "classes": lambda fold: fold.dataset.classes,
    "arms": lambda fold: [arm.name for arm in fold.arms],
    "seeds": lambda fold: [[run.seed for run in arm.runs] for arm in fold.arms],
}


def _dataset(parts: Sequence[report_lib.Dataset], evaluate: EvaluateConfig) -> report_lib.Dataset:
    join = lambda name: np.concatenate([np.asarray(getattr(part, name)) for part in parts])
    counts = np.mean([part.train_counts for part in parts], axis=0).round().astype(int)
    hashes = "".join(part.manifest_sha256 for part in parts)
    held = lambda name: all(getattr(part, name) is not None for part in parts)
    return dataclasses.replace(
        parts[0],
        train_counts=counts.tolist(),
        # No fold's own, which differ where a class is near a bound.
        groups=longtail.groups_by_count(
            counts, evaluate.head_above, evaluate.tail_below, evaluate.group_by
        ),
        manifest_sha256=hashlib.sha256(hashes.encode()).hexdigest(),
        test_openings=max(part.test_openings for part in parts),
        test_labels=join("test_labels"),
        test_groups=join("test_groups"),
        val_labels=None,
        policy_val_labels=join("policy_val_labels") if held("policy_val_labels") else None,
    )


def _arm(parts: Sequence[report_lib.Arm]) -> report_lib.Arm:
    runs = [
        _run(same)
        for same in zip(
            *(sorted(part.runs, key=lambda run: run.seed) for part in parts), strict=True
        )
    ]
    mean = lambda name: np.mean([getattr(part, name) for part in parts], axis=0).tolist()
    doses = None if parts[0].doses is None else mean("doses")
    unmet = None if parts[0].unmet is None else [round(number) for number in mean("unmet")]
    return dataclasses.replace(parts[0], runs=tuple(runs), doses=doses, unmet=unmet)


def _run(parts: Sequence[report_lib.Run]) -> report_lib.Run:
    """A seed's runs of all folds as one; the prior of each is beside its own images."""
    first = parts[0]

    def held(name: str) -> list[np.ndarray] | None:
        arrays = [getattr(part, name) for part in parts]
        return None if any(array is None for array in arrays) else arrays

    join = lambda name: None if (arrays := held(name)) is None else np.concatenate(arrays)
    total = lambda name: (
        None if getattr(first, name) is None else sum(getattr(part, name) for part in parts)
    )
    return dataclasses.replace(
        first,
        test_logits=np.concatenate([part.test_logits for part in parts]),
        log_prior=np.concatenate(
            [np.broadcast_to(part.log_prior, part.test_logits.shape) for part in parts]
        ),
        val_logits=None,
        policy_val_logits=join("policy_val_logits"),
        curves=(),
        seconds=total("seconds"),
        images=total("images"),
        flops=total("flops"),
        data_wait=total("data_wait"),
        shares=None if (shares := held("shares")) is None else np.mean(shares, axis=0),
    )


def _added(
    parts: Sequence[report_lib.StageCost], first: report_lib.StageCost
) -> report_lib.StageCost:
    flops = None if first.flops is None else sum(part.flops or 0.0 for part in parts)
    return dataclasses.replace(
        first,
        seconds=sum(part.seconds for part in parts),
        images=sum(part.images for part in parts),
        flops=flops,
    )


def main(_: list[str]) -> None:
    """Runs all folds and their report."""
    workdir = command.workdir()
    cache = command.cache() or workdir / "cache"
    line = command.line("lt_jax.cross_validation")
    with command.ending():
        runs = pipelines(command.config(), flags.FLAGS.folds, workdir, cache, line)
        command.use_devices(runs[0].config.runtime, cache)
        run(runs, workdir, command.accept_config_change())


if __name__ == "__main__":
    flags.DEFINE_integer("folds", 5, "parts that are test in turn", lower_bound=2)
    command.start(main)
