"""Axis letters and array aliases, defined once.

Axes: b batch, n examples of a set, h height, w width, c channels, k classes, d features,
t tokens, m models or seeds, r resamples, g groups.
Images are uint8 in [0, 255] at rest and float32 in [-1, 1] inside networks, channels last.
"""

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt8

PRNGKey = Key[Array, ""]
ImagesU8 = UInt8[np.ndarray | Array, "b h w c"]
Images = Float[Array, "b h w c"]
Labels = Int[Array, "b"]
Logits = Float[Array, "b k"]
Features = Float[Array, "b d"]
LogSNR = Float[Array, "b"]
Params = PyTree[jax.Array | np.ndarray]

__all__ = [
    "Array",
    "Bool",
    "Features",
    "Float",
    "Images",
    "ImagesU8",
    "Int",
    "Labels",
    "LogSNR",
    "Logits",
    "PRNGKey",
    "Params",
    "PyTree",
    "UInt8",
]
