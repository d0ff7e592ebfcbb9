"""Small images on the devices: batches hold their numbers, of which a gather there makes images.

All images that a training can draw are put on every device once, as uint8, where they are decoded
already and take no more than `config.runtime.resident_mib` of a memory. Others are streamed, as
batches of pixels. A step gets the same, bit for bit, so that a training may go on either way.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from lt_jax.runtime import mesh, progress
from lt_jax.runtime.job import Job


@runtime_checkable
class Drawing(Protocol):
    """A stream that draws images from stores."""

    def sources(self) -> Sequence[tuple[Any, np.ndarray]]:
        """Each store with the rows in it that may be drawn; a store with a `shape` is decoded."""
        ...

    def number(self, tables: Sequence[np.ndarray]) -> None:
        """From now on gives as `image` of row r of the i-th store the number tables[i][r]."""
        ...


def settle(streams: Sequence[Any], job: Job, name: str = "") -> jax.Array | None:
    """Puts the images of all `streams` on the devices, and has them give numbers, or leaves both.

    Says which, and why, in a line that begins with `name`, or that of the job; once where trainings
    that follow each other would say the same.

    Returns:
      The images [n h w c], whole on every device of `job.mesh`; None: batches hold pixels.
    """
    drawing = [stream for stream in streams if isinstance(stream, Drawing)]
    sources = [stream.sources() for stream in drawing]
    stores = {id(store): store for own in sources for store, _ in own}
    rows = {
        which: np.unique(np.concatenate([r for own in sources for s, r in own if s is store]))
        for which, store in stores.items()
    }
    drawn = {which: store for which, store in stores.items() if len(rows[which])}
    if not drawn:
        return None
    fits, told = _judge(list(drawn.values()), [rows[which] for which in drawn], job)
    progress.say_of(name or job.name, "images", told)
    if not fits:
        return None
    held, tables, count = [], {}, 0
    for which, store in stores.items():
        tables[which] = np.full(len(store), -1, np.int32)
        tables[which][rows[which]] = count + np.arange(len(rows[which]))
        count += len(rows[which])
        if which in drawn:
            held.append(store[rows[which]])
    for stream, own in zip(drawing, sources, strict=True):
        stream.number([tables[id(store)] for store, _ in own])
    images: Any = held[0] if len(held) == 1 else np.concatenate(held)
    return mesh.replicate(images, job.mesh)


def _judge(stores: Sequence[Any], rows: Sequence[np.ndarray], job: Job) -> tuple[bool, str]:
    """Whether images are kept on the devices; a line that says so."""
    limit = job.runtime.resident_mib
    if not limit:
        return False, "images are streamed by grain (config.runtime.resident_mib=0)"
    if not all(hasattr(store, "shape") for store in stores):
        return False, "images are decoded at each access: streamed by grain"
    examples = [store[own[:1]] for store, own in zip(stores, rows, strict=True)]
    if len({(example.shape, example.dtype) for example in examples}) > 1:
        return False, "images of different shapes: streamed by grain"
    mib = examples[0].nbytes * sum(map(len, rows)) / 2**20
    size = f"images of {mib:.1f} MiB, config.runtime.resident_mib={limit}"
    copies = len(job.mesh.local_devices)
    if copies > 1 and job.mesh.devices.flat[0].platform == "cpu":  # devices share one memory
        mib, size = mib * copies, f"{copies} x {size}"
    if mib > limit:
        return False, f"{size}: streamed by grain"
    return True, f"{size}: kept on every device"


def images(batch: Mapping[str, Any], store: jax.Array | None, device_mesh: Mesh, axis: int) -> Any:
    """A batch on the devices, whose rows lie along `axis`, with images in place of numbers."""
    if store is None:
        return batch
    return {**batch, "image": _gather(device_mesh, axis)(store, batch["image"])}


@functools.cache
def _gather(device_mesh: Mesh, axis: int) -> Any:
    split = mesh.batched(device_mesh, axis)
    return jax.jit(
        lambda store, at: store.at[at].get(mode="promise_in_bounds"),
        in_shardings=(mesh.replicated(device_mesh), split),
        out_shardings=split,
    )
