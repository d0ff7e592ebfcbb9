"""Basic-block residual network (He et al. 2016, section 4.2) with GroupNorm.

GroupNorm (Wu & He 2018) in place of BatchNorm: the network is then a pure function of its
parameters, one example's output does not depend on the others, and a batch that mixes real with
synthetic images in changing shares has no common statistics to be skewed by.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lt_jax.config import ConfigError, ResNetConfig
from lt_jax.models.blocks import group_norm
from lt_jax.shapes import Array, Features, Float, Images, Logits

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; starts as the shortcut alone."""

    channels: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "b _h _w _c"]:
        """Returns relu(shortcut + residual), each side divided by the stride, rounded up."""

        def convolve(h, size, stride, name, scale_init=nn.initializers.ones):
            h = nn.Conv(
                self.channels,
                (size, size),
                (stride, stride),
                use_bias=False,
                dtype=self.dtype,
                kernel_init=he_normal,
                name=f"conv_{name}",
            )(h)
            norm = group_norm(
                self.channels, dtype=self.dtype, scale_init=scale_init, name=f"norm_{name}"
            )
            return norm(h)

        h = nn.relu(convolve(x, 3, self.stride, "0"))
        h = convolve(h, 3, 1, "1", nn.initializers.zeros)
        if h.shape != x.shape:
            x = convolve(x, 1, self.stride, "shortcut")
        return nn.relu(x + h)


class ResNet(nn.Module):
    """Images -> (logits, features); features are the last feature map's mean."""

    config: ResNetConfig
    num_classes: int

    @nn.compact
    def __call__(self, images: Images, *, train: bool) -> tuple[Logits, Features]:
        """Returns float32 logits [b k], zero at initialisation, and float32 features [b d].

        `train` changes nothing here; it stands for the signature that classifiers share.

        Raises:
          ConfigError: channels and blocks name no stages, or different numbers of them.
        """
        channels, blocks = self.config.channels, self.config.blocks
        if not channels or len(channels) != len(blocks):
            raise ConfigError(
                f"ResNet: channels names {len(channels)} stages and blocks {len(blocks)}; "
                "give one number of blocks for each stage's channels"
            )
        dtype = jnp.dtype(self.config.dtype)
        x = nn.Conv(
            channels[0], (3, 3), use_bias=False, dtype=dtype, kernel_init=he_normal, name="stem"
        )(images.astype(dtype))
        x = nn.relu(group_norm(channels[0], dtype=dtype, name="norm")(x))
        for stage, (width, depth) in enumerate(zip(channels, blocks, strict=True)):
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                x = BasicBlock(width, stride, dtype, name=f"stage_{stage}_{i}")(x)
        features = x.astype(jnp.float32).mean(axis=(1, 2))
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")
        return head(features), features
