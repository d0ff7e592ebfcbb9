"""Sketches of images, the loss of the branch that predicts them, and how well a sample obeys one.

arXiv:2507.22568 names a "sketch-grounded perception branch" of its generator and makes no details
of it public. What is here is our definition. A sketch is a map s in [0, 1] of where an image has
edges, or of a lesion's contour. With G a Gaussian of width `scale` pixels, g an image's grey values
(the mean of its channels) and pixels x, the edges are

  m(x)^2 = |grad (G * g)(x)|^2                                                            (1)
  s(x) = 1 - exp(-m(x)^2 / (2 (kappa r)^2)),   r^2 = mean_x m(x)^2 + r_0^2                 (2)

so that an edge is what is steep for its own image: brightness and contrast do not matter, until
contrast sinks to r_0 and the sketch fades to none. (2) is one minus the edge-stopping function of
Perona and Malik 1990 (IEEE PAMI 12, 629-639, eq. 3) at a scale set by the image.

A branch reads the decoder's feature maps and gives one logit map z at each of several scales. Its
loss, for a sketch pooled to that scale and with means over pixels, is cross-entropy in which edges
and ground have half of the weight each, since edges are few (Xie and Tu 2015, arXiv:1504.06375,
eq. 2, here for targets between 0 and 1):

  L = mean(s softplus(-z)) / (2 mean(s)) + mean((1 - s) softplus(z)) / (2 mean(1 - s))    (3)

Scales count alike and levels by w(lambda) = sigmoid(lambda - centre): in pure noise there is no
sketch to be seen, and a branch that is asked for one there learns the mean sketch at the expense
of the features. By (3), z estimates the log-odds of an edge less log(mean(s) / mean(1 - s)).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.config import ConfigError, SketchConfig
from lt_jax.shapes import Array, Float, Images, LogSNR

Sketch = Float[Array, "b h w 1"]

# kappa: in Gaussian noise, whose m^2 is exponential, 4% of the pixels then have s > 0.5, while an
# outline on 10% of the pixels of a clean image has s = 0.9.
CONTRAST = 1.5
FLATTEST = 1 / 255  # r_0: half a level of an 8-bit image a pixel
RAREST = 0.01  # least share that (3) divides by: one edge pixel never outweighs 50 others


def edges(images: Images, scale: float) -> Sketch:
    """Equations (1) and (2): how much an edge each pixel is, in [0, 1]. Differentiable.

    Places beyond the border show the nearest edge. The derivative is a central difference of the
    smoothed image, which stands at any scale, where a sampled derivative of a Gaussian narrower
    than a pixel would vanish.

    Args:
      images: in [-1, 1], any number of channels.
      scale: sigma of G in pixels, > 0.

    Returns:
      [b h w 1]; exactly zero for an image of one colour.
    """
    _, height, width, _ = images.shape
    smooth_y, slope_y = _operators(height, scale)
    smooth_x, slope_x = _operators(width, scale)
    grey = jnp.mean(images, axis=-1)
    grey = grey - grey[:, :1, :1]  # slopes do not see it; what is flat becomes exactly zero

    def filtered(rows: np.ndarray, columns: np.ndarray) -> Float[Array, "b h w"]:
        return jnp.einsum("yi,bij,xj->byx", rows, grey, columns, precision="highest")

    energy = jnp.square(filtered(slope_y, smooth_x)) + jnp.square(filtered(smooth_y, slope_x))
    level = jnp.mean(energy, axis=(1, 2), keepdims=True) + FLATTEST**2
    return -jnp.expm1(-energy / (2 * CONTRAST**2 * level))[..., None]


def contour(masks: Sketch) -> Sketch:
    """Outline of a mask, one pixel wide, 1 on it and 0 elsewhere. Not differentiable.

    It is the pixels inside (above 0.5) with a neighbour above, below, left or right that is not:
    the mask less its erosion. The image's border is no outline of what it cuts, so that a mask of
    the whole image, like an empty one, has none.
    """
    inside = (masks > 0.5).astype(masks.dtype)
    padded = jnp.pad(inside, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    vertical = jnp.minimum(padded[:, :-2, 1:-1], padded[:, 2:, 1:-1])
    horizontal = jnp.minimum(padded[:, 1:-1, :-2], padded[:, 1:-1, 2:])
    return inside - jnp.minimum(inside, jnp.minimum(vertical, horizontal))


def sketch(images: Images, masks: Sketch | None, config: SketchConfig) -> Sketch:
    """The sketch of each image: its mask's contour, if asked for and known, else its edges.

    Args:
      images: in [-1, 1].
      masks: 1 inside; an image of unknown mask has -1 everywhere. None: no mask is known. A known
        empty mask has an empty contour.
      config: `source` "mask" asks for contours; `scale` is that of the edges.
    """
    drawn = edges(images, config.scale)
    if config.source != "mask" or masks is None:
        return drawn
    known = jnp.all(masks >= 0, axis=(1, 2, 3), keepdims=True)
    return jnp.where(known, contour(masks), drawn)


def pyramid(sketches: Sketch, sizes: tuple[int, ...]) -> tuple[Float[Array, "b _h _w 1"], ...]:
    """The sketch at each of the branch's scales: the maximum over every cell.

    The maximum says whether an edge passes through a cell, which is a question with an answer at
    every scale. A mean would say how much of the cell it fills, and would fade a line one pixel
    wide to 1 / 8 at an eighth of the size.

    Args:
      sketches: square, [b h w 1].
      sizes: height and width of each scale.

    Raises:
      ConfigError: a size does not divide that of the sketch, or the sketch is not square.
    """
    batch, height, width, _ = sketches.shape
    for size in sizes:
        if height != width or size < 1 or height % size:
            raise ConfigError(
                f"sketch branch: a sketch of {height}x{width} has no pyramid level of {size}x{size}"
                "; take square images with sizes that divide theirs (data.image_size a multiple of "
                "generator.model.patch_size times 2 for each step down)"
            )

    def pool(size: int) -> Array:
        cell = height // size
        return sketches.reshape(batch, size, cell, size, cell, 1).max(axis=(2, 4))

    return tuple(pool(size) for size in sizes)


def level_weight(log_snr: LogSNR, config: SketchConfig) -> LogSNR:
    """w(lambda) = sigmoid(lambda - config.log_snr_centre): 1 for clean images, 0 in pure noise."""
    return jax.nn.sigmoid(log_snr - config.log_snr_centre)


def branch_loss(
    logits: tuple[Float[Array, "b _h _w 1"], ...],
    sketches: Sketch,
    log_snr: LogSNR,
    config: SketchConfig,
) -> Float[Array, "b"]:
    """Equation (3), averaged over the branch's scales and weighted by `level_weight`.

    `config.weight` is left to the caller, so that what is logged can be compared between weights.
    Logits of zero cost log 2 at a weight of 1, whatever the sketch, unless it is almost empty.

    Args:
      logits: one map a scale, each square.
      sketches: of the images before noise, in [0, 1].
      log_snr: of the noised images that the logits were read from.
      config: `log_snr_centre` is read.

    Returns:
      [b]. An example's loss depends on its own sketch and logits alone.

    Raises:
      ConfigError: see `pyramid`.
    """
    targets = pyramid(sketches, tuple(scale.shape[1] for scale in logits))
    losses = [_balanced(z, s) for z, s in zip(logits, targets, strict=True)]
    return level_weight(log_snr, config) * jnp.mean(jnp.stack(losses), axis=0)


def edge_f1(
    predicted: Sketch, given: Sketch, threshold: float = 0.5, tolerance: int = 1
) -> Float[Array, "b"]:
    """Boundary F1 of two sketches, as in BSDS (Martin et al. 2004, IEEE PAMI 26, 530-549).

    Precision is the share of predicted edge pixels with a given one at most `tolerance` pixels
    off in either direction, recall the converse, F1 their harmonic mean. Unlike in BSDS, edges are
    not thinned and one edge pixel may answer for several, which lifts all values, chance included:
    read it beside `chance_f1`.

    Args:
      predicted: for instance `edges` of a sample.
      given: what it should agree with.
      threshold: a pixel of a larger value is an edge.
      tolerance: in pixels, >= 0.

    Returns:
      [b] in [0, 1]; where neither has an edge 1, where one has none 0.
    """
    ours, theirs = ((s > threshold).astype(s.dtype) for s in (predicted, given))
    total = lambda s: jnp.sum(s, axis=(1, 2, 3))
    found = lambda s, among: total(s * _dilate(among, tolerance)) / jnp.maximum(total(s), 1)
    precision, recall = found(ours, theirs), found(theirs, ours)
    both = precision + recall
    f1 = 2 * precision * recall / jnp.where(both > 0, both, 1)
    return jnp.where(total(ours) + total(theirs) > 0, f1, 1.0)


def chance_f1(
    predicted: Sketch,
    given: Sketch,
    threshold: float = 0.5,
    tolerance: int = 1,
    others: int = 8,
) -> Float[Array, "b"]:
    """`edge_f1` of each prediction with the sketches of other images: what chance would give.

    Each is compared with those of the `others` images (at most b - 1) before it in the batch, the
    last ones being before the first. For chance within a class, pass one class at a time.

    Raises:
      ValueError: a batch of one image, or `others` < 1.
    """
    shifts = range(1, min(others, given.shape[0] - 1) + 1)
    if not shifts:
        raise ValueError(
            f"chance level: got {given.shape[0]} images and others={others}; takes two or more "
            "images and others >= 1"
        )
    values = [edge_f1(predicted, jnp.roll(given, s, 0), threshold, tolerance) for s in shifts]
    return jnp.mean(jnp.stack(values), axis=0)


def _balanced(logits: Sketch, targets: Sketch) -> Float[Array, "b"]:
    """Equation (3), with shares of at least RAREST, so that an empty sketch is learned as empty."""

    def half(share: Array, loss: Array) -> Array:
        mean = lambda x: jnp.mean(x, axis=(1, 2, 3))
        return mean(share * loss) / (2 * jnp.maximum(mean(share), RAREST))

    on_edges = half(targets, jax.nn.softplus(-logits))
    return on_edges + half(1 - targets, jax.nn.softplus(logits))


def _operators(
    length: int, scale: float
) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]]:
    """Smoothing by G and its slope along one axis, as matrices with the border repeated."""
    radius = max(1, math.ceil(4 * scale))
    offsets = np.arange(-radius - 1, radius + 2)
    bell = np.exp(-0.5 * np.square(offsets / scale)) * (np.abs(offsets) <= radius)
    bell /= bell.sum()
    slope = (np.roll(bell, 1) - np.roll(bell, -1)) / 2  # both ends of the bell are zero
    source = np.clip(np.arange(length)[:, None] + offsets[None, :], 0, length - 1)
    target = np.broadcast_to(np.arange(length)[:, None], source.shape)

    def matrix(kernel: np.ndarray) -> np.ndarray:
        out = np.zeros((length, length))
        np.add.at(out, (target, source), np.broadcast_to(kernel[None, :], source.shape))
        return out.astype(np.float32)

    return matrix(bell), matrix(slope)


def _dilate(binary: Sketch, radius: int) -> Sketch:
    window = (1, 2 * radius + 1, 2 * radius + 1, 1)
    return jax.lax.reduce_window(binary, -jnp.inf, jax.lax.max, window, (1, 1, 1, 1), "SAME")
