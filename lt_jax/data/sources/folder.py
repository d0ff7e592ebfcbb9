"""Your own images: one folder a class, or a CSV file that says what each image is.

CSV columns: `image` (path below `config.data.root`) and `label`; optionally `id` (default: the
image path), `group` or `patient_id`, `patient`, `lesion_id` (what splits must not tear apart: the
first of these that is there), `mask` (paths, separated by ;), `boxes` (x0 y0 x1 y1 in [0, 1] of the
image, separated by ;), `device`. Every other column is kept as an attribute.
"""

from pathlib import Path

from lt_jax.config import DataConfig
from lt_jax.data.images import Box
from lt_jax.data.sources import FileSource, Record, SourceError, register
from lt_jax.data.sources.table import Row, attributes, read_csv

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
_GROUPS = ("group", "patient_id", "patient", "lesion_id")
_READ = ("id", "image", "label", "mask", "boxes", "device")


@register("folder")
class Folder(FileSource):
    """Classes are sorted by name, or by value where all names are whole numbers."""

    name = "folder"

    def __init__(self, data: DataConfig) -> None:
        """`data.csv` is taken relative to `data.root`; empty means class folders."""
        super().__init__(data)
        self._records = self._from_csv(self.root / data.csv) if data.csv else self._from_folders()

    def records(self) -> list[Record]:
        """One record an image file, or a CSV row."""
        return list(self._records)

    def _from_folders(self) -> list[Record]:
        files = {
            folder.name: [
                path.relative_to(self.root).as_posix()
                for path in sorted(folder.rglob("*"))
                if path.suffix.lower() in SUFFIXES
            ]
            for folder in self.root.iterdir()
            if folder.is_dir() and not folder.name.startswith(".")
        }
        self.classes = _sorted_classes({name for name, images in files.items() if images})
        if not self.classes:
            raise SourceError(
                f"{self.root}: no folder with images ({', '.join(SUFFIXES)}); takes one folder a "
                "class, or set config.data.csv"
            )
        return [
            Record(id=image, image=image, label=label, group=image)
            for label, name in enumerate(self.classes)
            for image in files[name]
        ]

    def _from_csv(self, path: Path) -> list[Record]:
        rows = read_csv(path, ("image", "label"))
        for number, row in enumerate(rows, start=2):
            for name in ("image", "label"):
                if not row[name]:
                    raise SourceError(f"{path}, row {number}: column {name!r} is empty")
        self.classes = _sorted_classes({row["label"] for row in rows})
        group = next((name for name in _GROUPS if name in rows[0]), "image")
        known = attributes(rows, [name for name in rows[0] if name not in (*_READ, group)])
        return [
            Record(
                id=row.get("id") or row["image"],
                image=row["image"],
                label=self.classes.index(row["label"]),
                group=row[group] or row["image"],
                masks=_list(row, "mask"),
                boxes=_boxes(row, f"{path}, row {number}"),
                device=row.get("device") or None,
                attributes=extra,
            )
            for number, (row, extra) in enumerate(zip(rows, known, strict=True), start=2)
        ]


def _sorted_classes(names: set[str]) -> tuple[str, ...]:
    numeric = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name) if numeric else (0, name)))


def _list(row: Row, column: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in row.get(column, "").split(";") if part.strip())


def _boxes(row: Row, where: str) -> tuple[Box, ...]:
    boxes = []
    for text in _list(row, "boxes"):
        try:
            x0, y0, x1, y1 = (float(number) for number in text.split())
        except ValueError:
            raise SourceError(
                f"{where}: got box {text!r}; takes 'x0 y0 x1 y1', boxes separated by ;"
            ) from None
        boxes.append((x0, y0, x1, y1))
    return tuple(boxes)
