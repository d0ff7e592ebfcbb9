"""Gathers a run's artifacts into the report; the one place where the test split is opened."""

import json
import pathlib
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lt_jax import config as config_lib
from lt_jax.classify import losses
from lt_jax.data import prepare
from lt_jax.data.images import Images
from lt_jax.data.manifest import SplitManifest
from lt_jax.data.pool import PoolReader
from lt_jax.evaluate import report as report_lib
from lt_jax.runtime import artifacts, metrics
from lt_jax.runtime.ledger import Clock, Ledger
from lt_jax.runtime.progress import say

if TYPE_CHECKING:
    from lt_jax.stages import Context

PICTURES = 8  # of each class in each gallery


def report(folder: pathlib.Path, context: "Context") -> Ledger:
    """Writes report.json, report.html and figures; links them into the workdir; prints the table.

    Every call is an opening of the test split and is logged in `<workdir>/test_openings.jsonl`.
    """
    costs = Ledger()
    clock = Clock(costs)
    config = context.config
    manifest, images = prepare.load(context.folder("prepare"), config.data)
    pool = None
    if "synthesize" in context.specs:
        pool = PoolReader(context.folder("synthesize"), manifest.sha256)
    log = context.workdir / "test_openings.jsonl"
    test_ids, test_labels = manifest.open_test(log, f"report: {context.command}")
    dataset = _dataset(config, manifest, test_labels, len(log.read_text().splitlines()))
    inputs = report_lib.ReportInputs(
        command=context.command,
        config=config_lib.to_dict(config),
        environment=_environment(),
        dataset=dataset,
        arms=tuple(_arm(name, context, manifest, test_ids) for name in config.classify.arms),
        evaluate=config.evaluate,
        tau=config.classify.logit_adjustment,
        pool=None if pool is None else _pool(pool),
        gallery=None if pool is None else _gallery(manifest, images, pool),
        costs=tuple(
            report_lib.StageCost(name, ledger.seconds, ledger.images, ledger.flops)
            for name in ("generator", "extractor", "synthesize")
            if name in context.specs
            for ledger in (context.store.ledger(context.specs[name]),)
        ),
        skipped=[str(entry) for entry in manifest.protocol["skipped"]],
    )
    written = report_lib.write(inputs, folder)
    for name in ("report.json", "report.html", "figures"):
        artifacts.link(context.workdir / name, folder / name)
    print(report_lib.text_table(written))
    print(f"report: {context.workdir / 'report.html'}")
    say(f"report: the test split of this workdir has been opened {dataset.test_openings} time(s)")
    clock.read()
    return costs


def _environment() -> dict[str, Any]:
    device = jax.devices()[0]
    return {
        **artifacts.versions(),
        "device": getattr(device, "device_kind", device.platform),
        "device_count": jax.device_count(),
    }


def _dataset(
    config: config_lib.Config, manifest: SplitManifest, test_labels: np.ndarray, openings: int
) -> report_lib.Dataset:
    data = config.data
    test, val = manifest.rows("test"), manifest.rows("val")
    return report_lib.Dataset(
        name=data.source,
        classes=manifest.classes,
        train_counts=manifest.counts("train").tolist(),
        groups=manifest.groups_by_count(data.head_above, data.tail_below, data.group_by),
        manifest_sha256=manifest.sha256,
        protocol=json.dumps(dict(manifest.protocol), default=str),
        test_openings=openings,
        test_labels=test_labels,
        test_groups=[manifest.groups[row] for row in test],
        val_labels=manifest.labels[val],
    )


def _arm(
    name: str, context: "Context", manifest: SplitManifest, test_ids: tuple[str, ...]
) -> report_lib.Arm:
    arm = context.config.classify.arms[name]
    folders = {
        seed: context.folder(f"classify/{name}/seed{seed}")
        for seed in context.config.classify.seeds
    }
    val_ids = [manifest.ids[row] for row in manifest.rows("val")]
    runs = []
    for seed, folder in folders.items():
        predictions = np.load(folder / "predictions.npz")
        if [*predictions["test_ids"]] != [*test_ids] or [*predictions["val_ids"]] != val_ids:
            raise ValueError(
                f"{folder}/predictions.npz holds other images than the manifest; delete the "
                "folder and run classify again"
            )
        ledger = context.store.ledger(context.specs[f"classify/{name}/seed{seed}"])
        runs.append(
            report_lib.Run(
                seed=seed,
                test_logits=predictions["test_logits"],
                val_logits=predictions["val_logits"],
                curves=metrics.read(folder / "metrics.jsonl"),
                seconds=ledger.seconds,
                images=ledger.images,
                flops=ledger.flops,
            )
        )
    mixtures = json.loads((next(iter(folders.values())) / "mixture.json").read_text())
    weight = np.mean([mixture["class_weight"] for mixture in mixtures], axis=0)
    corrected = losses.corrects_prior(arm.loss, context.config.classify.logit_adjustment)
    doses = np.mean([mixture["in_use"] for mixture in mixtures], axis=0)
    return report_lib.Arm(
        name=name,
        controller=arm.controller,
        loss=arm.loss,
        runs=tuple(runs),
        log_prior=np.zeros_like(weight) if corrected else np.log(weight),
        shares=[mixture["share"] for mixture in mixtures],
        doses=(doses / manifest.counts("train")).tolist(),
        uses_pool=arm.controller not in ("none", "source_replay"),
    )


def _pool(pool: PoolReader) -> report_lib.Pool:
    counts = {name: pool.counts(name) for name in ("accepted", "ood", "label", "surplus")}
    rejected = {"ood": int(counts["ood"].sum()), "label": int(counts["label"].sum())}
    per_class = [
        {
            "class": name,
            "generated": int(sum(c[k] for c in counts.values())),
            **{verdict: int(c[k]) for verdict, c in counts.items()},
        }
        for k, name in enumerate(pool.info.classes)
    ]
    return report_lib.Pool(
        generated=len(pool),
        accepted=int(counts["accepted"].sum()),
        rejected={**rejected, "memorised": 0},
        per_class=per_class,
    )


def _gallery(manifest: SplitManifest, images: Images, pool: PoolReader) -> report_lib.Gallery:
    rows = manifest.rows("train")
    real, accepted, rejected = {}, {}, {}
    for k, name in enumerate(manifest.classes):
        real[name] = images[rows[manifest.labels[rows] == k][:PICTURES]]
        if len(chosen := pool.rows(k)[:PICTURES]):
            accepted[name] = (pool[chosen], pool.columns["score"][chosen].tolist())
        out = np.sort(np.concatenate([pool.rows(k, "ood"), pool.rows(k, "label")]))[:PICTURES]
        if len(out):
            verdicts = pool.columns["verdict"][out].tolist()
            rejected[name] = (pool[out], pool.columns["score"][out].tolist(), verdicts)
    return report_lib.Gallery(real=real, accepted=accepted, rejected=rejected)
