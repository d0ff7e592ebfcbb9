r"""Which generator helps the tail? Every variant at equal dose, gates, recipe and seeds.

    python -m experiments.generators.generators --config=configs/phantom.py --out=runs/generators
    python -m experiments.generators.generators --config=configs/phantom.py --out=runs/generators \
        --collect

The first trains, the second prints the table and writes results.json. `--variants` names some of
the variants, so that several processes may share the work. They share one cache of stages: splits
and extractor are made once. Collecting opens the test labels, once for all variants, and compares
every arm with balanced softmax on real images alone.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments.generators import variants as variants_lib
from lt_jax import config as config_lib
from lt_jax import reporting
from lt_jax.data import prepare
from lt_jax.data.pool import PoolReader
from lt_jax.evaluate import report as report_lib
from lt_jax.pipeline import STAGES, Pipeline
from lt_jax.runtime import files, mesh

_CONFIG = config_flags.DEFINE_config_file("config", None, "what all variants share")
_OUT = flags.DEFINE_string("out", None, "folder of all workdirs and of the cache", required=True)
_VARIANTS = flags.DEFINE_list("variants", list(variants_lib.COMPARED), "which")
_BASE = flags.DEFINE_string("base", "", "generator folder that lora, full and unadapted start from")
_FILL_TO = flags.DEFINE_integer("fill_to", 0, "images a class is filled to; 0: the head's")
_LOSSES = flags.DEFINE_list("losses", ["cross_entropy", "balanced_softmax"], "of the pool arms")
_COLLECT = flags.DEFINE_bool("collect", False, "make the table of what is finished")
RIVAL = "real/balanced_softmax"


def pipeline_of(shared: ConfigDict, out: pathlib.Path, variant: str) -> Pipeline:
    """The run of one variant, as the flags have it; see `variants.configure`."""
    losses = tuple(_LOSSES.value)
    config = variants_lib.configure(shared, variant, _FILL_TO.value, _BASE.value, losses)
    return Pipeline(config, out / variant, out / "cache", command=f"generators {variant}")


def collect(runs: Mapping[str, Pipeline], out: pathlib.Path) -> dict[str, Any]:
    """One report of the arms of all variants, and the fidelity of each pool.

    Args:
      runs: by variant; `real` among them.
      out: gets `report/`, `results.json` and the log of openings.
    """
    contexts = {name: run.context() for name, run in runs.items()}
    first = contexts[variants_lib.BASELINE]
    manifest, _ = prepare.load(first.folder("prepare"), first.config.data)
    log = out / "test_openings.jsonl"
    test_ids, test_labels = manifest.open_test(log, "generators: all variants")
    arms = []
    for name, context in contexts.items():
        for arm in context.config.classify.arms:
            if not _finished(context, arm):
                print(f"{name}/{arm}: not finished, left out")
                continue
            found = reporting.arm_of(arm, context, manifest, test_ids)
            arms.append(dataclasses.replace(found, name=f"{name}/{arm}"))
    openings = len(log.read_text().splitlines())
    evaluate = dataclasses.replace(first.config.evaluate, baseline=RIVAL)
    inputs = report_lib.ReportInputs(
        command="python -m experiments.generators.generators",
        config=config_lib.to_dict(first.config),
        environment=reporting.environment(),
        dataset=reporting.dataset_of(first.config, manifest, test_labels, openings),
        arms=tuple(arms),
        evaluate=evaluate,
    )
    (out / "report").mkdir(exist_ok=True)
    report = report_lib.write(inputs, out / "report")
    pools = {
        name: describe_pool(context)
        for name, context in contexts.items()
        if "synthesize" in context.specs and _finished(context, "synthesize")
    }
    return {"report": report, "pools": pools}


def _finished(context: Any, name: str) -> bool:
    """Whether a stage, or every seed of an arm, is done."""
    specs = [
        spec
        for stage, spec in context.specs.items()
        if stage == name or stage.startswith(f"classify/{name}/")
    ]
    return bool(specs) and all(context.store.done(spec) for spec in specs)


def describe_pool(context: Any) -> dict[str, Any]:
    """A pool's counts by class, and its fidelity."""
    manifest, _ = context.data
    pool = PoolReader(context.folder("synthesize"), manifest.sha256)
    labels = pool.columns["label"]
    path = context.folder("synthesize") / "fidelity.json"
    return {
        "classes": manifest.classes,
        "generated": np.bincount(labels, minlength=len(manifest.classes)).tolist(),
        "accepted": pool.counts().tolist(),
        "fidelity": json.loads(path.read_text()) if path.exists() else None,
    }


def table(results: Mapping[str, Any]) -> str:
    """Markdown: how near each pool is to train, then what it does to the classifier."""
    lines = [
        "| generator | accepted of generated | KID x 1000 (val) | precision (val) | recall (val) "
        "| nearer to train than val |",
        "|---|---|---|---|---|---|",
    ]
    for name, pool in results["pools"].items():
        kept = f"{sum(pool['accepted'])} of {sum(pool['generated'])}"
        lines.append(f"| {name} | {kept} | {' | '.join(_fidelity_cells(pool['fidelity']))} |")
    lines += [
        "",
        "| arm | balanced accuracy | against balanced softmax on real images | tail recall "
        "| head recall |",
        "|---|---|---|---|---|",
    ]
    for arm in results["report"]["arms"]:
        cells = [_mean(arm["metrics"][name]) for name in ("recall_tail", "recall_head")]
        lines.append(
            f"| {arm['name']} | {_mean(arm['metrics']['balanced_accuracy'])} | {_paired(arm)} "
            f"| {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _fidelity_cells(fidelity: Mapping[str, Any] | None) -> list[str]:
    if fidelity is None:
        return ["none"] * 4
    macro, nearest = fidelity["macro"], fidelity["overall"]["nearest"]

    def cell(measure: str, scale: float = 1.0) -> str:
        pair = [macro[side][measure]["mean"] for side in ("matched", "floor")]
        if None in pair:
            return "too few"
        return f"{scale * pair[0]:.2f} ({scale * pair[1]:.2f})"

    closer = nearest["closer_than_val"]
    share = "too few" if closer is None else f"{closer:.2f}"
    return [cell("kid", 1000.0), cell("precision"), cell("recall"), share]


def _mean(summary: Mapping[str, Any]) -> str:
    if summary["mean"] is None:
        return "none"
    spread = "n = 1" if summary["std"] is None else f"± {summary['std']:.3f}, n = {summary['n']}"
    return f"{summary['mean']:.3f} ({spread})"


def _paired(arm: Mapping[str, Any]) -> str:
    compared = (arm.get("paired") or {}).get("balanced_accuracy")
    if not compared:
        return "itself"
    low, high = compared["ci95"]
    return f"{compared['difference']:+.3f} [{low:.3f}, {high:.3f}], p = {compared['p_holm']:.3f}"


def main(_: list[str]) -> None:
    """Trains the variants, or collects what is finished."""
    logging.set_verbosity(logging.WARNING)
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
    results = collect(runs, out)
    files.write_atomically(
        out / "results.json", json.dumps(report_lib.strict(results), indent=1), "the results"
    )
    print(table(results))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
