"""What experiments on pools share: arms that use them, one comparison of all, its table's cells."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lt_jax import config as config_lib
from lt_jax import reporting
from lt_jax.classify import predict
from lt_jax.data import prepare
from lt_jax.data.pool import PoolReader
from lt_jax.evaluate import report as report_lib
from lt_jax.evaluate import statistics
from lt_jax.evaluate.metrics import PRIMARY
from lt_jax.evaluate.statistics import Comparison, Summary, tables
from lt_jax.pipeline import Pipeline

BASELINE = "real"  # the run of real images alone
RIVAL = "real/balanced_softmax"
_NAMES = {"cross_entropy": "ce"}  # of arms, where they differ from the loss


def name_of(loss: str) -> str:
    """The name of the arm with that loss."""
    return _NAMES.get(loss, loss)


def filled(losses: Sequence[str], fill_to: int = 0) -> dict[str, dict[str, Any]]:
    """An arm a loss, whose classes are filled from the pool; 0: to the head's count."""
    shared = {"controller": "fill_to_head", "fill_to": fill_to}
    return {name_of(loss): {**shared, "loss": loss} for loss in losses}


def gather(
    runs: Mapping[str, Pipeline], out: pathlib.Path, experiment: str, baseline: str = RIVAL
) -> report_lib.ReportInputs:
    """What one report of the arms of all variants is made from; opens the test labels.

    Args:
      runs: by variant, all with the same test images; config, data set and classes are those of
        the last.
      out: gets the log of openings.
      experiment: the module, for the report and the log.
      baseline: an arm, as variant/arm.

    Raises:
      ConfigError: the baseline is not finished; the test labels stay closed.
    """
    contexts = {name: run.context() for name, run in runs.items()}
    _require([baseline], contexts)
    manifests = {
        name: prepare.load(context.folder("prepare"), context.config.data)[0]
        for name, context in contexts.items()
    }
    *_, last = runs
    log = out / "test_openings.jsonl"
    test_ids, test_labels = manifests[last].open_test(log, f"{experiment}: all variants")
    arms = []
    for name, context in contexts.items():
        for arm in context.config.classify.arms:
            if not finished(context, arm):
                print(f"{name}/{arm}: not finished, left out")
                continue
            found = reporting.arm_of(arm, context, manifests[name], test_ids)
            arms.append(dataclasses.replace(found, name=f"{name}/{arm}"))
    config, openings = contexts[last].config, len(log.read_text().splitlines())
    return report_lib.ReportInputs(
        command=f"python -m {experiment}",
        config=config_lib.to_dict(config),
        environment=reporting.environment(),
        dataset=reporting.dataset_of(config, manifests[last], test_labels, openings),
        arms=tuple(arms),
        evaluate=dataclasses.replace(config.evaluate, baseline=baseline),
    )


def collect(
    runs: Mapping[str, Pipeline],
    out: pathlib.Path,
    experiment: str,
    rivals: Sequence[str] = (RIVAL,),
) -> dict[str, Any]:
    """One report of the arms of all variants, and the fidelity of each pool.

    Args:
      runs: by variant; `BASELINE` among them.
      out: gets `report/` and the log of openings.
      experiment: the module, for the report and the log.
      rivals: arms, as variant/arm, with which all are compared; `report/` has the first, and
        `paired` the comparisons of balanced accuracy with each (None: with itself).

    Raises:
      ConfigError: a rival is not finished; the test labels stay closed.
    """
    contexts = {name: run.context() for name, run in runs.items()}
    _require(rivals, contexts)
    inputs = gather(runs, out, experiment, rivals[0])
    reports = {}
    for rival in rivals:
        folder = out / ("report" if rival == rivals[0] else f"report_{rival.replace('/', '_')}")
        folder.mkdir(exist_ok=True)
        chosen = dataclasses.replace(inputs.evaluate, baseline=rival)
        reports[rival] = report_lib.write(dataclasses.replace(inputs, evaluate=chosen), folder)
    judges = rivals[0].partition("/")[2]
    real = contexts[BASELINE]
    pools = {
        name: {**describe_pool(context), "agreement": agreement(context, real, judges)}
        for name, context in contexts.items()
        if "synthesize" in context.specs and finished(context, "synthesize")
    }
    paired = {
        rival: {arm["name"]: arm["paired"].get(PRIMARY) for arm in report["arms"]}
        for rival, report in reports.items()
    }
    return {"report": reports[rivals[0]], "pools": pools, "paired": paired}


def _require(rivals: Sequence[str], contexts: Mapping[str, Any]) -> None:
    """Every arm with which others are compared is finished: found out before labels are opened."""
    for rival in rivals:
        name, _, arm = rival.partition("/")
        if name not in contexts or not finished(contexts[name], arm):
            raise config_lib.ConfigError(
                f"{rival}, with which all are compared, is not finished; run the same command "
                "without --collect first"
            )


def finished(context: Any, name: str) -> bool:
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


def agreement(context: Any, real: Any, arm: str) -> dict[str, Any]:
    """How often classifiers that had no part in selection give accepted images their class.

    They are those of an `arm` of real images alone, one a seed. Beside it their accuracy on
    val images of the same classes: means over classes, and over seeds with deviation.
    """
    manifest, images = context.data
    pool = PoolReader(context.folder("synthesize"), manifest.sha256)
    accepted = np.flatnonzero(pool.columns["verdict"] == "accepted")
    val = manifest.rows("val")
    config = real.config.classify
    forward = predict.make_forward(config.model, len(manifest.classes), real.mesh)
    found: dict[str, list[float]] = {"pool": [], "val": []}
    for stage in real.specs:
        if not stage.startswith(f"classify/{arm}/"):
            continue
        params = real.classifier_params(stage, config.model)
        for name, store, rows, labels in (
            ("pool", pool, accepted, pool.columns["label"][accepted]),
            ("val", images, val, manifest.labels[val]),
        ):
            logits, _ = predict.predict(forward, params, store, rows, config.batch_size)
            right = logits.argmax(axis=1) == labels
            present = np.unique(pool.columns["label"][accepted])
            shares = [right[labels == k].mean() for k in present if (labels == k).any()]
            found[name].append(float(np.mean(shares)))
    return {name: summary(values) for name, values in found.items()}


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample deviation and number of values, as report.json has them."""
    return tables.cell_to_json(statistics.summarise(np.array(values, float)))


def mean_cell(summary: Mapping[str, Any]) -> Summary:
    """Of what `summary` or report.json has: the cell of a table."""
    return tables.cell_from_json(Summary, summary)


def versus_cell(compared: Mapping[str, Any] | None) -> tables.Cell:
    """Of a comparison in report.json; None is that of the baseline with itself."""
    return tables.cell_from_json(Comparison, compared) if compared else "itself"


def paired_cell(arm: Mapping[str, Any], metric: str = PRIMARY) -> tables.Cell:
    """An arm's metric over that of the report's baseline."""
    return versus_cell((arm.get("paired") or {}).get(metric))
