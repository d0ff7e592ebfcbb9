"""Detections of a detector over an image store, in batches of one shape."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from lt_jax.config import DecodeConfig, DetectorConfig
from lt_jax.data import augment
from lt_jax.data.images import Images
from lt_jax.detect import decode
from lt_jax.detect.decode import Detections
from lt_jax.models import detector, module
from lt_jax.runtime import faults, mesh
from lt_jax.shapes import ImagesU8, Params

Forward = Callable[[Params, ImagesU8], Detections]


@functools.cache
def make_forward(
    model: DetectorConfig, size: int, classes: int, config: DecodeConfig, device_mesh: Mesh
) -> Forward:
    """The jitted `(params, uint8 images [b size size c]) -> Detections`."""
    network = detector.make(model, size, classes)

    def forward(params: Params, images: ImagesU8) -> Detections:
        outputs = module.apply(network, params, augment.normalize(images), train=False)
        return decode.decode(outputs, network.grid, config)

    whole, split = mesh.replicated(device_mesh), mesh.batched(device_mesh)
    return jax.jit(forward, in_shardings=(whole, split), out_shardings=split)


def predict(
    forward: Forward, params: Params, images: Images, rows: np.ndarray, batch_size: int
) -> Detections:
    """The detections of `images[rows]`, n > 0, on host: boxes [n d 4], scores [n d], labels."""
    found = []
    for start in range(0, len(rows), batch_size):
        faults.check("a prediction")
        chunk = rows[start : start + batch_size]
        # Padded, so that every batch has the one shape that is compiled.
        result = jax.device_get(forward(params, images[mesh.pad(chunk, batch_size)]))
        found.append(_first(result, len(chunk)))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def _first(found: Detections, count: int) -> Detections:
    return jax.tree.map(lambda leaf: leaf[:count], found)
