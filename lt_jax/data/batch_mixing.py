"""Images of a batch mixed with each other on device: mixup and CutMix, with labels to match.

With p a random permutation of the batch and lambda ~ Beta(alpha, alpha),

  mixup (Zhang et al. 2018, arXiv:1710.09412, section 2)   lambda x_i + (1 - lambda) x_p(i)     (1)
  CutMix (Yun et al. 2019, arXiv:1905.04899, equations 1-2, algorithm A1)
         M x_i + (1 - M) x_p(i), M = 0 in a box of (1 - lambda) of the image's area             (2)

The box's centre is any pixel and what lies outside is cut off, so lambda is set to the part of
image i that is left. Image i is then of class y_i with weight lambda and of y_p(i) for the rest;
its loss is that convex combination of the two labels' losses, whichever loss it is.

What differs from the authors' code: lambda and the box are drawn for each image, not once a batch,
which changes no image's distribution and leaves a step's gradient with less noise; where both are
on, a coin decides for each image.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lt_jax.runtime import keys
from lt_jax.shapes import Array, Bool, Float, Images, Int, PRNGKey


@dataclasses.dataclass(frozen=True)
class BatchMixing:
    """How images are mixed.

    Attributes:
      mixup, cutmix: which of the two; at least one.
      alpha: of Beta(alpha, alpha), above 0; 1 is uniform, towards 0 nothing is mixed.
      probability: of an image being mixed at all, in [0, 1].
    """

    mixup: bool
    cutmix: bool
    alpha: float
    probability: float

    def __call__(
        self, images: Images, key: PRNGKey
    ) -> tuple[Images, Int[Array, "b"], Float[Array, "b"]]:
        """Equations (1) and (2).

        Args:
          images: float32.
          key: of the step.

        Returns:
          The mixed images; the partner p(i) of each; the weight of its own label in [0, 1], which
          is 1, and the image unchanged to the bit, where it was not mixed.
        """
        b, h, w, _ = images.shape
        partner = jax.random.permutation(keys.stream(key, "partner"), b)
        weight = jax.random.beta(keys.stream(key, "weight"), self.alpha, self.alpha, (b,))
        kind, chance, y, x = jax.random.uniform(keys.stream(key, "box"), (4, b))
        weight = jnp.where(chance < self.probability, weight, 1.0)
        cuts = (kind < 0.5) if self.mixup and self.cutmix else jnp.full(b, self.cutmix)
        kept = ~_boxes(jnp.sqrt(1 - weight), y, x, h, w)
        weight = jnp.where(cuts, kept.mean(axis=(1, 2)), weight)
        own = jnp.where(cuts[:, None, None], kept.astype(jnp.float32), weight[:, None, None])
        own = own[..., None]
        mixed = own * images + (1 - own) * images[partner]
        return jnp.where(weight[:, None, None, None] == 1, images, mixed), partner, weight


def _boxes(
    side: Float[Array, "b"], y: Float[Array, "b"], x: Float[Array, "b"], h: int, w: int
) -> Bool[Array, "b h w"]:
    """Where each image's box lies: `side` of the image's sides, centred at (y, x) in [0, 1)."""

    def within(centre: Float[Array, "b"], size: int) -> Bool[Array, "b _"]:
        half = jnp.floor(jnp.floor(size * side) / 2)
        middle, place = jnp.floor(centre * size), jnp.arange(size)[None]
        return (place >= (middle - half)[:, None]) & (place < (middle + half)[:, None])

    return within(y, h)[:, :, None] & within(x, w)[:, None, :]
