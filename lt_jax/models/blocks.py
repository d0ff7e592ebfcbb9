"""Building blocks of the convolutional networks: norms, residual and attention blocks, resampling.

The residual block is that of ADM (Dhariwal & Nichol 2021, "Diffusion models beat GANs", appendix
A): GroupNorm and SiLU before each convolution, the second norm scaled and shifted by the
embedding, resampling inside the block, and a last convolution that starts at zero, so that every
block starts as the identity.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lt_jax.config import ConfigError
from lt_jax.shapes import Array, Float, Images

Resized = Float[Array, "b _h _w _c"]  # of another size than the argument


def num_groups(channels: int) -> int:
    """Groups of a GroupNorm: at most 32, at least 4 channels each, and dividing the channels."""
    most = max(1, min(32, channels // 4))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def group_norm(channels: int, **options: Any) -> nn.GroupNorm:
    """A GroupNorm (Wu & He 2018) with `num_groups` groups."""
    return nn.GroupNorm(num_groups=num_groups(channels), epsilon=1e-5, **options)


def space_to_depth(images: Images, size: int) -> Resized:
    """[b h w c] -> [b h/size w/size size*size*c], each patch's pixels in the channels."""
    b, h, w, c = images.shape
    split = images.reshape(b, h // size, size, w // size, size, c)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // size, w // size, size * size * c)


def depth_to_space(features: Images, size: int) -> Resized:
    """The inverse of `space_to_depth`."""
    b, h, w, c = features.shape
    split = features.reshape(b, h, w, size, size, c // (size * size))
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * size, w * size, -1)


def halve(x: Images) -> Resized:
    """Average over 2x2 pixels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def double(x: Images) -> Resized:
    """Nearest-neighbour upsampling by 2."""
    b, h, w, c = x.shape
    spread = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return spread.reshape(b, 2 * h, 2 * w, c)


RESAMPLE = {"same": lambda x: x, "down": halve, "up": double}


class ResidualBlock(nn.Module):
    """[b h w c] -> [b h' w' channels], conditioned on an embedding.

    Attributes:
      channels: of the output.
      resample: "same", "down" (half the size) or "up" (twice).
      dropout: rate before the last convolution.
      dtype: of the computation.
    """

    channels: int
    resample: str = "same"
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images, embedding: Float[Array, "b d"], *, train: bool) -> Resized:
        """Returns shortcut + residual."""
        resample = RESAMPLE[self.resample]
        h = nn.silu(group_norm(x.shape[-1], dtype=self.dtype, name="norm_0")(x))
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv_0")(resample(h))
        modulation = nn.Dense(2 * self.channels, dtype=self.dtype, name="modulation")(embedding)
        scale, shift = jnp.split(modulation[:, None, None, :], 2, axis=-1)
        h = group_norm(self.channels, dtype=self.dtype, name="norm_1")(h) * (1 + scale) + shift
        h = nn.Dropout(self.dropout)(nn.silu(h), deterministic=not train)
        zeros = nn.initializers.zeros
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, kernel_init=zeros, name="conv_1")(h)
        x = resample(x)
        if x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Multi-head self-attention over all positions of a feature map, added to it.

    Attributes:
      head_channels: heads have at least this width: there are `channels // head_channels`, and
        one where the map has fewer channels.
      dtype: of the computation; the softmax is in float32.
    """

    head_channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images) -> Images:
        """Raises ConfigError where the heads do not divide the channels."""
        b, h, w, c = x.shape
        heads = max(1, c // self.head_channels)
        if c % heads:
            raise ConfigError(
                f"head_channels = {self.head_channels} makes {heads} heads, which do not divide "
                f"{c} channels; choose a head_channels that divides the channels of every level"
            )
        tokens = group_norm(c, dtype=self.dtype, name="norm")(x).reshape(b, h * w, c)
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="qkv")(tokens)
        q, k, v = jnp.moveaxis(qkv.reshape(b, h * w, 3, heads, c // heads), 2, 0)
        attended = jax.nn.dot_product_attention(q, k, v).reshape(b, h, w, c)
        zeros = nn.initializers.zeros
        return x + nn.Dense(c, dtype=self.dtype, kernel_init=zeros, name="out")(attended)
