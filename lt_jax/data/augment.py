"""Augmentation on device: one geometric resampling, colour, an erased square; drawn per image.

Flips, quarter turns, shifts, zoom and rotation are one affine map from each output pixel to the
place in the image that it shows, so an image is resampled once. Places outside show the nearest
edge. Without zoom and rotation the places are whole pixels and the values are copied exactly.

Maps (masks, sketches) and lesion boxes of an image move with it, and what was done to it can be had
as numbers: a generator that is told them does not leak augmentations into what it generates (Karras
et al. 2022, arXiv:2206.00364, appendix F.2).

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
# What `augment_annotated` tells of each image; all are 0 for an image that is left as it is.
DESCRIPTION = (
    "horizontal_flip", "vertical_flip", "turn_cos", "turn_sin", "shift_y", "shift_x", "log2_zoom",
    "rotate_cos", "rotate_sin", "brightness", "contrast", "saturation",
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
    _check_square(images, config)
    return jax.vmap(functools.partial(_augment_one, config=config))(floats, _keys(images, key))


def augment_annotated(
    images: ImagesU8 | Images,
    maps: Float[Array, "b h w m"],
    boxes: Float[Array, "b s 4"],
    key: PRNGKey,
    config: AugmentConfig,
) -> tuple[Images, Float[Array, "b h w m"], Float[Array, "b s 4"], Float[Array, "b a"]]:
    """Augments images together with what is drawn on them.

    Args:
      images: as of `augment`, which does the same to them.
      maps: values in [0, 1] at each pixel, moved with the image; a map of -1 stays that.
      boxes: (x0, y0, x1, y1) in [0, 1]; a turned box becomes the smallest upright one around it, a
        box that leaves the image becomes zeros. Zeros (no box) and negative boxes stay as they are.
      key: of the step.
      config: what to do; static under jit.

    Returns:
      Images, maps and boxes after the same motion, and `DESCRIPTION` of what was done.

    Raises:
      ConfigError: quarter turns of images that are not square.
    """
    floats = normalize(images) if images.dtype == jnp.uint8 else jnp.asarray(images, jnp.float32)
    _check_square(images, config)

    def one(image, drawn, held, key):
        uniform = dict(zip(DRAWS, jax.random.uniform(key, (len(DRAWS),)), strict=True))
        placed = held
        if _moves(config):
            moved = jnp.clip(_resample(drawn, uniform, config), 0, 1)
            drawn = jnp.where(drawn < 0, drawn, moved)
            placed = _place(held, uniform, config, *image.shape[:2])
        return _augment_one(image, key, config), drawn, placed, _describe(uniform, config, image)

    return jax.vmap(one)(floats, maps, boxes, _keys(images, key))


def _check_square(images: ImagesU8 | Images, config: AugmentConfig) -> None:
    if config.rotate90 and images.shape[1] != images.shape[2]:
        raise ConfigError(
            f"rotate90 takes square images, got {images.shape[1]}x{images.shape[2]}; "
            "turn augment.rotate90 off"
        )


def _keys(images: ImagesU8 | Images, key: PRNGKey) -> Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(images.shape[0]))


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


def _place(
    boxes: Float[Array, "s 4"], uniform: dict, config: AugmentConfig, h: int, w: int
) -> Float[Array, "s 4"]:
    """Where boxes come to lie: the steps of `_resample` undone, last one first."""
    x = boxes[:, jnp.array([0, 2, 0, 2])] * w - w / 2
    y = boxes[:, jnp.array([1, 1, 3, 3])] * h - h / 2
    motion = _motion(uniform, config)
    y, x = y - motion["shift_y"], x - motion["shift_x"]
    x = jnp.where(motion["horizontal_flip"], -x, x)
    y = jnp.where(motion["vertical_flip"], -y, y)
    for cos, sin in (
        (motion["turn_cos"], motion["turn_sin"]),
        (motion["rotate_cos"], motion["rotate_sin"]),
    ):
        y, x = cos * y + sin * x, cos * x - sin * y
    y, x = y * motion["zoom"], x * motion["zoom"]
    y, x = jnp.clip(y / h + 0.5, 0, 1), jnp.clip(x / w + 0.5, 0, 1)
    placed = jnp.stack([x.min(1), y.min(1), x.max(1), y.max(1)], axis=1)
    inside = (placed[:, 0] < placed[:, 2]) & (placed[:, 1] < placed[:, 3])
    placed = jnp.where(inside[:, None], placed, 0.0)
    real = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    return jnp.where(real[:, None], placed, boxes)


def _motion(uniform: dict, config: AugmentConfig) -> dict:
    """What `_resample` does, as numbers."""
    off = jnp.zeros((), bool)
    turns = jnp.floor(4 * uniform["rotate90"]).astype(jnp.int32) * config.rotate90
    angle = jnp.deg2rad(_symmetric(uniform["rotate"], config.rotate))
    choices = 2 * config.shift + 1
    return {
        "horizontal_flip": uniform["horizontal_flip"] < 0.5 if config.horizontal_flip else off,
        "vertical_flip": uniform["vertical_flip"] < 0.5 if config.vertical_flip else off,
        "turn_cos": jnp.array([1.0, 0, -1, 0])[turns],
        "turn_sin": jnp.array([0.0, 1, 0, -1])[turns],
        "shift_y": jnp.floor(choices * uniform["shift_y"]) - config.shift,
        "shift_x": jnp.floor(choices * uniform["shift_x"]) - config.shift,
        "zoom": 1 + _symmetric(uniform["scale"], config.scale),
        "rotate_cos": jnp.cos(angle),
        "rotate_sin": jnp.sin(angle),
    }


def _describe(uniform: dict, config: AugmentConfig, image: Float[Array, "h w c"]) -> Array:
    motion = _motion(uniform, config)
    values = {
        **motion,
        "turn_cos": motion["turn_cos"] - 1,
        "rotate_cos": motion["rotate_cos"] - 1,
        "shift_y": motion["shift_y"] / image.shape[0],
        "shift_x": motion["shift_x"] / image.shape[1],
        "log2_zoom": jnp.log2(motion["zoom"]),
    }
    for name in ("brightness", "contrast", "saturation"):
        values[name] = _symmetric(uniform[name], getattr(config, name))
    return jnp.stack([jnp.asarray(values[name], jnp.float32) for name in DESCRIPTION])


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
