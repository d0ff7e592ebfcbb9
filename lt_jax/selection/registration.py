"""What makes two pictures comparable: gray, symmetries, small pictures, alignment, contrast.

Of images [b h w] in levels of [0, 255], inside a compiled program.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.config import AugmentConfig
from lt_jax.shapes import Array, Float, UInt8

THUMBNAIL = 8
SHIFT = 2  # pixels
MIN_CONTRAST = 2.5  # levels of standard deviation, below which a picture is not stretched

Gray = Float[Array, "b h w"]
Planes = Float[Array, "h b w"]  # as `similarity` takes them

SYMMETRIES: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "mirrored": lambda x: x[:, :, ::-1],
    "upside_down": lambda x: x[:, ::-1],
    "half_turn": lambda x: x[:, ::-1, ::-1],
    "quarter_turn": lambda x: jnp.swapaxes(x, 1, 2)[:, ::-1],
    "three_quarter_turn": lambda x: jnp.swapaxes(x, 1, 2)[:, :, ::-1],
    "transposed": lambda x: jnp.swapaxes(x, 1, 2),
    "anti_transposed": lambda x: jnp.swapaxes(x, 1, 2)[:, ::-1, ::-1],
}


def symmetries(augment: AugmentConfig) -> tuple[str, ...]:
    """Names of the symmetries that an augmentation's flips and quarter turns make up."""
    across, down, quarter = augment.horizontal_flip, augment.vertical_flip, augment.rotate90
    kept = {
        "none": True,
        "mirrored": across or (down and quarter),
        "upside_down": down or (across and quarter),
        "half_turn": (across and down) or quarter,
        "quarter_turn": quarter,
        "three_quarter_turn": quarter,
        "transposed": (across or down) and quarter,
        "anti_transposed": (across or down) and quarter,
    }
    return tuple(name for name, keep in kept.items() if keep)


def reach(augment: AugmentConfig, height: int, width: int) -> int:
    """The largest shift in pixels: the augmentation's, `SHIFT` at least, an eighth at most."""
    return min(max(SHIFT, augment.shift), min(height, width) // 8)


def gray(images: UInt8[np.ndarray | Array, "b h w c"]) -> Gray:
    """The mean of the channels in whole levels, so that it can be kept as uint8."""
    return jnp.round(jnp.asarray(images).astype(jnp.float32).mean(axis=-1))


def offsets(shift: int, side: int) -> tuple[int, ...]:
    """Shifts to try of a thumbnail, half of its pixels apart, and the largest ones."""
    step = max(1, side // (2 * THUMBNAIL))
    tried = {min(n * step, shift) for n in range(-(-shift // step) + 1)}
    return tuple(sorted(tried | {-offset for offset in tried}))


def thumbnails(gray: Gray, shift: int, offsets: tuple[int, ...]) -> Float[Array, "o b t"]:
    """Pictures of the middle [h - 2 shift, w - 2 shift], moved by each pair of offsets.

    Each pixel is the mean of what it covers. As vectors of mean 0 and length 1; of a flat image, 0.
    """
    down, across = (
        np.stack([_averages(side, shift, offset) for offset in offsets]) for side in gray.shape[1:]
    )
    rows = jnp.einsum("eth,bhw->ebtw", down, gray, precision="highest")
    small = jnp.einsum("ebtw,fuw->efbtu", rows, across, precision="highest")
    flat = small.reshape(len(offsets) ** 2, gray.shape[0], -1)
    flat -= flat.mean(axis=2, keepdims=True)
    length = jnp.linalg.norm(flat, axis=2, keepdims=True)
    return flat / jnp.maximum(length, 0.01)


def _averages(side: int, shift: int, offset: int) -> Float[np.ndarray, "t s"]:
    """Row i averages the i-th part of the pixels shift + offset to side - shift + offset."""
    length = side - 2 * shift
    ends = np.linspace(0, length, min(THUMBNAIL, length) + 1) + shift + offset
    pixel = np.arange(side)[None, :]
    covered = np.minimum(ends[1:, None], pixel + 1) - np.maximum(ends[:-1, None], pixel)
    covered = np.maximum(covered, 0)
    return (covered / covered.sum(axis=1, keepdims=True)).astype(np.float32)


def middle(views: Float[Array, "s b h w"], shift: int) -> Float[Array, "s b p q"]:
    """What is left wherever images are moved by `shift`: without a border that wide."""
    height, width = views.shape[2:]
    return views[:, :, shift : height - shift, shift : width - shift]


def spreads(gray: Gray, shift: int) -> Float[Array, "b f"]:
    """The standard deviation of what each shift of `align` cuts out, in its order; at least 0.03.

    Shifts are row by row, from -shift to shift each way.
    """
    height, width = gray.shape[1] - 2 * shift, gray.shape[2] - 2 * shift
    level = gray - gray.mean(axis=(1, 2), keepdims=True)  # squares of small numbers lose less

    def at_row(top: Array) -> Float[Array, "f b"]:
        strip = jax.lax.dynamic_slice_in_dim(level, top, height, axis=1)
        windows = jnp.stack([strip[:, :, left : left + width] for left in range(2 * shift + 1)])
        return jnp.square(windows).mean(axis=(2, 3)) - jnp.square(windows.mean(axis=(2, 3)))

    variances = jax.lax.map(at_row, jnp.arange(2 * shift + 1)).reshape(-1, gray.shape[0])
    return jnp.sqrt(jnp.maximum(variances, 1e-3)).T


def align(
    x: Float[Array, "b p q"], y: Gray, spreads_y: Float[Array, "b f"], shift: int
) -> Float[Array, "b p q"]:
    """What of y, as large as x, correlates most with x.

    Args:
      x: the `middle` of images.
      y: as large as the images were.
      spreads_y: `spreads` of y.
      shift: the largest one that is tried.
    """
    (height, width), across = x.shape[1:], y.shape[2]
    # Padded to y's width: what a shift cuts out of y is then a run of its pixels, and a correlation
    # a product of two vectors.
    centred = x - x.mean(axis=(1, 2), keepdims=True)
    probe = jnp.pad(centred, ((0, 0), (0, 0), (0, 2 * shift))).reshape(x.shape[0], -1)
    level = (y - y.mean(axis=(1, 2), keepdims=True)).reshape(y.shape[0], -1)
    level = jnp.pad(level, ((0, 0), (0, 2 * shift)))

    def at_row(top: Array) -> Float[Array, "b f"]:
        runs = [
            jax.lax.dynamic_slice_in_dim(level, top * across + left, probe.shape[1], axis=1)
            for left in range(2 * shift + 1)
        ]
        return jnp.einsum("bfk,bk->bf", jnp.stack(runs, axis=1), probe, precision="highest")

    covariances = jax.lax.map(at_row, jnp.arange(2 * shift + 1))
    covariances = jnp.moveaxis(covariances, 0, 1).reshape(spreads_y.shape)
    top, left = jnp.divmod(jnp.argmax(covariances / spreads_y, axis=1), 2 * shift + 1)
    cut = lambda image, top, left: jax.lax.dynamic_slice(image, (top, left), (height, width))
    return jax.vmap(cut)(y, top, left)


def stretch(gray: Float[Array, "b p q"]) -> Planes:
    """To a mean of 127.5 and a standard deviation of 50 levels; planes for `similarity`."""
    planes = jnp.swapaxes(gray, 0, 1)
    mean = planes.mean(axis=(0, 2), keepdims=True)
    spread = planes.std(axis=(0, 2), keepdims=True)
    return (planes - mean) * (50 / jnp.maximum(spread, MIN_CONTRAST)) + 127.5
