"""What each stage does: opens the artifacts that it reads, calls its room, writes its own.

The test split's labels reach `report` alone: every other stage works on a view of the manifest
in which they are masked.
"""

import dataclasses
import functools
import io
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lt_jax import preflight, reporting
from lt_jax.classify import predict
from lt_jax.classify import train as classify_train
from lt_jax.config import ClassifierConfig
from lt_jax.context import Context
from lt_jax.data import prepare
from lt_jax.data.images import Images
from lt_jax.data.pool import PoolInfo, PoolReader, PoolWriter
from lt_jax.diffusion import synthesize
from lt_jax.diffusion import train as diffusion_train
from lt_jax.mixing import controllers
from lt_jax.models import classifier, module
from lt_jax.runtime import checkpoint, files, keys, mesh
from lt_jax.runtime.artifacts import Spec
from lt_jax.runtime.ledger import Clock, Ledger
from lt_jax.runtime.progress import Progress
from lt_jax.selection import ood, select
from lt_jax.shapes import Params, PyTree


def run(spec: Spec, folder: pathlib.Path, context: Context) -> Ledger:
    """Runs one stage in its folder, from where it was left; returns what it has cost."""
    name, *rest = spec.stage.split("/")
    if name == "classify":
        arm, seed = rest
        return _classify(folder, context, arm, int(seed.removeprefix("seed")))
    stages: dict[str, Callable[[pathlib.Path, Context], Ledger]] = {
        "prepare": _prepare,
        "generator": _generator,
        "extractor": _extractor,
        "synthesize": _synthesize,
        "report": reporting.report,
    }
    return stages[name](folder, context)


def _prepare(folder: pathlib.Path, context: Context) -> Ledger:
    costs = Ledger()
    clock = Clock(costs)
    with Progress("prepare", 0, "image") as bar:
        prepare.prepare(context.config.data, folder, bar.of)
    clock.read()
    return costs


def _generator(folder: pathlib.Path, context: Context) -> Ledger:
    _, images = context.data
    state, costs = diffusion_train.train(
        context.config.generator,
        images,
        context.train_rows,
        image_shape=context.image_shape,
        folder=folder,
        device_mesh=context.mesh,
        runtime=context.config.runtime,
    )
    clock = Clock(costs)
    checkpoint.save_tree(folder / "params", {"params": state.params, "ema": state.ema})
    clock.read()
    return costs


def _extractor(folder: pathlib.Path, context: Context) -> Ledger:
    config = context.config.extractor
    recipe = classify_train.Recipe(
        model=config.model,
        optimizer=config.optimizer,
        augment=config.augment,
        loss=config.loss,
        tau=1.0,
        steps=config.steps,
        rounds=4,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    data = _train_data(context)
    controller = controllers.real_only(data.counts, config.sampler)
    params, costs = classify_train.train(
        recipe,
        data,
        controller,
        folder=folder,
        device_mesh=context.mesh,
        runtime=context.config.runtime,
        tags={"stage": "extractor"},
    )
    clock = Clock(costs)
    checkpoint.save_tree(folder / "params", params)
    manifest, images = context.data
    forward = predict.make_forward(config.model, len(manifest.classes), context.mesh)
    arrays = {}
    for split in ("train", "policy_val", "val"):
        if not len(rows := manifest.rows(split)):
            continue
        logits, features = predict.predict(forward, params, images, rows, config.batch_size)
        arrays |= {f"{split}_rows": rows, f"{split}_logits": logits, f"{split}_features": features}
    _save_arrays(folder / "features.npz", arrays)
    clock.read()
    return costs


def _synthesize(folder: pathlib.Path, context: Context) -> Ledger:
    config = context.config.synthesize
    manifest, _ = context.data
    preparation = Ledger()
    clock = Clock(preparation)
    features = np.load(context.folder("extractor") / "features.npz")
    rows = features["train_rows"]
    gates = select.calibrate(
        ood.make(config.selection, len(manifest.classes)),
        features["train_features"],
        features["train_logits"],
        manifest.labels[rows],
        config.selection,
        config.seed,
    )
    networks = synthesize.Networks(
        context.config.generator,
        context.config.extractor.model,
        len(manifest.classes),
        context.image_shape,
    )
    program = synthesize.make_program(config, networks, context.mesh)
    whole = mesh.replicated(context.mesh)
    bound = functools.partial(
        program,
        jax.device_put(_generator_params(context), whole),
        jax.device_put(_classifier_params(context, "extractor", networks.extractor), whole),
        jax.device_put(gates, whole),
        jax.device_put(keys.stream(keys.root(config.seed), "synthesize"), whole),
    )
    info = PoolInfo(
        generator=context.specs["generator"].key,
        extractor=context.specs["extractor"].key,
        manifest_sha256=manifest.sha256,
        seed=config.seed,
        classes=manifest.classes,
        guidance_scale=config.guidance_scale,
        sampler=f"{config.sampler}, {config.steps} steps",
        thresholds=tuple(np.asarray(gates.thresholds, float).tolist()),
        least_label_probability=config.selection.label_probability,
    )
    counts = np.array([len(r) for r in context.train_rows])
    clock.read()
    costs = synthesize.synthesize(
        config,
        bound,
        synthesize.wanted_counts(config, counts),
        PoolWriter(folder, info),
        device_mesh=context.mesh,
        folder=folder,
        flops_per_image=synthesize.network_flops(config, networks),
    )
    costs.add(preparation)
    return costs


def _classify(folder: pathlib.Path, context: Context, arm_name: str, seed: int) -> Ledger:
    config = context.config.classify
    arm = config.arms[arm_name]
    manifest, images = context.data
    model = preflight.classifier_of(config.model, arm)
    recipe = classify_train.Recipe(
        model=model,
        optimizer=config.optimizer,
        augment=config.augment,
        loss=arm.loss,
        tau=config.logit_adjustment,
        steps=config.steps,
        rounds=config.rounds,
        batch_size=config.batch_size,
        seed=seed,
    )
    controller, data = _mixed_data(context, arm_name, seed)
    params, costs = classify_train.train(
        recipe,
        data,
        controller,
        folder=folder,
        device_mesh=context.mesh,
        runtime=context.config.runtime,
        tags={"stage": "classify", "arm": arm_name, "seed": seed},
    )
    clock = Clock(costs)
    checkpoint.save_tree(folder / "params", params)
    forward = predict.make_forward(model, len(manifest.classes), context.mesh)
    arrays = {}
    for split in ("val", "test"):  # the test labels in this manifest are masked
        if not len(rows := manifest.rows(split)):
            continue
        logits, _ = predict.predict(forward, params, images, rows, config.batch_size)
        arrays |= {f"{split}_ids": np.array(manifest.ids)[rows], f"{split}_logits": logits}
    _save_arrays(folder / "predictions.npz", arrays)
    _save_mixture(folder / "mixture.json", controller, config.rounds)
    clock.read()
    return costs


def _train_data(context: Context) -> classify_train.TrainData:
    manifest, images = context.data
    val = manifest.rows("val")
    return classify_train.TrainData(
        real=images,
        train_rows=context.train_rows,
        val_rows=val,
        val_labels=manifest.labels[val],
        image_shape=context.image_shape,
    )


def _mixed_data(
    context: Context, arm_name: str, seed: int
) -> tuple[controllers.Controller, classify_train.TrainData]:
    """An arm's controller, and the images that its synthetic slots hold."""
    arm = context.config.classify.arms[arm_name]
    data = _train_data(context)
    if arm.controller == "none":
        return controllers.make(arm, data.counts, np.zeros_like(data.counts), seed), data
    manifest, images = context.data
    pool = PoolReader(context.folder("synthesize"), manifest.sha256)
    controller = controllers.make(arm, data.counts, pool.counts(), seed)
    first = controller.mixture(0, None)
    if not first.in_use.any():
        return controller, data
    if first.replay:
        rows = manifest.rows("train")
        chosen = rows[controllers.replay_rows(manifest.labels[rows], first.in_use, seed)]
        labels = manifest.labels[chosen]
        extra, extra_rows = images, [chosen[labels == k] for k in range(len(data.counts))]
    else:
        extra, extra_rows = _pool_images(pool, first.in_use, context)
    return controller, dataclasses.replace(data, extra=extra, extra_rows=extra_rows)


def _pool_images(
    pool: PoolReader, in_use: np.ndarray, context: Context
) -> tuple[Images, list[np.ndarray]]:
    """The first `in_use` [k] accepted images of each class, decoded once where they fit."""
    rows = [pool.rows(k)[:n] for k, n in enumerate(in_use)]
    if sum(in_use) * np.prod(context.image_shape) > context.config.data.decode_once_mib * 2**20:
        return pool, rows
    ends = np.cumsum(in_use)
    decoded: Any = pool[np.concatenate(rows)]  # an array serves as an image store
    return decoded, np.split(np.arange(ends[-1]), ends[:-1])


def _generator_params(context: Context) -> Params:
    classes = len(context.data[0].classes)
    size, _, channels = context.image_shape
    unet = diffusion_train.make_unet(context.config.generator, classes, channels)
    shapes = module.abstract(unet, *diffusion_train.example(size, channels), train=False)
    target = {"params": _zeros(shapes), "ema": _zeros(shapes)}
    return checkpoint.load_tree(context.folder("generator") / "params", target)["ema"]


def _classifier_params(context: Context, stage: str, model: ClassifierConfig) -> Params:
    network = classifier.make(model, len(context.data[0].classes))
    image = jax.ShapeDtypeStruct((1, *context.image_shape), np.float32)
    target = _zeros(module.abstract(network, image, train=False))
    return checkpoint.load_tree(context.folder(stage) / "params", target)


def _zeros(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def _save_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    files.write_atomically(path, buffer.getvalue(), path.name)


def _save_mixture(path: pathlib.Path, controller: controllers.Controller, rounds: int) -> None:
    mixtures = [controller.mixture(r, None) for r in range(rounds)]
    description = [
        {
            "class_weight": mixture.class_weight.tolist(),
            "share": mixture.share.tolist(),
            "in_use": mixture.in_use.tolist(),
            "unmet": mixture.unmet.tolist(),
            "replay": mixture.replay,
        }
        for mixture in mixtures
    ]
    files.write_atomically(path, json.dumps(description), "the mixture")
