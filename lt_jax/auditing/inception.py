"""Fidelity on Inception's features, by which published FIDs are told; where a user has weights."""

import pathlib
from typing import Any

import numpy as np

from lt_jax.auditing.pool import accepted, open_pool
from lt_jax.context import Context
from lt_jax.data.images import Images
from lt_jax.evaluate.images import fidelity
from lt_jax.models import inception, inception_weights, module
from lt_jax.runtime import mesh, spmd
from lt_jax.runtime.ledger import Clock, Ledger
from lt_jax.runtime.progress import Progress
from lt_jax.shapes import Features, Float, ImagesU8, Int, Params


def measure(folder: pathlib.Path, context: Context) -> tuple[dict[str, Any], Ledger]:
    """What `fidelity.report` finds of accepted images, val the floor; and "class_names".

    Features are 2,048 numbers an image: of fewer images, covariances are singular, and FD says
    little; KID does not mind. Published FIDs are of 50,000 images against a whole data set: numbers
    here compare with each other and with the floor.

    Raises:
      InceptionError: the weights cannot be read.
      FidelityError: there is no accepted image, or none in val.
    """
    del folder
    costs = Ledger()
    clock = Clock(costs)
    manifest, images = context.data
    params = inception_weights.load(pathlib.Path(context.config.audit.inception_weights))
    pool = open_pool(context)
    rows = {"train": manifest.rows("train"), "val": manifest.rows("val")}
    chosen = accepted(pool)
    if not len(chosen) or not len(rows["val"]):
        raise fidelity.FidelityError(
            f"audit inception: {len(chosen)} accepted synthetic and {len(rows['val'])} val images; "
            "takes one at least of both (config.data.split.val above 0, and a pool)"
        )
    features = _forward(context, params)
    found = fidelity.report(
        features(images, rows["train"]),
        manifest.labels[rows["train"]],
        features(images, rows["val"]),
        manifest.labels[rows["val"]],
        features(pool, chosen),
        pool.columns["label"][chosen],
    )
    costs.images = len(chosen) + sum(map(len, rows.values()))
    clock.read()
    return {"class_names": list(manifest.classes), **found}, costs


class _forward:
    """Features [n 2048] of images of a store, by row, in batches split over the devices."""

    def __init__(self, context: Context, params: Params):
        self._size = context.config.audit.batch_size
        self._params = mesh.distribute(params, context.mesh)

        def forward(params: Params, images: ImagesU8) -> Features:
            return module.apply(inception.InceptionV3(), params, inception.prepared(images))

        self._program = spmd.jit_rows(forward, context.mesh)

    def __call__(self, images: Images, rows: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n d"]:
        found = []
        with Progress("audit inception", len(rows), "image") as bar:
            read = lambda own: (images[own],)
            for part in spmd.over_rows(self._program, self._params, rows, self._size, read):
                found.append(part)
                bar.update(sum(map(len, found)))
        return np.concatenate(found)
