"""The denoiser: an ADM / DDPM++ UNet conditioned on log-SNR and `Conditions`.

Sources: Ho et al. 2020 (DDPM), Song et al. 2021 (DDPM++, residual resampling), Dhariwal & Nichol
2021 (ADM: adaptive norms, attention at several resolutions). A space-to-depth stem
(`patch_size` > 1) trades the finest level for channels, several times faster on a CPU.

`Backbone` computes the decoder's features, level by level; `UNet` reads the finest of them.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from lt_jax.config import ConfigError, UNetConfig
from lt_jax.models.blocks import (
    AttentionBlock,
    ResidualBlock,
    depth_to_space,
    group_norm,
    space_to_depth,
)
from lt_jax.models.conditioning import Conditions, Embedding
from lt_jax.shapes import Array, Float, Images, LogSNR


class Backbone(nn.Module):
    """Encoder and decoder, up to the last norm.

    Attention stands after every residual block whose feature map has one of
    `attention_resolutions` as its height, counted after the stem: going down, in the middle and
    going up.
    """

    config: UNetConfig
    num_classes: int

    @nn.compact
    def __call__(
        self, x: Images, log_snr: LogSNR, conditions: Conditions, *, train: bool
    ) -> tuple[Float[Array, "b _h _w _c"], ...]:
        """Returns the decoder's feature maps, from the coarsest level to the finest."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        embedding = Embedding(self.num_classes, config.embedding, name="embedding")
        residual = functools.partial(ResidualBlock, dropout=config.dropout, dtype=dtype)
        embedded = embedding(log_snr, conditions)

        def block(h, channels, name, resample="same"):
            h = residual(channels, resample, name=name)(h, embedded, train=train)
            if resample == "same" and h.shape[1] in config.attention_resolutions:
                h = AttentionBlock(config.head_channels, dtype, name=f"{name}_attention")(h)
            return h

        h = space_to_depth(x.astype(dtype), config.patch_size)
        h = nn.Conv(config.channels[0], (3, 3), dtype=dtype, name="stem")(h)
        skips, features = [h], []
        last = len(config.channels) - 1
        for level, channels in enumerate(config.channels):
            for i in range(config.blocks):
                h = block(h, channels, f"down_{level}_{i}")
                skips.append(h)
            if level < last:
                h = block(h, channels, f"down_{level}_half", "down")
                skips.append(h)
        h = block(h, config.channels[-1], "middle_0")
        h = block(h, config.channels[-1], "middle_1")
        for level, channels in reversed(list(enumerate(config.channels))):
            if level < last:
                h = block(h, channels, f"up_{level}_double", "up")
            for i in range(config.blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], -1), channels, f"up_{level}_{i}")
            features.append(h)
        return tuple(features)


class UNet(nn.Module):
    """x_t, its log-SNR and conditions -> the process's prediction, of the images' size.

    Attributes:
      config: see `UNetConfig`.
      num_classes: label conditions are in [0, num_classes).
      out_channels: of the prediction.
    """

    config: UNetConfig
    num_classes: int
    out_channels: int

    @nn.compact
    def __call__(
        self, x: Images, log_snr: LogSNR, conditions: Conditions, *, train: bool
    ) -> Float[Array, "b h w {self.out_channels}"]:
        """Returns float32, zero at initialisation.

        Raises:
          ConfigError: there are no channels, or a side of `x` is not a multiple of
            patch_size * 2**(levels - 1).
        """
        config = self.config
        _check_size(x.shape[1], x.shape[2], config)
        *_, h = Backbone(config, self.num_classes, name="backbone")(
            x, log_snr, conditions, train=train
        )
        h = nn.silu(group_norm(h.shape[-1], dtype=h.dtype, name="norm")(h))
        h = nn.Conv(
            self.out_channels * config.patch_size**2,
            (3, 3),
            dtype=h.dtype,
            kernel_init=nn.initializers.zeros,
            name="out",
        )(h)
        return depth_to_space(h, config.patch_size).astype(jnp.float32)


def _check_size(height: int, width: int, config: UNetConfig) -> None:
    levels = len(config.channels)
    if not levels:
        raise ConfigError("UNet: channels is empty; give one number a level, such as (32, 64)")
    multiple = config.patch_size * 2 ** (levels - 1)
    if height % multiple or width % multiple:
        raise ConfigError(
            f"a UNet of {levels} levels with patch_size = {config.patch_size} takes images whose "
            f"sides are multiples of {multiple}, got {height}x{width}; change image_size, "
            "or give fewer channels (levels) or a smaller patch_size"
        )
