"""Boxes (x0, y0, x1, y1) in sides of the image: areas, overlaps, and lists of them made even.

With |.| an area and C the smallest box around A and B,

  IoU(A, B) = |A n B| / |A u B|                                                          (1)
  GIoU(A, B) = IoU(A, B) - (|C| - |A u B|) / |C|                                         (2)

(2) is Rezatofighi et al. 2019 (arXiv:1902.09630): in (-1, 1], and with a slope where the boxes do
not meet. A box without area stands for none.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32

from lt_jax.data.images import Box
from lt_jax.shapes import Array, Float

_LEAST = 1e-9  # under divisions by areas


def padded(boxes: Sequence[Sequence[Box]], most: int) -> Float32[np.ndarray, "n m 4"]:
    """Lists of boxes as one array, zeros behind each.

    Raises:
      ValueError: a list of more than `most`.
    """
    even = np.zeros((len(boxes), most, 4), np.float32)
    for row, held in enumerate(boxes):
        if len(held) > most:
            raise ValueError(f"row {row} has {len(held)} boxes; takes at most {most}")
        for slot, box in enumerate(held):
            even[row, slot] = box
    return even


def given(boxes: Float[Array, "*s 4"]) -> Bool[Array, "*s"]:
    """Which boxes are there: those with an area."""
    return (boxes[..., 0] < boxes[..., 2]) & (boxes[..., 1] < boxes[..., 3])


def area(boxes: Float[Array, "*s 4"]) -> Float[Array, "*s"]:
    """Areas in parts of the image; 0 for what is turned inside out."""
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def iou(first: Float[Array, "*s 4"], second: Float[Array, "*s 4"]) -> Float[Array, "*s"]:
    """Equation (1) of each pair, in [0, 1]; 0 where neither has an area."""
    both, either = _overlap(first, second)
    return both / jnp.maximum(either, _LEAST)


def giou(first: Float[Array, "*s 4"], second: Float[Array, "*s 4"]) -> Float[Array, "*s"]:
    """Equation (2) of each pair, in (-1, 1]."""
    both, either = _overlap(first, second)
    low = jnp.minimum(first[..., :2], second[..., :2])
    high = jnp.maximum(first[..., 2:], second[..., 2:])
    around = jnp.maximum(area(jnp.concatenate([low, high], axis=-1)), _LEAST)
    return both / jnp.maximum(either, _LEAST) - (around - either) / around


def pairwise_iou(boxes: Float[Array, "n 4"]) -> Float[Array, "n n"]:
    """Equation (1) of all pairs of a list."""
    n = boxes.shape[0]
    shape = (n, n, 4)
    return iou(
        jnp.broadcast_to(boxes[:, None, :], shape), jnp.broadcast_to(boxes[None, :, :], shape)
    )


def around(locations: Float[Array, "l 2"], sides: Float[Array, "*b l 4"]) -> Float[Array, "*b l 4"]:
    """Boxes whose left, upper, right and lower side are so far from their locations."""
    return jnp.concatenate(
        [
            _like(locations, sides) - sides[..., :2],
            _like(locations, sides) + sides[..., 2:],
        ],
        axis=-1,
    )


def _like(locations: Float[Array, "l 2"], sides: Float[Array, "*b l 4"]) -> Array:
    return jnp.broadcast_to(locations, (*sides.shape[:-1], 2))


def _overlap(first: Array, second: Array) -> tuple[Array, Array]:
    """Areas of intersection and union."""
    low = jnp.maximum(first[..., :2], second[..., :2])
    high = jnp.minimum(first[..., 2:], second[..., 2:])
    both = area(jnp.concatenate([low, high], axis=-1))
    return both, area(first) + area(second) - both
