"""Logits and features of a classifier over an image store, in batches of one shape."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from lt_jax.config import ClassifierConfig
from lt_jax.data import augment
from lt_jax.data.images import Images
from lt_jax.models import classifier, module
from lt_jax.runtime import faults, mesh
from lt_jax.shapes import Features, ImagesU8, Logits, Params

Forward = Callable[[Params, ImagesU8], tuple[Logits, Features]]


@functools.cache
def make_forward(config: ClassifierConfig, num_classes: int, device_mesh: Mesh) -> Forward:
    """The jitted `(params, uint8 images [b h w c]) -> (logits [b k], features [b d])`."""
    network = classifier.make(config, num_classes)

    def forward(params: Params, images: ImagesU8) -> tuple[Logits, Features]:
        return module.apply(network, params, augment.normalize(images), train=False)

    whole, split = mesh.replicated(device_mesh), mesh.batched(device_mesh)
    return jax.jit(forward, in_shardings=(whole, split), out_shardings=split)


def predict(
    forward: Forward,
    params: Params,
    images: Images,
    rows: np.ndarray,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 [n, k] and features float32 [n, d] of `images[rows]`; SIGTERM ends it."""
    logits, features = [], []
    for start in range(0, len(rows), batch_size):
        faults.check("a prediction")
        chunk = rows[start : start + batch_size]
        # Padded, so that every batch has the one shape that is compiled.
        batch = images[mesh.pad(chunk, batch_size)]
        result = jax.device_get(forward(params, batch))
        logits.append(result[0][: len(chunk)])
        features.append(result[1][: len(chunk)])
    return np.concatenate(logits), np.concatenate(features)
