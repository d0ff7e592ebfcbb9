"""Inception-V3 up to its last average pool, as the Frechet Inception distance takes it.

Szegedy et al. 2016 (arXiv:1512.00567), in the form of the graph that Heusel et al. 2017
(arXiv:1706.08500) took features from, as pytorch-fid ported it. Against the published network:

  - average pools in blocks A and C and in the first block E leave the border out of the mean;
  - the second block E pools by maximum instead;
  - images come in [-1, 1], resized to 299 x 299 (bilinear, half-pixel centres, no smoothing);
  - its last layer knows 1,008 classes; nothing behind the pool is built here.

Batch normalisation is inference's alone (epsilon 0.001), and is folded into a scale and an offset a
channel: there are no batch statistics. Parameters are named as the port names them.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lt_jax.shapes import Array, Features, Float, ImagesU8

SIDE = 299
DIMENSIONS = 2048
EPSILON = 1e-3  # of the batch normalisation


class Unit(nn.Module):
    """Convolution, normalisation, ReLU; padded so that a stride of 1 keeps the size, or not."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
        """Returns the activated map."""
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        scale = self.param("scale", nn.initializers.ones, (self.features,))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        padding = [(side // 2, side // 2) if self.padded else (0, 0) for side in self.kernel]
        y = jax.lax.conv_general_dilated(
            x, kernel, (self.stride,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return nn.relu(y * scale[None, None, None] + bias[None, None, None])


# A branch: units in a row, each (suffix of its name, features, kernel).
Row = tuple[tuple[str, int, tuple[int, int]], ...]


def _average(x: Array) -> Array:
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _maximum(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), padding="SAME")


def _shrink(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (2, 2))


class Even(nn.Module):
    """A block that keeps the size (A, C): rows of units, and an average pool before one more."""

    branches: tuple[tuple[str, Row], ...]
    pooled: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """Returns the branches, one after the other."""
        found = []
        for name, row in self.branches:
            y = x
            for suffix, features, kernel in row:
                y = Unit(features, kernel, name=name + suffix)(y)
            found.append(y)
        found.append(Unit(self.pooled, name="branch_pool")(_average(x)))
        return jnp.concatenate(found, axis=-1)


class Halving(nn.Module):
    """A block that halves the size (B, D): rows whose last unit has stride 2, and a maximum."""

    branches: tuple[tuple[str, Row], ...]

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b p q d"]:
        """Returns the branches, one after the other."""
        found = []
        for name, row in self.branches:
            y = x
            for i, (suffix, features, kernel) in enumerate(row):
                last = i == len(row) - 1
                y = Unit(features, kernel, 2 if last else 1, not last, name=name + suffix)(y)
            found.append(y)
        return jnp.concatenate([*found, _shrink(x)], axis=-1)


class Wide(nn.Module):
    """Block E: branches that fork into a row and a column of three."""

    maximum: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """Returns the branches, one after the other."""

        def fork(y: Array, name: str) -> list[Array]:
            return [
                Unit(384, kernel, name=f"{name}{side}")(y)
                for side, kernel in (("a", (1, 3)), ("b", (3, 1)))
            ]

        short = Unit(384, name="branch3x3_1")(x)
        long = Unit(448, name="branch3x3dbl_1")(x)
        long = Unit(384, (3, 3), name="branch3x3dbl_2")(long)
        pooled = _maximum(x) if self.maximum else _average(x)
        found = [Unit(320, name="branch1x1")(x), *fork(short, "branch3x3_2")]
        found += [*fork(long, "branch3x3dbl_3"), Unit(192, name="branch_pool")(pooled)]
        return jnp.concatenate(found, axis=-1)


def _a(pooled: int) -> dict[str, object]:
    tall: Row = (("_1", 64, (1, 1)), ("_2", 96, (3, 3)), ("_3", 96, (3, 3)))
    rows = (
        ("branch1x1", (("", 64, (1, 1)),)),
        ("branch5x5", (("_1", 48, (1, 1)), ("_2", 64, (5, 5)))),
        ("branch3x3dbl", tall),
    )
    return {"branches": rows, "pooled": pooled}


def _c(width: int) -> dict[str, object]:
    across, down = (1, 7), (7, 1)
    short: Row = (("_1", width, (1, 1)), ("_2", width, across), ("_3", 192, down))
    long: Row = (
        *(("_1", width, (1, 1)), ("_2", width, down), ("_3", width, across)),
        *(("_4", width, down), ("_5", 192, across)),
    )
    rows = (("branch1x1", (("", 192, (1, 1)),)), ("branch7x7", short), ("branch7x7dbl", long))
    return {"branches": rows, "pooled": 192}


_B: tuple[tuple[str, Row], ...] = (
    ("branch3x3", (("", 384, (3, 3)),)),
    ("branch3x3dbl", (("_1", 64, (1, 1)), ("_2", 96, (3, 3)), ("_3", 96, (3, 3)))),
)
_D: tuple[tuple[str, Row], ...] = (
    ("branch3x3", (("_1", 192, (1, 1)), ("_2", 320, (3, 3)))),
    (
        "branch7x7x3",
        (("_1", 192, (1, 1)), ("_2", 192, (1, 7)), ("_3", 192, (7, 1)), ("_4", 192, (3, 3))),
    ),
)


class InceptionV3(nn.Module):
    """Images [b 299 299 3] in [-1, 1] to the pooled features [b 2048]."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Features:
        """Returns the features, >= 0."""
        x = Unit(32, (3, 3), 2, False, name="Conv2d_1a_3x3")(x)
        x = Unit(32, (3, 3), 1, False, name="Conv2d_2a_3x3")(x)
        x = _shrink(Unit(64, (3, 3), name="Conv2d_2b_3x3")(x))
        x = Unit(80, name="Conv2d_3b_1x1")(x)
        x = _shrink(Unit(192, (3, 3), 1, False, name="Conv2d_4a_3x3")(x))
        for name, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = Even(**_a(pooled), name=f"Mixed_{name}")(x)  # type: ignore[arg-type]
        x = Halving(_B, name="Mixed_6a")(x)
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = Even(**_c(width), name=f"Mixed_{name}")(x)  # type: ignore[arg-type]
        x = Halving(_D, name="Mixed_7a")(x)
        x = Wide(False, name="Mixed_7b")(x)
        x = Wide(True, name="Mixed_7c")(x)
        return x.mean(axis=(1, 2))


def prepared(images: ImagesU8) -> Float[Array, "b s s 3"]:
    """Stored images as the network takes them: gray repeated, resized to 299, in [-1, 1]."""
    levels = jnp.asarray(images).astype(jnp.float32)
    colour = jnp.broadcast_to(levels, (*levels.shape[:3], 3))
    shape = (levels.shape[0], SIDE, SIDE, 3)
    return jax.image.resize(colour, shape, "linear", antialias=False) / 127.5 - 1
