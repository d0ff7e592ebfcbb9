"""What a generated image is asked to show: batches of conditions, absent ones, the spatial inputs.

Every condition may be absent. An absent ("null") condition is what classifier-free guidance
(Ho & Salimans 2022, arXiv:2207.12598) calls unconditional, and the network learns it because
training drops conditions at random: all of an example together, and each by itself, so that any
subset can be given when images are made. A null is replaced before a network reads it, so that
nothing of its value, nor a gradient, gets through; and the network is told that it is a null, so
that an image known to hold no lesion (boxes of zeros) is not one of which nothing is known.

Classes and devices, attributes, corners of boxes and augmentations reach the network as a vector:
see `lt_jax.models.embedding`. What has a place in the image (boxes, masks, sketches, images with a
hole) comes in as channels beside the noisy image: `spatial`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from lt_jax.errors import UserError
from lt_jax.runtime import keys
from lt_jax.shapes import Array, Float, PRNGKey

NULL = -1  # the label or device of an example without one, and what fills an absent map or box
DROPPABLE = ("label", "device", "attributes", "boxes", "mask", "sketch", "inpaint")


class ConditionError(UserError, ValueError):
    """Conditions that are not those of the network, or not of its shapes."""


@flax.struct.dataclass
class Conditions:
    """One batch of conditions; a pytree whose leaves have the batch as their first axis.

    A field of None stands for an input that the network does not have. (Typed `Any`: inside JAX's
    transformations a pytree's leaves may be shapes, specs or markers.)

    Attributes:
      label: Int[Array, "b"], the class in [0, num_classes). `NULL` or num_classes: none.
      device: Int[Array, "b"], the device or site, likewise.
      attributes: Float[Array, "b a"], standardised. NaN: this one is not known.
      boxes: Float[Array, "b m 4"], lesions as (x0, y0, x1, y1) in [0, 1] of the image; slots that
        are not needed are zeros. All `NULL`: none told.
      mask: Float[Array, "b h w 1"] in [0, 1], 1 inside. All `NULL`: none told.
      sketch: Float[Array, "b h w 1"] in [0, 1], 1 on an edge. All `NULL`: none told.
      inpaint: Float[Array, "b h w c+1"], (image * (1 - hole), hole), the hole 1 where the image is
        not known. All `NULL`: none told.
      augmentation: Float[Array, "b f"], how the image was augmented; zeros for one that was not.
        It is never absent: images are made with zeros.
    """

    label: Any = None
    device: Any = None
    attributes: Any = None
    boxes: Any = None
    mask: Any = None
    sketch: Any = None
    inpaint: Any = None
    augmentation: Any = None


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Which inputs a network has besides the image and its noise level.

    Attributes:
      num_classes: labels are in [0, num_classes).
      devices: likewise; 0: the network knows no devices. So with the other numbers.
      attributes: how many there are.
      max_boxes: slots for the boxes of an image.
      corners: boxes are read as numbers, too, and not as a channel alone.
      mask: a mask is an input.
      sketch: a sketch is an input.
      inpaint: an image with a hole is an input.
      channels: of that image.
      augmentation: length of the description of an augmentation.
    """

    num_classes: int
    devices: int = 0
    attributes: int = 0
    max_boxes: int = 0
    corners: bool = False
    mask: bool = False
    sketch: bool = False
    inpaint: bool = False
    channels: int = 0
    augmentation: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The fields of `Conditions` that the network takes."""
        taken = {
            "label": True,
            "device": self.devices,
            "attributes": self.attributes,
            "boxes": self.max_boxes,
            "mask": self.mask,
            "sketch": self.sketch,
            "inpaint": self.inpaint,
            "augmentation": self.augmentation,
        }
        return tuple(name for name, there in taken.items() if there)

    @property
    def spatial_channels(self) -> int:
        """How many channels `spatial` has."""
        maps = (self.max_boxes > 0) + self.mask + self.sketch
        return 2 * maps + (self.channels + 2) * self.inpaint

    def check(self, conditions: Conditions) -> None:
        """Raises ConditionError unless these are the network's conditions, in its shapes."""
        given = tuple(
            field.name
            for field in dataclasses.fields(conditions)
            if getattr(conditions, field.name) is not None
        )
        if given != self.names:
            raise ConditionError(
                f"the network takes the conditions {', '.join(self.names)}, got "
                f"{', '.join(given) or 'none'}; give the null of one that is not to be told "
                "(see `nulls`), and leave out what the network was not trained with"
            )
        widths = {
            "attributes": self.attributes,
            "boxes": 4,
            "mask": 1,
            "sketch": 1,
            "inpaint": self.channels + 1,
            "augmentation": self.augmentation,
        }
        for name in given:
            shape = np.shape(getattr(conditions, name))
            if name in widths and shape[-1] != widths[name]:
                raise ConditionError(
                    f"the network takes {widths[name]} numbers in the last axis of the condition "
                    f"{name!r}, got the shape {shape}"
                )


def nulls(vocabulary: Vocabulary, batch: int, height: int, width: int) -> Conditions:
    """A batch of which nothing is told, for images of `height` x `width` pixels."""
    maps = {"mask": 1, "sketch": 1, "inpaint": vocabulary.channels + 1}
    shapes = {
        "label": (),
        "device": (),
        "attributes": (vocabulary.attributes,),
        "boxes": (vocabulary.max_boxes, 4),
        "augmentation": (vocabulary.augmentation,),
        **{name: (height, width, channels) for name, channels in maps.items()},
    }
    empty = {
        name: jnp.zeros(
            (batch, *shapes[name]), jnp.int32 if name in ("label", "device") else jnp.float32
        )
        for name in vocabulary.names
    }
    return null_like(Conditions(**empty))


def null_like(conditions: Conditions) -> Conditions:
    """The same batch with every condition absent; the augmentation, which has no null, stays."""

    def null(name: str, leaf: Any) -> Any:
        if leaf is None or name == "augmentation":
            return leaf
        return jnp.full_like(leaf, jnp.nan if name == "attributes" else NULL)

    return Conditions(**{name: null(name, leaf) for name, leaf in vars(conditions).items()})


def drop(
    conditions: Conditions, key: PRNGKey, rates: Mapping[str, float], joint: float
) -> Conditions:
    """Makes conditions of each example absent at random, independently of the other examples.

    Args:
      conditions: the batch.
      key: of the step.
      rates: the probability, by name, that a condition goes by itself; one that is not named does
        not. What is drawn for one does not depend on which others there are.
      joint: the probability that all conditions of an example go together, which makes it
        unconditional, as guidance needs it.

    Raises:
      ValueError: a rate for what is no condition, or has no null.
    """
    if unknown := sorted(set(rates) - set(DROPPABLE)):
        raise ValueError(f"drop: a rate for {unknown[0]!r}; takes any of {', '.join(DROPPABLE)}")
    present = {name: leaf for name in DROPPABLE if (leaf := getattr(conditions, name)) is not None}
    if not present:
        return conditions
    count = next(iter(present.values())).shape[:1]
    # The joint draw has the key itself and the others streams of it: a network that knows classes
    # alone draws the same whether or not the other conditions exist.
    together = jax.random.bernoulli(key, joint, count)
    absent = null_like(conditions)
    kept = {}
    for name, leaf in present.items():
        gone = together
        if rate := rates.get(name, 0.0):
            gone = gone | jax.random.bernoulli(keys.stream(key, name), rate, count)
        kept[name] = jnp.where(_expand(gone, leaf), getattr(absent, name), leaf)
    return dataclasses.replace(conditions, **kept)


def jitter(conditions: Conditions, key: PRNGKey, noise: float) -> Conditions:
    """Conditioning augmentation: boxes and attributes a little wrong, so that none is memorised.

    Ho et al. 2022 (arXiv:2106.15282, section 4.2) add noise to the image that conditions a
    super-resolution model; this is our definition for boxes and attributes. With z ~ N(0, I), the
    centre of a box moves by noise * size * z and its size grows by exp(noise * z), in x and y each,
    no larger than the image and moved back into it; an attribute, which is standardised, moves by
    noise * z. Unused slots and what is absent stay as they are, like all other conditions.
    """
    if noise == 0:
        return conditions
    changed = {}
    if (boxes := conditions.boxes) is not None:
        changed["boxes"] = _jitter_boxes(boxes, keys.stream(key, "boxes"), noise)
    if (attributes := conditions.attributes) is not None:
        z = jax.random.normal(keys.stream(key, "attributes"), attributes.shape, attributes.dtype)
        changed["attributes"] = attributes + noise * z
    return dataclasses.replace(conditions, **changed)


def box_map(boxes: Float[Array, "b m 4"], height: int, width: int) -> Float[Array, "b h w 1"]:
    """1 where the centre of a pixel is inside a box, 0 elsewhere.

    A box holds its left and upper edge but not its right and lower one, so that boxes side by side
    share no pixel, and one without area (an unused slot, a null) has none. A box narrower than a
    pixel may lie between centres and then has none either.
    """

    def within(low: Float[Array, "b m"], high: Float[Array, "b m"], size: int) -> Array:
        centres = (jnp.arange(size) + 0.5)[None, None, :]
        return (low[..., None] * size <= centres) & (centres < high[..., None] * size)

    across = within(boxes[..., 0], boxes[..., 2], width)
    down = within(boxes[..., 1], boxes[..., 3], height)
    inside = jnp.any(down[:, :, :, None] & across[:, :, None, :], axis=1)
    return inside[..., None].astype(jnp.float32)


def spatial(
    conditions: Conditions, vocabulary: Vocabulary, height: int, width: int
) -> Float[Array, "b {height} {width} {vocabulary.spatial_channels}"]:
    """The channels beside the noisy image: of each input its value, then whether it is given.

    Boxes (as `box_map`), mask, sketch and the image with a hole, in this order, as far as the
    vocabulary has them. The value of an absent one is 0 everywhere, and "given" is 0 or 1
    everywhere.

    Raises:
      ConditionError: a map of another size than `height` x `width`.
    """
    count = next(leaf.shape[0] for leaf in vars(conditions).values() if leaf is not None)
    parts = [jnp.zeros((count, height, width, 0))]
    for name in vocabulary.names:
        if name not in ("boxes", "mask", "sketch", "inpaint"):
            continue
        leaf = getattr(conditions, name)
        told = is_given(leaf)[:, None, None, None]
        value = box_map(leaf, height, width) if name == "boxes" else leaf.astype(jnp.float32)
        if value.shape[1:3] != (height, width):
            raise ConditionError(
                f"the condition {name!r} is {value.shape[1]}x{value.shape[2]} pixels for images of "
                f"{height}x{width}; give it in the size of the images"
            )
        given = jnp.broadcast_to(told, (count, height, width, 1)).astype(jnp.float32)
        parts += [jnp.where(told, value, 0.0), given]
    return jnp.concatenate(parts, axis=-1)


def is_given(leaf: Float[Array, "b *shape"]) -> Bool[Array, "b"]:
    """Which examples of boxes or maps are told: a null is filled with `NULL`, even in its hole.

    The last channel is asked, as an image with a hole may hold -1 where it is black. Half-way
    between `NULL` and 0, since a map that was resampled may fall short of 0 by a rounding.
    """
    return leaf.reshape(leaf.shape[0], -1)[:, -1] > NULL / 2


def _jitter_boxes(boxes: Float[Array, "b m 4"], key: PRNGKey, noise: float) -> Array:
    low, high = boxes[..., :2], boxes[..., 2:]
    size, centre = high - low, (low + high) / 2
    moves, grows = jax.random.normal(key, (2, *size.shape), boxes.dtype)
    centre = centre + noise * size * moves
    size = jnp.minimum(size * jnp.exp(noise * grows), 1.0)
    centre = jnp.clip(centre, size / 2, 1 - size / 2)
    moved = jnp.clip(jnp.concatenate([centre - size / 2, centre + size / 2], axis=-1), 0.0, 1.0)
    real = jnp.all(low < high, axis=-1, keepdims=True)
    return jnp.where(real, moved, boxes)


def _expand(flags: Bool[Array, "b"], leaf: Array) -> Array:
    return jnp.expand_dims(flags, tuple(range(1, leaf.ndim)))
