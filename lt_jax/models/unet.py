"""The denoiser: an ADM / DDPM++ UNet conditioned on log-SNR and `Conditions`.

Sources: Ho et al. 2020 (DDPM), Song et al. 2021 (DDPM++, residual resampling), Dhariwal & Nichol
2021 (ADM: adaptive norms, attention at several resolutions). A space-to-depth stem
(`patch_size` > 1) trades the finest level for channels, several times faster on a CPU. Options
make it the UNet of BUSGen (Yu et al. 2025, arXiv:2501.06869): see configs/busgen.py.

`Backbone` computes the decoder's features, level by level; `UNet` reads the finest of them, and,
where it has the perception branch, `Perception` reads all.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from lt_jax.config import ConfigError, UNetConfig
from lt_jax.models import remat
from lt_jax.models.blocks import (
    AttentionBlock,
    Downsample,
    ResidualBlock,
    Upsample,
    depth_to_space,
    group_norm,
    space_to_depth,
)
from lt_jax.models.conditioning import Conditions, Vocabulary, spatial
from lt_jax.models.embedding import Embedding
from lt_jax.shapes import Array, Float, Images, LogSNR

FeatureMaps = tuple[Float[Array, "b _h _w _c"], ...]  # from the coarsest level to the finest
Logits = tuple[Float[Array, "b _h _w 1"], ...]


class Backbone(nn.Module):
    """Encoder and decoder, up to the last norm.

    Spatial conditions are channels beside the image. Attention stands after every residual block
    whose feature map has one of `attention_resolutions` as its height, counted after the stem:
    going down, in the middle and going up; or, of `attention = "encoder"`, going down and once in
    the middle.
    """

    config: UNetConfig
    vocabulary: Vocabulary

    @nn.compact
    def __call__(
        self, x: Images, log_snr: LogSNR, conditions: Conditions, *, train: bool
    ) -> FeatureMaps:
        """Returns the decoder's feature maps, from the coarsest level to the finest."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        embedding = Embedding(
            self.vocabulary, config.embedding, config.class_embedding, name="embedding"
        )
        embedded = embedding(log_snr, conditions)
        residual = functools.partial(
            ResidualBlock,
            dropout=config.dropout,
            groups=config.groups,
            modulation=config.modulation,
            dtype=dtype,
        )
        everywhere = config.attention == "everywhere"
        again = lambda block, *args, **static: remat.run(block, config.remat, *args, **static)

        def block(h, channels, name, attends=True):
            h = again(residual(channels, name=name), h, embedded, train=train)
            if attends and h.shape[1] in config.attention_resolutions:
                attention = AttentionBlock(
                    config.head_channels,
                    config.attention_chunk,
                    config.groups,
                    dtype,
                    name=f"{name}_attention",
                )
                h = again(attention, h)
            return h

        def resize(h, channels, name, direction):
            if config.resample == "convolution":
                module = {"down": Downsample, "up": Upsample}[direction]
                return module(dtype, name=name)(h)
            return again(residual(channels, direction, name=name), h, embedded, train=train)

        if self.vocabulary.spatial_channels:
            beside = spatial(conditions, self.vocabulary, *x.shape[1:3])
            x = jnp.concatenate([x, beside.astype(x.dtype)], axis=-1)
        h = space_to_depth(x.astype(dtype), config.patch_size)
        h = nn.Conv(config.channels[0], (3, 3), dtype=dtype, name="stem")(h)
        skips, features = [h], []
        last = len(config.channels) - 1
        for level, channels in enumerate(config.channels):
            for i in range(config.blocks):
                h = block(h, channels, f"down_{level}_{i}")
                skips.append(h)
            if level < last:
                h = resize(h, channels, f"down_{level}_half", "down")
                skips.append(h)
        h = block(h, config.channels[-1], "middle_0")
        h = block(h, config.channels[-1], "middle_1", everywhere)
        for level, channels in reversed(list(enumerate(config.channels))):
            if level < last:
                h = resize(h, channels, f"up_{level}_double", "up")
            for i in range(config.blocks + 1):
                joined = jnp.concatenate([h, skips.pop()], -1)
                h = block(joined, channels, f"up_{level}_{i}", everywhere)
            features.append(h)
        return tuple(features)


class Perception(nn.Module):
    """Sketches of x_0, read from the decoder's features: one map of logits a level.

    This is our definition of the sketch-grounded perception branch of arXiv:2507.22568, which does
    not tell its own. Each head is a norm, SiLU and a 3x3 convolution that starts at zero, and with
    them learns the features to hold, at each scale, where the structure of the image is; the
    prediction does not read them.
    """

    patch_size: int
    groups: int

    @nn.compact
    def __call__(self, features: FeatureMaps) -> Logits:
        """Returns float32 logits, from the coarsest level to the finest.

        The finest has the size of the image and every other half the size of the next.
        """
        found = []
        for index, h in enumerate(features):
            level = len(features) - 1 - index
            norm = group_norm(h.shape[-1], self.groups, dtype=h.dtype, name=f"norm_{level}")
            h = nn.Conv(
                self.patch_size**2,
                (3, 3),
                dtype=h.dtype,
                kernel_init=nn.initializers.zeros,
                name=f"logits_{level}",
            )(nn.silu(norm(h)))
            found.append(depth_to_space(h, self.patch_size).astype(jnp.float32))
        return tuple(found)


class UNet(nn.Module):
    """x_t, its log-SNR and conditions -> the process's prediction, of the images' size.

    Attributes:
      config: see `UNetConfig`.
      vocabulary: which conditions it takes.
      out_channels: of the prediction.
      sketch: it has the perception branch.
    """

    config: UNetConfig
    vocabulary: Vocabulary
    out_channels: int
    sketch: bool = False

    @nn.compact
    def __call__(
        self,
        x: Images,
        log_snr: LogSNR,
        conditions: Conditions,
        *,
        train: bool,
        perceive: bool = False,
    ) -> (
        Float[Array, "b h w {self.out_channels}"]
        | tuple[Float[Array, "b h w {self.out_channels}"], Logits]
    ):
        """Returns float32, zero at initialisation; with `perceive`, the branch's logits beside it.

        Raises:
          ConfigError: there are no channels, a side of `x` is not a multiple of
            patch_size * 2**(levels - 1), or `perceive` of a network without the branch.
          ConditionError: the conditions are not those of the vocabulary.
        """
        config = self.config
        _check_size(x.shape[1], x.shape[2], config)
        if perceive and not self.sketch:
            raise ConfigError(
                "this network has no perception branch; train one with generator.sketch.weight > 0"
            )
        features = Backbone(config, self.vocabulary, name="backbone")(
            x, log_snr, conditions, train=train
        )
        h = features[-1]
        h = nn.silu(group_norm(h.shape[-1], config.groups, dtype=h.dtype, name="norm")(h))
        h = nn.Conv(
            self.out_channels * config.patch_size**2,
            (3, 3),
            dtype=h.dtype,
            kernel_init=nn.initializers.zeros,
            name="out",
        )(h)
        prediction = depth_to_space(h, config.patch_size).astype(jnp.float32)
        if self.sketch and (perceive or self.is_initializing()):
            branch = Perception(config.patch_size, config.groups, name="perception")
            logits = branch(features)
            if perceive:
                return prediction, logits
        return prediction


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
