"""Detections of a detector over an image store, in batches of one shape."""

import functools

import jax
import numpy as np
from jax.sharding import Mesh

from lt_jax.config import DecodeConfig, DetectorConfig
from lt_jax.data import augment
from lt_jax.data.images import Images
from lt_jax.detect import decode
from lt_jax.detect.decode import Detections
from lt_jax.models import detector, module
from lt_jax.runtime import spmd
from lt_jax.shapes import ImagesU8, Params

Forward = spmd.Program  # (params, images) -> Detections


@functools.cache
def make_forward(
    model: DetectorConfig, size: int, classes: int, config: DecodeConfig, device_mesh: Mesh
) -> Forward:
    """The jitted `(params, uint8 images [b size size c]) -> Detections`."""
    network = detector.make(model, size, classes)

    def forward(params: Params, images: ImagesU8) -> Detections:
        outputs = module.apply(network, params, augment.normalize(images), train=False)
        return decode.decode(outputs, network.grid, config)

    return spmd.jit_rows(forward, device_mesh)


def predict(
    forward: Forward, params: Params, images: Images, rows: np.ndarray, batch_size: int
) -> Detections:
    """The detections of `images[rows]`, n > 0, on host: boxes [n d 4], scores [n d], labels."""
    found = spmd.over_rows(forward, params, rows, batch_size, lambda own: (images[own],))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)
