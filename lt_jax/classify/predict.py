"""Logits and features of a classifier over an image store, in batches of one shape."""

import functools

import numpy as np
from jax.sharding import Mesh

from lt_jax.config import ClassifierConfig
from lt_jax.data import augment
from lt_jax.data.images import Images
from lt_jax.models import classifier, module
from lt_jax.runtime import spmd
from lt_jax.shapes import Features, ImagesU8, Logits, Params

Forward = spmd.Program  # (params, images) -> (logits, features)


@functools.cache
def make_forward(config: ClassifierConfig, num_classes: int, device_mesh: Mesh) -> Forward:
    """The jitted `(params, uint8 images [b h w c]) -> (logits [b k], features [b d])`."""
    network = classifier.make(config, num_classes)

    def forward(params: Params, images: ImagesU8) -> tuple[Logits, Features]:
        return module.apply(network, params, augment.normalize(images), train=False)

    return spmd.jit_rows(forward, device_mesh)


def predict(
    forward: Forward,
    params: Params,
    images: Images,
    rows: np.ndarray,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 [n, k] and features float32 [n, d] of `images[rows]`; SIGTERM ends it."""
    found = spmd.over_rows(forward, params, rows, batch_size, lambda own: (images[own],))
    logits, features = zip(*found, strict=True)
    return np.concatenate(logits), np.concatenate(features)
