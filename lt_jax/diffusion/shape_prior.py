"""What shape lesions have: masks of annotated images, flipped, scaled and moved inside the image.

Image i of a class gets the mask of a train image of that class, or of any, as (seed, i) has it. A
mask is taken as it is drawn: no shape is invented, so that a lesion's outline stays one that an
annotator has seen. Runs on host.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool

from lt_jax.diffusion.priors import PriorError
from lt_jax.shapes import Float, Int, UInt8

_STREAM = 1  # of random numbers under (seed, i); priors.py has another


@dataclasses.dataclass(frozen=True, eq=False)
class ShapePrior:
    """Masks by class, and how they are moved.

    Attributes:
      masks: [n h w] of bool, each with a lesion.
      labels: [n], their classes.
      flip: mirrored in x and in y, each with probability a half.
      shift: each axis uniform in [-shift, shift] of the image's side.
      scale: of both sides, uniform in [1 - scale, 1 + scale], but at most what the image holds.
    """

    masks: np.ndarray
    labels: np.ndarray
    flip: bool = True
    shift: float = 0.1
    scale: float = 0.2

    @classmethod
    def fit(
        cls,
        masks: UInt8[np.ndarray, "n h w 1"] | Float[np.ndarray, "n h w 1"],
        labels: Int[np.ndarray, "n"],
        flip: bool = True,
        shift: float = 0.1,
        scale: float = 0.2,
    ) -> "ShapePrior":
        """The prior of train masks, uint8 in [0, 255] or float in [0, 1], cut at the middle.

        Masks without a lesion, and unknown ones (-1), are left out.

        Raises:
          PriorError: no mask has a lesion, or a setting is out of range.
        """
        if shift < 0 or not 0 <= scale < 1:
            raise PriorError(
                f"shape prior: got shift={shift}, scale={scale}; takes shift >= 0, scale in [0, 1)"
            )
        inside = masks[..., 0] > (127 if masks.dtype == np.uint8 else 0.5)
        kept = inside.any(axis=(1, 2))
        if not kept.any():
            raise PriorError(
                "shape prior: no train mask has a lesion (masks of uint8 are 0 and 255); use "
                "free-form holes, or a source with masks"
            )
        return cls(inside[kept], np.asarray(labels)[kept], flip, shift, scale)

    def sample(
        self,
        seed: int,
        indices: Int[np.ndarray, "b"],
        labels: Int[np.ndarray, "b"] | None = None,
        centres: Float[np.ndarray, "b 2"] | None = None,
    ) -> Float[np.ndarray, "b h w 1"]:
        """Masks for images `indices`; that of image i depends on (seed, i) and its own row only.

        Args:
          seed: of the stage.
          indices: of the images.
          labels: whose masks to draw from; a class without any takes those of all. None: all.
          centres: x, y in [0, 1] where the lesion's bounding box is centred before it is shifted,
            such as the source's own lesion. None: where the mask has it.

        Returns:
          float32 [b h w 1], 0 or 1; nowhere empty, and no lesion cut off by the image's border.
        """
        drawn = np.zeros((len(indices), *self.masks.shape[1:], 1), np.float32)
        for row, index in enumerate(indices):
            rng = np.random.default_rng((seed, int(index), _STREAM))
            rows = np.arange(len(self.labels))
            if labels is not None and (self.labels == labels[row]).any():
                rows = np.flatnonzero(self.labels == labels[row])
            mask = self.masks[rows[rng.integers(len(rows))]]
            centre = None if centres is None else centres[row]
            drawn[row, :, :, 0] = self._move(mask, rng, centre)
        return drawn

    def _move(
        self, mask: Bool[np.ndarray, "h w"], rng: np.random.Generator, centre: np.ndarray | None
    ) -> Bool[np.ndarray, "h w"]:
        """One mask, flipped, scaled about its bounding box's centre, and moved."""
        from scipy import ndimage

        flips = rng.random(2) < 0.5
        factor = 1 + self.scale * rng.uniform(-1, 1)
        shift = self.shift * rng.uniform(-1, 1, 2)
        if self.flip:
            mask = mask[:: -1 if flips[0] else 1, :: -1 if flips[1] else 1]
        size = np.array(mask.shape)
        low, high = _bounds(mask)
        factor = min(factor, *(size / (high - low + 1)))
        # Centres in pixels, the first pixel's being 0. Whole shifts copy an unscaled mask exactly.
        held = (low + high) / 2
        target = held if centre is None else centre[::-1] * size - 0.5
        half = factor * (high - low + 1) / 2
        target = np.clip(target + np.round(shift * size), half - 0.5, size - 0.5 - half)
        back = np.column_stack([np.eye(2) / factor, held - target / factor])
        moved = ndimage.affine_transform(
            mask.astype(np.float32), back, order=1, mode="grid-constant"
        )
        inside = moved > 0.5 - 1e-6  # float rounding, where a scaled rim falls between two pixels
        if not inside.any():  # too small for the grid once it is scaled down
            inside[tuple(np.clip(np.round(target), 0, size - 1).astype(int))] = True
        return inside


def _bounds(mask: Bool[np.ndarray, "h w"]) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last row and column of the lesion, as (y, x)."""
    places = np.argwhere(mask)
    return places.min(axis=0), places.max(axis=0)
