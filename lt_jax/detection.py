"""The stage detect: a detector of an arm and seed, trained on real, synthetic or mixed images.

Boxes of real images are those of the manifest, of synthetic ones those that the generator was told
to fill, so that they cost nobody any work; an image without is background. All synthetic images
have passed the gates. Whatever an arm draws from, classes are drawn as often as they are among the
real images, but for those that are filled up. Test images are looked at once training is over,
and what is written of them is ids, boxes and scores: where their lesions are, no stage but
`report` is told.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from lt_jax.config import Config, ConfigError, DetectArmConfig
from lt_jax.context import Context
from lt_jax.data.images import Box, Images, as_box, is_box, names_of
from lt_jax.data.manifest import ManifestError, SplitManifest
from lt_jax.data.pool import PoolError, PoolReader
from lt_jax.detect import predict, train
from lt_jax.detect.boxes import padded
from lt_jax.detect.decode import Detections
from lt_jax.evaluate.metrics import average_precision
from lt_jax.evaluate.metrics.average_precision import Found, Lesions
from lt_jax.evaluate.statistics import detection as evaluate
from lt_jax.mixing import controllers
from lt_jax.mixing.mixture import Mixture
from lt_jax.runtime import arrays as arrays_lib
from lt_jax.runtime import checkpoint, files, training
from lt_jax.runtime.job import Job
from lt_jax.runtime.ledger import Clock, Ledger

PREDICTIONS = "predictions.npz"


def run(folder: pathlib.Path, context: Context, arm_name: str, seed: int) -> Ledger:
    """Trains, or goes on training; writes parameters, predictions and what was drawn from.

    Raises:
      ConfigError: no train image has a lesion with a box, or the pool's images were told none.
      MixtureError: synthetic images are asked for, and the pool has none that passed.
    """
    manifest, images = context.data
    recipe = recipe_of(context.config, len(manifest.classes), seed)
    mixture, data = _data(context, arm_name)
    params, costs = train.train(recipe, data, _job(folder, context, arm_name, seed))
    clock = Clock(costs)
    checkpoint.save_tree(folder / "params", params)
    forward = train.forward_of(recipe, context.image_shape[0], context.mesh)
    arrays: dict[str, np.ndarray] = {}
    for split in ("val", "test"):
        if len(rows := manifest.rows(split)):
            found = predict.predict(forward, params, images, rows, recipe.batch_size)
            arrays[f"{split}_ids"] = np.array(manifest.ids)[rows]
            arrays |= {f"{split}_{name}": leaf for name, leaf in vars(found).items()}
    arrays_lib.save(folder / PREDICTIONS, arrays)
    files.write_atomically(folder / "mixture.json", json.dumps(mixture), "the mixture")
    clock.read()
    return costs


def describe(folder: pathlib.Path, context: Context, arm_name: str, seed: int) -> training.Training:
    """The training of `run`; raises what that does."""
    recipe = recipe_of(context.config, len(context.data[0].classes), seed)
    data = _data(context, arm_name)[1]
    return train.describe(recipe, data, _job(folder, context, arm_name, seed))


def _job(folder: pathlib.Path, context: Context, arm_name: str, seed: int) -> Job:
    return context.job(folder, stage="detect", arm=arm_name, seed=seed)


def recipe_of(config: Config, num_classes: int, seed: int) -> train.Recipe:
    """What decides the training of a detector, of images of `num_classes` classes."""
    part = config.detect
    return train.Recipe(
        model=part.model,
        assign=part.assign,
        decode=part.decode,
        optimizer=part.optimizer,
        augment=part.augment,
        classes=num_classes if part.classes == "label" else 1,
        steps=part.steps,
        looks=part.looks,
        batch_size=part.batch_size,
        seed=seed,
    )


def _data(context: Context, arm_name: str) -> tuple[dict[str, Any], train.TrainData]:
    """What an arm draws from and, for `mixture.json`, how often."""
    arm = context.config.detect.arms[arm_name]
    manifest, images = context.data
    train_rows = manifest.rows("train")
    lists = [held if split == "train" else () for held, split in _boxes_by_row(manifest)]
    if not any(lists):
        raise ConfigError(
            "config.detect.arms: no train image of this data set has a lesion box or a mask to "
            "draw one around; leave detection out (config.detect.arms={})"
        )
    most = max(map(len, lists))
    real = train.Store(images, padded(lists, most), context.train_rows)
    counts = np.array([len(rows) for rows in real.rows])
    mixture, first, second = _mixture(arm, counts, context), real, None
    used = mixture.in_use
    weight, share = mixture.class_weight, mixture.share
    if used.any():  # else there was nothing to fill
        pool = PoolReader(context.folder("synthesize"), manifest.sha256)
        second = _synthetic(context, pool, [pool.rows(k)[:n] for k, n in enumerate(used)])
    if arm.data == "synthetic" and second is not None:
        first, second = second, None
        # As often as among real images, as far as there are synthetic ones of the class.
        weight = counts * (used > 0) / (counts * (used > 0)).sum()
        share = np.zeros_like(share)
    written = {
        "data": arm.data,
        "class_weight": weight.tolist(),
        "share": share.tolist(),
        "in_use": used.tolist(),
        "train_images": len(train_rows),
        "train_lesions": sum(map(len, lists)),
    }
    val = manifest.rows("val")
    return written, train.TrainData(
        first=first,
        second=second,
        class_weight=weight,
        share=share,
        image_shape=context.image_shape,
        val_images=images,
        val_rows=val,
        look=functools.partial(_look, _lesions(context.config, manifest, val)),
    )


def _boxes_by_row(manifest: SplitManifest) -> list[tuple[tuple[Box, ...], str]]:
    return list(zip(manifest.boxes, manifest.splits, strict=True))


def _mixture(arm: DetectArmConfig, counts: np.ndarray, context: Context) -> Mixture:
    """Of an arm, from the real train images of each class [k]."""
    if arm.data == "real":
        return controllers.real_only(counts, "instance").mixture(())
    pool = PoolReader(context.folder("synthesize"), context.data[0].sha256)
    return mixed(arm, counts, pool.counts())


def mixed(arm: DetectArmConfig, counts: np.ndarray, accepted: np.ndarray) -> Mixture:
    """What an arm with synthetic images draws, from real and accepted images of each class [k].

    Raises MixtureError where it asks for synthetic images and there are none.
    """
    supply = controllers.Supply(tuple(counts.tolist()), tuple(accepted.tolist()))
    if arm.data == "mixed" and arm.mix == "fill_to_head":
        return controllers.FillToHead(supply).mixture(())
    half = arm.share if arm.data == "mixed" else 0.5  # of `synthetic` no share is read
    found = controllers.FixedShare(supply, half).mixture(())
    # The classes in their real proportions: only whose images are drawn changes.
    return dataclasses.replace(found, class_weight=counts / counts.sum())


def _synthetic(context: Context, pool: PoolReader, rows: Sequence[np.ndarray]) -> train.Store:
    """Those images of the pool, decoded once where they fit, with the boxes they were told."""
    used = np.concatenate(rows)
    boxes = told_boxes(pool.columns["conditions"][used].tolist())
    ends = np.cumsum([len(own) for own in rows])
    places = np.split(np.arange(ends[-1]), ends[:-1])
    size = len(used) * np.prod(context.image_shape)
    if size <= context.config.data.decode_once_mib * 2**20:
        return train.Store(pool.held(used), boxes, places)
    held: Images = _Rows(pool, used)
    return train.Store(held, boxes, places)


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows:
    """Some rows of a store as one of their own."""

    store: Images
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self.store[self.rows[indices]]

    def names(self, rows: np.ndarray) -> list[str]:
        return names_of(self.store, self.rows[rows])


def told_boxes(notes: Sequence[str]) -> Float32[np.ndarray, "n m 4"]:
    """The boxes that the generator was told of the images of a pool, zeros behind each list.

    Args:
      notes: entries of the pool's column `conditions`.

    Raises:
      ConfigError: it was told none.
      PoolError: a note holds what is no box.
    """
    lists = []
    for note in notes:
        told = json.loads(note)
        if "boxes" not in told:
            raise ConfigError(
                "config.detect.arms: the pool's images were not told where their lesions are; set "
                "config.generator.conditions.boxes, with boxes among config.synthesize.given, or "
                "keep to real images"
            )
        boxes = [as_box(np.clip(box, 0, 1).tolist()) for box in told["boxes"]]
        if bad := [box for box in boxes if not is_box(box)]:
            raise PoolError(
                f"pool: an image was told the box {bad[0]}; takes 0 <= x0 < x1 <= 1, "
                "0 <= y0 < y1 <= 1; run synthesize again"
            )
        lists.append(boxes)
    return padded(lists, max(map(len, lists), default=1))


def _lesions(config: Config, manifest: SplitManifest, rows: np.ndarray) -> Lesions:
    """What the manifest says of these rows; small is what is small among train lesions."""
    train_boxes = [manifest.boxes[row] for row in manifest.rows("train")]
    by_label = config.detect.classes == "label"
    labels = manifest.labels[rows]
    return Lesions(
        boxes=[manifest.boxes[row] for row in rows],
        labels=labels if by_label else np.zeros_like(labels),
        classes=len(manifest.classes) if by_label else 1,
        small_area=average_precision.small_area(train_boxes, config.detect.small),
    )


def _found(arrays: Detections) -> Found:
    return Found(*(np.asarray(leaf) for leaf in (arrays.boxes, arrays.scores, arrays.labels)))


def _look(lesions: Lesions, found: Detections) -> dict[str, float]:
    """Average precision on val, for the learning curve; without what is undefined there."""
    values = average_precision.match(_found(found), lesions)[1]
    known = {name: values[name] for name in ("ap50", "ap") if np.isfinite(values[name])}
    return {f"val_{name}": value for name, value in known.items()}


def gather(
    context: Context, manifest: SplitManifest, test_ids: Sequence[str]
) -> evaluate.Detection | None:
    """Predictions of all arms joined with the opened lesions; None where there are no arms.

    Args:
      context: of the run.
      manifest: the whole one, whose test split has been opened and is on record.
      test_ids: what the opening gave.

    Raises:
      ManifestError: predictions are not of `test_ids`.
    """
    config = context.config.detect
    if not config.arms:
        return None
    rows = manifest.rows("test")
    return evaluate.Detection(
        arms=tuple(
            evaluate.Arm(
                name,
                _in_words(arm),
                tuple(_run(context, name, seed, test_ids) for seed in sorted(config.seeds)),
            )
            for name, arm in config.arms.items()
        ),
        baseline=config.baseline,
        lesions=_lesions(context.config, manifest, rows),
        labels=manifest.labels[rows],
        groups=[manifest.groups[row] for row in rows],
        classes=len(manifest.classes),
        small_part=config.small,
    )


def _in_words(arm: DetectArmConfig) -> str:
    if arm.data != "mixed":
        return arm.data
    return "filled to the head" if arm.mix == "fill_to_head" else f"{arm.share:g} synthetic"


def _run(context: Context, arm: str, seed: int, test_ids: Sequence[str]) -> evaluate.Run:
    stage = f"detect/{arm}/seed{seed}"
    path = context.folder(stage) / PREDICTIONS
    held = arrays_lib.load(path)
    if [*held.get("test_ids", ())] != [*test_ids]:
        raise ManifestError(
            f"{path} holds other test images than the manifest; delete its folder and run detect "
            "again"
        )
    ledger = context.store.ledger(context.specs[stage])
    found = Found(*(held[f"test_{name}"] for name in ("boxes", "scores", "labels")))
    return evaluate.Run(seed, found, ledger.seconds, ledger.images, ledger.flops)
