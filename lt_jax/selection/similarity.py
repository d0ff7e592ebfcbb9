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
fits. An odd last row or column is left out of the next scale. Colour channels are compared by
themselves and the results averaged.

The window is separable and applied as two products with a banded matrix, in full float32: outside
of loops CPUs run these many times as fast as a convolution, on GPU they are products like any
other, where the shorter mantissa of TF32 would leave no digits of a variance.
"""

import jax.numpy as jnp
import numpy as np

from lt_jax.shapes import Array, Float, ImagesU8

WINDOW, SIGMA = 11, 1.5
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

Levels = ImagesU8 | Float[Array, "b h w c"]
Planes = Float[Array, "n h w"]


def ssim(first: Levels, second: Levels) -> Float[Array, "b"]:
    """Equation (3) of each pair of images [b h w c], with values in [0, 255]; 1 if equal."""
    window, _ = scales(*first.shape[1:3])
    whole, _ = _compare(_planes(first), _planes(second), window)
    return _mean_of_channels(whole, first.shape[-1])


def ms_ssim(first: Levels, second: Levels) -> Float[Array, "b"]:
    """Equation (4) of each pair of images [b h w c], with values in [0, 255]; 1 if equal."""
    window, weights = scales(*first.shape[1:3])
    x, y = _planes(first), _planes(second)
    result = jnp.ones(x.shape[0], x.dtype)
    for scale, weight in enumerate(weights):
        if scale:
            x, y = _halve(x), _halve(y)
        whole, contrast = _compare(x, y, window)
        part = contrast if scale < len(weights) - 1 else whole
        result *= jnp.maximum(part, 0.0) ** weight
    return _mean_of_channels(result, first.shape[-1])


def scales(height: int, width: int) -> tuple[int, tuple[float, ...]]:
    """The window's side and the weights of the scales that images of this size have."""
    side = min(height, width)
    window = min(WINDOW, side - (side + 1) % 2)
    used = [weight for scale, weight in enumerate(WEIGHTS) if side >> scale >= window]
    return window, tuple(weight / sum(used) for weight in used)


def _planes(images: Levels) -> Planes:
    """All channels of all images, one behind the other."""
    levels = jnp.moveaxis(jnp.asarray(images, jnp.float32), -1, 1)
    return levels.reshape(-1, *levels.shape[2:])


def _mean_of_channels(values: Float[Array, "n"], channels: int) -> Float[Array, "b"]:
    return values.reshape(-1, channels).mean(axis=1)


def _compare(x: Planes, y: Planes, window: int) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """Means of l cs and of cs over the places where the window fits."""
    # About the mean of the pair, which leaves (2) as it is: squares of small numbers lose less.
    centre = (x.mean((1, 2), keepdims=True) + y.mean((1, 2), keepdims=True)) / 2
    x, y = x - centre, y - centre
    mean_x, mean_y, squares, product = _blur(jnp.stack([x, y, x * x + y * y, x * y]), window)
    squares -= mean_x * mean_x + mean_y * mean_y
    product -= mean_x * mean_y
    contrast = (2 * product + C2) / (squares + C2)
    mean_x, mean_y = mean_x + centre, mean_y + centre
    luminance = (2 * mean_x * mean_y + C1) / (mean_x * mean_x + mean_y * mean_y + C1)
    return (luminance * contrast).mean((1, 2)), contrast.mean((1, 2))


def _blur(maps: Float[Array, "m n h w"], window: int) -> Float[Array, "m n p q"]:
    down, across = (_band(side, window) for side in maps.shape[2:])
    rows = jnp.einsum("mnhw,qw->mnhq", maps, across, precision="highest")
    return jnp.einsum("ph,mnhq->mnpq", down, rows, precision="highest")


def _band(side: int, window: int) -> Float[np.ndarray, "p s"]:
    """Row i weighs the pixels i to i + window - 1."""
    offsets = np.arange(window) - (window - 1) / 2
    weights = np.exp(-0.5 * np.square(offsets / SIGMA))
    band = np.zeros((side - window + 1, side))
    for i, row in enumerate(band):
        row[i : i + window] = weights / weights.sum()
    return band.astype(np.float32)


def _halve(planes: Planes) -> Float[Array, "n p q"]:
    n, h, w = planes.shape[0], planes.shape[1] // 2, planes.shape[2] // 2
    return planes[:, : 2 * h, : 2 * w].reshape(n, h, 2, w, 2).mean(axis=(2, 4))
