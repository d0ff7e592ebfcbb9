"""Noise level and conditions as one vector, for the blocks of a network to read.

  sum:          e = silu(noise + class + device + others)                                 (1)
  concatenate:  e = [silu(noise), silu(mlp([class, device]) + others)]                    (2)

(1) is the plain way. (2) is BUSGen's (Yu et al. 2025, arXiv:2501.06869): class and device are
looked up in narrower tables, concatenated and mixed by an MLP, and every block adds a linear map of
this beside one of the noise level; a linear map of both halves of (2) is the sum of the two.
"Others" are

  attributes    linear in the values and in which of them are known
  boxes         Fourier features of the corners, an MLP a box and a sum over the boxes (a deep set,
                Zaheer et al. 2017, arXiv:1703.06114); a learned vector where no boxes are told
  augmentation  linear without a constant, so that an image that was not augmented, whose
                description is zeros, gets nothing added (Karras et al. 2022, arXiv:2206.00364,
                appendix F.2)
"""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lt_jax.models.conditioning import Conditions, Vocabulary, is_given
from lt_jax.shapes import Array, Float, Labels, LogSNR

# Wavelengths of the log-SNR features, in nats: the longest sees the whole range of a schedule
# (about -20 to 20) without repeating, the shortest tells adjacent sampler steps apart.
WAVELENGTHS = (0.5, 128.0)
# Wavelengths of the corners' features, in sides of the image: 2, 1, ... down to 1/32.
CORNER_OCTAVES = 7


def fourier_features(log_snr: LogSNR, width: int) -> Float[Array, "b f"]:
    """Sines and cosines of the log-SNR at `width // 2` geometrically spaced wavelengths."""
    longest, shortest = math.log(WAVELENGTHS[1]), math.log(WAVELENGTHS[0])
    wavelengths = np.exp(np.linspace(longest, shortest, width // 2, dtype=np.float32))
    angles = log_snr[:, None] * (2 * np.pi / wavelengths)[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def corner_features(boxes: Float[Array, "b m 4"]) -> Float[Array, "b m f"]:
    """Sines and cosines of each box's four numbers at wavelengths of 2 sides and its octaves."""
    frequencies = np.pi * 2.0 ** np.arange(CORNER_OCTAVES, dtype=np.float32)
    angles = (boxes[..., None] * frequencies[None, None, None, :]).reshape(*boxes.shape[:2], -1)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Embedding(nn.Module):
    """Equation (1) or (2), in float32 whatever the network computes in.

    Attributes:
      vocabulary: which conditions there are.
      width: of (1), and of each half of (2), whose tables and noise features have a fourth of it,
        as published.
      mode: "sum" (1) or "concatenate" (2).
    """

    vocabulary: Vocabulary
    width: int
    mode: str = "sum"

    @nn.compact
    def __call__(self, log_snr: LogSNR, conditions: Conditions) -> Float[Array, "b d"]:
        """Returns the activated embedding, for a block's linear layer to read.

        Raises:
          ConditionError: the conditions are not those of the vocabulary.
        """
        self.vocabulary.check(conditions)
        separate = self.mode == "concatenate"
        narrow = max(2, self.width // 4) if separate else self.width
        hidden = nn.Dense(self.width, name="log_snr_0")(fourier_features(log_snr, narrow))
        noise = nn.Dense(self.width, name="log_snr_1")(nn.silu(hidden))
        looked_up = [self._table("label", conditions.label, self.vocabulary.num_classes, narrow)]
        if self.vocabulary.devices:
            looked_up += [self._table("device", conditions.device, self.vocabulary.devices, narrow)]
        others = self._others(conditions)
        if not separate:
            return nn.silu(sum([*looked_up, *others], noise))
        hidden = nn.Dense(self.width, name="class_0")(jnp.concatenate(looked_up, axis=-1))
        told = nn.Dense(self.width, name="class_1")(nn.silu(hidden))
        return jnp.concatenate([nn.silu(noise), nn.silu(sum(others, told))], axis=-1)

    def _table(self, name: str, index: Labels, size: int, width: int) -> Float[Array, "b d"]:
        # The last row is the null one; an index beyond it reads as NaN, not as one of the others.
        row = jnp.where(index < 0, size, index)
        scale = nn.initializers.normal(0.5)  # the scale of the log-SNR's embedding
        return nn.Embed(size + 1, width, embedding_init=scale, name=name)(row)

    def _others(self, conditions: Conditions) -> list[Float[Array, "b d"]]:
        found = []
        if self.vocabulary.attributes:
            known = ~jnp.isnan(conditions.attributes)
            values = jnp.where(known, conditions.attributes, 0.0)
            read = jnp.concatenate([values, known.astype(values.dtype)], axis=-1)
            found.append(nn.Dense(self.width, name="attributes")(read))
        if self.vocabulary.corners:
            found.append(self._corners(conditions.boxes))
        if self.vocabulary.augmentation:
            linear = nn.Dense(self.width, use_bias=False, name="augmentation")
            found.append(linear(conditions.augmentation))
        return found

    def _corners(self, boxes: Float[Array, "b m 4"]) -> Float[Array, "b d"]:
        real = (boxes[..., 0] < boxes[..., 2]) & (boxes[..., 1] < boxes[..., 3])
        features = corner_features(jnp.where(real[..., None], boxes, 0.0))
        hidden = nn.silu(nn.Dense(self.width, name="corners_0")(features))
        pooled = jnp.sum(jnp.where(real[..., None], hidden, 0.0), axis=1)
        told = nn.Dense(self.width, name="corners_1")(pooled)
        untold = self.param("corners_null", nn.initializers.normal(0.5), (self.width,))
        return jnp.where(is_given(boxes)[:, None], told, untold[None, :])
