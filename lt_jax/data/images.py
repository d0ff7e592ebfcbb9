"""Pixels: decoding, square crops, masks and boxes in the same frame, and two stores of images.

Every prepared image is the centre square of its original (side min(h, w)), resized to `size`. Masks
and boxes are brought into that same square, so that the three stay aligned.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image, UnidentifiedImageError

from lt_jax.errors import UserError
from lt_jax.runtime.arrays import load_one

Box = tuple[float, float, float, float]
_BITS_PER_SAMPLE, _MAX_SAMPLE_VALUE = 258, 281  # tags of TIFF 6.0


class ImageError(UserError, ValueError):
    """An image or mask that cannot be used; `config.data.on_bad_image` says what then happens."""


def decode(path: Path) -> UInt8[np.ndarray, "h w c"]:
    """An image file as uint8 [h, w, c], c = 1 for gray files and 3 for all others.

    Gray of more than eight bits is scaled to eight; transparency is dropped.

    Raises:
      ImageError: missing, truncated or not an image, or gray of a depth that cannot be told; the
        message names file and remedy.
    """
    try:
        with Image.open(path) as image:
            deep = image.mode.startswith(("I", "F"))
            gray = deep or image.mode in ("1", "L", "LA")
            largest = _largest_value(image) if deep else None
            pixels = np.asarray(image if deep else image.convert("L" if gray else "RGB"))
    # Pillow's decoders raise these for broken files; SyntaxError is what a broken PNG gives.
    except (
        OSError,
        ValueError,
        SyntaxError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        if isinstance(error, FileNotFoundError):
            reason = "no such file"
        else:
            reason = f"truncated, corrupt or not an image ({error})"
        raise ImageError(
            f"{path}: {reason}; replace the file, or leave such images out with "
            "--config.data.on_bad_image=skip"
        ) from error
    if deep:
        pixels = _to_eight_bits(pixels, largest, path)
    return pixels[..., None] if gray else pixels


def resize(
    image: UInt8[np.ndarray, "h w c"], size: int, channels: int
) -> UInt8[np.ndarray, "size size channels"]:
    """The centre square, resized to `size` with Lanczos, as gray (ITU-R 601) or RGB.

    Pillow widens the filter with the shrinking factor, so that nothing aliases; Lanczos keeps the
    finest structure of its filters, which is what tells lesions apart at 32 pixels. At the image's
    own size nothing is resampled.

    Raises:
      ValueError: `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"config.data.channels: got {channels}; takes 1 (gray) or 3 (RGB)")
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture = picture.convert("L" if channels == 1 else "RGB")
    picture = picture.resize((size, size), Image.Resampling.LANCZOS, _square(*image.shape[:2]))
    return np.asarray(picture).reshape(size, size, channels)


def binary_mask(
    mask: UInt8[np.ndarray, "h w c"], shape: tuple[int, int], where: str
) -> Bool[np.ndarray, "h w"]:
    """Where a mask is set: over half of its own largest value, so that 0/1 and 0/255 both work.

    Args:
      mask: as decoded.
      shape: (height, width) of the image that the mask belongs to.
      where: names the mask in errors.

    Raises:
      ImageError: the mask is of another size than its image.
    """
    if mask.shape[:2] != shape:
        raise ImageError(
            f"{where}: mask of {mask.shape[1]} x {mask.shape[0]} pixels for an image of "
            f"{shape[1]} x {shape[0]}; give both the same size, or leave such images out with "
            "--config.data.on_bad_image=skip"
        )
    strongest = mask.max(axis=-1)
    return strongest > strongest.max(initial=0) / 2


def resize_mask(mask: Bool[np.ndarray, "h w"], size: int) -> UInt8[np.ndarray, "size size 1"]:
    """The centre square of a mask, by nearest neighbour, 0 or 255."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    picture = picture.resize((size, size), Image.Resampling.NEAREST, _square(*mask.shape))
    return np.asarray(picture)[..., None]


def mask_box(mask: Bool[np.ndarray, "h w"]) -> Box | None:
    """The smallest box around a mask, normalised to the image; None where nothing is set."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    height, width = mask.shape
    return (
        float(columns[0] / width),
        float(rows[0] / height),
        float((columns[-1] + 1) / width),
        float((rows[-1] + 1) / height),
    )


def crop_boxes(boxes: Sequence[Box], height: int, width: int) -> tuple[Box, ...]:
    """Boxes normalised to the whole image, brought into its centre square.

    What lies outside the square is cut off; a box wholly outside is left out.
    """
    left, top, right, bottom = _square(height, width)
    offset, scale = np.array([left, top] * 2), np.array([right - left, bottom - top] * 2)
    kept = []
    for box in boxes:
        corners = np.array(box) * np.array([width, height] * 2)
        x0, y0, x1, y1 = ((corners - offset) / scale).clip(0, 1).tolist()
        if x0 < x1 and y0 < y1:
            kept.append((x0, y0, x1, y1))
    return tuple(kept)


def as_box(corners: Sequence[float]) -> Box:
    """Four numbers as a box; raises ValueError for any other number of them."""
    x0, y0, x1, y1 = (float(corner) for corner in corners)
    return x0, y0, x1, y1


def is_box(box: Box) -> bool:
    """Whether 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1; false for NaN and infinity."""
    x0, y0, x1, y1 = box
    return 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


def _square(height: int, width: int) -> tuple[float, float, float, float]:
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _largest_value(image: Image.Image) -> int | None:
    """White in an image of more than eight bits, where its file says so."""
    if image.format == "PPM":
        return 65535  # Pillow has scaled it by the largest value in the header
    tags = getattr(image, "tag_v2", {})  # of TIFF
    if stated := tags.get(_MAX_SAMPLE_VALUE):
        return int(np.max(stated))
    bits = np.max(tags.get(_BITS_PER_SAMPLE, 16))
    return 2 ** int(bits) - 1 if bits < 16 else None  # 16 is what a file of 12 often says, too


def _to_eight_bits(pixels: np.ndarray, largest: int | None, path: Path) -> UInt8[np.ndarray, "h w"]:
    """Scales `largest`, or 65535 where that is None and the pixels use the range, to 255."""
    top = pixels.max(initial=0)
    fault = ""
    if pixels.dtype.kind == "f" or pixels.min(initial=0) < 0 or top > (largest or 65535):
        fault = f"pixels of type {pixels.dtype} that do not lie in 0..{largest or 65535}"
    elif largest is None and 0 < top < 2**14:
        # 8, 10 or 12 bits in a container of 16 would turn almost black, and nobody would see it.
        fault = f"gray of 16 bits whose largest value is {top}: of 12, 10 or 8 bits, as it seems"
    if fault:
        raise ImageError(
            f"{path}: {fault}; save it with 8 bits, or scaled to 0..65535, or leave such images "
            "out with --config.data.on_bad_image=skip"
        )
    scaled = pixels.astype(np.float64) * (255 / (largest or 65535))
    return scaled.round().astype(np.uint8)


@runtime_checkable
class Images(Protocol):
    """Prepared images, read by row of the manifest."""

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def __getitem__(self, indices: Int[np.ndarray, "b"]) -> UInt8[np.ndarray, "b h w c"]:
        """The images of these rows, in this order."""
        ...


class ArrayImages:
    """Images decoded beforehand, in a memory-mapped .npy file."""

    def __init__(self, path: Path, ids: Sequence[str] = ()) -> None:
        """Raises ArrayFileError where `path` is no whole .npy file; `ids` are of its rows."""
        self._path, self._ids = path.absolute(), ids
        self._array = load_one(path, mapped=True)

    def __reduce__(self) -> tuple[type["ArrayImages"], tuple[Path]]:
        """Pickled by its path, for loader processes; a memory map would be copied whole.

        These name no rows.
        """
        return type(self), (self._path,)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, h, w, c)."""
        return self._array.shape

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._array)

    def __getitem__(self, indices: Int[np.ndarray, "b"]) -> UInt8[np.ndarray, "b h w c"]:
        """Copies of these rows."""
        return np.asarray(self._array[indices])

    def names(self, rows: Int[np.ndarray, "b"]) -> list[str]:
        """What messages call these rows."""
        return [f"image {self._ids[row]}" for row in rows] if self._ids else unnamed(rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Withheld:
    """A store of which some rows are zeros: those whose split has not been opened.

    Attributes:
      store: all rows.
      shown: of each row [n], whether it is given out.
    """

    store: Images
    shown: Bool[np.ndarray, "n"]

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.store)

    def __getitem__(self, indices: Int[np.ndarray, "b"]) -> UInt8[np.ndarray, "b h w c"]:
        """The images of these rows, zeros for those that are withheld."""
        return self.store[indices] * self.shown[indices].astype(np.uint8)[:, None, None, None]


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """Images in memory, and what messages call their rows."""

    images: UInt8[np.ndarray, "n h w c"]
    called: Sequence[str]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, h, w, c)."""
        return self.images.shape

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.images)

    def __getitem__(self, indices: Int[np.ndarray, "b"]) -> UInt8[np.ndarray, "b h w c"]:
        """Copies of these rows."""
        return self.images[indices]

    def names(self, rows: Int[np.ndarray, "b"]) -> list[str]:
        """What messages call these rows."""
        return [self.called[int(row)] for row in rows]


def unnamed(rows: Int[np.ndarray, "b"]) -> list[str]:
    """What messages call rows of a store that knows no names."""
    return [f"row {row}" for row in rows]


def names_of(store: Any, rows: Int[np.ndarray, "b"]) -> list[str]:
    """What messages call these rows of any store: ids where it knows them (`names`)."""
    return store.names(rows) if hasattr(store, "names") else unnamed(rows)


@dataclasses.dataclass(frozen=True)
class FileImages:
    """Images decoded each time they are read; the loader's workers give the parallelism."""

    decode: Callable[[str], np.ndarray]
    locators: Sequence[str]
    size: int
    channels: int
    ids: Sequence[str] = ()

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.locators)

    def __getitem__(self, indices: Int[np.ndarray, "b"]) -> UInt8[np.ndarray, "b h w c"]:
        """Decodes and resizes these rows; raises ImageError where a file has gone bad."""
        batch = np.empty((len(indices), self.size, self.size, self.channels), np.uint8)
        for slot, index in enumerate(map(int, indices)):
            try:
                image = self.decode(self.locators[index])
            except ImageError as error:
                raise ImageError(f"row {index} of the manifest: {error}") from error
            batch[slot] = resize(image, self.size, self.channels)
        return batch

    def names(self, rows: Int[np.ndarray, "b"]) -> list[str]:
        """What messages call these rows."""
        return [f"image {self.ids[row]}" for row in rows] if self.ids else unnamed(rows)
