"""What in an image a classifier's answer rests on: integrated gradients and attention rollout.

Integrated gradients (Sundararajan, Taly and Yan 2017, arXiv:1703.01365, equation 1) of a logit F,
from a black image x' to the image x, pixel by pixel and channel by channel:

  IG_i = (x_i - x'_i) int_0^1 dF(x' + s (x - x')) / dx_i ds                               (1)
  sum_i IG_i = F(x) - F(x')                      (their axiom of completeness)            (2)

The integral is a midpoint rule of `steps` points; by how far (2) is missed says how good it is.
A pixel that is black in the image has no part in the sum, whatever it means.

Attention rollout (Abnar and Zuidema 2020, arXiv:2005.00928, equation 1), of a ViT: with A_l the
attention of block l, averaged over its heads,

  R = R_L ... R_1,   R_l = (A_l + I) / 2                                                  (3)

of which the row of the class token is shown, its own column left out, or with mean pooling the mean
over rows. It says which patches the pooled tokens have attended to, whatever class that spoke for;
(1) says what speaks for one class and what against it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.config import ClassifierConfig
from lt_jax.data import augment
from lt_jax.models import attended, classifier, module
from lt_jax.models.vit import ViT
from lt_jax.runtime import faults
from lt_jax.shapes import Array, Float, Images, ImagesU8, Int, Params

STEPS = 64
BATCH = 16  # points of the path at once: their gradients are held together
BLACK = -1.0  # of an image in [-1, 1]


class Attribution(NamedTuple):
    """Equation (1) of an image, summed over channels, and both sides of (2).

    pixels: [h w]. difference: F(x) - F(x'). gap: the sum of `pixels` less the difference.
    """

    pixels: Float[np.ndarray, "h w"]
    difference: float
    gap: float


@functools.cache
def _gradients(config: ClassifierConfig, num_classes: int) -> Callable[..., tuple[Array, Array]]:
    """`(params, image [h w c], label, parts [b])` -> F at those parts of the path [b], and the sum
    of gradients there [h w c]."""
    network = classifier.make(config, num_classes)

    def gradients(
        params: Params,
        image: Float[Array, "h w c"],
        label: Int[Array, ""],
        parts: Float[Array, "b"],
    ) -> tuple[Float[Array, "b"], Float[Array, "h w c"]]:
        at = BLACK + parts[:, None, None, None] * (image - BLACK)[None]

        def logit(images: Images) -> tuple[Array, Float[Array, "b"]]:
            logits, _ = module.apply(network, params, images, train=False)
            own = jnp.take(logits, label, axis=1)
            return own.sum(), own

        slope, values = jax.grad(logit, has_aux=True)(at)
        return values, slope.sum(axis=0)

    return jax.jit(gradients)


def integrated_gradients(
    config: ClassifierConfig,
    num_classes: int,
    params: Params,
    image: ImagesU8,
    label: int,
    steps: int = STEPS,
) -> Attribution:
    """Equation (1) of one image's logit.

    Args:
      config: of the classifier, of any kind.
      num_classes: that it tells apart.
      params: its parameters.
      image: uint8 [1 h w c].
      label: the class whose logit it is.
      steps: of the integral, a multiple of BATCH.

    Raises:
      ValueError: steps that are no multiple of BATCH, or a label out of range.
    """
    if steps < 1 or steps % BATCH:
        raise ValueError(f"steps = {steps}; takes a multiple of {BATCH}")
    if not 0 <= label < num_classes:
        raise ValueError(f"label {label}; takes 0 to {num_classes - 1}")
    of = _gradients(config, num_classes)
    x = augment.normalize(image)[0]
    middles = (np.arange(steps, dtype=np.float32) + 0.5) / steps
    at = jnp.asarray(label, jnp.int32)
    total = np.zeros(x.shape, np.float64)
    for start in range(0, steps, BATCH):
        faults.check("saliency")
        total += np.asarray(of(params, x, at, jnp.asarray(middles[start : start + BATCH]))[1])
    ends = np.zeros(BATCH, np.float32)
    ends[0] = 1.0
    values = np.asarray(of(params, x, at, jnp.asarray(ends))[0], np.float64)
    attribution = (np.asarray(x, np.float64) - BLACK) * total / steps
    difference = float(values[0] - values[1])
    return Attribution(attribution.sum(-1), difference, float(attribution.sum()) - difference)


def passes(steps: int = STEPS) -> int:
    """Images that go through the network for one attribution."""
    return steps + BATCH


@functools.cache
def _rollout(config: ClassifierConfig, num_classes: int) -> Callable[..., Array]:
    network = classifier.make(config, num_classes)
    assert isinstance(network, ViT)

    def rollout(params: Params, images: ImagesU8) -> Float[Array, "b _h _w"]:
        x = augment.normalize(images)
        return rolled_out(attended.weights(network, params, x), config.vit.pool, _grid(config, x))

    return jax.jit(rollout)


def rolled_out(
    attention: Float[Array, "l b heads t t"], pool: str, grid: tuple[int, int]
) -> Float[Array, "b _h _w"]:
    """Equation (3) as a map of patches that sums to 1.

    Args:
      attention: of every block, rows summing to 1; the class token first, where there is one.
      pool: "token" or "gap": what the head reads.
      grid: patches of a column and of a row.
    """
    mean = attention.mean(axis=2)
    eye = jnp.eye(mean.shape[-1])[None]
    rolled = jnp.broadcast_to(eye, mean.shape[1:])
    for layer in mean:
        rolled = 0.5 * (layer + eye) @ rolled
    # Without a class token every token is a patch.
    seen = rolled[:, 0, 1:] if pool == "token" else rolled.mean(axis=1)
    return (seen / seen.sum(axis=1, keepdims=True)).reshape(-1, *grid)


def _grid(config: ClassifierConfig, images: Images) -> tuple[int, int]:
    return images.shape[1] // config.vit.patch_size, images.shape[2] // config.vit.patch_size


def rollout(
    config: ClassifierConfig, num_classes: int, params: Params, images: ImagesU8
) -> Float[np.ndarray, "b _h _w"] | None:
    """Attention rollout of uint8 images [b h w c], by patch; None where the network is no ViT."""
    if config.kind != "vit":
        return None
    return np.asarray(_rollout(config, num_classes)(params, images))
