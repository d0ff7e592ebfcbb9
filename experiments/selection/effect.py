r"""What is selection worth to the classifier? The same generator and recipe, other gates.

    python -m experiments.selection.effect --config=configs/digits.py --out=runs/effect
    python -m experiments.selection.effect --config=configs/digits.py --out=runs/effect --collect

The first trains, the second prints the table and writes results.json. Variants (`variants`) share
one cache: splits, generator and extractor are made once. All ask for the same images of each
class, those that it lacks of the head's count, and candidates are made until it has them, so that
arms differ in which images they see and not in how many; `once` and `thinned` are the same two at
the number that is left of `unselected`'s candidates.

Collecting opens the test labels once, and compares every arm with the unselected pool and with
balanced softmax on real images alone. The keep rate for use is the one whose classifiers are best
on policy_val; val and test figures have no part in it.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from experiments import arms
from experiments.arms import BASELINE
from experiments.selection import variants as variants_lib
from experiments.selection.variants import KEEP_RATES, UNSELECTED, VARIANTS
from lt_jax import command
from lt_jax.context import Context
from lt_jax.data.pool import PoolReader
from lt_jax.evaluate import metrics
from lt_jax.evaluate import report as report_lib
from lt_jax.evaluate.statistics import tables
from lt_jax.pipeline import Pipeline
from lt_jax.runtime import arrays, files, mesh
from lt_jax.specs import STAGES

_CONFIG = command.define_config("what all variants share")
_OUT = flags.DEFINE_string("out", None, "folder of all workdirs and of the cache", required=True)
_VARIANTS = flags.DEFINE_list("variants", [BASELINE, *VARIANTS], "which")
_LOSSES = flags.DEFINE_list("losses", ["balanced_softmax"], "of the pool arms")
_ATTEMPTS = flags.DEFINE_float("attempts", 10.0, "candidates at most, over images asked")
_COLLECT = flags.DEFINE_bool("collect", False, "make the table of what is finished")
_TRAINED = tuple(stage for stage in STAGES if stage != "report")


def pipeline_of(name: str, out: pathlib.Path) -> Pipeline | None:
    """The run of one variant; None where it is thinned as one whose pool is not finished."""
    counts: tuple[int, ...] = ()
    if name in VARIANTS and (other := VARIANTS[name].thinned_as):
        model = pipeline_of(other, out)
        if model is None or not arms.finished(context := model.context(), "synthesize"):
            return None
        manifest, _ = context.data
        counts = tuple(PoolReader(context.folder("synthesize"), manifest.sha256).counts().tolist())
    config = variants_lib.configure(_CONFIG.value, name, _ATTEMPTS.value, _LOSSES.value, counts)
    return Pipeline(config, out / name, out / "cache", command=f"effect {name}")


def accuracy(context: Context, arm: str, split: str) -> list[float]:
    """Balanced accuracy on a split but test, of each seed of a finished arm."""
    manifest, _ = context.data
    labels = manifest.labels[manifest.rows(split)]
    found = []
    for seed in context.config.classify.seeds:
        path = context.folder(f"classify/{arm}/seed{seed}") / "predictions.npz"
        logits = arrays.load(path)[f"{split}_logits"].astype(np.float64)
        found.append(float(metrics.balanced_accuracy(metrics.softmax(logits), labels)))
    return found


def collect(runs: Mapping[str, Pipeline], out: pathlib.Path) -> dict[str, Any]:
    """The report of all arms, accuracies on policy_val, and the keep rate that they choose."""
    arm = arms.name_of(_LOSSES.value[-1])
    unselected = f"{UNSELECTED}/{arm}"
    results = arms.collect(runs, out, "experiments.selection.effect", (arms.RIVAL, unselected))
    contexts = {name: run.context() for name, run in runs.items()}
    seen = {
        held["name"]: arms.summary(accuracy(contexts[variant], name, "policy_val"))
        for held in results["report"]["arms"]
        for variant, _, name in [held["name"].partition("/")]
    }
    rated = {
        rate: seen[f"{name}/{arm}"]["mean"]
        for name, rate in KEEP_RATES.items()
        if f"{name}/{arm}" in seen
    }
    chosen = max(rated, key=lambda rate: rated[rate]) if rated else None
    return {**results, "policy_val": seen, "keep_rate": chosen, "unselected": unselected}


def table(results: Mapping[str, Any]) -> tables.Table:
    """What each variant's gates let through, and what it does to the classifier; n: seeds."""
    rows = []
    for arm in results["report"]["arms"]:
        name, variant = arm["name"], arm["name"].partition("/")[0]
        kept: list[tables.Cell] = ["", "", ""]
        if pool := results["pools"].get(variant):
            kept = [f"{sum(pool['accepted'])} of {sum(pool['generated'])}"]
            kept += [arms.mean_cell(pool["agreement"][side]) for side in ("pool", "val")]
        rows.append(
            (
                name,
                *kept,
                arms.mean_cell(arm["metrics"]["balanced_accuracy"]),
                *(
                    arms.versus_cell(results["paired"][rival][name])
                    for rival in (results["unselected"], arms.RIVAL)
                ),
                arms.mean_cell(arm["metrics"]["recall_tail"]),
                arms.mean_cell(results["policy_val"][name]),
            )
        )
    columns = ("Arm", "Accepted of generated", "Agreement", "of val", "Balanced acc.")
    columns += ("Minus unselected", f"Minus {arms.RIVAL}", "Recall tail", "Balanced, policy_val")
    return tables.Table(columns, tuple(rows))


def main(_: list[str]) -> None:
    """Trains the variants, or collects what is finished."""
    out = pathlib.Path(_OUT.value)
    mesh.configure_devices(_CONFIG.value.runtime.cpu_devices, str(out / ".jax_cache"))
    runs: dict[str, Pipeline] = {}
    for name in dict.fromkeys([BASELINE, UNSELECTED] * _COLLECT.value + _VARIANTS.value):
        run = pipeline_of(name, out)
        if run is None:
            print(f"{name}: left out until the pool that it is thinned as is finished")
            continue
        runs[name] = run
        if not _COLLECT.value:
            # Arms may be added to a workdir later, by `--losses`.
            run.run(_TRAINED, accept_config_change=True)
    if _COLLECT.value:
        results = report_lib.strict(collect(runs, out))
        files.write_atomically(out / "results.json", json.dumps(results, indent=1), "the results")
        print(tables.to_markdown(table(results)))
        print(f"\nKeep rate chosen on policy_val: {results['keep_rate']}")


if __name__ == "__main__":
    command.experiment(main)
