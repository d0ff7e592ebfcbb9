"""Dermoscopy in its official layouts: HAM10000, ISIC 2018 (task 3), ISIC 2019.

All three group by lesion. Without lesion ids one lesion's images stand on both sides of a split,
and balanced accuracy on ISIC 2019 (imbalance 100) rises from 0.48 to 0.61 by that alone.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from lt_jax.data.sources import FileSource, Record, SourceError, register
from lt_jax.data.sources.table import Row, attributes, one_hot_label, read_csv

_MASK_FOLDERS = (
    "HAM10000_segmentations_lesion_tschandl",
    "ISIC2018_Task1_Training_GroundTruth",
    "ISIC2018_Task1-2_Training_GroundTruth",
)


class _Dermoscopy(FileSource):
    """Finds images and masks by ISIC id; a subclass reads its tables."""

    name: str
    classes: tuple[str, ...]
    image_folders: tuple[str, ...]

    def _find(self, *names: str) -> Path:
        """The first of these files in the root or in one folder below it."""
        for name in names:
            for path in (self.root / name, *sorted(self.root.glob(f"*/{name}"))):
                if path.is_file():
                    return path
        raise SourceError(
            f"{self.root}: no {names[0]} there or one folder below; config.data.root takes the "
            f"folder of {self.name} in its official layout"
        )

    def _record(self, image: str, label: int, lesion: str, row: Row, known: dict) -> Record:
        masks = self._masks.get(f"{image}_segmentation")
        return Record(
            id=image,
            # A listed image that is not there is reported when it is decoded, like any bad image.
            image=self._images.get(image, f"{self.image_folders[0]}/{image}.jpg"),
            label=label,
            group=lesion or image,
            masks=(masks,) if masks else (),
            device=row.get("device") or None,
            attributes=known,
        )

    def _index_files(self) -> None:
        self._images = _by_stem(self.root, self.image_folders)
        self._masks = _by_stem(self.root, _MASK_FOLDERS)
        if not self._images:
            raise SourceError(
                f"{self.root}: no images in {', '.join(self.image_folders)}; config.data.root "
                f"takes the folder of {self.name} in its official layout"
            )


@register("ham10000")
class HAM10000(_Dermoscopy):
    """Tschandl, Rosendahl, Kittler, Scientific Data 5:180161 (2018), doi 10.7910/DVN/DBW86T."""

    name = "ham10000"
    classes = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    image_folders = ("HAM10000_images", "HAM10000_images_part_1", "HAM10000_images_part_2")

    def records(self) -> list[Record]:
        """One record a metadata row; raises SourceError for a diagnosis that is no class."""
        self._index_files()
        table = self._find("HAM10000_metadata.csv", "HAM10000_metadata")
        rows = read_csv(table, ("lesion_id", "image_id", "dx"))
        known = attributes(
            rows, [name for name in rows[0] if name not in ("lesion_id", "image_id", "dx")]
        )
        records = []
        for number, (row, extra) in enumerate(zip(rows, known, strict=True), start=2):
            if row["dx"] not in self.classes:
                raise SourceError(
                    f"{table}, row {number} ({row['image_id']}): unknown label {row['dx']!r} in "
                    f"column dx; takes one of {', '.join(self.classes)}"
                )
            label = self.classes.index(row["dx"])
            records.append(self._record(row["image_id"], label, row["lesion_id"], row, extra))
        return records


class _Challenge(_Dermoscopy):
    """One-hot ground truth, and a second table with lesion ids."""

    truth: str
    groupings: str
    groupings_required: bool

    def records(self) -> list[Record]:
        """One record a ground-truth row; raises SourceError for a row that is not one-hot."""
        self._index_files()
        table = self._find(self.truth)
        rows = read_csv(table, ("image", *self.classes))
        # UNK is the challenge's out-of-distribution class, empty in training.
        columns = [*self.classes, *(name for name in ("UNK",) if name in rows[0])]
        more = self._metadata()
        known = attributes(
            list(more.values()), [n for n in self._extra_columns(more) if n != "lesion_id"]
        )
        extra = dict(zip(more, known, strict=True))
        records = []
        for number, row in enumerate(rows, start=2):
            where = f"{table}, row {number} ({row['image']})"
            label = one_hot_label(row, columns, where)
            if label >= len(self.classes):
                raise SourceError(f"{where}: marked UNK, which {self.name} does not train on")
            image, data = row["image"], more.get(row["image"], {})
            lesion = data.get("lesion_id", "")
            records.append(self._record(image, label, lesion, data, extra.get(image, {})))
        return records

    def _metadata(self) -> dict[str, dict[str, str]]:
        try:
            table = self._find(self.groupings)
        except SourceError:
            if self.groupings_required:
                raise
            return {}
        rows = read_csv(table, ("image", "lesion_id"))
        return {row.pop("image"): row for row in rows}

    @staticmethod
    def _extra_columns(more: dict[str, dict[str, str]]) -> list[str]:
        return list(next(iter(more.values()), {}))


@register("isic2018")
class ISIC2018(_Challenge):
    """Task 3 of the 2018 challenge (Codella et al., arXiv 1902.03368): HAM10000's images.

    Without the file of lesion groupings each image is its own group; the near-duplicate scan then
    joins only those views of a lesion that look alike.
    """

    name = "isic2018"
    classes = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
    image_folders = ("ISIC2018_Task3_Training_Input",)
    truth = "ISIC2018_Task3_Training_GroundTruth.csv"
    groupings = "ISIC2018_Task3_Training_LesionGroupings.csv"
    groupings_required = False


@register("isic2019")
class ISIC2019(_Challenge):
    """The 2019 challenge: HAM10000, BCN_20000 (arXiv 1908.02288) and MSK, eight classes."""

    name = "isic2019"
    classes = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
    image_folders = ("ISIC_2019_Training_Input",)
    truth = "ISIC_2019_Training_GroundTruth.csv"
    groupings = "ISIC_2019_Training_Metadata.csv"
    groupings_required = True


def _by_stem(root: Path, folders: Sequence[str]) -> dict[str, str]:
    """Locator of each image file by its name without suffix, in those folders and one level in."""
    found = {}
    for folder in folders:
        # The challenge's archives hold a folder of their own name, so that it often stands twice.
        for path in (root / folder, root / folder / folder):
            if not path.is_dir():
                continue
            for entry in os.scandir(path):
                stem, suffix = os.path.splitext(entry.name)
                if suffix.lower() in (".jpg", ".jpeg", ".png"):
                    found[stem] = (path / entry.name).relative_to(root).as_posix()
    return found
