"""scikit-learn's handwritten digits: 1,797 gray images of 8 x 8, embedded in its wheel.

Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), its test part. Writers
are not told apart there, so that each image is a group of its own.
"""

from typing import Any

import numpy as np
from jaxtyping import UInt8

from lt_jax.config import DataConfig
from lt_jax.data.images import ImageError
from lt_jax.data.sources import Record, register


@register("digits")
class Digits:
    """Ten classes of about 180; values 0..16 are scaled to 0..255."""

    name = "digits"
    classes = tuple(str(digit) for digit in range(10))

    def __init__(self, data: DataConfig) -> None:
        """Reads the images out of scikit-learn; nothing in `data` changes them."""
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        self._images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        self._labels = digits.target

    def records(self) -> list[Record]:
        """One record an image, in scikit-learn's order."""
        return [
            Record(id=f"digit-{i:04d}", image=f"{i:04d}", label=int(label), group=f"digit-{i:04d}")
            for i, label in enumerate(self._labels)
        ]

    def decode(self, locator: str) -> UInt8[np.ndarray, "h w c"]:
        """The image of that number, [8, 8, 1]."""
        if not locator.isdecimal() or int(locator) >= len(self._images):
            raise ImageError(f"digits has no image {locator!r}; takes 0000 to 1796")
        return self._images[int(locator)]
