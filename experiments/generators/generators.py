r"""Which generator helps the tail? Every variant at equal dose, gates, recipe and seeds.

    python -m experiments.generators.generators --config=configs/phantom.py --out=runs/generators
    python -m experiments.generators.generators --config=configs/phantom.py --out=runs/generators \
        --collect

The first trains, the second prints the table and writes results.json. `--variants` names some of
the variants, so that several processes may share the work. They share one cache of stages: splits
and extractor are made once. Collecting opens the test labels, once for all variants, and compares
every arm with balanced softmax on real images alone.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments import arms
from experiments.generators import variants as variants_lib
from lt_jax import command
from lt_jax.evaluate import report as report_lib
from lt_jax.evaluate.report import sections
from lt_jax.evaluate.statistics import tables
from lt_jax.pipeline import Pipeline
from lt_jax.runtime import files, mesh
from lt_jax.specs import STAGES

_CONFIG = command.define_config("what all variants share")
_OUT = flags.DEFINE_string("out", None, "folder of all workdirs and of the cache", required=True)
_VARIANTS = flags.DEFINE_list("variants", list(variants_lib.COMPARED), "which")
_BASE = flags.DEFINE_string("base", "", "generator folder that lora, full and unadapted start from")
_FILL_TO = flags.DEFINE_integer("fill_to", 0, "images a class is filled to; 0: the head's")
_LOSSES = flags.DEFINE_list("losses", ["cross_entropy", "balanced_softmax"], "of the pool arms")
_COLLECT = flags.DEFINE_bool("collect", False, "make the table of what is finished")


def pipeline_of(shared: ConfigDict, out: pathlib.Path, variant: str) -> Pipeline:
    """The run of one variant, as the flags have it; see `variants.configure`."""
    losses = tuple(_LOSSES.value)
    config = variants_lib.configure(shared, variant, _FILL_TO.value, _BASE.value, losses)
    return Pipeline(config, out / variant, out / "cache", command=f"generators {variant}")


def tables_of(results: Mapping[str, Any]) -> list[tables.Table]:
    """How near each pool is to train (n: seeds of agreement, else classes), then what it does to
    the classifier (n: seeds)."""
    pools = []
    for name, pool in results["pools"].items():
        kept = f"{sum(pool['accepted'])} of {sum(pool['generated'])}"
        agreed = (arms.mean_cell(pool["agreement"][side]) for side in ("pool", "val"))
        pools.append((name, kept, *agreed, *_fidelity_cells(pool["fidelity"])))
    columns = ("Generator", "Accepted of generated", "Agreement", "of val")
    columns += tuple(f"{measure} (val)" for measure in ("FD", "KID", "Precision", "Recall"))
    rows = [
        (
            arm["name"],
            arms.mean_cell(arm["metrics"]["balanced_accuracy"]),
            arms.paired_cell(arm),
            *(arms.mean_cell(arm["metrics"][name]) for name in ("recall_tail", "recall_head")),
        )
        for arm in results["report"]["arms"]
    ]
    heads = ("Arm", "Balanced acc.", f"Minus {arms.RIVAL}", "Recall tail", "Recall head")
    return [
        tables.Table((*columns, "Share nearer to train than 95% of val"), tuple(pools)),
        tables.Table(heads, tuple(rows)),
    ]


def _fidelity_cells(fidelity: Mapping[str, Any] | None) -> list[str]:
    if fidelity is None:
        return ["none"] * 5
    macro, nearest = fidelity["macro"], fidelity["overall"]["nearest"]

    def cell(measure: str) -> str:
        matched, floor = (
            sections.over_classes(macro[side][measure], "too few") for side in ("matched", "floor")
        )
        return f"{matched} ({floor})"

    closer, n = nearest["closer_than_val"], fidelity["overall"]["n_synthetic"]
    share = "too few" if closer is None else f"{round(closer * n)}/{n}"
    return [*(cell(measure) for measure in ("fd", "kid", "precision", "recall")), share]


def main(_: list[str]) -> None:
    """Trains the variants, or collects what is finished."""
    out = pathlib.Path(_OUT.value)
    names = dict.fromkeys([variants_lib.BASELINE] * _COLLECT.value + _VARIANTS.value)
    runs = {name: pipeline_of(_CONFIG.value, out, name) for name in names}
    runtime = next(iter(runs.values())).config.runtime
    mesh.configure_devices(runtime.cpu_devices, str(out / ".jax_cache"))
    if not _COLLECT.value:
        for run in runs.values():
            # Arms may be added to a workdir later, by `--losses`.
            run.run([stage for stage in STAGES if stage != "report"], accept_config_change=True)
        return
    results = arms.collect(runs, out, "experiments.generators.generators")
    files.write_atomically(
        out / "results.json", json.dumps(report_lib.strict(results), indent=1), "the results"
    )
    print("\n\n".join(map(tables.to_markdown, tables_of(results))))


if __name__ == "__main__":
    command.experiment(main)
