"""Where a candidate's lesions are to lie: their shape, their boxes, and the hole around them.

Where train images have masks, a lesion has the shape of one of these (`shape_prior`) and the box
around it; else it fills its boxes, which are drawn from the class's density (`priors`) or are those
of an image of the class. An image that starts from a real one has its lesion where the real one
has its own, if it has one: the very same lesion where it is translated, or where the config asks
for the source's shapes. The hole is the new shape and the lesion that has to go, with a rim.

A class whose annotated train images are all free of lesions is told to be free of them, and its
holes have the shapes of other classes. Runs on host; what candidate i gets depends on (seed, i),
its class and its rows alone.
"""

import dataclasses

import numpy as np

from lt_jax.config import ConfigError, SynthesizeConfig
from lt_jax.data.manifest import SplitManifest
from lt_jax.diffusion import priors
from lt_jax.diffusion.annotations import Annotations
from lt_jax.diffusion.generator import Generator
from lt_jax.diffusion.shape_prior import ShapePrior
from lt_jax.shapes import Float, Int

HOLED = ("inpaint", "repaint")  # the methods that paint a hole
RIM = 2  # pixels by which a hole reaches beyond the lesions in it


@dataclasses.dataclass(frozen=True, eq=False)
class Places:
    """Of a batch of candidates; None where nothing asks for it.

    Attributes:
      boxes: float32 [b m 4], as the generator is told them.
      shape: float32 [b h w 1], 1 where the lesion is to be.
      hole: float32 [b h w 1], 1 where the source is painted anew; nowhere empty.
    """

    boxes: np.ndarray | None = None
    shape: np.ndarray | None = None
    hole: np.ndarray | None = None


class Placement:
    """Places by index."""

    def __init__(
        self,
        config: SynthesizeConfig,
        generator: Generator,
        known: Annotations,
        manifest: SplitManifest,
        present: tuple[str, ...],
    ):
        """Fits the priors to train rows, as far as the method or `present` conditions need them.

        Raises:
          ConfigError: the data set does not annotate what is needed.
          PriorError: see `BoxPrior` and `ShapePrior`.
        """
        self._config, self._size = config, generator.image_shape[0]
        self._slots = max(1, generator.vocabulary.max_boxes)
        self._columns = known.columns
        self._holed = config.method in HOLED
        self._wanted = self._holed or bool({"boxes", "mask"} & set(present))
        self._shapes: ShapePrior | None = None
        self._boxes: priors.BoxPrior | None = None
        self._lesion_free = np.zeros(len(manifest.classes), bool)
        if self._wanted:
            self._fit(manifest, "mask" in present)

    def _fit(self, manifest: SplitManifest, tells_mask: bool) -> None:
        columns, rows = self._columns, manifest.rows("train")
        masked = rows[columns["mask_given"][rows]] if "mask" in columns else rows[:0]
        if tells_mask and not len(masked):
            raise ConfigError(
                "config.synthesize.given: no train image has a mask, so that the generator knows "
                "none; leave out 'mask'"
            )
        if len(masked) and (self._holed or tells_mask):
            labels = manifest.labels[masked]
            self._shapes = ShapePrior.fit(columns["mask"][masked], labels)
            self._lesion_free = self._without(labels, self._shapes.labels)
            return
        if "boxes" not in columns:
            raise ConfigError(
                f"config.synthesize.method: {self._config.method} takes a data set with lesion "
                "masks, or a generator with boxes (config.generator.conditions.boxes)"
            )
        boxes, labels = columns["boxes"][rows], manifest.labels[rows]
        self._lesion_free = self._without(labels, labels[_marked(boxes)])
        if self._holed or self._config.boxes == "prior":
            held = priors.by_class(boxes, labels, len(manifest.classes))
            self._boxes = priors.BoxPrior.fit(*held, max_boxes=self._slots)

    def __call__(
        self,
        indices: Int[np.ndarray, "b"],
        labels: Int[np.ndarray, "b"],
        models: Int[np.ndarray, "b"],
        source: Int[np.ndarray, "b"] | None,
    ) -> Places:
        """The places of candidates `indices`.

        Args:
          indices, labels: of the candidates, and the classes that they are to show.
          models: rows of the manifest, each of an image of the class.
          source: rows of the images that they start from; None where they start from noise.
        """
        if not self._wanted:
            return Places()
        old = None if source is None else self.lesions(source)
        if self._shapes is None:
            boxes = self._drawn_boxes(indices, labels, models)
            shape = rasterise(boxes, self._size)
        else:
            shape = self._drawn_shapes(indices, labels, old)
            boxes = self._around(shape)
        if old is not None and (
            self._config.method == "translate" or self._config.shapes == "source"
        ):
            stays = _marked(old)
            same = self._columns["boxes"][source] if "boxes" in self._columns else self._around(old)
            boxes = np.where(stays[:, None, None], same, boxes)
            shape = np.where(stays[:, None, None, None], old, shape)
        hole = None
        if self._holed and old is not None:
            hole = grown(np.maximum(shape, old), RIM)
        told = ~self._lesion_free[labels]
        return Places(boxes * told[:, None, None], shape * told[:, None, None, None], hole)

    def lesions(self, rows: Int[np.ndarray, "b"]) -> Float[np.ndarray, "b h w 1"]:
        """Where the lesions of real images are, as far as known: their masks, else their boxes."""
        maps = np.zeros((len(rows), self._size, self._size, 1), np.float32)
        if "boxes" in self._columns:
            maps = rasterise(self._columns["boxes"][rows], self._size)
        if "mask" in self._columns:
            given = self._columns["mask_given"][rows][:, None, None, None]
            maps = np.where(given, self._columns["mask"][rows] > 127, maps).astype(np.float32)
        return maps

    def _without(self, annotated: np.ndarray, lesioned: np.ndarray) -> np.ndarray:
        """Which classes, bool [k], are among the labels `annotated` and not among `lesioned`."""
        classes = np.arange(len(self._lesion_free))
        return np.isin(classes, annotated) & ~np.isin(classes, lesioned)

    def _drawn_boxes(
        self, indices: np.ndarray, labels: np.ndarray, models: np.ndarray
    ) -> np.ndarray:
        """Boxes [b m 4]; at least one an image where a hole is made of them."""
        seen = self._columns["boxes"][models]
        if self._boxes is None:
            return seen
        drawn = self._boxes.sample(self._config.seed, indices, labels, least=int(self._holed))
        if self._config.boxes == "prior":
            return drawn
        return np.where(_marked(seen)[:, None, None], seen, drawn)

    def _drawn_shapes(
        self, indices: np.ndarray, labels: np.ndarray, old: np.ndarray | None
    ) -> np.ndarray:
        """A train mask each [b h w 1], moved to where the source's lesion is, if it has one."""
        assert self._shapes is not None
        seed, of_all = self._config.seed, self._config.shapes == "all"
        shape = self._shapes.sample(seed, indices, None if of_all else labels)
        if old is None:
            return shape
        found = _marked(old)
        boxes = bounding(old[found])
        shape[found] = self._shapes.sample(
            seed,
            indices[found],
            None if of_all else labels[found],
            (boxes[:, :2] + boxes[:, 2:]) / 2,
        )
        return shape

    def _around(self, maps: np.ndarray) -> np.ndarray:
        """The box around what is marked on each map, in the first of the slots."""
        boxes = np.zeros((len(maps), self._slots, 4), np.float32)
        boxes[:, 0] = bounding(maps)
        return boxes


def rasterise(boxes: Float[np.ndarray, "b m 4"], size: int) -> Float[np.ndarray, "b h w 1"]:
    """1 where the centre of a pixel is in a box, or the centre of a box in a pixel; else 0."""
    centres = (np.arange(size) + 0.5) / size
    low, high = boxes[..., :2], boxes[..., 2:]
    middle = (np.floor((low + high) / 2 * size) + 0.5) / size
    low, high = np.minimum(low, middle), np.maximum(high, middle)
    used = (boxes[..., 2] > boxes[..., 0])[:, :, None]
    across = (low[..., :1] <= centres) & (centres <= high[..., :1]) & used
    down = (low[..., 1:] <= centres) & (centres <= high[..., 1:]) & used
    inside = np.any(down[:, :, :, None] & across[:, :, None, :], axis=1)
    return inside[..., None].astype(np.float32)


def bounding(maps: Float[np.ndarray, "b h w 1"]) -> Float[np.ndarray, "b 4"]:
    """x0, y0, x1, y1 in [0, 1] around what is marked; zeros where nothing is."""
    inside, size = maps[..., 0] > 0, maps.shape[1]
    ends = [
        end
        for marked in (np.any(inside, axis=1), np.any(inside, axis=2))  # columns, then rows
        for end in (marked.argmax(axis=1), size - marked[:, ::-1].argmax(axis=1))
    ]
    x0, x1, y0, y1 = ends
    boxes = np.stack([x0, y0, x1, y1], axis=1) / size
    return np.where(_marked(maps)[:, None], boxes, 0).astype(np.float32)


def grown(maps: Float[np.ndarray, "b h w 1"], radius: int) -> Float[np.ndarray, "b h w 1"]:
    """1 in every pixel at most `radius` pixels (Euclidean) from one that is marked."""
    from scipy import ndimage

    offsets = np.arange(-radius, radius + 1)
    disc = np.square(offsets[:, None]) + np.square(offsets[None, :]) <= radius**2
    return ndimage.binary_dilation(maps > 0, disc[None, :, :, None]).astype(np.float32)


def _marked(rows: np.ndarray) -> np.ndarray:
    """Which rows [b ...] are not all zeros, bool [b]."""
    return np.any(rows, axis=tuple(range(1, rows.ndim)))
