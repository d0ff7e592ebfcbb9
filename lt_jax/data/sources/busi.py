"""Breast ultrasound images (BUSI): class folders, with lesion masks or a JSON file of boxes.

Al-Dhabyani, Gomaa, Khaled, Fahmy, Data in Brief 28:104863 (2020). The set holds duplicates and
near-duplicates, some under two labels. `lesion_boxes.json` names their groups; without it each
image is its own group, and the near-duplicate scan joins what looks alike.
"""

import json
import re
from pathlib import Path
from typing import Any

from lt_jax.config import DataConfig
from lt_jax.data import images
from lt_jax.data.sources import FileSource, Record, SourceError, register

_FOLDER = "Dataset_BUSI_with_GT"
_MASK = re.compile(r"(?P<image>.*)_mask(_\d+)?$")


@register("busi")
class BUSI(FileSource):
    """Benign, malignant, normal; masks are `<image>_mask.png`, `<image>_mask_1.png`, ..."""

    name = "busi"
    classes = ("benign", "malignant", "normal")

    def __init__(self, data: DataConfig) -> None:
        """`data.root` is the folder that holds `Dataset_BUSI_with_GT`, or that folder itself."""
        super().__init__(data)
        self._table = self.root / "lesion_boxes.json"
        if (self.root / _FOLDER).is_dir():
            self.root = self.root / _FOLDER
        if missing := [name for name in self.classes if not (self.root / name).is_dir()]:
            raise SourceError(f"{self.root}: no class folder {missing[0]!r} there")

    def records(self) -> list[Record]:
        """One record an image; boxes and groups from `lesion_boxes.json` where it is there.

        Raises:
          SourceError: that file cannot be used, or leaves out images of the folder.
        """
        masks: dict[str, list[str]] = {}
        found = []
        for label in self.classes:
            for path in sorted((self.root / label).glob("*.png"), key=_natural):
                match = _MASK.match(path.stem)
                if match:
                    masks.setdefault(f"{label}/{match['image']}", []).append(f"{label}/{path.name}")
                else:
                    found.append(f"{label}/{path.stem}")
        notes = self._notes() if self._table.is_file() else {name: {} for name in found}
        if unlisted := [name for name in found if name not in notes]:
            raise SourceError(
                f"{self._table}: no entry for {len(unlisted)} of {len(found)} images, the first is "
                f"'{unlisted[0]}.png'; list them there or take them out of {self.root}"
            )
        return [
            Record(
                id=name,
                image=f"{name}.png",
                label=self.classes.index(note.get("label", name.partition("/")[0])),
                group=note.get("duplicate_group") or name,
                masks=tuple(masks.get(name, ())),
                boxes=tuple(images.as_box(box) for box in note.get("boxes_xyxy", ())),
                device=note.get("device") or None,
            )
            for name, note in notes.items()
        ]

    def _notes(self) -> dict[str, dict[str, Any]]:
        """The entries of lesion_boxes.json by image, checked."""
        try:
            entries = json.loads(self._table.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SourceError(f"{self._table}: cannot be read as JSON: {error}") from error
        notes = {}
        for number, entry in enumerate(entries):
            where = f"{self._table}, entry {number}"
            if missing := {"image", "label", "boxes_xyxy", "duplicate_group"} - set(entry):
                raise SourceError(f"{where}: no field {min(missing)!r}")
            if entry["label"] not in self.classes:
                raise SourceError(
                    f"{where} ({entry['image']}): unknown label {entry['label']!r}; takes one of "
                    f"{', '.join(self.classes)}"
                )
            if any(len(box) != 4 for box in entry["boxes_xyxy"]):
                raise SourceError(f"{where} ({entry['image']}): a box takes x0, y0, x1, y1")
            name = str(Path(entry["image"]).with_suffix(""))
            if name in notes:
                raise SourceError(f"{where}: image {entry['image']!r} stands twice")
            notes[name] = entry
        return notes


def _natural(path: Path) -> list[int | str]:
    """Sorts `benign (2)` before `benign (10)`, as the set counts."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]
