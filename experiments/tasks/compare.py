r"""Tasks of a data set, each from the same generator with a LoRA adapter of its own.

    python -m experiments.tasks.compare --config=configs/phantom.py --out=runs/tasks
    python -m experiments.tasks.compare --config=configs/phantom.py --out=runs/tasks --shots=10

The generator is pretrained once, on the train split under the data set's own classes. A task is a
column of the manifest and a set of its values (`TASKS`). It keeps that manifest's splits, so that
no image it is tested on has trained the generator; its adapter, extractor, pool and classifiers are
its own, few-shot subsets included (`--shots`).

As in BUSGen, few shots are few for adapter, extractor and classifiers alone: the base generator has
seen all train images under the data set's own labels, which often say the task's. What the
synthetic arm then shows is what a generator pretrained on the whole set is worth to a classifier
with few labels, not what can be generated from few images.

Each task ends in a report of its own, whose test labels are opened once; the table sets them side
by side.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments import arms as arms_lib
from lt_jax import command
from lt_jax import config as config_lib
from lt_jax.evaluate import report as report_lib
from lt_jax.evaluate.statistics import tables
from lt_jax.pipeline import Pipeline
from lt_jax.runtime import files, mesh

# By source: a task's column, and its classes (see `lt_jax.data.sources.Task`).
_BENIGN = "benign=fibroadenoma,cyst,lipoma"
TASKS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "phantom": {
        "diagnosis": ("malignant", ("benign", "malignant")),
        "dcis": ("label", (_BENIGN, "dcis")),
        "subtype": ("label", ("other=invasive_ductal,dcis", "mucinous")),
        "nodes": ("nodes", ("negative", "positive")),
    },
    "busi": {
        "diagnosis": ("label", ("benign", "malignant")),
        "screening": ("label", ("no_cancer=benign,normal", "malignant")),
        "three_classes": ("label", ("normal", "benign", "malignant")),
    },
    "ham10000": {
        "malignancy": ("label", ("benign=nv,bkl,df,vasc", "malignant=mel,bcc,akiec")),
        "melanoma": ("label", ("nevus=nv", "melanoma=mel")),
        "seven_classes": ("label", ("nv", "mel", "bkl", "bcc", "akiec", "vasc", "df")),
    },
}
BASELINE = "balanced_softmax"
_FILL = {"controller": "uniform", "dose": 1.0}
ARMS: dict[str, dict[str, Any]] = {
    "ce": {},
    BASELINE: {"loss": "balanced_softmax"},
    "synthetic": {**_FILL, "loss": "balanced_softmax"},
    "replay": {"controller": "source_replay", "of": "uniform", "dose": 1.0, "loss": BASELINE},
}
METRICS = ("auroc_macro", "balanced_accuracy")


def tasks_of(source: str, some: Sequence[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The named tasks of a source, or all; ConfigError where it has none, or none of a name."""
    known = TASKS.get(source.partition(":")[0])
    if known is None:
        raise config_lib.ConfigError(
            f"config.data.source: got {source!r}; tasks are known of {', '.join(TASKS)}"
        )
    if unknown := sorted(set(some) - set(known)):
        raise config_lib.ConfigError(f"--tasks: got {unknown[0]!r}; takes {', '.join(known)}")
    return {name: task for name, task in known.items() if not some or name in some}


def configure(
    shared: ConfigDict,
    task: tuple[str, tuple[str, ...]],
    base: Pipeline,
    *,
    shots: int,
    seeds: int,
    rank: int,
    steps: int,
) -> ConfigDict:
    """`shared` with the labels of a task, on the splits and from the generator of `base`."""
    config: Any = shared.copy_and_resolve_references()
    folder = lambda stage: str(base.context().folder(stage))
    column, classes = task
    with config.unlocked():
        config.data.update(
            label=column,
            classes=classes,
            manifest=folder("prepare"),
            profile="few_shot" if shots else "natural",
            shots=shots or 1,
            imbalance_factor=1.0,
        )
        config.generator.adapt.update(
            base=folder("generator"), method="lora", rank=rank, alpha=float(rank)
        )
        config.generator.steps = steps or config.generator.steps
        config.synthesize.min_dose = max(config.synthesize.min_dose, _FILL["dose"])
        config.classify.seeds = tuple(range(seeds))
        config.classify.arms = config_lib.arms(**ARMS)
        config.evaluate.update(baseline=BASELINE, group_by="thirds")
    return config


def table(reports: Mapping[str, Mapping[str, Any]]) -> tables.Table:
    """A row an arm of each task, and its differences to the baseline; n: seeds."""
    rows = []
    for task, report in reports.items():
        counts = " + ".join(f"{count:,}" for count in report["dataset"]["train_counts"])
        for arm in report["arms"]:
            cells: list[tables.Cell] = [task, counts, arm["name"]]
            for metric in METRICS:
                cells.append(arms_lib.mean_cell(arm["metrics"][metric]))
                cells.append(arms_lib.paired_cell(arm, metric))
            rows.append(tuple(cells))
    columns = ["Task", "Train images", "Arm"]
    for metric in METRICS:
        columns += [tables.TITLES[metric], f"{tables.TITLES[metric]} minus {BASELINE}"]
    return tables.Table(tuple(columns), tuple(rows))


def main(_: list[str]) -> None:
    """Pretrains once, then adapts, synthesizes, classifies and reports task by task."""
    out, shared = pathlib.Path(flags.FLAGS.out), flags.FLAGS.config
    mesh.configure_devices(shared.runtime.cpu_devices, str(out / ".jax_cache"))
    tasks = tasks_of(shared.data.source, flags.FLAGS.tasks)
    base = Pipeline(shared, out / "base", out / "cache", command="experiments.tasks.compare")
    base.run(["prepare", "generator"], accept_config_change=True)
    reports = {}
    for name, task in tasks.items():
        config = configure(
            shared,
            task,
            base,
            shots=flags.FLAGS.shots,
            seeds=flags.FLAGS.seeds,
            rank=flags.FLAGS.rank,
            steps=flags.FLAGS.steps,
        )
        workdir = out / (f"{name}_{flags.FLAGS.shots}_shots" if flags.FLAGS.shots else name)
        run = Pipeline(config, workdir, out / "cache", command=f"experiments.tasks.compare {name}")
        run.run(accept_config_change=True)
        reports[name] = report_lib.read(workdir / "report.json")
    suffix = f"_{flags.FLAGS.shots}_shots" if flags.FLAGS.shots else ""
    files.write_atomically(
        out / f"results{suffix}.json", json.dumps(reports, indent=1), "the tasks' reports"
    )
    print(tables.to_markdown(table(reports)))


if __name__ == "__main__":
    command.define_config("of data, generator and recipe")
    flags.DEFINE_string("out", None, "folder of the workdirs, and of their cache", required=True)
    flags.DEFINE_list("tasks", [], "some of the data set's; default: all")
    flags.DEFINE_integer("shots", 0, "train images of each class; 0: all", lower_bound=0)
    flags.DEFINE_integer("seeds", 3, "classifiers an arm", lower_bound=2)
    flags.DEFINE_integer("rank", 8, "of the adapters", lower_bound=1)
    flags.DEFINE_integer("steps", 0, "of an adapter's training; 0: the generator's")
    command.experiment(main)
