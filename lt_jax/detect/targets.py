"""What each location of the pyramid is taught: which lesion is its own, and how central it is.

A location at p is a candidate for a box if it lies in the box and within `radius` strides of its
middle (Tian et al. 2020, arXiv:2006.09214, "centre sampling"), and if the farthest side, in strides
of its level, is one that the level regresses:

  reach / 2 < max(l, t, r, b) / s <= reach                                               (1)

without the lower limit on the finest level and without the upper one on the coarsest. FCOS has
reach = 8 on images of 800 pixels; with 2 the levels share lesions out on images of 32 to 128. Of
several boxes a location takes the smallest, the first of equals. Its centre-ness is

  sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))                                    (2)

A box that has no candidate, being smaller than the gaps, gets the nearest location of the finest
level, with a centre-ness of 1: no lesion goes untaught.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lt_jax.config import AssignConfig
from lt_jax.detect import boxes as boxes_lib
from lt_jax.models.detector import Grid
from lt_jax.shapes import Array, Float, Int


@flax.struct.dataclass
class Targets:
    """Of a batch; where `found` is false the others are not to be read.

    Attributes:
      found: bool [b l], whether the location has a lesion.
      label: int32 [b l], the class of that.
      boxes: float32 [b l 4], its box.
      middle: float32 [b l], centre-ness in [0, 1].
    """

    found: Any
    label: Any
    boxes: Any
    middle: Any


def assign(
    boxes: Float[Array, "b m 4"], labels: Int[Array, "b"], grid: Grid, config: AssignConfig
) -> Targets:
    """The targets of a batch.

    Args:
      boxes: of the lesions, in sides of the image; those without area are padding.
      labels: of each image's lesions.
      grid: the locations.
      config: equation (1) and the radius.
    """
    found, owner, middle = jax.vmap(lambda held: _assign_one(held, grid, config))(boxes)
    return Targets(
        found=found,
        label=jnp.broadcast_to(labels[:, None], found.shape),
        boxes=jnp.take_along_axis(boxes, owner[:, :, None], axis=1),
        middle=middle,
    )


def _assign_one(boxes: Float[Array, "m 4"], grid: Grid, config: AssignConfig) -> Any:
    """Of one image's locations: whether there is a lesion, which box [l], and centre-ness [l]."""
    places, stride = jnp.asarray(grid.locations), jnp.asarray(grid.stride)[:, None]
    sides = _sides(places, boxes)
    farthest = sides.max(axis=-1) / stride
    level = jnp.asarray(grid.level)[:, None]
    low = jnp.where(level == 0, 0.0, config.reach / 2)
    high = jnp.where(level == len(grid.strides) - 1, jnp.inf, config.reach)
    off = places[:, None, :] - (boxes[:, :2] + boxes[:, 2:])[None, :, :] / 2
    near = jnp.abs(off).max(axis=-1) < config.radius * stride
    there = boxes_lib.given(boxes)[None, :]
    candidate = there & near & (sides.min(axis=-1) > 0) & (low < farthest) & (farthest <= high)

    missed = there & ~candidate.any(axis=0)[None, :]
    away = jnp.where(level == 0, jnp.square(off).sum(axis=-1), jnp.inf)
    nearest = jnp.arange(len(places))[:, None] == away.argmin(axis=0)[None, :]
    candidate = candidate | (missed & nearest)

    size = jnp.where(candidate, boxes_lib.area(boxes)[None, :], jnp.inf)
    owner = size.argmin(axis=1)
    row = jnp.arange(len(places))
    middle = jnp.where(missed[0, owner], 1.0, centerness(sides[row, owner]))
    return candidate.any(axis=1), owner, middle


def _sides(places: Float[Array, "l 2"], boxes: Float[Array, "m 4"]) -> Float[Array, "l m 4"]:
    """Distances to the left, upper, right and lower side; below 0 for a location outside."""
    low = places[:, None, :] - boxes[None, :, :2]
    high = boxes[None, :, 2:] - places[:, None, :]
    return jnp.concatenate([low, high], axis=-1)


def centerness(sides: Float[Array, "*s 4"]) -> Float[Array, "*s"]:
    """Equation (2), in [0, 1]; 0 for a location outside of the box."""
    sides = jnp.maximum(sides, 0.0)
    low, high = sides[..., :2], sides[..., 2:]
    ratio = jnp.minimum(low, high) / jnp.maximum(jnp.maximum(low, high), 1e-9)
    return jnp.sqrt(ratio[..., 0] * ratio[..., 1])
