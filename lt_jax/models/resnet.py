"""Basic-block residual network (He et al. 2016) with GroupNorm: ResNet-32, ResNet-18 and others.

GroupNorm (Wu & He 2018) in place of BatchNorm: the network is then a pure function of its
parameters, one example's output does not depend on the others, and a batch that mixes real with
synthetic images in changing shares has no common statistics to be skewed by. It has as many
parameters. Published tables are of networks with BatchNorm, whose accuracy on CIFAR this does not
reproduce to the digit.

`resnet32` is that of CIFAR (section 4.2): 16, 32 and 64 channels, five blocks a stage, shortcuts of
option A, which skip every second pixel and pad channels with zeros. `resnet18` is that of ImageNet
(table 1), with projections where the size changes (option B), as `custom` networks have them. For
small images its stem is a 3x3 convolution, as is usual on CIFAR; from 128 pixels on one of 7x7 with
stride 2 and a max pooling, as published. Each block's last norm starts at zero, so that the block
starts as its shortcut (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from lt_jax.config import ConfigError, ResNetConfig
from lt_jax.models import remat
from lt_jax.models.blocks import group_norm
from lt_jax.shapes import Array, Features, Float, Images, Logits

he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

LARGE = 128  # pixels a side, from which on the stem `auto` is that of 7x7


class Size(NamedTuple):
    """Channels and blocks of each stage, and whether shortcuts project where the size changes."""

    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    projects: bool


VARIANTS = {
    "resnet32": Size((16, 32, 64), (5, 5, 5), projects=False),
    "resnet18": Size((64, 128, 256, 512), (2, 2, 2, 2), projects=True),
}


def size_of(config: ResNetConfig) -> Size:
    """The sizes of a variant, or the config's own where the variant is "custom".

    Raises:
      ConfigError: channels and blocks name no stages, or different numbers of them.
    """
    if config.variant != "custom":
        return VARIANTS[config.variant]
    channels, blocks = config.channels, config.blocks
    if not channels or len(channels) != len(blocks):
        raise ConfigError(
            f"ResNet: channels names {len(channels)} stages and blocks {len(blocks)}; "
            "give one number of blocks for each stage's channels"
        )
    return Size(channels, blocks, projects=True)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; starts as the shortcut alone."""

    channels: int
    stride: int
    dtype: Any
    projects: bool = True

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
            if self.projects:
                x = convolve(x, 1, self.stride, "shortcut")
            else:
                x = padded(x, self.channels, self.stride)
        return nn.relu(x + h)


def padded(x: Images, channels: int, stride: int) -> Float[Array, "b _h _w _c"]:
    """A shortcut of option A: every `stride`-th pixel, its channels with zeros on both sides."""
    more = channels - x.shape[-1]
    sides = ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2))
    return jnp.pad(x[:, ::stride, ::stride], sides)


def stem(config: ResNetConfig, images: Images) -> Float[Array, "b _h _w _c"]:
    """The first convolution, in a network's compact method."""
    channels, dtype = size_of(config).channels[0], jnp.dtype(config.dtype)
    large = config.stem == "7x7" or (config.stem == "auto" and min(images.shape[1:3]) >= LARGE)
    shape = {"kernel_size": (7, 7), "strides": (2, 2), "padding": 3} if large else {}
    x = nn.Conv(
        channels,
        **{"kernel_size": (3, 3), **shape},  # type: ignore[arg-type]
        use_bias=False,
        dtype=dtype,
        kernel_init=he_normal,
        name="stem",
    )(images.astype(dtype))
    x = nn.relu(group_norm(channels, dtype=dtype, name="norm")(x))
    edges: Any = ((1, 1), (1, 1))
    return nn.max_pool(x, (3, 3), (2, 2), padding=edges) if large else x


def stage(
    config: ResNetConfig, number: int, x: Images, prefix: str = ""
) -> Float[Array, "b _h _w _c"]:
    """The blocks of a stage, in a network's compact method; their names begin with `prefix`."""
    size, dtype = size_of(config), jnp.dtype(config.dtype)
    for i in range(size.blocks[number]):
        stride = 2 if number > 0 and i == 0 else 1
        name = f"{prefix}stage_{number}_{i}"
        block = BasicBlock(size.channels[number], stride, dtype, size.projects, name=name)
        x = remat.run(block, config.remat, x)
    return x


class ResNet(nn.Module):
    """Images -> (logits, features); features are the last feature map's mean."""

    config: ResNetConfig
    num_classes: int

    @nn.compact
    def __call__(self, images: Images, *, train: bool) -> tuple[Logits, Features]:
        """Returns float32 logits [b k], zero at initialisation, and float32 features [b d].

        `train` changes nothing here; it stands for the signature that classifiers share.

        Raises:
          ConfigError: see `size_of`.
        """
        x = stem(self.config, images)
        for number in range(len(size_of(self.config).channels)):
            x = stage(self.config, number, x)
        features = x.astype(jnp.float32).mean(axis=(1, 2))
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="head")
        return head(features), features
