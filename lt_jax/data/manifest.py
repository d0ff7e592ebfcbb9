"""The split manifest: which image has which label, group and split, with a hash to name the draw.

The constructor refuses what would make a result worthless (a group in two splits, an id twice), so
that a manifest that exists is sound. Test labels are taken out of what the stages see, and every
opening of them is logged.
"""

import dataclasses
import datetime
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from jaxtyping import Int

from lt_jax.data import longtail
from lt_jax.data.images import Box, as_box, is_box
from lt_jax.data.splits import SPLITS
from lt_jax.errors import UserError
from lt_jax.runtime.files import disk_errors, whole_file

LOCKED = -1  # stands for a test label in a manifest without them


class ManifestError(UserError, ValueError):
    """A manifest that contradicts itself, or a use that its state does not allow."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SplitManifest:
    """n images in their splits; every column has n entries.

    Attributes:
      ids: unique names.
      images: locators, for the source's `decode`.
      labels: int32 in [0, k), read-only; -1 for test rows of a manifest without test labels.
      groups: a group stands in one split only.
      splits: one of "train", "policy_val", "val", "test".
      masks: locators of lesion masks.
      boxes: (x0, y0, x1, y1) in [0, 1] of the square that the image is cropped to.
      devices: what took the image, or None.
      attributes: anything else known.
      image_sha256: of the decoded original.
      classes: names of the k classes.
      protocol: how the splits came about.
      sha256: of the content; made when empty, else checked. Rows are taken in the order of their
        ids, so that it does not depend on theirs; locators and the protocol stay out, so that moved
        files and a reloaded manifest keep their name.
    """

    ids: tuple[str, ...]
    images: tuple[str, ...]
    labels: Int[np.ndarray, "n"]
    groups: tuple[str, ...]
    splits: tuple[str, ...]
    masks: tuple[tuple[str, ...], ...]
    boxes: tuple[tuple[Box, ...], ...]
    devices: tuple[str | None, ...]
    attributes: tuple[Mapping[str, Any], ...]
    image_sha256: tuple[str, ...]
    classes: tuple[str, ...]
    protocol: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sha256: str = ""

    def __post_init__(self) -> None:
        """Raises ManifestError, naming the first row that is wrong."""
        labels = np.array(self.labels, dtype=np.int32)
        labels.setflags(write=False)
        object.__setattr__(self, "labels", labels)
        for name in _COLUMNS:
            if len(getattr(self, name)) != len(self.ids):
                raise ManifestError(
                    f"column {name} has {len(getattr(self, name))} rows, ids has {len(self.ids)}"
                )
        if len(set(self.classes)) != len(self.classes):
            raise ManifestError(f"a class name stands twice among {', '.join(self.classes)}")
        _check_rows(self)
        if self.locked:
            return  # what the hash covers is not all here
        digest = _digest(self)
        if self.sha256 not in ("", digest):
            raise ManifestError(
                f"the manifest was saved as {self.sha256[:12]} and its content is {digest[:12]}: "
                "it has been altered; restore it, or delete it and prepare again"
            )
        object.__setattr__(self, "sha256", digest)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.ids)

    @property
    def locked(self) -> bool:
        """Whether the test labels are left out."""
        return bool((self.labels == LOCKED).any())

    @property
    def group_numbers(self) -> Int[np.ndarray, "n"]:
        """Each image's group as an int32 from 0, in the order of the groups' names."""
        return np.unique(np.array(self.groups), return_inverse=True)[1].astype(np.int32)

    def rows(self, split: str) -> Int[np.ndarray, "m"]:
        """Ascending row indices of a split."""
        if split not in SPLITS:
            raise ManifestError(f"got split {split!r}; takes one of {', '.join(SPLITS)}")
        return np.flatnonzero(np.array(self.splits, dtype=object) == split)

    def counts(self, split: str = "train") -> Int[np.ndarray, "k"]:
        """Images of each class in a split; raises ManifestError for locked test labels."""
        labels = self.labels[self.rows(split)]
        if (labels == LOCKED).any():
            raise ManifestError("the test labels are left out of this manifest; open_test has them")
        return np.bincount(labels, minlength=len(self.classes))

    def groups_by_count(
        self, head_above: int = 100, tail_below: int = 20, by: str = "counts"
    ) -> dict[str, tuple[int, ...]]:
        """Class indices of head, medium and tail by train count; see `longtail.groups_by_count`."""
        return longtail.groups_by_count(self.counts("train"), head_above, tail_below, by)

    def without_test_labels(self) -> "SplitManifest":
        """The same manifest, of the same sha256, with -1 for every test label and nothing near it.

        Of test images there is no box, no mask and no attribute. Lesions are labels, too: of where,
        and of whether there is one; and a column beside the label may be another task's, or say the
        same in other words. Ids and image locators of some sources spell the class, and are there
        to find files by.
        """
        labels = self.labels.copy()
        labels[self.rows("test")] = LOCKED
        seen = [split != "test" for split in self.splits]

        def of_others(column: tuple[Any, ...], nothing: Any = ()) -> tuple[Any, ...]:
            pairs = zip(column, seen, strict=True)
            return tuple(held if shown else nothing for held, shown in pairs)

        return dataclasses.replace(
            self,
            labels=labels,
            masks=of_others(self.masks),
            boxes=of_others(self.boxes),
            attributes=of_others(self.attributes, {}),
        )

    def open_test(self, log: Path, reason: str) -> tuple[tuple[str, ...], Int[np.ndarray, "m"]]:
        """Ids and labels of the test split, once the opening is on record.

        Args:
          log: a JSON-lines file; one line {time, reason, manifest_sha256, images} is appended and
            on disk before anything is returned.
          reason: who asks, and why.

        Raises:
          ManifestError: this manifest is without test labels.
        """
        if self.locked:
            raise ManifestError("the test labels are left out of this manifest; load it from disk")
        rows = self.rows("test")
        entry = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "reason": reason,
            "manifest_sha256": self.sha256,
            "images": len(rows),
        }
        with disk_errors(log, "the log of openings"), log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        return tuple(self.ids[row] for row in rows), self.labels[rows]

    def save(self, folder: Path) -> None:
        """Writes `manifest.parquet`, then `manifest.json`, each whole or not at all.

        Raises:
          ManifestError: the test labels are left out.
          OSError: no space left; an older manifest then stands as it was.
        """
        header = self._header()
        columns = {
            name: pyarrow.array([row[name] for row in self._rows()], kind)
            for name, kind in _SCHEMA.items()
        }
        with whole_file(folder / "manifest.parquet", "the manifest") as stream:
            pyarrow.parquet.write_table(pyarrow.table(columns), stream)
        with whole_file(folder / "manifest.json", "the manifest") as stream:
            stream.write((json.dumps(header, indent=1) + "\n").encode())

    def save_jsonl(self, path: Path) -> None:
        """Writes a header line and one line a row, for reading by eye and by other programs."""
        header = self._header()
        with whole_file(path, "the manifest") as stream:
            for line in (header, *self._rows()):
                stream.write((json.dumps(line) + "\n").encode())

    def _header(self) -> dict[str, Any]:
        if self.locked:
            raise ManifestError("a manifest without test labels is not for saving; save the whole")
        return {
            "version": 1,
            "sha256": self.sha256,
            "classes": list(self.classes),
            "counts": {split: self.counts(split).tolist() for split in SPLITS},
            "groups": {
                name: [self.classes[label] for label in labels]
                for name, labels in self.groups_by_count(**self.protocol.get("groups", {})).items()
            },
            "protocol": dict(self.protocol),
        }

    def _rows(self) -> list[dict[str, Any]]:
        held = [getattr(self, name) for name in _COLUMNS]
        held[_COLUMNS.index("labels")] = self.labels.tolist()
        # One text for the attributes: their names differ from set to set and may be anything.
        held[_COLUMNS.index("attributes")] = [
            json.dumps(dict(known), sort_keys=True, allow_nan=False) for known in self.attributes
        ]
        return [dict(zip(_SCHEMA, row, strict=True)) for row in zip(*held, strict=True)]


def load(path: Path) -> SplitManifest:
    """A saved manifest: a folder (`manifest.parquet`, `manifest.json`) or a .jsonl file.

    Raises:
      ManifestError: missing, unreadable, altered since it was saved, or wrong in itself.
    """
    try:
        if path.is_dir():
            header = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            rows = pyarrow.parquet.read_table(path / "manifest.parquet").to_pylist()
        else:
            lines = path.read_text(encoding="utf-8").splitlines()
            header, *rows = (_parsed(number, line) for number, line in enumerate(lines, 1))
        return _from_rows(header, rows)
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise ManifestError(
            f"{path}: no readable manifest ({type(error).__name__}: {error}); takes a folder with "
            "manifest.parquet and manifest.json, or a .jsonl file"
        ) from error


def _parsed(number: int, line: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error


def _from_rows(header: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> SplitManifest:
    columns = {name: tuple(row[name] for row in rows) for name in _SCHEMA}
    boxes = (tuple(as_box(box) for box in held) for held in columns["boxes"])
    return SplitManifest(
        ids=columns["id"],
        images=columns["image"],
        labels=np.array(columns["label"], dtype=np.int32),
        groups=columns["group"],
        splits=columns["split"],
        masks=tuple(map(tuple, columns["masks"])),
        boxes=tuple(boxes),
        devices=columns["device"],
        attributes=tuple(map(json.loads, columns["attributes"])),
        image_sha256=columns["image_sha256"],
        classes=tuple(header["classes"]),
        protocol=header["protocol"],
        sha256=header["sha256"],
    )


_COLUMNS = (
    "ids", "images", "labels", "groups", "splits", "masks", "boxes", "devices", "attributes",
    "image_sha256",
)  # fmt: skip
_TEXT = pyarrow.string()
_SCHEMA = {  # the same columns on disk, in the same order, named for one row
    "id": _TEXT,
    "image": _TEXT,
    "label": pyarrow.int32(),
    "group": _TEXT,
    "split": _TEXT,
    "masks": pyarrow.list_(_TEXT),
    "boxes": pyarrow.list_(pyarrow.list_(pyarrow.float64())),
    "device": _TEXT,
    "attributes": _TEXT,
    "image_sha256": _TEXT,
}


def _check_rows(manifest: SplitManifest) -> None:
    split_of: dict[str, tuple[str, str]] = {}
    seen = set()
    k, locked = len(manifest.classes), bool(manifest.sha256)
    columns = (
        manifest.ids, manifest.labels.tolist(), manifest.groups, manifest.splits, manifest.boxes,
    )  # fmt: skip
    for name, label, group, split, boxes in zip(*columns, strict=True):
        if name in seen:
            raise ManifestError(f"id {name!r} stands twice")
        seen.add(name)
        if split not in SPLITS:
            raise ManifestError(f"id {name!r}: split {split!r}; takes one of {', '.join(SPLITS)}")
        if not 0 <= label < k and not (locked and split == "test" and label == LOCKED):
            raise ManifestError(f"id {name!r}: label {label}; takes 0 to {k - 1}")
        first, id_of_first = split_of.setdefault(group, (split, name))
        if first != split:
            raise ManifestError(
                f"group {group!r} stands in two splits: {id_of_first!r} in {first}, {name!r} in "
                f"{split}; a group must stay whole"
            )
        for box in boxes:
            if not is_box(box):
                raise ManifestError(
                    f"id {name!r}: box {box}; takes 0 <= x0 < x1 <= 1, 0 <= y0 < y1 <= 1"
                )


def _digest(manifest: SplitManifest) -> str:
    """sha256 over one JSON line for the classes and one for each row, rows in order of ids."""
    digest = hashlib.sha256(json.dumps(["lt_jax manifest 1", *manifest.classes]).encode())
    labels = manifest.labels.tolist()
    for row in sorted(range(len(manifest)), key=manifest.ids.__getitem__):
        line = [
            manifest.ids[row], labels[row], manifest.groups[row], manifest.splits[row],
            len(manifest.masks[row]), manifest.boxes[row], manifest.devices[row],
            dict(manifest.attributes[row]), manifest.image_sha256[row],
        ]  # fmt: skip
        digest.update(b"\n" + json.dumps(line, sort_keys=True, allow_nan=False).encode())
    return digest.hexdigest()
