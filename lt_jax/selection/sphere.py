"""Features by direction alone: on the unit sphere."""

from typing import Any

import numpy as np

from lt_jax.shapes import Array, Float

SHORTEST = 1e-12  # what is shorter has no direction, and stays as short


def unit(vectors: Float[np.ndarray | Array, "n d"]) -> Float[np.ndarray | Array, "n d"]:
    """Each row over its length, in NumPy's arrays or JAX's as given; a row of zeros stays zero."""
    library: Any = vectors.__array_namespace__()
    lengths = library.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / library.maximum(lengths, SHORTEST)
