"""Images laid out by hand on one pair of axes, in inches from the top left.

Axes and a layout of their own for each image take matplotlib a second a hundred; this takes a
hundredth of that, and every picture made of images looks alike.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from lt_jax.evaluate.report import figures

Tile = UInt8[np.ndarray, "h w c"]
Map = Float[np.ndarray, "h w"]
MARGIN = 0.05  # inches


class Sheet:
    """A figure of a size in inches; x to the right and y down from the top left."""

    def __init__(self, height: float, width: float = figures.WIDTH):
        """An empty sheet."""
        self.figure = figures.new_figure(height, width, layout=None)
        self.axes = self.figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self.axes.set_axis_off()
        self.axes.set_xlim(0, width)
        self.axes.set_ylim(height, 0)
        self.axes.set_autoscale_on(False)

    def image(self, picture: Tile, x: float, y: float, size: float) -> None:
        """An image, its longer side `size`; one channel is grey. Pixels stay pixels."""
        grey = picture[..., 0] if picture.shape[-1] == 1 else picture
        self._draw(grey, x, y, size, cmap="gray", vmin=0, vmax=255)

    def heat(self, values: Map, x: float, y: float, size: float, top: float) -> None:
        """Numbers from 0 to `top` in colours from dark to bright."""
        self._draw(values, x, y, size, cmap="viridis", vmin=0.0, vmax=max(top, 1e-12))

    def signed(self, values: Map, x: float, y: float, size: float, limit: float) -> None:
        """Numbers from -limit (purple) over 0 (white) to limit (orange)."""
        limit = max(limit, 1e-12)
        self._draw(values, x, y, size, cmap="PuOr_r", vmin=-limit, vmax=limit)

    def _draw(self, pixels: np.ndarray, x: float, y: float, size: float, **look: Any) -> None:
        height, width = pixels.shape[:2]
        scale = size / max(height, width)
        extent = (x, x + width * scale, y + height * scale, y)
        self.axes.imshow(pixels, extent=extent, interpolation="nearest", aspect="auto", **look)

    def text(self, words: str, x: float, y: float, size: float = 8.0, **look: Any) -> None:
        """Words, whose top left is at (x, y) unless `ha` or `va` say otherwise."""
        self.axes.text(x, y, words, fontsize=size, **{"ha": "left", "va": "top", **look})
