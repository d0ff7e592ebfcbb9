"""Anchor-free detector: feature maps of a trunk, a pyramid over them, one head for all its levels.

FCOS (Tian et al. 2019, arXiv:1904.01355): every location of every level says which class of lesion
it lies on, how far the four sides of its box are, and how near it is to the middle. This, and not
one map of middles (CenterNet, Zhou et al. 2019, arXiv:1904.07850), since lesions take from a
hundredth to most of an image: levels share that range out, and each lesion teaches several
locations, where a middle is one of a few hundred images.

Trunks: a residual network with a feature pyramid (Lin et al. 2017, arXiv:1612.03144), or a plain
vision transformer with the simple pyramid of ViTDet (Li et al. 2022, arXiv:2203.16527), whose
levels are all made from the last tokens.

Location i of a level of stride s lies at (i + 1/2) s pixels. Strides are 8, 16, 32, ... as far as
2 x 2 locations of images of 64 pixels and more, and start at 4 from 32 pixels, at 2 below.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from lt_jax.config import ConfigError, DetectorConfig
from lt_jax.models.blocks import double, group_norm
from lt_jax.models.resnet import BasicBlock, he_normal, size_of
from lt_jax.models.vit import ViT
from lt_jax.shapes import Array, Float, Images

MOST_LEVELS = 5
PRIOR = 0.01  # of a lesion at a location, before training (Lin et al. 2017, arXiv:1708.02002)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where the locations of a pyramid lie; lengths and places in sides of the (square) image.

    Attributes:
      size: of the image, in pixels.
      strides: of the levels, finest first, in pixels.
    """

    size: int
    strides: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Locations a side of each level."""
        return tuple(-(-self.size // stride) for stride in self.strides)

    @functools.cached_property
    def level(self) -> np.ndarray:
        """Of each location [l], its level; int32. Levels follow each other, rows run first."""
        return np.repeat(np.arange(len(self.strides), dtype=np.int32), np.square(self.counts))

    @property
    def stride(self) -> Float32[np.ndarray, "l"]:
        """Of each location [l], its level's stride."""
        return (np.array(self.strides, np.float32) / np.float32(self.size))[self.level]

    @property
    def locations(self) -> Float32[np.ndarray, "l 2"]:
        """x and y of each location."""
        places = []
        for stride, count in zip(self.strides, self.counts, strict=True):
            at = (np.arange(count, dtype=np.float32) + 0.5) * stride / self.size
            y, x = np.meshgrid(at, at, indexing="ij")
            places.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        return np.concatenate(places).astype(np.float32)


def make_grid(config: DetectorConfig, size: int) -> Grid:
    """The locations of a detector of images of `size` pixels.

    Raises:
      ConfigError: a finest stride that is no power of two, or levels beyond a single location.
    """
    finest = config.finest or (8 if size >= 64 else 4 if size >= 32 else 2)
    if finest < 2 or finest & (finest - 1):
        raise ConfigError(
            f"detector: finest = {finest}; takes a power of two from 2 on, or 0 for one that fits"
        )
    fitting = [finest << i for i in range(MOST_LEVELS) if 2 * (finest << i) <= size]
    strides = fitting or [finest]
    if config.levels:
        strides = [finest << i for i in range(config.levels)]
    if strides[-1] > size:
        raise ConfigError(
            f"detector: levels of strides {strides} for images of {size} pixels; lower "
            "model.finest or model.levels, or raise data.image_size"
        )
    return Grid(size, tuple(strides))


@flax.struct.dataclass
class Outputs:
    """What the head says of every location.

    Attributes:
      classes: logits [b l k] of each class of lesion, one against none.
      middle: logits [b l] of centre-ness.
      sides: distances [b l 4] >= 0 to the left, upper, right and lower side of the box, in strides
        of the location's level.
    """

    classes: Any
    middle: Any
    sides: Any


class Detector(nn.Module):
    """Square images -> `Outputs` of a grid's locations."""

    config: DetectorConfig
    grid: Grid
    num_classes: int

    @nn.compact
    def __call__(self, images: Images, *, train: bool) -> Outputs:
        """Returns float32 outputs; before training every class has a probability of 0.01.

        Raises:
          ConfigError: images of another size than the grid's, or a trunk that does not fit it.
        """
        if images.shape[1:3] != (self.grid.size, self.grid.size):
            raise ConfigError(
                f"detector: images of {images.shape[1]}x{images.shape[2]}; takes the "
                f"{self.grid.size}x{self.grid.size} that its grid is made for"
            )
        if self.config.trunk == "vit":
            levels = SimplePyramid(self.config, self.grid, name="trunk")(images, train=train)
        else:
            levels = ResNetPyramid(self.config, self.grid, name="trunk")(images)
        head = Head(self.config.width, self.config.head_blocks, self.num_classes, name="head")
        scales = self.param("scales", nn.initializers.ones, (len(levels),))
        said = [head(x, scales[i]) for i, x in enumerate(levels)]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *said)


class ResNetPyramid(nn.Module):
    """Basic-block stages and a feature pyramid over them.

    Stage i has stride 2^(i - 1) times the finest; levels beyond the last stage are convolutions of
    stride 2, as FCOS's P6 and P7 are; stages beyond the coarsest level are left out.
    """

    config: DetectorConfig
    grid: Grid

    @nn.compact
    def __call__(self, images: Images) -> list[Array]:
        """Returns a map [b h w c] a level, finest first.

        Raises:
          ConfigError: channels name fewer than two stages, or see `resnet.size_of`.
        """
        resnet, width = self.config.resnet, self.config.width
        channels, depths, projects = size_of(resnet)
        if len(channels) < 2:
            raise ConfigError(
                f"detector: resnet.channels names {len(channels)} stage; takes two or more, the "
                "first below the finest level"
            )
        dtype = jnp.dtype(resnet.dtype)
        x = images.astype(dtype)
        for i in range(max(1, (self.grid.strides[0] // 2).bit_length() - 1)):
            stride = 2 if self.grid.strides[0] > 2 else 1
            x = nn.Conv(
                channels[0],
                (3, 3),
                (stride, stride),
                use_bias=False,
                dtype=dtype,
                kernel_init=he_normal,
                name=f"stem_{i}",
            )(x)
            x = nn.relu(group_norm(channels[0], dtype=dtype, name=f"norm_{i}")(x))
        maps = []
        for stage in range(min(len(channels), len(self.grid.strides) + 1)):
            for i in range(depths[stage]):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f"stage_{stage}_{i}"
                x = BasicBlock(channels[stage], stride, dtype, projects, name=name)(x)
            maps.append(x)
        levels = self._top_down(maps[1:], dtype)
        while len(levels) < len(self.grid.strides):
            name = f"coarse_{len(levels)}"
            coarse = nn.Conv(width, (3, 3), (2, 2), dtype=dtype, name=name)
            levels.append(coarse(nn.relu(levels[-1])))
        return levels

    def _top_down(self, maps: list[Array], dtype: Any) -> list[Array]:
        width, merged = self.config.width, None
        levels = []
        for i in reversed(range(len(maps))):
            x = nn.Conv(width, (1, 1), dtype=dtype, name=f"lateral_{i}")(maps[i])
            if merged is not None:  # cut, where an odd side was rounded up
                x = x + double(merged)[:, : x.shape[1], : x.shape[2]]
            merged = x
            levels.append(nn.Conv(width, (3, 3), dtype=dtype, name=f"smooth_{i}")(x))
        return levels[::-1]


class ViTMap(ViT):
    """A vision transformer without its head: images -> tokens as a map [b h w d]."""

    @nn.compact
    def __call__(self, images: Images, *, train: bool) -> Float[Array, "b _h _w d"]:
        """Returns the float32 tokens of the patches, in their places."""
        tokens = self.encode(images, train=train)
        tokens = tokens[:, 1:] if self.config.pool == "token" else tokens
        b, h, w, _ = images.shape
        patch = self.config.patch_size
        return tokens.reshape(b, h // patch, w // patch, -1)


class SimplePyramid(nn.Module):
    """A vision transformer's last tokens, brought to each level's stride."""

    config: DetectorConfig
    grid: Grid

    @nn.compact
    def __call__(self, images: Images, *, train: bool) -> list[Array]:
        """Returns a map [b h w c] a level, finest first.

        Raises:
          ConfigError: the patch is no power of two, does not divide the image, or see `ViT`.
        """
        patch, width = self.config.vit.patch_size, self.config.width
        if patch & (patch - 1):
            raise ConfigError(
                f"detector: vit.patch_size = {patch}; takes a power of two, as strides are"
            )
        tokens = ViTMap(self.config.vit, 0, name="vit")(images, train=train)
        levels = []
        for i, stride in enumerate(self.grid.strides):
            x = tokens
            for step in range(max(0, (patch // stride).bit_length() - 1)):
                x = nn.ConvTranspose(width, (2, 2), (2, 2), name=f"up_{i}_{step}")(x)
                x = nn.gelu(group_norm(width, name=f"up_norm_{i}_{step}")(x))
            if stride > patch:
                ratio = (stride // patch, stride // patch)
                x = nn.max_pool(x, ratio, ratio, padding="SAME")
            for step, kernel in enumerate((1, 3)):
                x = nn.Conv(width, (kernel, kernel), use_bias=False, name=f"conv_{i}_{step}")(x)
                x = group_norm(width, name=f"norm_{i}_{step}")(x)
            levels.append(x)
        return levels


class Head(nn.Module):
    """One level's map -> its part of `Outputs`; the same parameters serve every level."""

    width: int
    blocks: int
    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "b _h _w c"], scale: Float[Array, ""]) -> Outputs:
        """Returns float32 outputs of the map's locations; `scale` is the level's own."""

        def convolve(h: Array, channels: int, name: str, bias: float = 0.0) -> Array:
            return nn.Conv(
                channels,
                (3, 3),
                kernel_init=nn.initializers.normal(0.01),
                bias_init=nn.initializers.constant(bias),
                name=name,
            )(h.astype(jnp.float32)).reshape(h.shape[0], -1, channels)

        def tower(name: str) -> Array:
            h = x
            for i in range(self.blocks):
                h = nn.Conv(self.width, (3, 3), use_bias=False, dtype=x.dtype, name=f"{name}_{i}")(
                    h
                )
                h = nn.relu(group_norm(self.width, dtype=x.dtype, name=f"{name}_norm_{i}")(h))
            return h

        shape, place = tower("class"), tower("box")
        return Outputs(
            classes=convolve(shape, self.num_classes, "classes", -float(np.log(1 / PRIOR - 1))),
            middle=convolve(place, 1, "middle")[..., 0],
            sides=nn.softplus(scale * convolve(place, 4, "sides")),
        )


def make(config: DetectorConfig, size: int, num_classes: int) -> Detector:
    """The network that a config describes, for images of `size` pixels; raises as `make_grid`."""
    return Detector(config, make_grid(config, size), num_classes)
