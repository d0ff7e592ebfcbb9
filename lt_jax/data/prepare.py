"""The first stage: a source becomes a manifest and an array of square images.

Order: records - a trial split (a class too small is found before any work) - decode, hash and
thumbnail, once each - near-duplicates joined - split by group - long tail on train - files. Nothing
is under its final name until it is whole; `manifest.json` comes last.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from lt_jax.config import ConfigError, DataConfig
from lt_jax.data import duplicates, longtail, manifest, sources
from lt_jax.data.decoding import Decoded, decode_all
from lt_jax.data.images import ArrayImages, FileImages, Images, is_box
from lt_jax.data.manifest import ManifestError, SplitManifest
from lt_jax.data.splits import split_groups
from lt_jax.runtime.files import require_space, whole_file

_IMAGES, _MASKS = "images.npy", "masks.npy"


def prepare(
    data: DataConfig, out: Path, progress: Callable[[int, int], None] | None = None
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
        records = _frozen_records(frozen, source.classes, records, data)
    else:
        labels = np.array([record.label for record in records], np.int32)
        split_groups(labels, [record.group for record in records], data.split, source.classes)
    _check_records(records)
    needed = _bytes_needed(data, records)
    in_memory = needed <= data.decode_once_mib << 20
    if in_memory:
        require_space(out, needed, "the images")
    decoded = decode_all(source, records, data, in_memory, progress)
    if frozen:
        drawn = _redraw(frozen, source.classes, records, decoded, data)
    else:
        drawn = _draw(data, source.classes, records, decoded)
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
        return held, FileImages(source.decode, held.images, data.image_size, data.channels)
    images = ArrayImages(folder / _IMAGES)
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


@dataclasses.dataclass(frozen=True)
class _Draw:
    """Which records stay (ascending), and the group and split of each of those."""

    rows: Int[np.ndarray, "m"]
    groups: Sequence[str]
    splits: Sequence[str]
    protocol: Mapping[str, Any]


def _draw(
    data: DataConfig, classes: Sequence[str], records: Sequence[sources.Record], decoded: Decoded
) -> _Draw:
    """Groups, splits and the long tail of the records whose images are sound."""
    rows = decoded.rows
    labels = np.array([records[row].label for row in rows], np.int32)
    groups = tuple(records[row].group for row in rows)
    pairs = np.empty((0, 2), np.int64)
    if data.near_duplicates != "off":
        pairs = duplicates.near_duplicates(decoded.thumbnails[rows], data.duplicate_distance)
    move = data.near_duplicates == "move"
    joined = duplicates.join_groups(groups, pairs) if move else groups
    splits = split_groups(labels, joined, data.split, classes)

    stay, dropped = _thinned(data, len(classes), labels, joined, splits)
    protocol = {
        **_protocol_of_reader(data, decoded),
        **_profile(data),
        "split": dataclasses.asdict(data.split),
        "near_duplicates": {
            "mode": data.near_duplicates,
            "distance": data.duplicate_distance,
            **_scan_report([records[row].id for row in rows], groups, joined, splits, pairs),
        },
        "dropped_by_profile": dropped,
    }
    return _Draw(rows[stay], [joined[i] for i in stay], [splits[i] for i in stay], protocol)


def _thinned(
    data: DataConfig,
    num_classes: int,
    labels: Int[np.ndarray, "m"],
    groups: Sequence[str],
    splits: Sequence[str],
) -> tuple[Int[np.ndarray, "s"], list[int]]:
    """Rows that stay once train has its profile, ascending; and how many each class has lost."""
    train = np.flatnonzero(np.array(splits) == "train")
    counts = np.bincount(labels[train], minlength=num_classes)
    target = longtail.profile_counts(
        counts, data.profile, data.imbalance_factor, data.pareto_shape, data.shots
    )
    if data.train_fraction < 1:
        target = np.maximum(np.round(target * data.train_fraction).astype(target.dtype), 1)
    kept = train[
        longtail.subsample(
            labels[train], tuple(groups[i] for i in train.tolist()), target, data.split.seed
        )
    ]
    held_out = np.flatnonzero(np.array(splits) != "train")
    return np.sort(np.concatenate([kept, held_out])), (counts - target).tolist()


def _scan_report(
    ids: Sequence[str],
    groups: Sequence[str],
    joined: Sequence[str],
    splits: Sequence[str],
    pairs: Int[np.ndarray, "p 2"],
) -> dict[str, Any]:
    """What the near-duplicate scan found; pairs are listed where they still stand across splits."""
    across = duplicates.pairs_across(splits, pairs)
    return {
        "pairs": len(pairs),
        "pairs_across_groups": len(duplicates.pairs_across(groups, pairs)),
        "groups_joined": len(set(groups)) - len(set(joined)),
        "largest_group": max(collections.Counter(joined).values()),
        "across_splits": [
            {"ids": [ids[i], ids[j]], "splits": [splits[i], splits[j]]} for i, j in across.tolist()
        ],
    }


def _frozen_records(
    frozen: SplitManifest,
    classes: Sequence[str],
    records: Sequence[sources.Record],
    data: DataConfig,
) -> list[sources.Record]:
    """The records that a saved manifest holds and the task asks for, in the source's order."""
    here = {record.id for record in records}
    if tuple(classes) != frozen.classes:
        if not sources.is_task(data):
            raise ManifestError(
                f"config.data.manifest: its classes are {', '.join(frozen.classes)}; the source "
                f"has {', '.join(classes)}"
            )
        # What the task leaves out is not missing.
        whole = sources.load(dataclasses.replace(data, label="label", classes=()))
        here = {record.id for record in whole.records()}
    known = set(frozen.ids)
    kept = [record for record in records if record.id in known]
    if missing := known - here:
        raise ManifestError(
            f"config.data.manifest: {len(missing)} of its images are not in the source, the first "
            f"is {min(missing)!r}; check config.data.root"
        )
    return kept


def _redraw(
    frozen: SplitManifest,
    classes: Sequence[str],
    records: Sequence[sources.Record],
    decoded: Decoded,
    data: DataConfig,
) -> _Draw:
    """The groups and splits of a saved manifest, for images that are still the same.

    Under other labels train gets the profile that `data` asks for; under the same ones it has its
    own. A fraction is taken in any case.
    """
    relabelled = tuple(classes) != frozen.classes
    row_of = {name: row for row, name in enumerate(frozen.ids)}
    theirs = [row_of[records[row].id] for row in decoded.rows]
    for row, old in zip(decoded.rows.tolist(), theirs, strict=True):
        record = records[row]
        if decoded.image_sha256[row] != frozen.image_sha256[old]:
            raise ManifestError(
                f"config.data.manifest: image {record.id!r} has other pixels than when it was saved"
            )
        if not relabelled and record.label != frozen.labels[old]:
            raise ManifestError(
                f"config.data.manifest: image {record.id!r} was "
                f"{frozen.classes[frozen.labels[old]]!r}, the source now says "
                f"{frozen.classes[record.label]!r}"
            )
    protocol = {**frozen.protocol, **_protocol_of_reader(data, decoded), "reused": frozen.sha256}
    groups = [frozen.groups[old] for old in theirs]
    splits = [frozen.splits[old] for old in theirs]
    labels = np.array([records[row].label for row in decoded.rows], np.int32)
    if relabelled:
        _check_splits(classes, labels, splits)
        protocol |= _profile(data)
    else:
        data = dataclasses.replace(data, profile="natural")
    stay, dropped = _thinned(data, len(classes), labels, groups, splits)
    if relabelled or data.train_fraction < 1:
        protocol |= {"dropped_by_profile": dropped, "train_fraction": data.train_fraction}
    return _Draw(decoded.rows[stay], [groups[i] for i in stay], [splits[i] for i in stay], protocol)


def _check_splits(classes: Sequence[str], labels: np.ndarray, splits: Sequence[str]) -> None:
    """Refuses a task that leaves a class without images to train on, or to be tested on."""
    for split in ("train", "test"):
        held = set(labels[np.array(splits) == split].tolist())
        if absent := [name for k, name in enumerate(classes) if k not in held]:
            raise ManifestError(
                f"config.data.manifest: its split {split} has no image of class {absent[0]!r}, "
                "which config.data.label and config.data.classes ask for; leave the class out, or "
                "draw new splits"
            )


def _profile(data: DataConfig) -> dict[str, Any]:
    fields = ("profile", "imbalance_factor", "pareto_shape", "shots", "train_fraction")
    return {name: getattr(data, name) for name in fields}


def _protocol_of_reader(data: DataConfig, decoded: Decoded) -> dict[str, Any]:
    task = {"label": data.label, "classes": list(data.classes)} if sources.is_task(data) else {}
    return {"source": data.source, **task, "skipped": list(decoded.skipped)}


def _manifest(
    classes: Sequence[str], records: Sequence[sources.Record], decoded: Decoded, drawn: _Draw
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
