"""Tiny data sets on disk, each in its official layout, of pictures that only just show a class."""

import io
import json
import pathlib

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from tests.data.sources.test_tfds import prepare

GROUPS = 12  # lesions of a class; the first has two images


def ham10000(root: pathlib.Path) -> pathlib.Path:
    """HAM10000 with the lesion masks of Tschandl et al."""
    lines = ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    for k, dx in enumerate(("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")):
        for n in range(GROUPS + 1):
            name = f"ISIC_{k:02d}{n:02d}"
            lines.append(f"HAM_{k}_{max(n, 1)},{name},{dx},histo,50.0,male,back")
            _picture(root / f"HAM10000_images/{name}.jpg", k, n)
            folder = root / "HAM10000_segmentations_lesion_tschandl"
            _mask(folder / f"{name}_segmentation.png", n)
    (root / "HAM10000_metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def isic2019(root: pathlib.Path) -> pathlib.Path:
    """The training set of the 2019 challenge; images lie one folder deeper, as unpacked."""
    classes = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")
    truth = [",".join(("image", *classes))]
    metadata = ["image,age_approx,anatom_site_general,lesion_id,sex"]
    for k in range(8):
        marks = ",".join(str(float(k == column)) for column in range(len(classes)))
        for n in range(GROUPS + 1):
            name = f"ISIC_{k:02d}{n:02d}"
            truth.append(f"{name},{marks}")
            metadata.append(f"{name},55.0,anterior torso,{f'BCN_{k}_{n}' if n > 1 else ''},female")
            folder = root / "ISIC_2019_Training_Input/ISIC_2019_Training_Input"
            _picture(folder / f"{name}.jpg", k, n)
    (root / "ISIC_2019_Training_GroundTruth.csv").write_text("\n".join(truth) + "\n")
    (root / "ISIC_2019_Training_Metadata.csv").write_text("\n".join(metadata) + "\n")
    return root


def busi(root: pathlib.Path) -> pathlib.Path:
    """BUSI with a file of boxes in place of masks, from two devices; normal images have no box."""
    notes = []
    for k, label in enumerate(("benign", "malignant", "normal")):
        for n in range(GROUPS + 1):
            name = f"{label}/{label} ({n + 1}).png"
            _picture(root / "Dataset_BUSI_with_GT" / name, k, n, "L")
            x, y = 0.1 + 0.03 * n, 0.2 + 0.02 * n + 0.1 * k
            boxes = [[x, y, x + 0.3, y + 0.25 - 0.01 * n]] if label != "normal" else []
            if label == "malignant" and n % 4 == 0:
                boxes.append([0.6, 0.1, 0.9, 0.4])
            notes.append(
                {
                    "image": name,
                    "label": label,
                    "boxes_xyxy": boxes,
                    "device": ("LOGIQ E9", "LOGIQ E9 Agile")[n % 2],
                    "duplicate_group": f"{label}-{max(n, 1)}",
                }
            )
    (root / "lesion_boxes.json").write_text(json.dumps(notes))
    return root


def cifar(root: pathlib.Path, name: str) -> pathlib.Path:
    """The first six classes of `name` ("cifar10" or "cifar100"), as tfds prepares it."""
    features = {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(32, 32, 3)),
        "label": tfds.features.ClassLabel(names=[f"class {k}" for k in range(6)]),
    }
    if name == "cifar100":
        features["coarse_label"] = tfds.features.ClassLabel(names=["animals", "things"])
    rows = []
    for n in range(20):
        for k in range(6):
            stream = io.BytesIO()
            _pixels(k, n, (32, 32)).save(stream, "PNG")
            stream.seek(0)
            row = {"id": f"{k}_{n}", "image": stream, "label": k, "coarse_label": k % 2}
            rows.append({key: row[key] for key in features})
    prepare(root, name, features, {"train": rows[24:], "test": rows[:24]}, "3.0.2")
    return root


def _picture(path: pathlib.Path, label: int, number: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _pixels(label, number, (40, 30)).convert(mode).save(path)


def _pixels(label: int, number: int, size: tuple[int, int]) -> Image.Image:
    """Noise that is the same for no two images, on a colour by class."""
    rng = np.random.default_rng((label, number))
    noise = rng.integers(0, 120, (*size[::-1], 3))
    return Image.fromarray((noise + 15 * np.array([label, 8 - label, 3])).astype(np.uint8))


def _mask(path: pathlib.Path, number: int) -> None:
    """An ellipse that differs from image to image, white on black."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:30, :40]
    inside = ((x - 14 - number) / 8) ** 2 + ((y - 15) / (5 + number / 4)) ** 2 < 1
    Image.fromarray(255 * inside.astype(np.uint8)).save(path)
