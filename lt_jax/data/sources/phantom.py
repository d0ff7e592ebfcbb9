"""Simulated breast ultrasound with exact masks: `phantom`, or `phantom:<per class>[:<seed>]`.

Image i is of class i mod 6 and depends on (seed, i) alone, so a smaller set is the start of a
larger one, and another seed gives new images: an external test set.
"""

import functools
import re
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from lt_jax.config import ConfigError, DataConfig
from lt_jax.data import phantom
from lt_jax.data.images import ImageError
from lt_jax.data.sources import Record, register
from lt_jax.runtime.keys import stream
from lt_jax.shapes import Array, Int

_SOURCE = re.compile(r"phantom(:(?P<per_class>[1-9]\d{0,7})(:(?P<seed>\d{1,9}))?)?")
_LOCATOR = re.compile(r"(?P<index>\d{8})(?P<mask>/mask)?")
_PIXELS = 2**18  # simulated at once, at most
_BLOCKS = 8  # kept
_DESCRIBED = 1024  # records at once
# Log odds that a malignant lesion has spread to the nodes: larger ones more often. Made up.
_NODES_PER_MM, _EVEN_ODDS_MM = 0.5, 14.0


@register("phantom")
class PhantomSource:
    """Six classes of lesions from three devices, simulated at `data.image_size` when asked for.

    Images are simulated in blocks of fixed membership, so that a pixel is the same whatever was
    asked for before; the last blocks are kept. Read in order that is all it takes; read at random,
    each image costs a block. Boxes are left to the masks, around which `prepare` draws them.
    """

    name = "phantom"
    classes = tuple(spec.name for spec in phantom.CLASSES)

    def __init__(self, data: DataConfig) -> None:
        """Raises ConfigError where `data.source` is not of the form above."""
        match = _SOURCE.fullmatch(data.source)
        if not match:
            raise ConfigError(
                f"config.data.source: got {data.source!r}; takes phantom, phantom:<images per "
                "class> or phantom:<images per class>:<seed>, for example phantom:200:1"
            )
        self._data = data
        self._count = len(self.classes) * int(match["per_class"] or 200)
        self._seed = int(match["seed"] or 0)
        self._block = max(1, min(64, _PIXELS // data.image_size**2))
        self._lock = threading.Lock()
        self._simulated = functools.lru_cache(_BLOCKS)(self._simulate)

    def __reduce__(self) -> tuple[type["PhantomSource"], tuple[DataConfig]]:
        """Pickled without its blocks and lock, for loader processes."""
        return type(self), (self._data,)

    def records(self) -> list[Record]:
        """One record an image, which is a group of its own.

        Attributes are "malignant" ("benign" or "malignant"), of malignant lesions "nodes"
        ("negative" or "positive"), and of the lesion as drawn "size_mm" (diameter of the disc of
        its area), "depth_mm" of its middle, and "aspect" (height over width).
        """
        records = []
        for start in range(0, self._count, _DESCRIBED):
            known = jax.device_get(_describe(self._seed, jnp.arange(start, start + _DESCRIBED)))
            for row in range(min(_DESCRIBED, self._count - start)):
                records.append(self._record(start + row, {k: v[row] for k, v in known.items()}))
        return records

    def decode(self, locator: str) -> UInt8[np.ndarray, "h w c"]:
        """The image or mask at `locator`, [image_size, image_size, 1]; masks are 0 or 255.

        Raises:
          ImageError: no such image.
        """
        match = _LOCATOR.fullmatch(locator)
        if not match or int(match["index"]) >= self._count:
            raise ImageError(
                f"{self._data.source} has no image {locator!r}; takes 00000000 to "
                f"{self._count - 1:08d}, with /mask behind it for its mask"
            )
        block, row = divmod(int(match["index"]), self._block)
        with self._lock:  # who comes second finds it simulated
            images, masks = self._simulated(block)
        return (masks if match["mask"] else images)[row]

    def _simulate(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        indices = jnp.arange(block * self._block, (block + 1) * self._block)
        images, masks = jax.device_get(_render(self._seed, indices, self._data.image_size))
        return images, masks

    def _record(self, index: int, known: dict[str, Any]) -> Record:
        label = index % len(self.classes)
        malignant = phantom.CLASSES[label].malignant
        nodes = {"nodes": "positive" if known.pop("nodes") else "negative"}
        image_id = f"phantom-{self._seed}-{index:08d}"
        return Record(
            id=image_id,
            image=f"{index:08d}",
            label=label,
            group=image_id,
            masks=(f"{index:08d}/mask",),
            device=phantom.DEVICES[known.pop("device")].name,
            attributes={
                "malignant": "malignant" if malignant else "benign",
                **(nodes if malignant else {}),
                **{name: round(float(number), 2) for name, number in known.items()},
            },
        )


def _plan(seed: int | Int[Array, ""], indices: Int[Array, "b"]) -> tuple[Array, Array, Array]:
    """Keys, labels and devices of these images."""
    keys = phantom.image_keys(seed, indices)
    draw = functools.partial(jax.random.randint, shape=(), minval=0, maxval=len(phantom.DEVICES))
    devices = jax.vmap(lambda key: draw(stream(key, "device")))(keys)
    return keys, indices % len(phantom.CLASSES), devices


@jax.jit
def _describe(seed: int | Int[Array, ""], indices: Int[Array, "b"]) -> dict[str, Array]:
    """What a record holds of each image, without its pixels."""
    keys, labels, devices = _plan(seed, indices)
    lesions = jax.vmap(phantom.drawn_lesion)(keys, labels)
    numbers = {name: getattr(lesions, name) for name in ("size_mm", "depth_mm", "aspect")}
    risk = _NODES_PER_MM * (lesions.size_mm - _EVEN_ODDS_MM)
    chance = jax.vmap(lambda key: jax.random.uniform(stream(key, "nodes")))(keys)
    return {"device": devices, "nodes": chance < jax.nn.sigmoid(risk), **numbers}


@functools.partial(jax.jit, static_argnames="size")
def _render(
    seed: int | Int[Array, ""], indices: Int[Array, "b"], size: int
) -> tuple[UInt8[Array, "b h w 1"], UInt8[Array, "b h w 1"]]:
    """Images and masks as bytes."""
    made = phantom.simulate_batch(*_plan(seed, indices), size=size)
    return jnp.rint(255 * made.image).astype(jnp.uint8), 255 * made.mask.astype(jnp.uint8)
