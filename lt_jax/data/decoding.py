"""One pass over all images of a source: pixels, hash, thumbnail, masks and boxes of each."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from lt_jax.config import DataConfig
from lt_jax.data import duplicates, images, sources
from lt_jax.data.images import Box, ImageError
from lt_jax.runtime import faults


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What the pass found; all but `rows` and `skipped` have one entry a record, sound or not.

    Attributes:
      rows: ascending indices of the records whose image and masks are sound.
      images: [n, size, size, channels], or None where they were not to be kept.
      masks: [n, size, size, 1], 0 or 255; None where not kept or where no record has one.
      thumbnails: in [0, 1], for the near-duplicate scan.
      image_sha256: of height, width, channels and pixels of the original.
      boxes: in [0, 1] of the centre square; the record's own, else one around each mask.
      skipped: id, locator and error of each bad image.
    """

    rows: Int[np.ndarray, "m"]
    images: UInt8[np.ndarray, "n h w c"] | None
    masks: UInt8[np.ndarray, "n h w 1"] | None
    thumbnails: Float[np.ndarray, "n s s"]
    image_sha256: Sequence[str]
    boxes: Sequence[tuple[Box, ...]]
    skipped: Sequence[dict[str, Any]]


def decode_all(
    source: sources.Source,
    records: Sequence[sources.Record],
    data: DataConfig,
    keep: bool,
    progress: Callable[[int, int], None] | None,
    squared: bool = False,
) -> Decoded:
    """Decodes every record, on all cores (Pillow decodes outside Python's lock).

    `squared`: thumbnails are of the square images that a run is given, not of the whole ones.

    Raises:
      ImageError: the first bad image in record order, where `data.on_bad_image` is "error".
    """
    n, size, side = len(records), data.image_size, duplicates.THUMBNAIL
    pixels = np.empty((n, size, size, data.channels), np.uint8) if keep else None
    any_masks = any(record.masks for record in records)
    masks = np.zeros((n, size, size, 1), np.uint8) if keep and any_masks else None
    thumbnails = np.zeros((n, side, side), np.float32)

    def one(row: int) -> tuple[str, tuple[Box, ...], ImageError | None]:
        try:
            image, mask, boxes = _read(source, records[row])
        except ImageError as error:
            return "", (), error
        kept = image
        if pixels is not None or squared:
            kept = images.resize(image, size, data.channels)
        if pixels is not None:
            pixels[row] = kept
        if masks is not None:
            masks[row] = images.resize_mask(mask, size)
        thumbnails[row] = duplicates.thumbnail(kept if squared else image)
        return _sha256(image), boxes, None

    digests, boxes, rows, skipped = [], [], [], []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for row, (digest, found, error) in enumerate(pool.map(one, range(n))):
            faults.check("prepare")
            if error is None:
                rows.append(row)
            elif data.on_bad_image == "error":
                name = records[row].id
                raise ImageError(f"record {row} of {n}, id {name!r}: {error}") from error
            else:
                record = records[row]
                skipped.append({"id": record.id, "image": record.image, "error": str(error)})
            digests.append(digest)
            boxes.append(found)
            if progress:
                progress(row + 1, n)
    finally:
        pool.shutdown(cancel_futures=True)
    kept = np.array(rows, dtype=np.int64)
    return Decoded(kept, pixels, masks, thumbnails, digests, boxes, skipped)


def _read(
    source: sources.Source, record: sources.Record
) -> tuple[np.ndarray, np.ndarray, tuple[Box, ...]]:
    """The image, the union of its masks, and its boxes in the centre square."""
    image = source.decode(record.image)
    height, width = image.shape[:2]
    union = np.zeros((height, width), bool)
    around = []
    for locator in record.masks:
        where = f"{locator} of image {record.id!r}"
        mask = images.binary_mask(source.decode(locator), (height, width), where)
        union |= mask
        around.append(images.mask_box(mask))
    boxes = record.boxes or tuple(box for box in around if box is not None)
    return image, union, images.crop_boxes(boxes, height, width)


def _sha256(image: UInt8[np.ndarray, "h w c"]) -> str:
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()
