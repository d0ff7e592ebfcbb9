"""Augmentation on device: one geometric resampling, colour, an erased square; drawn per image.

Flips, quarter turns, shifts, zoom and rotation are one affine map from each output pixel to the
place in the image that it shows, so an image is resampled once. Places outside show the nearest
edge. Without zoom and rotation the places are whole pixels and the values are copied exactly.

Image i of a batch draws from fold_in(key, i) alone, and always the same numbers, whichever of the
augmentations are on: batches of another size or sharding see the same draws.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.config import AugmentConfig, ConfigError
from lt_jax.shapes import Array, Float, Images, ImagesU8, PRNGKey, UInt8

# One uniform number each, in this order; append, so that no draw moves.
DRAWS = (
    "horizontal_flip", "vertical_flip", "rotate90", "shift_y", "shift_x", "scale", "rotate",
    "brightness", "contrast", "saturation", "cutout_y", "cutout_x",
)  # fmt: skip


def normalize(images: ImagesU8) -> Images:
    """uint8 [0, 255] -> float32 [-1, 1]."""
    # 2 v - 255 is exact, so there is one rounding, the same in every program and in NumPy. A
    # division would not be: XLA turns it into this product where it is compiled, not elsewhere.
    return (2 * jnp.asarray(images).astype(jnp.float32) - 255) * np.float32(1 / 255)


def quantize(images: Images) -> UInt8[Array, "b h w c"]:
    """float [-1, 1] -> uint8 [0, 255], nearest; values outside are clipped. Inverts `normalize`."""
    return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)


def augment(images: ImagesU8 | Images, key: PRNGKey, config: AugmentConfig) -> Images:
    """Augments a batch.

    Args:
      images: uint8 [0, 255] or float [-1, 1], [b h w c].
      key: of the step; image i draws from fold_in(key, i).
      config: what to do; static under jit.

    Returns:
      float32 [-1, 1] of the same shape. With nothing configured, `normalize(images)` exactly.

    Raises:
      ConfigError: quarter turns of images that are not square.
    """
    floats = normalize(images) if images.dtype == jnp.uint8 else jnp.asarray(images, jnp.float32)
    if config == AugmentConfig():
        return floats
    if config.rotate90 and images.shape[1] != images.shape[2]:
        raise ConfigError(
            f"rotate90 takes square images, got {images.shape[1]}x{images.shape[2]}; "
            "turn augment.rotate90 off"
        )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(images.shape[0]))
    return jax.vmap(functools.partial(_augment_one, config=config))(floats, keys)


def _augment_one(
    image: Float[Array, "h w c"], key: PRNGKey, config: AugmentConfig
) -> Float[Array, "h w c"]:
    uniform = dict(zip(DRAWS, jax.random.uniform(key, (len(DRAWS),)), strict=True))
    if _moves(config):
        image = _resample(image, uniform, config)
    image = _recolour(image, uniform, config)
    if config.cutout:
        image = _cut_out(image, uniform, config.cutout)
    return image


def _moves(config: AugmentConfig) -> bool:
    flips = config.horizontal_flip or config.vertical_flip or config.rotate90
    return flips or config.shift > 0 or config.scale > 0 or config.rotate > 0


def _resample(image: Float[Array, "h w c"], uniform: dict, config: AugmentConfig):
    h, w, _ = image.shape
    # From the centre, in halves of pixels where h or w is even: exact in float32.
    y, x = jnp.meshgrid(jnp.arange(h) - (h - 1) / 2, jnp.arange(w) - (w - 1) / 2, indexing="ij")
    interpolate = config.scale > 0 or config.rotate > 0
    if interpolate:
        zoom = 1 + _symmetric(uniform["scale"], config.scale)
        angle = jnp.deg2rad(_symmetric(uniform["rotate"], config.rotate))
        cos, sin = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
        y, x = cos * y - sin * x, sin * y + cos * x
    if config.rotate90:
        turns = jnp.floor(4 * uniform["rotate90"]).astype(jnp.int32)
        cos, sin = jnp.array([1.0, 0, -1, 0])[turns], jnp.array([0.0, 1, 0, -1])[turns]
        y, x = cos * y - sin * x, sin * y + cos * x
    if config.vertical_flip:
        y = jnp.where(uniform["vertical_flip"] < 0.5, -y, y)
    if config.horizontal_flip:
        x = jnp.where(uniform["horizontal_flip"] < 0.5, -x, x)
    choices = 2 * config.shift + 1
    y = y + (h - 1) / 2 + jnp.floor(choices * uniform["shift_y"]) - config.shift
    x = x + (w - 1) / 2 + jnp.floor(choices * uniform["shift_x"]) - config.shift
    y, x = jnp.clip(y, 0, h - 1), jnp.clip(x, 0, w - 1)
    if not interpolate:
        return image[y.astype(jnp.int32), x.astype(jnp.int32)]
    return _bilinear(image, y, x)


def _bilinear(image: Float[Array, "h w c"], y: Float[Array, "h w"], x: Float[Array, "h w"]):
    top = jnp.floor(y).astype(jnp.int32)
    left = jnp.floor(x).astype(jnp.int32)
    bottom = jnp.minimum(top + 1, image.shape[0] - 1)
    right = jnp.minimum(left + 1, image.shape[1] - 1)
    down, across = (y - top)[:, :, None], (x - left)[:, :, None]
    above = image[top, left] * (1 - across) + image[top, right] * across
    below = image[bottom, left] * (1 - across) + image[bottom, right] * across
    return above * (1 - down) + below * down


def _recolour(image: Float[Array, "h w c"], uniform: dict, config: AugmentConfig):
    """Factors uniform in [1 - s, 1 + s]: of the value above black, of the distance from the
    image's mean, of the distance from a pixel's grey (the mean of its channels)."""
    if config.brightness:
        image = (image + 1) * (1 + _symmetric(uniform["brightness"], config.brightness)) - 1
    if config.contrast:
        mean = image.mean(keepdims=True)
        image = mean + (image - mean) * (1 + _symmetric(uniform["contrast"], config.contrast))
    if config.saturation:
        grey = image.mean(axis=-1, keepdims=True)
        image = grey + (image - grey) * (1 + _symmetric(uniform["saturation"], config.saturation))
    if config.brightness or config.contrast or config.saturation:
        image = jnp.clip(image, -1, 1)
    return image


def _cut_out(image: Float[Array, "h w c"], uniform: dict, side: int):
    """A square of mid-grey centred on any pixel, so partly outside near a border (DeVries &
    Taylor 2017)."""
    h, w, _ = image.shape
    top = jnp.floor(uniform["cutout_y"] * h) - side // 2
    left = jnp.floor(uniform["cutout_x"] * w) - side // 2
    rows, columns = jnp.arange(h), jnp.arange(w)
    inside_y = (rows >= top) & (rows < top + side)
    inside_x = (columns >= left) & (columns < left + side)
    return jnp.where((inside_y[:, None] & inside_x[None, :])[:, :, None], 0.0, image)


def _symmetric(uniform: Float[Array, ""], strength: float) -> Float[Array, ""]:
    return (2 * uniform - 1) * strength
