"""Structural similarity of two images, at one scale and at several.

In a Gaussian window of 11 x 11 pixels (sigma 1.5) about each place, with means mu, variances s^2
and covariance s_xy of the two images there (Wang et al. 2004, IEEE Trans. Image Process. 13:600,
eqs. 6 and 9-13, with C3 = C2 / 2):

  l  = (2 mu_x mu_y + C1) / (mu_x^2 + mu_y^2 + C1),      C1 = (0.01 L)^2,   L = 255       (1)
  cs = (2 s_xy + C2) / (s_x^2 + s_y^2 + C2),             C2 = (0.03 L)^2                  (2)
  SSIM = mean of l cs over all places where the window fits, in [-1, 1]                   (3)

Scale j + 1 is scale j averaged over 2 x 2 pixels; over M scales (Wang, Simoncelli and Bovik 2003,
Asilomar Conf. Signals 37:1398, eq. 7, with a mean over places at each scale)

  MS-SSIM = SSIM_M^w_M  prod_{j < M} (mean of cs at scale j)^w_j, in [0, 1]               (4)

with w = 0.0448, 0.2856, 0.3001, 0.2363, 0.1333. A negative mean counts as 0, since it has no such
power. Small images have fewer scales: M is how many of the five leave room for the window, and the
weights of these are divided by their sum (five scales take 176 pixels; 32 pixels have two). An
image that is smaller than the window has one scale, in a window cut to the largest odd side that
fits. An odd last row or column is left out of the next scale.

What (1) and (2) need of one image alone is computed once, for as many pairs as the image stands in
(`describe`); a pair adds the window of the product (`compare`). (2) is computed of levels about
each image's own mean, which leaves it as it is: squares of small numbers lose less.

The window is separable and applied as two products with a banded matrix, in full float32: outside
of loops CPUs run these many times as fast as a convolution, on GPU they are products like any
other, where the shorter mantissa of TF32 would leave no digits of a variance. Planes lie row by
row, [h n w], so that neither product has to move them.
"""

from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np

from lt_jax.shapes import Array, Float

WINDOW, SIGMA = 11, 1.5
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

Planes = Float[Array, "h n w"]


@flax.struct.dataclass
class Scale:
    """Gray images at one scale: levels [h n w] about the image's mean, `centres` [1 n 1]; of each
    window [p n q] mu less that and s^2 of (1) and (2).
    """

    levels: Any
    centres: Any
    means: Any
    variances: Any


def describe(planes: Planes) -> tuple[Scale, ...]:
    """What (4) needs of each gray image by itself, scale by scale; levels in [0, 255].

    Image i depends on plane i alone.
    """
    window, weights = scales(planes.shape[0], planes.shape[2])
    found = []
    for scale in range(len(weights)):
        if scale:
            planes = _halve(planes)
        centres = planes.mean((0, 2), keepdims=True)
        levels = planes - centres
        means = _blur(levels, window)
        variances = _blur(levels * levels, window) - means * means
        found.append(Scale(levels, centres, means, variances))
    return tuple(found)


def compare(first: tuple[Scale, ...], second: tuple[Scale, ...]) -> Float[Array, "n"]:
    """Equation (4) of each pair: image i of the one with image i of the other; 1 if equal."""
    window, weights = scales(first[0].levels.shape[0], first[0].levels.shape[2])
    result = jnp.ones(first[0].levels.shape[1], jnp.float32)
    for x, y, weight in zip(first, second, weights, strict=True):
        covariances = _blur(x.levels * y.levels, window) - x.means * y.means
        part = (2 * covariances + C2) / (x.variances + y.variances + C2)
        if y is second[-1]:
            mean_x, mean_y = x.means + x.centres, y.means + y.centres
            part *= (2 * mean_x * mean_y + C1) / (mean_x * mean_x + mean_y * mean_y + C1)
        result *= jnp.maximum(part.mean((0, 2)), 0.0) ** weight
    return result


def scales(height: int, width: int) -> tuple[int, tuple[float, ...]]:
    """The window's side and the weights of the scales that images of this size have."""
    side = min(height, width)
    window = min(WINDOW, side - (side + 1) % 2)
    used = [weight for scale, weight in enumerate(WEIGHTS) if side >> scale >= window]
    return window, tuple(weight / sum(used) for weight in used)


def _blur(planes: Planes, window: int) -> Float[Array, "p n q"]:
    height, _, width = planes.shape
    rows = jnp.einsum("ph,hnw->pnw", _band(height, window), planes, precision="highest")
    return jnp.einsum("pnw,qw->pnq", rows, _band(width, window), precision="highest")


def _band(side: int, window: int) -> Float[np.ndarray, "p s"]:
    """Row i weighs the pixels i to i + window - 1."""
    offsets = np.arange(window) - (window - 1) / 2
    weights = np.exp(-0.5 * np.square(offsets / SIGMA))
    band = np.zeros((side - window + 1, side))
    for i, row in enumerate(band):
        row[i : i + window] = weights / weights.sum()
    return band.astype(np.float32)


def _halve(planes: Planes) -> Float[Array, "p n q"]:
    height, width = planes.shape[0] // 2 * 2, planes.shape[2] // 2 * 2
    rows = planes[0:height:2] + planes[1:height:2]
    return (rows[:, :, 0:width:2] + rows[:, :, 1:width:2]) / 4
