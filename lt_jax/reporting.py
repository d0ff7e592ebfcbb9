"""Gathers a run's artifacts into the report; the one place where the test split is opened."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lt_jax import auditing, detection, picturing
from lt_jax import config as config_lib
from lt_jax.classify import decoupled, losses
from lt_jax.classify.train import effective_counts
from lt_jax.config.classify import LEARNED
from lt_jax.context import Context
from lt_jax.data import prepare
from lt_jax.data.images import Images
from lt_jax.data.manifest import ManifestError, SplitManifest
from lt_jax.data.pool import GATES, VERDICTS, PoolReader
from lt_jax.evaluate import report as report_lib
from lt_jax.evaluate.report import detection_page
from lt_jax.evaluate.statistics import tables
from lt_jax.mixing import controllers
from lt_jax.runtime import arrays, artifacts, metrics
from lt_jax.runtime.ledger import Clock, Ledger
from lt_jax.runtime.progress import say

PICTURES = 8  # of each class in each gallery


def report(folder: pathlib.Path, context: Context) -> Ledger:
    """Writes report.json, report.html and figures.

    Every call is an opening of the test split and is logged in `<workdir>/test_openings.jsonl`;
    pictures that take no classifier are made before it.
    """
    costs = Ledger()
    clock = Clock(costs)
    before = picturing.before_test(context)
    inputs = gather(context, "report")
    pictures = picturing.compute(context, inputs, before)
    report_lib.write(dataclasses.replace(inputs, pictures=pictures), folder)
    costs.images += sum(cost.images for cost in pictures.costs.values())
    clock.read()
    return costs


def gather(context: Context, purpose: str) -> report_lib.ReportInputs:
    """What a report on a run is made from. Opens the test split, and logs why."""
    config = context.config
    manifest, images = prepare.load(context.folder("prepare"), config.data)
    pool, pictures = None, None
    if "synthesize" in context.specs:
        reader = PoolReader(context.folder("synthesize"), manifest.sha256)
        pool = _pool(reader, context.folder("synthesize"))
        pictures = _gallery(manifest, images, reader, pool.memorization)
    log = context.workdir / "test_openings.jsonl"
    test_ids, test_labels = manifest.open_test(log, f"{purpose}: {context.command}")
    dataset = dataset_of(config, manifest, test_labels, len(log.read_text().splitlines()))
    if pool is not None:
        pool = dataclasses.replace(pool, audit=auditing.gather(context, test_ids, test_labels))
    return report_lib.ReportInputs(
        command=context.command,
        config=config_lib.to_dict(config),
        environment=environment(),
        dataset=dataset,
        arms=tuple(arm_of(name, context, manifest, test_ids) for name in config.classify.arms),
        evaluate=config.evaluate,
        tau=config.classify.logit_adjustment,
        pool=pool,
        gallery=pictures,
        costs=tuple(
            report_lib.StageCost(name, ledger.seconds, ledger.images, ledger.flops)
            for name in ("generator", "extractor", "synthesize", "mixing")
            if name in context.specs
            for ledger in (context.store.ledger(context.specs[name]),)
        ),
        skipped=[str(entry) for entry in manifest.protocol["skipped"]],
        learning=_learning(context.folder("mixing")) if "mixing" in context.specs else None,
        detection=detection.gather(context, manifest, test_ids),
    )


def publish(folder: pathlib.Path, workdir: pathlib.Path) -> None:
    """Links a finished report into the workdir and prints its table and path.

    Raises ArtifactError where it is not what was written.
    """
    artifacts.compare(folder)
    for name in ("report.json", "report.html", "figures", "tables"):
        artifacts.link(workdir / name, folder / name)
    written = report_lib.read(folder / "report.json")
    print(report_lib.text_table(written))
    if found := written.get("detection"):
        print(f"\n{tables.to_text(detection_page.table(found))}")
    print(f"report: {workdir / 'report.html'}")
    openings = written["dataset"]["test_openings"]
    say(f"test labels of this workdir: opened {openings} time(s) when this report was written")


def environment() -> dict[str, Any]:
    """Versions and devices, for the report."""
    device = jax.devices()[0]
    return {
        **artifacts.versions(),
        "device": getattr(device, "device_kind", device.platform),
        "device_count": jax.device_count(),
    }


def dataset_of(
    config: config_lib.Config, manifest: SplitManifest, test_labels: np.ndarray, openings: int
) -> report_lib.Dataset:
    """The data set with its opened test labels; `openings` of them so far, this one included."""
    data = config.data
    test, val, policy_val = (manifest.rows(split) for split in ("test", "val", "policy_val"))
    return report_lib.Dataset(
        name=data.source,
        classes=manifest.classes,
        train_counts=manifest.counts("train").tolist(),
        groups=manifest.groups_by_count(
            config.evaluate.head_above, config.evaluate.tail_below, config.evaluate.group_by
        ),
        manifest_sha256=manifest.sha256,
        protocol=json.dumps(dict(manifest.protocol), default=str),
        test_openings=openings,
        test_labels=test_labels,
        test_groups=[manifest.groups[row] for row in test],
        val_labels=manifest.labels[val] if len(val) else None,
        policy_val_labels=manifest.labels[policy_val] if len(policy_val) else None,
    )


def arm_of(
    name: str, context: Context, manifest: SplitManifest, test_ids: tuple[str, ...]
) -> report_lib.Arm:
    """A finished arm with all its seeds.

    Raises ManifestError where its predictions are not of `test_ids`.
    """
    config = context.config.classify
    arm = config.arms[name]
    stages = [f"classify/{name}/seed{seed}" for seed in config.seeds]
    runs = [_run(stage, arm, context, manifest, test_ids) for stage in stages]
    mixture = _mixture(context.folder(stages[0]))  # of what is in use, which no seed changes
    in_use, unmet = mixture["in_use"].mean(axis=0), mixture["unmet"].mean(axis=0)
    return report_lib.Arm(
        name=name,
        controller=arm.controller,
        loss=arm.loss if arm.expert_loss == "own" else arm.expert_loss,
        runs=tuple(runs),
        doses=(in_use / manifest.counts("train")).tolist(),
        unmet=unmet.round().astype(int).tolist(),
        uses_pool=arm.controller not in ("none", "source_replay"),
        uses_policy=controllers.mirrored(arm) in LEARNED,
    )


def _mixture(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """What the rounds of a run were drawn from, [r, k] by field."""
    rounds = json.loads((folder / "mixture.json").read_text())
    fields = ("class_weight", "share", "in_use", "unmet")
    return {field: np.array([now[field] for now in rounds], float) for field in fields}


def _run(
    stage: str,
    arm: config_lib.ArmConfig,
    context: Context,
    manifest: SplitManifest,
    test_ids: tuple[str, ...],
) -> report_lib.Run:
    path = context.folder(stage) / "predictions.npz"
    predictions = arrays.load(path)
    expected: dict[str, Sequence[str]] = {
        split: [manifest.ids[row] for row in manifest.rows(split)]
        for split in ("val", "policy_val")
    }
    for split, ids in {"test": test_ids, **expected}.items():
        if [*predictions.get(f"{split}_ids", ())] != [*ids]:
            raise ManifestError(
                f"{path} holds other {split} images than the manifest; delete its folder and run "
                "classify again"
            )
    ledger = context.store.ledger(context.specs[stage])
    mixture = _mixture(path.parent)
    drawn = effective_counts(
        manifest.counts("train"),
        mixture["class_weight"].mean(axis=0),
        mixture["share"].mean(axis=0),
    )
    tau = context.config.classify.logit_adjustment
    return report_lib.Run(
        seed=int(stage.rpartition("seed")[2]),
        test_logits=predictions["test_logits"],
        log_prior=_residual(arm, drawn, tau),
        val_logits=predictions.get("val_logits"),
        curves=_curves(path.parent, arm, context.config.classify.steps),
        seconds=ledger.seconds,
        images=ledger.images,
        flops=ledger.flops,
        data_wait=ledger.data_wait,
        policy_val_logits=predictions.get("policy_val_logits"),
        shares=mixture["share"],
    )


def _curves(folder: pathlib.Path, arm: config_lib.ArmConfig, steps: int) -> list[dict[str, Any]]:
    """What a run has logged in all its `steps` steps, those of a second stage after the first's."""
    lines = metrics.read(folder / "metrics.jsonl")
    if second := decoupled.of(arm, steps):
        lines += decoupled.curves(folder, steps - second.steps)
    return lines


def _residual(arm: config_lib.ArmConfig, drawn: np.ndarray, tau: float) -> np.ndarray:
    """Log prior that an arm leaves for a post-hoc adjustment to take away, from its draws [k].

    None where a second stage has drawn classes alike or taken the prior's mark off the weights, nor
    where experts correct for it together; experts of the arm's own loss leave what that leaves.
    """
    if arm.second_stage or arm.expert_loss != "own":
        return np.zeros(len(drawn))
    return losses.residual_log_prior(arm.loss, drawn, tau)


def _learning(folder: pathlib.Path) -> report_lib.Learning:
    curves, proxy = (
        json.loads((folder / name).read_text()) for name in ("curves.json", "proxy.json")
    )
    return report_lib.Learning(
        seeds=tuple(proxy["seeds"]),
        observations=tuple(proxy["observations"]),
        curves={name: _finite(curve) for name, curve in curves["curves"].items()},
        trainings=proxy["trainings"],
        reference_runs=proxy["reference_runs"],
        returns=proxy["returns"],
        importance=_finite(proxy["importance"]),
    )


def _finite(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    """NaN for null and for what is not finite."""
    values = np.array(rows, float)
    return np.where(np.isfinite(values), values, np.nan)


def _pool(pool: PoolReader, folder: pathlib.Path) -> report_lib.Pool:
    counts = {name: pool.counts(name) for name in VERDICTS}
    per_class = [
        {
            "class": name,
            "generated": int(sum(c[k] for c in counts.values())),
            **{verdict: int(c[k]) for verdict, c in counts.items()},
            "wanted": outcome.wanted,
            "unmet": outcome.unmet,
            "why": outcome.why,
        }
        for k, (name, outcome) in enumerate(zip(pool.info.classes, pool.outcomes, strict=True))
    ]
    # Missing where there was nothing to compare.
    fidelity, memorization = (
        json.loads(found.read_text()) if (found := folder / name).exists() else None
        for name in ("fidelity.json", "audit.json")
    )
    return report_lib.Pool(
        generated=len(pool),
        accepted=int(counts["accepted"].sum()),
        rejected={name: int(counts[name].sum()) for name in GATES},
        per_class=per_class,
        fidelity=fidelity,
        memorization=memorization,
    )


def _gallery(
    manifest: SplitManifest,
    images: Images,
    pool: PoolReader,
    audit: Mapping[str, Any] | None = None,
) -> report_lib.Gallery:
    """Pictures of real, accepted and rejected images, and the pairs that the audit names."""
    rows = manifest.rows("train")
    row_of = {manifest.ids[row]: row for row in rows}
    real, accepted, rejected, sources = {}, {}, {}, {}
    for k, name in enumerate(manifest.classes):
        real[name] = images[rows[manifest.labels[rows] == k][:PICTURES]]
        if len(chosen := pool.rows(k)[:PICTURES]):
            accepted[name] = (pool[chosen], pool.columns["score"][chosen].tolist())
            notes = [json.loads(note) for note in pool.columns["conditions"][chosen]]
            sources[name] = [
                _source(manifest, images, row_of[note["source"]]) if "source" in note else None
                for note in notes
            ]
        out = np.sort(np.concatenate([pool.rows(k, gate) for gate in GATES]))
        out = pool.with_image(out)[:PICTURES]
        if len(out):
            verdicts = pool.columns["verdict"][out].tolist()
            rejected[name] = (pool[out], pool.columns["score"][out].tolist(), verdicts)
    closest = {
        kind: _pairs(manifest, images, pool, row_of, pairs)
        for kind, pairs in ({} if audit is None else audit["closest"]).items()
    }
    return report_lib.Gallery(real, accepted, rejected, sources, closest)


def _pairs(
    manifest: SplitManifest,
    images: Images,
    pool: PoolReader,
    row_of: Mapping[str, np.integer],
    pairs: Sequence[Mapping[str, Any]],
) -> list[report_lib.Pair]:
    """The audit's pairs of which the synthetic image was kept."""
    at = np.searchsorted(pool.columns["index"], [pair["index"] for pair in pairs])
    found = []
    for row, pair in zip(at, pairs, strict=True):
        if len(pool.with_image(np.array([row]))):
            source = _source(manifest, images, row_of[pair["nearest"]])
            likeness = pair["cosine"], pair["ms_ssim"]
            image = pool[np.array([row])][0]
            found.append(report_lib.Pair(image, pair["class"], source, *likeness))
    return found


def _source(manifest: SplitManifest, images: Images, row: np.integer) -> report_lib.Source:
    label = manifest.classes[manifest.labels[row]]
    return report_lib.Source(images[np.array([row])][0], label)
