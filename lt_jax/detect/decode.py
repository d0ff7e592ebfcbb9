"""From what the head says to boxes: scores, the best of them, non-maximum suppression; on device.

A location's score for a class is the geometric mean of the class's probability and of its
centre-ness (FCOS, in its later code). Every array has a fixed size: the `candidates` best go into
suppression, and up to `most` that are left come out, the best first, zeros behind them.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool

from lt_jax.config import DecodeConfig
from lt_jax.detect import boxes as boxes_lib
from lt_jax.detect import losses
from lt_jax.models.detector import Grid, Outputs
from lt_jax.shapes import Array, Float, Int


@flax.struct.dataclass
class Detections:
    """Of a batch, best first; where `scores` is 0 there is none.

    Attributes:
      boxes: float32 [b d 4], in sides of the image, inside of it.
      scores: float32 [b d] in [0, 1].
      labels: int32 [b d].
    """

    boxes: Any
    scores: Any
    labels: Any


def decode(outputs: Outputs, grid: Grid, config: DecodeConfig) -> Detections:
    """The detections of a batch."""
    places = jnp.clip(losses.place(outputs, grid), 0.0, 1.0)
    middle = jax.nn.sigmoid(outputs.middle)[..., None]
    scores = jnp.sqrt(jax.nn.sigmoid(outputs.classes) * middle)
    return jax.vmap(lambda box, score: _one(box, score, config))(places, scores)


def _one(places: Float[Array, "l 4"], scores: Float[Array, "l k"], config: DecodeConfig) -> Any:
    classes = scores.shape[-1]
    best, at = jax.lax.top_k(scores.reshape(-1), min(config.candidates, scores.size))
    places, labels = places[at // classes], (at % classes).astype(jnp.int32)
    usable = (best >= config.score) & (best > 0) & boxes_lib.given(places)
    kept = suppress(places, labels, usable, config.overlap)
    most = min(config.most, len(at))
    # Stable: of equals the first, and what is left out behind all.
    order = jnp.argsort(~kept, stable=True)[:most]
    held = kept[order]
    found = Detections(
        boxes=jnp.where(held[:, None], places[order], 0.0),
        scores=jnp.where(held, best[order], 0.0),
        labels=jnp.where(held, labels[order], 0),
    )
    behind = config.most - most
    return jax.tree.map(
        lambda leaf: jnp.pad(leaf, [(0, behind)] + [(0, 0)] * (leaf.ndim - 1)), found
    )


def suppress(
    boxes: Float[Array, "n 4"],
    labels: Int[Array, "n"],
    usable: Bool[Array, "n"],
    overlap: float,
) -> Bool[Array, "n"]:
    """Greedy non-maximum suppression, class by class.

    Args:
      boxes: in descending order of score.
      labels: boxes of other classes do not suppress each other.
      usable: those that are not, neither stay nor suppress.
      overlap: a box goes if its IoU with one that stays, before it, is above this.

    Returns:
      Which boxes stay.
    """
    rival = (boxes_lib.pairwise_iou(boxes) > overlap) & (labels[:, None] == labels[None, :])
    before = jnp.arange(len(boxes))

    def judge(i: Array, kept: Array) -> Array:
        beaten = jnp.any(kept & rival[i] & (before < i))
        return kept.at[i].set(usable[i] & ~beaten)

    return jax.lax.fori_loop(0, len(boxes), judge, jnp.zeros(len(boxes), bool))
