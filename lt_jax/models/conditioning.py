"""What a generated image is asked to show, and how that reaches the network.

Every condition may be absent. An absent ("null") condition is what classifier-free guidance
(Ho & Salimans 2022) calls unconditional, and the network learns it because training drops
conditions at random. The embeddings of the noise level and of all conditions are summed.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.shapes import Array, Float, LogSNR, PRNGKey

NULL = -1  # the label of an example without one
# Wavelengths of the log-SNR features, in nats: the longest sees the whole range of a schedule
# (about -20 to 20) without repeating, the shortest tells adjacent sampler steps apart.
WAVELENGTHS = (0.5, 128.0)


@flax.struct.dataclass
class Conditions:
    """One batch of conditions; a pytree whose leaves have the batch as their first axis.

    Attributes:
      label: Int[Array, "b"], the class in [0, num_classes). `NULL` or num_classes: none. (Typed
        `Any`: inside JAX's transformations a pytree's leaves may be shapes, specs or markers.)
    """

    label: Any


def null_like(conditions: Conditions) -> Conditions:
    """The same batch with every condition absent."""
    return dataclasses.replace(conditions, label=jnp.full_like(conditions.label, NULL))


def drop(conditions: Conditions, key: PRNGKey, rate: float) -> Conditions:
    """Makes each example unconditional with probability `rate`, independently of the others.

    All conditions of one example go together, so that what remains is either fully conditional or
    fully unconditional, the two networks that guidance combines.
    """
    gone = jax.random.bernoulli(key, rate, conditions.label.shape[:1])

    def select(null, leaf):
        return jnp.where(jnp.expand_dims(gone, tuple(range(1, leaf.ndim))), null, leaf)

    return jax.tree.map(select, null_like(conditions), conditions)


def fourier_features(log_snr: LogSNR, width: int) -> Float[Array, "b f"]:
    """Sines and cosines of the log-SNR at `width // 2` geometrically spaced wavelengths."""
    longest, shortest = math.log(WAVELENGTHS[1]), math.log(WAVELENGTHS[0])
    wavelengths = np.exp(np.linspace(longest, shortest, width // 2, dtype=np.float32))
    angles = log_snr[:, None] * (2 * np.pi / wavelengths)[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Embedding(nn.Module):
    """Noise level and conditions as one vector, in float32 whatever the network computes in."""

    num_classes: int
    width: int

    @nn.compact
    def __call__(self, log_snr: LogSNR, conditions: Conditions) -> Float[Array, "b d"]:
        """Returns the activated embedding, for a block's linear layer to read."""
        hidden = nn.Dense(self.width, name="log_snr_0")(fourier_features(log_snr, self.width))
        total = nn.Dense(self.width, name="log_snr_1")(nn.silu(hidden))
        # The table's last row is the null label; a label beyond it reads as NaN, not as a class.
        row = jnp.where(conditions.label < 0, self.num_classes, conditions.label)
        table = nn.Embed(
            self.num_classes + 1,
            self.width,
            embedding_init=nn.initializers.normal(0.5),  # the scale of the log-SNR's embedding
            name="label",
        )
        return nn.silu(total + table(row))
