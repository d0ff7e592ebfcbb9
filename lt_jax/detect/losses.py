"""Losses of the detector, over all locations of a batch (Tian et al. 2019, arXiv:1904.01355).

With N locations that have a lesion, p their class probabilities and w their centre-ness targets,

  class    sum over all locations and classes of the focal loss / N                      (1)
  box      sum over lesions of w (1 - GIoU(predicted, target)) / sum w                   (2)
  middle   sum over lesions of the cross-entropy of centre-ness against w / N            (3)

(1) is Lin et al. 2017 (arXiv:1708.02002); N and sum w are at least 1, so that a batch of
background alone has (1), and (2) and (3) are 0 without a slope.
"""

import jax
import jax.numpy as jnp
import optax

from lt_jax.config import AssignConfig
from lt_jax.detect import boxes
from lt_jax.detect.targets import Targets
from lt_jax.models.detector import Grid, Outputs
from lt_jax.shapes import Array


def total(
    outputs: Outputs, targets: Targets, grid: Grid, config: AssignConfig
) -> tuple[Array, dict[str, Array]]:
    """The sum of (1), (2) and (3), and each of them by name, scalars.

    Args:
      outputs: of the detector.
      targets: of the same batch.
      grid: of the detector.
      config: alpha and gamma of the focal loss.
    """
    found = targets.found.astype(jnp.float32)
    count = jnp.maximum(found.sum(), 1.0)
    shown = jax.nn.one_hot(targets.label, outputs.classes.shape[-1]) * found[..., None]
    focal = optax.losses.sigmoid_focal_loss(
        outputs.classes, shown, alpha=config.focal_alpha, gamma=config.focal_gamma
    )
    weight = found * targets.middle
    predicted = place(outputs, grid)
    missed = 1 - boxes.giou(predicted, targets.boxes)
    entropy = optax.losses.sigmoid_binary_cross_entropy(outputs.middle, targets.middle)
    parts = {
        "class_loss": focal.sum() / count,
        "box_loss": (weight * missed).sum() / jnp.maximum(weight.sum(), 1.0),
        "middle_loss": (found * entropy).sum() / count,
    }
    return parts["class_loss"] + parts["box_loss"] + parts["middle_loss"], parts


def place(outputs: Outputs, grid: Grid) -> Array:
    """The predicted boxes [b l 4], in sides of the image, partly outside where they are."""
    sides = outputs.sides * jnp.asarray(grid.stride)[None, :, None]
    return boxes.around(jnp.asarray(grid.locations), sides)
