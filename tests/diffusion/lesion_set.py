"""A small annotated set with everything in it: lesions of two kinds, and images without one."""

import numpy as np

from lt_jax.config import ConditionsConfig
from lt_jax.data.manifest import SplitManifest

SIZE = 16
ALL = ConditionsConfig(  # every condition there is
    boxes="channel",
    max_boxes=2,
    device="device",
    attributes=("age",),
    mask=True,
    sketch=True,
    inpaint=True,
    augmentation=True,
)
EVERYTHING = ("label", "boxes", "device", "attributes", "mask", "sketch")  # that can be given
CLASSES = ("wide", "tall", "normal")


def drawn_set():
    """24 wide lesions, 9 tall ones and 9 images without one in train; 6 images in val.

    Pixels hold the number of the row. Two of the wide lesions are known by their boxes alone.
    """
    labels = np.repeat([0, 1, 2, 0], [24, 9, 9, 6])
    n, rng = len(labels), np.random.default_rng(0)
    masks = np.zeros((n, SIZE, SIZE, 1), np.uint8)
    boxes: list[tuple] = [()] * n
    for row in np.flatnonzero(labels < 2):
        sides = (int(rng.integers(6, 9)), int(rng.integers(2, 4)))
        width, height = sides if labels[row] == 0 else sides[::-1]
        x, y = (int(rng.integers(0, SIZE - side + 1)) for side in (width, height))
        masks[row, y : y + height, x : x + width] = 255
        boxes[row] = (tuple(float(e) / SIZE for e in (x, y, x + width, y + height)),)
    unmasked = np.arange(2)
    masks[unmasked] = 0
    devices = [("a", "a", "b", None)[row % 4] for row in range(42)] + ["elsewhere"] * 6
    manifest = SplitManifest(
        ids=tuple(f"image {row}" for row in range(n)),
        images=("",) * n,
        labels=labels,
        groups=tuple(map(str, range(n))),
        splits=("train",) * 42 + ("val",) * 6,
        masks=tuple(() if row in unmasked else ("mask",) for row in range(n)),
        boxes=tuple(boxes),
        devices=tuple(devices),
        attributes=tuple({"age": 20.0 + row if row % 5 else None} for row in range(n)),
        image_sha256=("",) * n,
        classes=CLASSES,
    )
    images = (
        np.zeros((n, SIZE, SIZE, 1), np.uint8) + np.arange(n, dtype=np.uint8)[:, None, None, None]
    )
    return manifest, images, masks


MANIFEST, IMAGES, MASKS = drawn_set()
TRAIN = np.arange(42)


def lesions_of(rows):
    """Independently of the code: masks, and boxes where an image has no mask."""
    maps = (MASKS[rows] > 0).astype(np.float32)
    for i, row in enumerate(rows):
        if not MANIFEST.masks[row]:
            x0, y0, x1, y1 = (round(SIZE * end) for end in MANIFEST.boxes[row][0])
            maps[i, y0:y1, x0:x1] = 1
    return maps
