"""Near-duplicates: found over thumbnails, joined into groups that a split cannot tear apart.

The distance of two images is 1 - r, r the correlation of their 16 x 16 gray thumbnails over pixels:
blind to brightness and contrast, 0 for copies, about 1 for strangers. Re-encoded, slightly cropped
and re-annotated copies mostly stay under 0.01; mirrored and rotated ones are not found. Calibrated
on two sets with known groups: at 0.01, 138 of BUSI's 161 known pairs are found, and no pair across
BUSI's groups or HAM10000's lesions; the first false pairs of HAM10000 (7,955 images) come at 0.0125
(two), at 0.02 there are 28. Thumbnails of 32 x 32 find 95 of BUSI's pairs at 0.01.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from lt_jax.errors import UserError
from lt_jax.runtime import faults

THUMBNAIL = 16
# Standard deviation below which a thumbnail (in [0, 1]) says nothing: 2.5 gray levels. The flattest
# of 7,955 dermoscopy images has 4.5. Without it, blank frames would all match one another.
MIN_CONTRAST = 0.01
_CHUNK = 1024


class DuplicateError(UserError, ValueError):
    """A scan whose threshold joins so much that it says nothing."""


def thumbnail(image: UInt8[np.ndarray, "h w c"]) -> Float[np.ndarray, "s s"]:
    """The whole image as 16 x 16 gray in [0, 1], float32, each pixel the mean of what it covers."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("L")
    small = picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small, np.float32) / np.float32(255)


def near_duplicates(
    thumbnails: Float[np.ndarray, "n s s"], distance: float
) -> Int[np.ndarray, "p 2"]:
    """Pairs (i < j, sorted) of images whose thumbnails lie within `distance` of one another.

    Thumbnails with less contrast than `MIN_CONTRAST` match nothing.

    Raises:
      DuplicateError: over 50 pairs an image: the threshold joins strangers.
    """
    clear, unit = _standardised(thumbnails)
    least = _least(distance)
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(unit), _CHUNK):
        faults.check("the search for near-duplicates")
        close = np.argwhere(unit[start : start + _CHUNK] @ unit[start:].T >= least)
        found.append(clear[close[close[:, 0] < close[:, 1]] + start])
        if sum(map(len, found)) > 50 * len(thumbnails):
            raise DuplicateError(
                f"config.data.duplicate_distance: got {distance:g}; at that, over 50 pairs an "
                "image count as near-duplicates; lower it, or set config.data.near_duplicates=off"
            )
    return np.concatenate(found)


def among(
    thumbnails: Float[np.ndarray, "n s s"], known: Float[np.ndarray, "m s s"], distance: float
) -> Bool[np.ndarray, "n"]:
    """Which thumbnails lie within `distance` of any known one; those without contrast do not."""
    found = np.zeros(len(thumbnails), bool)
    (clear, unit), (_, others) = _standardised(thumbnails), _standardised(known)
    for start in range(0, len(others), _CHUNK):
        faults.check("the search for near-duplicates")
        close = unit @ others[start : start + _CHUNK].T >= _least(distance)
        found[clear] |= close.any(axis=1)
    return found


def _standardised(
    thumbnails: Float[np.ndarray, "n s s"],
) -> tuple[Int[np.ndarray, "c"], Float[np.ndarray, "c _"]]:
    """Places of thumbnails with contrast, and those as vectors whose products are correlations."""
    flat = thumbnails.reshape(len(thumbnails), THUMBNAIL**2).astype(np.float32)
    flat = flat - flat.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(flat, axis=1)
    clear = np.flatnonzero(norm > MIN_CONTRAST * np.sqrt(flat.shape[1]))
    return clear, flat[clear] / norm[clear][:, None]


def _least(distance: float) -> float:
    # float32 leaves copies at a distance of some 1e-7, which a threshold of 0 should still find.
    return 1.0 - max(distance, 1e-6)


def join_groups(groups: Sequence[str], pairs: Int[np.ndarray, "p 2"]) -> tuple[str, ...]:
    """Groups joined wherever a pair links them (union-find), under their smallest name."""
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    for i, j in pairs.tolist():
        first, second = sorted((root(groups[int(i)]), root(groups[int(j)])))
        parent[second] = first
    return tuple(root(group) for group in groups)


def pairs_across(values: Sequence[str], pairs: Int[np.ndarray, "p 2"]) -> Int[np.ndarray, "q 2"]:
    """The pairs whose two images differ in `values` (their groups, or their splits)."""
    held = np.array(values, dtype=object)
    return pairs[held[pairs[:, 0]] != held[pairs[:, 1]]]
