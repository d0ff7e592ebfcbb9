"""The stage classify: a classifier of an arm and seed, on real and synthetic images.

What of it the extractor shares is here, too: the data of a classifier on real images alone, and
what a trained one says of a split's images.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from lt_jax import policy_learning, preflight
from lt_jax.classify import decoupled, history, predict, train
from lt_jax.config import ArmConfig, Config
from lt_jax.config.classify import LEARNED
from lt_jax.context import Context
from lt_jax.data.batch_mixing import BatchMixing
from lt_jax.data.images import Images
from lt_jax.data.pool import PoolReader
from lt_jax.data.randaugment import RandAugment
from lt_jax.mixing import controllers
from lt_jax.runtime import arrays as arrays_lib
from lt_jax.runtime import checkpoint, files, mesh
from lt_jax.runtime.job import Job
from lt_jax.runtime.ledger import Clock, Ledger
from lt_jax.shapes import Params


def run(folder: pathlib.Path, context: Context, arm_name: str, seed: int) -> Ledger:
    """Trains, or goes on training; writes parameters, predictions and what was drawn."""
    config, context = context.config.classify, on_its_devices(context)
    second = decoupled.of(config.arms[arm_name], config.steps)
    recipe = recipe_of(context.config, arm_name, seed)
    controller, data = mixed_data(context, arm_name, seed)
    job = context.job(folder, stage="classify", arm=arm_name, seed=seed)
    splits = ("policy_val", "val", "test")  # the test labels in this manifest are masked
    outputs, costs = train_and_predict(job, context, recipe, data, controller, splits, second)
    ids = np.array(context.data[0].ids)
    arrays = {}
    for split, output in outputs.items():
        arrays |= {f"{split}_ids": ids[output.rows], f"{split}_logits": output.logits}
    arrays_lib.save(folder / "predictions.npz", arrays)
    mixtures = history.mixtures(folder, controller, data, config.rounds)
    _save_mixture(folder / "mixture.json", mixtures)
    return costs


def on_its_devices(context: Context) -> Context:
    """The run as a classifier that is trained by itself sees it: on all devices, mostly.

    Of a population on devices of their own each has whole batches. One that is left over goes on
    with these on one device, where all devices cannot share them.
    """
    runtime, size = context.config.runtime, context.config.classify.batch_size
    own = runtime.population == "devices" and runtime.classifiers > 1
    if own and size % context.mesh.size:
        return dataclasses.replace(context, mesh=mesh.make_mesh(1))
    return context


def recipe_of(values: Config, arm_name: str, seed: int) -> train.Recipe:
    """What decides the (first stage's) training of an arm's classifier, besides its data."""
    config = values.classify
    arm = config.arms[arm_name]
    second = decoupled.of(arm, config.steps)
    return train.Recipe(
        model=preflight.classifier_of(config.model, arm),
        optimizer=config.optimizer,
        augment=config.augment,
        loss=arm.loss,
        tau=config.logit_adjustment,
        steps=config.steps - (second.steps if second else 0),
        rounds=config.rounds,
        batch_size=config.batch_size,
        seed=seed,
        **_strong(arm),
        expert_loss=arm.expert_loss,
    )


def _strong(arm: ArmConfig) -> dict[str, Any]:
    """The strong augmentation of an arm, as `Recipe` takes it."""
    kinds = arm.strong_augment.split("_")
    mixup, cutmix = "mixup" in kinds, "cutmix" in kinds
    own: dict[str, Any] = {}
    if "randaugment" in kinds:
        own["randaugment"] = RandAugment(arm.randaugment_ops, arm.randaugment_magnitude)
    if mixup or cutmix:
        own["mixing"] = BatchMixing(mixup, cutmix, arm.mix_alpha, arm.mix_probability)
    return own


def train_data(context: Context) -> train.TrainData:
    """What a classifier on real images alone learns from, and is looked at with."""
    manifest, images = context.data
    val, policy = manifest.rows("val"), manifest.rows("policy_val")
    return train.TrainData(
        real=images,
        train_rows=context.train_rows,
        val_rows=val,
        val_labels=manifest.labels[val],
        image_shape=context.image_shape,
        policy_rows=policy,
        policy_labels=manifest.labels[policy],
    )


def mixed_data(
    context: Context, arm_name: str, seed: int
) -> tuple[controllers.Controller, train.TrainData]:
    """An arm's controller, and the images that its synthetic slots hold."""
    arm = context.config.classify.arms[arm_name]
    data = train_data(context)
    if arm.controller == "none":
        return controllers.make(arm, data.counts, np.zeros_like(data.counts), seed), data
    manifest, images = context.data
    pool = PoolReader(context.folder("synthesize"), manifest.sha256)
    learned = None
    if "mixing" in context.specs and controllers.mirrored(arm) in LEARNED:
        learned = functools.partial(policy_learning.controller, context, seed)
    controller = controllers.make(arm, data.counts, pool.counts(), seed, learned)
    first = controller.mixture(())  # in use are the same images in every round
    if not first.in_use.any():
        return controller, data
    if first.replay:
        rows = manifest.rows("train")
        chosen = rows[controllers.replay_rows(manifest.labels[rows], first.in_use, seed)]
        labels = manifest.labels[chosen]
        extra_rows = [chosen[labels == k] for k in range(len(data.counts))]
        return controller, dataclasses.replace(data, extra=images, extra_rows=extra_rows)
    slots = [pool.rows(k)[:n] for k, n in enumerate(first.in_use)]
    rows = shuffled(slots, seed) if arm.pool_labels == "shuffled" else slots
    extra, extra_rows = _pool_images(pool, rows, context)
    soft = None
    labelled, used = np.concatenate(slots), np.concatenate(rows)
    if (pool.columns["label_weight"][labelled] < 1).any():
        # What is in a slot takes over all of the slot's label.
        at = labelled
        if extra is pool:
            at = np.arange(len(pool))
            at[used] = labelled
        soft = train.SoftLabels(
            manifest.labels, pool.columns["source_label"][at], pool.columns["label_weight"][at]
        )
    return controller, dataclasses.replace(data, extra=extra, extra_rows=extra_rows, soft=soft)


def shuffled(rows: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """Rows [n_k] by class, permuted over all classes: each has as many, of whichever class.

    What synthetic images then do for a classifier, they do not do by showing their classes. The
    permutation depends on the seed and the number of rows alone.
    """
    order = np.random.default_rng((seed, 5)).permutation(np.concatenate(rows))
    return np.split(order, np.cumsum([len(own) for own in rows])[:-1])


def _pool_images(
    pool: PoolReader, rows: list[np.ndarray], context: Context
) -> tuple[Images, list[np.ndarray]]:
    """Those images of the pool, by class, decoded once where they fit; and where they are then."""
    counts = [len(held) for held in rows]
    if sum(counts) * np.prod(context.image_shape) > context.config.data.decode_once_mib * 2**20:
        return pool, rows
    ends = np.cumsum(counts)
    used = np.concatenate(rows)
    which = str(context.folder("synthesize")), used.tobytes()
    decoded: Any = context.decoded.get(which)
    if decoded is None:
        decoded = context.decoded[which] = pool.held(used)
    return decoded, np.split(np.arange(ends[-1]), ends[:-1])


def _save_mixture(path: pathlib.Path, mixtures: Sequence[controllers.Mixture]) -> None:
    description = [
        {
            "class_weight": mixture.class_weight.tolist(),
            "share": mixture.share.tolist(),
            "in_use": mixture.in_use.tolist(),
            "unmet": mixture.unmet.tolist(),
            "replay": mixture.replay,
            **({} if mixture.factor is None else {"factor": mixture.factor.tolist()}),
        }
        for mixture in mixtures
    ]
    files.write_atomically(path, json.dumps(description), "the mixture")


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a classifier says of a split: rows [n] of the manifest, logits [n k], features [n d]."""

    rows: np.ndarray
    logits: np.ndarray
    features: np.ndarray


def train_and_predict(
    job: Job,
    context: Context,
    recipe: train.Recipe,
    data: train.TrainData,
    controller: controllers.Controller,
    splits: tuple[str, ...],
    second: decoupled.SecondStage | None = None,
) -> tuple[dict[str, Outputs], Ledger]:
    """Trains a classifier, saves its parameters, and asks it about each split that has images."""
    params, costs = train.train(recipe, data, controller, job)
    if second is not None:
        last = history.mixtures(job.folder, controller, data, recipe.rounds)[-1]
        params, more = decoupled.finish(second, recipe, data, last, params, job)
        costs.add(more)
    return ask(job.folder, context, recipe, params, splits, costs), costs


def ask(
    folder: pathlib.Path,
    context: Context,
    recipe: train.Recipe,
    params: Params,
    splits: tuple[str, ...],
    costs: Ledger,
) -> dict[str, Outputs]:
    """Saves a trained classifier's parameters, and asks it about each split that has images."""
    clock = Clock(costs)
    checkpoint.save_tree(folder / "params", params)
    manifest, images = context.data
    forward = predict.make_forward(recipe.model, len(manifest.classes), context.mesh)
    outputs = {}
    for split in splits:
        if len(rows := manifest.rows(split)):
            found = predict.predict(forward, params, images, rows, recipe.batch_size)
            outputs[split] = Outputs(rows, *found)
    clock.read()
    return outputs
