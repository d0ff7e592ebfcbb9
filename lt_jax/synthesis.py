"""The stage synthesize: gates from real images, a pool through them, and what it is worth.

Gates are fitted to train images and calibrated on train, policy_val and val images. Test images are
never asked for: nothing here takes rows of the manifest but those of these three splits.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lt_jax.config import ConfigError
from lt_jax.context import Context
from lt_jax.data import augment
from lt_jax.data.pool import PoolInfo, PoolReader, PoolWriter
from lt_jax.diffusion import denoising_error, program, requests, synthesize, trained
from lt_jax.evaluate.images import fidelity
from lt_jax.runtime import files, keys, mesh, spmd
from lt_jax.runtime.ledger import Clock, Ledger
from lt_jax.runtime.progress import say
from lt_jax.selection import audit, diversity, memorization, ood, select
from lt_jax.selection.ood import Evidence
from lt_jax.selection.sphere import unit
from lt_jax.shapes import Array, Float, ImagesU8, Int, Labels, Params


def run(folder: pathlib.Path, context: Context) -> Ledger:
    """Fills the pool in `folder`, thins it to varied images, and measures it."""
    config = context.config.synthesize
    preparation = Ledger()
    clock = Clock(preparation)
    real = _real(context)
    unet, extractor = _networks(context)
    gates = _gates(context, real, unet)
    wanted = synthesize.wanted_counts(config, context.data[0].counts("train"))
    with PoolWriter(folder, _info(context, gates)) as writer:
        gates = mesh.replicate(_with_limits(gates, writer.info), context.mesh)
        source, flops = _source(context, unet, extractor, gates)
        clock.read()
        costs = synthesize.synthesize(
            source,
            np.ceil(config.selection.surplus * wanted).astype(np.int64),
            config.max_attempts,
            writer,
            device_mesh=context.mesh,
            folder=folder,
            flops_per_image=flops,
        )
        clock = Clock(costs)
        features = _finish(context, extractor, writer, wanted)
    _measure(folder, context, real, extractor, gates, features)
    clock.read()
    costs.add(preparation)
    return costs


def lower(context: Context) -> jax.stages.Lowered:
    """The fused program as it is traced in `run`, of a finished generator and extractor."""
    unet, extractor = _networks(context)
    gates = mesh.replicate(_gates(context, _real(context), unet), context.mesh)
    source, _ = _source(context, unet, extractor, gates)
    candidates, _ = source.ask(np.zeros(1, np.int64))
    return source.program.lower(*candidates)  # type: ignore[attr-defined]


def _real(context: Context) -> dict[str, Evidence | None]:
    """What the extractor says of real images, by split."""
    return {split: context.evidence(split) for split in ("train", "policy_val", "val")}


def _networks(context: Context) -> tuple[Params, Params]:
    """Parameters of generator and extractor, on the devices."""
    length, model = context.config.synthesize.ema_length, context.config.extractor.model
    unet = trained.load(context.folder("generator"), context.generator, length)
    extractor = context.classifier_params("extractor", model)
    return mesh.distribute(unet, context.mesh), mesh.distribute(extractor, context.mesh)


@dataclasses.dataclass(frozen=True)
class _Bound:
    """The fused program with what all batches share bound, of candidates on the host."""

    program: Any
    shared: tuple[Any, ...]
    device_mesh: Mesh

    def __call__(self, *candidates: Any) -> program.Judged:
        return self.program(*self.shared, *self._placed(candidates))

    def lower(self, *candidates: Any) -> jax.stages.Lowered:
        return self.program.lower(*self.shared, *self._placed(candidates))

    def _placed(self, candidates: tuple[Any, ...]) -> Any:
        own = jax.tree.map(lambda rows: mesh.own(rows, self.device_mesh), candidates)
        return mesh.put(own, self.device_mesh)


def _source(
    context: Context, unet: Params, extractor: Params, gates: select.Gates
) -> tuple[synthesize.Source, float]:
    """Where candidates come from, and the FLOPs of one."""
    config = context.config.synthesize
    manifest, images = context.data
    asked = requests.Requests(config, context.generator, context.annotations, manifest, images)
    networks = program.Networks(context.generator, context.config.extractor.model, asked.present)
    stream = keys.stream(keys.root(config.seed), "synthesize")
    key = mesh.replicate(stream, context.mesh)
    compiled = program.make_program(config, networks, context.mesh)
    source = synthesize.Source(
        program=_Bound(compiled, (unet, extractor, gates, key), context.mesh),
        requests=asked,
        num_classes=len(manifest.classes),
        batch_size=config.batch_size,
        scores=gates.ensemble.names,
        train_ids=[manifest.ids[row] for row in manifest.rows("train")],
    )
    return source, program.network_flops(config, networks)


def _finish(
    context: Context, extractor: Params, writer: PoolWriter, wanted: Int[np.ndarray, "k"]
) -> Float[np.ndarray, "m d"]:
    """Ends the pool with varied images of each class; features of those that stay, in its order."""
    records = writer.joined()
    rows = np.flatnonzero(records.columns["verdict"] == "accepted")
    features = context.features(extractor, records, rows)
    chosen = _varied(records.columns["label"][rows], features, wanted)
    writer.finish(wanted, [rows[held] for held in chosen])
    return features[np.sort(np.concatenate(chosen))]


def _measure(
    folder: pathlib.Path,
    context: Context,
    real: dict[str, Evidence | None],
    extractor: Params,
    gates: select.Gates,
    features: Float[np.ndarray, "m d"],
) -> None:
    """Says which classes lack images, and writes how near the images come to real ones."""
    pool = PoolReader(folder, context.data[0].sha256)
    for outcome in pool.outcomes:
        if outcome.unmet:
            got = f"{outcome.accepted} of {outcome.wanted} images"
            say(f"synthesize: class {outcome.name} has {got}: {outcome.why}")
    _fidelity(folder, context, real, pool, features)
    _audit(folder, context, extractor, gates, pool)


def _gates(context: Context, real: dict[str, Evidence | None], unet: Params) -> select.Gates:
    """Fitted and calibrated on real images of train, policy_val and val."""
    config = context.config.synthesize
    selection = config.selection
    ensemble = ood.make(selection, len(context.data[0].classes))
    told = dict(real)
    if "denoising" in ensemble.names:
        measure = _error_program(context)
        for split in {"train", selection.held_out}:
            told[split] = _with_errors(context, measure, unet, split, told[split])
    assert told["train"] is not None  # a manifest without train images is refused
    held_out = None
    if selection.held_out == "policy_val":
        held_out = told["policy_val"]
        if held_out is None:
            raise ConfigError(
                "config.synthesize.selection.held_out: got policy_val, and this split is empty; "
                "raise config.data.split.policy_val or take train"
            )
    fitted, limits = select.calibrate(ensemble, told["train"], held_out, selection, config.seed)
    return select.Gates(
        ensemble=ensemble,
        memorization=selection.memorization,
        fitted=fitted,
        thresholds=jnp.asarray(limits, jnp.float32),
        label_probability=jnp.asarray(selection.label_probability, jnp.float32),
        bank=bank_of(context) if selection.memorization.gate else None,
    )


def _with_errors(
    context: Context, measure: spmd.Program, unet: Params, split: str, held: Evidence | None
) -> Evidence | None:
    """The same images with the generator's denoising errors of them."""
    if held is None:
        return None
    manifest, images = context.data
    read = lambda own: (images[own], manifest.labels[own], own.astype(np.int32))
    size = context.config.synthesize.batch_size
    found = spmd.over_rows(measure, unet, manifest.rows(split), size, read)
    return dataclasses.replace(held, errors=np.concatenate([*found]))


def _error_program(context: Context) -> spmd.Program:
    config = context.config.synthesize
    key = keys.stream(keys.root(config.seed), "denoising_error")

    def measure(
        unet: Params, images: ImagesU8, labels: Labels, rows: Int[Array, "b"]
    ) -> Float[Array, "b l"]:
        return denoising_error.errors(
            context.generator,
            unet,
            augment.normalize(images),
            labels,
            keys.per_example(key, rows),
            config.selection.noise_times,
        )

    return spmd.jit_rows(measure, context.mesh)


def bank_of(context: Context) -> memorization.Bank:
    """Train images, and how near to them val images are.

    Raises ConfigError where there are no val images.
    """
    manifest, images = context.data
    config = context.config.synthesize.selection
    train, val = context.evidence("train"), context.evidence("val")
    if train is None or val is None:
        raise ConfigError(
            "config.synthesize.selection.memorization.gate: what is a copy is told by how near val "
            "images are to train, and there are none; raise config.data.split.val, or set it False"
        )
    rows = manifest.rows("train")
    return memorization.fit(
        config.memorization,
        images[rows],
        train.features,
        manifest.group_numbers[rows],
        images[manifest.rows("val")],
        val.features,
        val.labels,
        len(manifest.classes),
        config.pooling,
        context.config.generator.augment,
    )


def _varied(
    labels: Int[np.ndarray, "m"], features: Float[np.ndarray, "m d"], wanted: np.ndarray
) -> list[np.ndarray]:
    """Of each class, which accepted images are kept: all, or varied ones where there are more."""
    chosen = []
    for label, count in enumerate(wanted):
        own = np.flatnonzero(labels == label)
        if len(own) > count:
            own = own[diversity.farthest_point(features[own], int(count), start=0)]
        chosen.append(np.sort(own))
    return chosen


def _fidelity(
    folder: pathlib.Path,
    context: Context,
    real: dict[str, Evidence | None],
    pool: PoolReader,
    features: Float[np.ndarray, "m d"],
) -> None:
    """How near the accepted images come to train, beside how near val comes: `fidelity.json`."""
    accepted = np.flatnonzero(pool.columns["verdict"] == "accepted")
    train, val = real["train"], real["val"]
    if not len(accepted) or train is None or val is None:
        return
    found = fidelity.report(
        train.features,
        train.labels,
        val.features,
        val.labels,
        features,
        pool.columns["label"][accepted],
    )
    _save(folder / "fidelity.json", {"class_names": context.data[0].classes, **found})


def _audit(
    folder: pathlib.Path,
    context: Context,
    extractor: Params,
    gates: select.Gates,
    pool: PoolReader,
) -> None:
    """How near all candidates and val images come to single train images: `audit.json`."""
    if gates.bank is None:
        return
    manifest, bank = context.data[0], mesh.fetch(gates.bank)
    rows = np.unique(np.concatenate([*audit.closest(pool.columns).values()]))
    rows = pool.with_image(rows)
    features = context.features(extractor, pool, rows)
    place = {manifest.ids[row]: i for i, row in enumerate(manifest.rows("train"))}
    nearest = [place[name] for name in pool.columns["nearest"][rows]]
    cosines = np.sum(unit(features) * bank.features[nearest], axis=1) if len(rows) else rows
    by_row = dict(zip(rows.tolist(), map(float, cosines), strict=True))
    found = audit.audit(gates.memorization, bank, pool.columns, manifest.classes, by_row)
    _save(folder / "audit.json", found)


def _save(path: pathlib.Path, found: dict[str, Any]) -> None:
    files.write_atomically(path, json.dumps(found, indent=1), path.name)


def _info(context: Context, gates: select.Gates) -> PoolInfo:
    config, manifest = context.config.synthesize, context.data[0]
    bank, limits = gates.bank, {}
    if bank is not None:
        limits = memorization.limits(gates.memorization, bank)
    return PoolInfo(
        generator=context.specs["generator"].key,
        extractor=context.specs["extractor"].key,
        manifest_sha256=manifest.sha256,
        seed=config.seed,
        classes=manifest.classes,
        guidance_scale=config.guidance_scale,
        sampler=requests.describe(config),
        thresholds=tuple(np.asarray(gates.thresholds, float).tolist()),
        least_label_probability=config.selection.label_probability,
        scores=gates.ensemble.names,
        **{f"{measure}_thresholds": tuple(own.tolist()) for measure, own in limits.items()},
    )


def _with_limits(gates: select.Gates, info: PoolInfo) -> select.Gates:
    """The gates with the limits of a pool, which a second fit meets but for rounding."""
    gates = dataclasses.replace(gates, thresholds=jnp.asarray(info.thresholds, jnp.float32))
    if gates.bank is None:
        return gates
    limits = {"cosine": info.cosine_thresholds, "ms_ssim": info.ms_ssim_thresholds}
    used = {f"{m}_limits": jnp.asarray(own, jnp.float32) for m, own in limits.items() if own}
    return dataclasses.replace(gates, bank=dataclasses.replace(gates.bank, **used))
