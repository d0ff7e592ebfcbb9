"""Building blocks of the convolutional networks: norms, residual and attention blocks, resampling.

The residual block is that of ADM (Dhariwal & Nichol 2021, "Diffusion models beat GANs", appendix
A): GroupNorm and SiLU before each convolution, the second norm scaled and shifted by the
embedding, resampling inside the block, and a last convolution that starts at zero, so that every
block starts as the identity. As an option it is that of DDPM (Ho et al. 2020), which adds the
embedding before the second norm; `Downsample` and `Upsample` are the convolutions that BUSGen (Yu
et al. 2025, arXiv:2501.06869) has in place of resampling inside blocks.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lt_jax.config import ConfigError
from lt_jax.models.attention import attention
from lt_jax.shapes import Array, Float, Images

Resized = Float[Array, "b _h _w _c"]  # of another size than the argument


def num_groups(channels: int) -> int:
    """Groups of a GroupNorm: at most 32, at least 4 channels each, and dividing the channels."""
    most = max(1, min(32, channels // 4))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def group_norm(channels: int, groups: int = 0, **options: Any) -> nn.GroupNorm:
    """A GroupNorm (Wu & He 2018) with so many groups, or with `num_groups` where that is 0.

    Raises:
      ConfigError: the groups do not divide the channels.
    """
    if groups and channels % groups:
        raise ConfigError(
            f"groups = {groups} do not divide {channels} channels; choose groups that divide the "
            "channels of every level, or 0 for as many as fit"
        )
    return nn.GroupNorm(num_groups=groups or num_groups(channels), epsilon=1e-5, **options)


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


class Downsample(nn.Module):
    """[b h w c] -> [b h/2 w/2 c]: a 3x3 and a 5x5 convolution with stride 2, added."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images) -> Resized:
        """Output pixel i is centred at input pixel 2 i."""

        def convolve(size: int) -> Resized:
            pad = size // 2
            return nn.Conv(
                x.shape[-1],
                (size, size),
                (2, 2),
                padding=((pad, pad), (pad, pad)),
                dtype=self.dtype,
                name=f"conv_{size}",
            )(x)

        return convolve(3) + convolve(5)


class Upsample(nn.Module):
    """[b h w c] -> [b 2h 2w c]: a transposed 5x5 convolution with stride 2, then a 3x3 one."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images) -> Resized:
        """Input pixel i is centred at output pixel 2 i."""
        channels = x.shape[-1]
        # The padding of PyTorch's ConvTranspose2d(c, c, 5, stride=2, padding=2, output_padding=1).
        padding = ((2, 3), (2, 3))
        x = nn.ConvTranspose(
            channels, (5, 5), (2, 2), padding=padding, dtype=self.dtype, name="conv_5"
        )(x)
        return nn.Conv(channels, (3, 3), dtype=self.dtype, name="conv_3")(x)


class ResidualBlock(nn.Module):
    """[b h w c] -> [b h' w' channels], conditioned on an embedding.

    Attributes:
      channels: of the output.
      resample: "same", "down" (half the size) or "up" (twice).
      dropout: rate before the last convolution.
      groups: of the norms; see `group_norm`.
      modulation: "scale_shift" (of the second norm's output) or "shift" (of its input).
      dtype: of the computation.
    """

    channels: int
    resample: str = "same"
    dropout: float = 0.0
    groups: int = 0
    modulation: str = "scale_shift"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Images, embedding: Float[Array, "b d"], *, train: bool) -> Resized:
        """Returns shortcut + residual."""
        resample = RESAMPLE[self.resample]
        norm = functools.partial(group_norm, groups=self.groups, dtype=self.dtype)
        h = nn.silu(norm(x.shape[-1], name="norm_0")(x))
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv_0")(resample(h))
        shifts_only = self.modulation == "shift"
        read = nn.Dense((2 - shifts_only) * self.channels, dtype=self.dtype, name="modulation")
        modulation = read(embedding)[:, None, None, :]
        if shifts_only:
            h = norm(self.channels, name="norm_1")(h + modulation)
        else:
            scale, shift = jnp.split(modulation, 2, axis=-1)
            h = norm(self.channels, name="norm_1")(h) * (1 + scale) + shift
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
      chunk: see `attention`.
      groups: of the norm; see `group_norm`.
      dtype: of the computation; the softmax is in float32.
    """

    head_channels: int
    chunk: int = 1024
    groups: int = 0
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
        tokens = group_norm(c, self.groups, dtype=self.dtype, name="norm")(x).reshape(b, h * w, c)
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="qkv")(tokens)
        q, k, v = jnp.moveaxis(qkv.reshape(b, h * w, 3, heads, c // heads), 2, 0)
        attended = attention(q, k, v, self.chunk).reshape(b, h, w, c)
        zeros = nn.initializers.zeros
        return x + nn.Dense(c, dtype=self.dtype, kernel_init=zeros, name="out")(attended)
