"""Small pictures on disk, in the layouts of the sources."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture():
    """`picture(path, seed)` writes a smooth random picture, 16 x 12, and makes its folders."""

    def write(path, seed=0, mode="RGB"):
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((16, 12), Image.Resampling.BICUBIC).convert(mode).save(path)

    return write


@pytest.fixture
def mask():
    """`mask(path, box)` writes a 16 x 12 mask with a white box (x0, y0, x1, y1)."""

    def write(path, box=(4, 3, 10, 9), size=(16, 12)):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros(size[::-1], np.uint8)
        pixels[box[1] : box[3], box[0] : box[2]] = 255
        Image.fromarray(pixels).save(path)

    return write
