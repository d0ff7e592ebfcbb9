"""The first stage: a source becomes a manifest and an array of square images.

Order: records - a trial split (a class too small is found before any work) - decode, hash and
thumbnail, once each - near-duplicates joined - split by group - long tail on train - files. Nothing
is under its final name until it is whole; `manifest.json` comes last.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from lt_jax.config import ConfigError, DataConfig
from lt_jax.data import draws, manifest, sources
from lt_jax.data.decoding import Decoded, decode_all
from lt_jax.data.images import ArrayImages, FileImages, Images, is_box
from lt_jax.data.manifest import ManifestError, SplitManifest
from lt_jax.data.splits import split_groups
from lt_jax.runtime.files import require_space, whole_file

_IMAGES, _MASKS = "images.npy", "masks.npy"


def prepare(
    data: DataConfig,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    known: draws.Known | None = None,
) -> SplitManifest:
    """Reads `data.source` and writes manifest and images to the folder `out`.

    `images.npy` is uint8 [n, size, size, channels], rows as in the manifest; where lesions have
    masks, `masks.npy` is uint8 [n, size, size, 1], 0 or 255, all lesions of an image in one (zero
    for rows whose `manifest.masks` is empty). Neither is written for a set larger than
    `decode_once_mib`, which is held in memory meanwhile.

    Args:
      data: what to read and how; see `DataConfig`.
      out: an existing folder; older files of a former run in it are replaced.
      progress: called with (images done, images in all) as they are decoded.
      known: given for an external test set, all of which is the split test: the images that a run
        has had, which are left out with their near-duplicates.

    Raises:
      ImageError: a bad image, unless `on_bad_image` says to skip it; then it is listed under
        `protocol.skipped` in `manifest.json`.
      ConfigError: neither 1 nor 3 channels, or see `sources.load` and `longtail`.
      SourceError, SplitError, ManifestError: see there.
      OSError: no space left; nothing half-written stays behind.
    """
    if data.channels not in (1, 3):
        raise ConfigError(f"config.data.channels: got {data.channels}; takes 1 (gray) or 3 (RGB)")
    source = sources.load(data)
    records = source.records()
    frozen = manifest.load(Path(data.manifest)) if data.manifest else None
    if frozen:
        records = draws.frozen_records(frozen, source.classes, records, data)
    elif known is None:
        labels = np.array([record.label for record in records], np.int32)
        groups, named = [record.group for record in records], draws.named_test(data, records)
        split_groups(labels, groups, data.split, source.classes, named)
    _check_records(records)
    needed = _bytes_needed(data, records)
    in_memory = needed <= data.decode_once_mib << 20
    if in_memory:
        require_space(out, needed, "the images")
    squared = known is not None
    decoded = decode_all(source, records, data, in_memory, progress, squared)
    if frozen:
        drawn = draws.redraw(frozen, source.classes, records, decoded, data)
    elif known is not None:
        drawn = draws.all_test(known, records, decoded, data)
    else:
        drawn = draws.draw(data, source.classes, records, decoded)
    result = _manifest(source.classes, records, decoded, drawn)
    _write(out, result, decoded, drawn.rows)
    return result


def load(folder: Path, data: DataConfig) -> tuple[SplitManifest, Images]:
    """The manifest and images of a prepared folder; files are decoded on access where no array is.

    Raises:
      ManifestError: no readable manifest there, or images of other number, size or channels.
    """
    held = manifest.load(folder)
    if not (folder / _IMAGES).exists():
        source = sources.load(data)
        return held, FileImages(
            source.decode, held.images, data.image_size, data.channels, held.ids
        )
    images = ArrayImages(folder / _IMAGES, held.ids)
    expected = (len(held), data.image_size, data.image_size, data.channels)
    if images.shape != expected:
        raise ManifestError(
            f"{folder / _IMAGES} is {images.shape}, the manifest and config.data ask for "
            f"{expected}; delete {folder} and prepare again"
        )
    return held, images


def load_masks(folder: Path) -> Images | None:
    """The masks of a prepared folder, [n, h, w, 1] with 0 or 255; None where there are none."""
    path = folder / _MASKS
    return ArrayImages(path) if path.exists() else None


def _check_records(records: Sequence[sources.Record]) -> None:
    """What the manifest would refuse after the images are decoded, found before."""
    seen = set()
    for record in records:
        if record.id in seen:
            raise sources.SourceError(
                f"id {record.id!r} stands twice in the source; ids are unique"
            )
        seen.add(record.id)
        for box in record.boxes:
            if not is_box(box):
                raise sources.SourceError(
                    f"image {record.id!r}: box {box}; takes 0 <= x0 < x1 <= 1, 0 <= y0 < y1 <= 1"
                )


def _manifest(
    classes: Sequence[str], records: Sequence[sources.Record], decoded: Decoded, drawn: draws.Draw
) -> SplitManifest:
    rows: list[int] = drawn.rows.tolist()
    kept = [records[row] for row in rows]
    return SplitManifest(
        ids=tuple(record.id for record in kept),
        images=tuple(record.image for record in kept),
        labels=np.array([record.label for record in kept], np.int32),
        groups=tuple(drawn.groups),
        splits=tuple(drawn.splits),
        masks=tuple(record.masks for record in kept),
        boxes=tuple(decoded.boxes[row] for row in rows),
        devices=tuple(record.device for record in kept),
        attributes=tuple(record.attributes for record in kept),
        image_sha256=tuple(decoded.image_sha256[row] for row in rows),
        classes=tuple(classes),
        protocol=drawn.protocol,
    )


def _bytes_needed(data: DataConfig, records: Sequence[sources.Record]) -> int:
    masks = any(record.masks for record in records)
    return len(records) * data.image_size**2 * (data.channels + masks)


def _write(out: Path, result: SplitManifest, decoded: Decoded, rows: Int[np.ndarray, "m"]) -> None:
    # A header without its arrays, or with those of a former run, must never be seen.
    for name in ("manifest.json", "manifest.parquet", _IMAGES, _MASKS):
        (out / name).unlink(missing_ok=True)
    for name, array in ((_IMAGES, decoded.images), (_MASKS, decoded.masks)):
        if array is not None:
            _write_rows(out / name, array, rows)
    result.save(out)


def _write_rows(path: Path, array: np.ndarray, rows: Int[np.ndarray, "m"]) -> None:
    """Those rows as a .npy file, by `write`: a full disk under a memory map kills the process."""
    shape = (len(rows), *array.shape[1:])
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with whole_file(path, "the images", int(np.prod(shape))) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, len(rows), 4096):
            stream.write(array[rows[start : start + 4096]].tobytes())
