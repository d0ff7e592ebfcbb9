"""From a batch of the loader to what one training step of the generator sees, on device.

An image and all that is drawn on it are augmented together; then the sketch is taken from the
augmented image, a hole is chosen, conditions are jittered and some of them dropped.
"""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax.numpy as jnp

from lt_jax.config import AugmentConfig, ConditionsConfig
from lt_jax.data import augment
from lt_jax.diffusion import holes, inpaint, sketch
from lt_jax.diffusion.generator import Generator
from lt_jax.models import conditioning
from lt_jax.models.conditioning import NULL, Conditions
from lt_jax.runtime import keys
from lt_jax.shapes import Array, Float, Images, PRNGKey


@flax.struct.dataclass
class Examples:
    """A batch: images [b h w c] in [-1, 1], conditions, and sketches [b h w 1] or None."""

    images: Any
    conditions: Any
    sketches: Any


def make(batch: Mapping[str, Array], key: PRNGKey, generator: Generator) -> Examples:
    """One step's examples.

    Args:
      batch: `image` uint8 [b h w c], `label` int32 [b], and the columns of `annotations`.
      key: of the step.
      generator: what is trained.
    """
    config, vocabulary = generator.config, generator.vocabulary
    masks, boxes = _maps(batch), batch.get("boxes")
    if masks is None and boxes is None and not vocabulary.augmentation:
        images = augment.augment(batch["image"], keys.stream(key, "augment"), config.augment)
        told = None
    else:
        images, masks, boxes, told = _augmented(batch, masks, boxes, key, config.augment)
    sketches = None
    if vocabulary.sketch or generator.has_branch:
        sketches = sketch.sketch(images, masks, config.sketch)
    found = {
        "label": batch["label"],
        "device": batch.get("device"),
        "attributes": batch.get("attributes"),
        "boxes": boxes,
        "mask": masks,
        "sketch": sketches,
        "augmentation": told,
    }
    if vocabulary.inpaint:
        found["inpaint"] = _with_hole(images, masks, boxes, keys.stream(key, "hole"))
    conditions = Conditions(**{name: found[name] for name in vocabulary.names})
    jittered = conditioning.jitter(conditions, keys.stream(key, "jitter"), config.conditions.noise)
    rates = dropout_rates(config.conditions)
    kept = conditioning.drop(jittered, keys.stream(key, "drop"), rates, config.condition_dropout)
    return Examples(images, kept, sketches)


def needed(columns: Mapping[str, Any], generator: Generator) -> dict[str, Any]:
    """Those columns that the generator's training reads."""
    vocabulary, config = generator.vocabulary, generator.config
    contours = config.sketch.source == "mask" and (vocabulary.sketch or generator.has_branch)
    if vocabulary.mask or vocabulary.inpaint or contours:
        return dict(columns)
    return {name: held for name, held in columns.items() if not name.startswith("mask")}


def dropout_rates(config: ConditionsConfig) -> dict[str, float]:
    """How often each condition is left out by itself."""
    return {name: getattr(config, f"{name}_dropout") for name in conditioning.DROPPABLE}


def _maps(batch: Mapping[str, Array]) -> Float[Array, "b h w 1"] | None:
    """The masks in [0, 1], filled with NULL where an image has none."""
    if "mask" not in batch:
        return None
    values = batch["mask"].astype(jnp.float32) / 255
    return jnp.where(batch["mask_given"][:, None, None, None], values, float(NULL))


def _augmented(
    batch: Mapping[str, Array],
    masks: Array | None,
    boxes: Array | None,
    key: PRNGKey,
    config: AugmentConfig,
) -> tuple[Images, Array | None, Array | None, Array]:
    b, h, w, _ = batch["image"].shape
    images, moved, placed, told = augment.augment_annotated(
        batch["image"],
        jnp.zeros((b, h, w, 0)) if masks is None else masks,
        jnp.zeros((b, 0, 4)) if boxes is None else boxes,
        keys.stream(key, "augment"),
        config,
    )
    return images, None if masks is None else moved, None if boxes is None else placed, told


def _with_hole(
    images: Images, masks: Array | None, boxes: Array | None, key: PRNGKey
) -> Float[Array, "b h w d"]:
    b, h, w, _ = images.shape
    each = keys.per_example(key, jnp.arange(b))
    return inpaint.as_condition(images, holes.choose_holes(each, h, w, masks, boxes))
