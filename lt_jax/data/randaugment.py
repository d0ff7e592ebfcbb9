"""RandAugment on device (Cubuk et al. 2020, arXiv:1909.13719): n random operations an image.

Each of an image's n operations is one of `OPERATIONS`, all alike, at the magnitude m of 30 that all
share. With t = m / 30 and a fair sign where it says +-,

  shear_x, shear_y          x + s y, y + s x from the upper left corner, s = +-0.3 t            (1)
  translate_x, translate_y  by +-150/331 t of the side, in whole pixels, rounded down           (2)
  rotate                    +-30 t degrees about the centre                                     (3)
  color, contrast, brightness, sharpness   d + (1 +- 0.9 t) (image - d), d the image in grey, its
                            mean grey, black, or the image smoothed (3x3)                       (4)
  solarize                  v -> 255 - v from 255 (1 - t) on                                    (5)
  posterize                 the 8 - round(4 t) highest bits                                     (6)
  autocontrast, equalize, identity

Values are those of bytes, and the operations Pillow's (ImageOps, ImageEnhance, Image.transform with
the nearest pixel) down to the rounding of a float; ranges of t are torchvision's. What differs:
what comes from outside an image is mid-grey, as in the authors' code, where torchvision takes
black; equalize does nothing to images of few pixels (255 besides those of the brightest value
are the least), as in Pillow; of two channels, grey is the mean.

A `lax.switch` under vmap computes every branch and then selects. Here operations of a kind share
what they do: one resampling serves (1) to (3), whose maps differ by six numbers an image, and one
blend serves (4); what no image of the batch has drawn is skipped. 128 images of 32x32x3, n = 2, on
one busy core of a CPU: 20 ms, against 44 ms by a switch.

Image i draws from fold_in(key, i) alone: batches of another size or sharding see the same draws.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.data import augment
from lt_jax.runtime import keys
from lt_jax.shapes import Array, Bool, Float, Images, Int, PRNGKey

OPERATIONS = (
    "identity", "autocontrast", "equalize", "rotate", "solarize", "color", "posterize", "contrast",
    "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip
MOVES = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
BLENDS = ("color", "contrast", "brightness", "sharpness")
LARGEST = 30.0  # magnitude
GREY = 128.0  # of what lies outside
LUMA = (19595, 38470, 7471)  # over 2^16: ITU-R 601-2, as Pillow has it

Bytes = Float[Array, "b h w c"]  # whole numbers in [0, 255]
Choice = Int[Array, "b"]  # which operation each image gets
Sign = Float[Array, "b"]


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """n operations of magnitude m in [0, 30]."""

    operations: int
    magnitude: float

    def __call__(self, images: Images, key: PRNGKey) -> Images:
        """float32 [-1, 1] to the same; values are rounded to bytes first.

        Args:
          images: any size from 3x3 on; 1 to 3 channels.
          key: of the step; image i draws from fold_in(key, i).
        """
        own = keys.per_example(key, jnp.arange(images.shape[0]))
        drawn = jax.vmap(lambda k: jax.random.uniform(k, (self.operations, 2)))(own)
        pixels = augment.quantize(images).astype(jnp.float32)
        for n in range(self.operations):
            choice = jnp.floor(drawn[:, n, 0] * len(OPERATIONS)).astype(jnp.int32)
            sign = jnp.where(drawn[:, n, 1] < 0.5, 1.0, -1.0)
            pixels = operate(pixels, choice, sign, self.magnitude)
        return augment.normalize(pixels.astype(jnp.uint8))


def operate(pixels: Bytes, choice: Choice, sign: Sign, magnitude: float) -> Bytes:
    """One operation an image, by its place in `OPERATIONS`; `sign` is 1 or -1."""
    t = magnitude / LARGEST
    kinds: tuple[tuple[tuple[str, ...], Callable[[Bytes], Bytes]], ...] = (
        (MOVES, lambda x: _move(x, choice, sign, t)),
        (BLENDS, lambda x: _blend(x, choice, 1 + 0.9 * t * sign)),
        (("autocontrast",), _autocontrast),
        (("equalize",), _equalize),
        (("solarize",), lambda x: jnp.where(x < 255 * (1 - t), x, 255 - x)),
        (("posterize",), lambda x: _posterize(x, 8 - round(4 * t))),
    )
    for names, make in kinds:
        own = _is_one_of(choice, names)[:, None, None, None]
        # Also a fence: XLA would compute the steps before again in each that reads them.
        pixels = jax.lax.cond(
            jnp.any(own),
            lambda x, make=make, own=own: jnp.where(own, make(x), x),
            lambda x: x,
            pixels,
        )
    return pixels


def _is(choice: Choice, name: str) -> Bool[Array, "b"]:
    return choice == OPERATIONS.index(name)


def _is_one_of(choice: Choice, names: tuple[str, ...]) -> Bool[Array, "b"]:
    return functools.reduce(jnp.logical_or, [_is(choice, name) for name in names])


def _move(pixels: Bytes, choice: Choice, sign: Sign, t: float) -> Bytes:
    """(1) to (3): output pixel (x, y) shows the input at (a x + b y + c, d x + e y + f)."""
    _, h, w, _ = pixels.shape

    def of(name: str, value: float) -> Float[Array, "b"]:
        return jnp.where(_is(choice, name), sign * value, 0.0)

    angle = math.radians(30 * t)
    cos = jnp.where(_is(choice, "rotate"), math.cos(angle), 1.0)
    sin = of("rotate", math.sin(angle))
    b, d = of("shear_x", 0.3 * t) - sin, of("shear_y", 0.3 * t) + sin
    c = of("translate_x", int(150 / 331 * t * w)) + w / 2 * (1 - cos) + h / 2 * sin
    f = of("translate_y", int(150 / 331 * t * h)) + h / 2 * (1 - cos) - w / 2 * sin
    cos, b, c, d, f = (value[:, None, None] for value in (cos, b, c, d, f))
    y, x = jnp.meshgrid(jnp.arange(h) + 0.5, jnp.arange(w) + 0.5, indexing="ij")
    y, x = y[None], x[None]
    from_x = jnp.floor(cos * x + b * y + c).astype(jnp.int32)
    from_y = jnp.floor(d * x + cos * y + f).astype(jnp.int32)
    inside = (from_x >= 0) & (from_x < w) & (from_y >= 0) & (from_y < h)
    place = jnp.clip(from_y, 0, h - 1) * w + jnp.clip(from_x, 0, w - 1)
    flat = pixels.reshape(len(pixels), h * w, -1)
    moved = jnp.take_along_axis(flat, place.reshape(len(pixels), h * w, 1), axis=1)
    return jnp.where(inside[..., None], moved.reshape(pixels.shape), GREY)


def _blend(pixels: Bytes, choice: Choice, factor: Float[Array, "b"]) -> Bytes:
    """Equation (4)."""
    grey = _grey(pixels)
    mean = jnp.floor(grey.mean(axis=(1, 2, 3), keepdims=True) + 0.5)
    others = {"color": grey, "contrast": mean, "sharpness": _smooth(pixels)}
    d = jnp.zeros_like(pixels)  # of brightness
    for name, other in others.items():
        d = jnp.where(_is(choice, name)[:, None, None, None], other, d)
    return jnp.floor(jnp.clip(d + factor[:, None, None, None] * (pixels - d), 0, 255))


def _grey(pixels: Bytes) -> Float[Array, "b h w 1"]:
    if pixels.shape[-1] != 3:
        return jnp.floor(pixels.mean(axis=-1, keepdims=True) + 0.5)
    weighted = pixels.astype(jnp.int32) * jnp.asarray(LUMA)[None, None, None]
    return ((weighted.sum(axis=-1, keepdims=True) + 2**15) >> 16).astype(jnp.float32)


def _smooth(pixels: Bytes) -> Bytes:
    """Each pixel with weight 5 and its eight neighbours with 1; the border stays as it is."""
    rows = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    within = jnp.floor((around + 4 * pixels[:, 1:-1, 1:-1]) * np.float32(1 / 13) + 0.5)
    return pixels.at[:, 1:-1, 1:-1].set(within)


def _posterize(pixels: Bytes, bits: int) -> Bytes:
    step = float(2 ** (8 - bits))
    return jnp.floor(pixels / step) * step  # exact: a power of two


def _autocontrast(pixels: Bytes) -> Bytes:
    """Each channel stretched to [0, 255]; rounded down, exactly where Pillow's doubles may not."""
    low = pixels.min(axis=(1, 2), keepdims=True).astype(jnp.int32)
    span = pixels.max(axis=(1, 2), keepdims=True).astype(jnp.int32) - low
    stretched = (255 * (pixels.astype(jnp.int32) - low)) // jnp.maximum(span, 1)
    return jnp.where(span > 0, stretched.astype(jnp.float32), pixels)


def _equalize(pixels: Bytes) -> Bytes:
    """Each channel's values made as even as they can be by a map that keeps their order."""
    b, h, w, c = pixels.shape
    values = pixels.astype(jnp.int32).transpose(0, 3, 1, 2).reshape(b * c, h * w)
    count = jax.vmap(lambda v: jnp.zeros(256, jnp.int32).at[v].add(1))(values)
    below = jnp.cumsum(count, axis=1) - count
    brightest = (values == values.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)
    step = (h * w - brightest) // 255
    table = jnp.minimum((below + step // 2) // jnp.maximum(step, 1), 255)
    even = jnp.where(step > 0, jnp.take_along_axis(table, values, axis=1), values)
    return even.reshape(b, c, h, w).transpose(0, 2, 3, 1).astype(jnp.float32)
