"""What each candidate of a pool is asked to show: conditions, source image, hole, noise level.

Candidate i has class i mod K; everything else is drawn from (seed, i) and its class alone, on host,
from train rows: an image of the class, whose attributes it gets (and whose sketch, if that is
given); for images that start from a real one its source, whose device it keeps, and otherwise a
device as frequent as in train; and where its lesions lie (`placement`).
"""

import json
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.config import ConfigError, SynthesizeConfig
from lt_jax.data.images import Images
from lt_jax.data.manifest import SplitManifest
from lt_jax.diffusion import guidance, inpaint
from lt_jax.diffusion.annotations import Annotations
from lt_jax.diffusion.generator import Generator
from lt_jax.diffusion.placement import Placement, Places
from lt_jax.models import conditioning
from lt_jax.models.conditioning import NULL, Conditions, Vocabulary
from lt_jax.shapes import Float, Int

_STREAM = 2  # of random numbers under (seed, i); the priors have others


@flax.struct.dataclass
class Request:
    """A batch of requests; fields are None where the method has no use for them.

    Attributes:
      conditions: `Conditions` of the generator's vocabulary, nulls where nothing is asked. What is
        taken from images on device (sketch, image with a hole) is null here.
      own_group: int32 [b], number of the group of the real image that is changed.
      source: uint8 [b h w c], that image.
      hole: float32 [b h w 1], 1 where it is painted anew.
      start: float32 [b], the time that it is noised to.
      drawn: uint8 [b h w c], the real image whose sketch is to be obeyed.
      drawn_mask: float32 [b h w 1], its lesion, -1 where unknown, for sketches of contours.
    """

    conditions: Any
    own_group: Any = None
    source: Any = None
    hole: Any = None
    start: Any = None
    drawn: Any = None
    drawn_mask: Any = None


class Requests:
    """Requests by index, and what the pool notes of them."""

    def __init__(
        self,
        config: SynthesizeConfig,
        generator: Generator,
        known: Annotations,
        manifest: SplitManifest,
        images: Images,
    ):
        """Fits the priors to train rows.

        Raises:
          ConfigError: see `check` and `Placement`.
          PriorError: see `Placement`.
        """
        check(config, generator.vocabulary, manifest.classes)
        self._config, self._generator, self._known = config, generator, known
        self._images, self._ids, self._labels = images, manifest.ids, manifest.labels
        self._groups = manifest.group_numbers
        self._rows = manifest.rows("train")
        classes = range(len(manifest.classes))
        self._own = [self._rows[manifest.labels[self._rows] == label] for label in classes]
        self._sources = _source_rows(config, manifest.classes, self._own)
        self._starts = np.array(config.strengths or [config.strength] * len(classes), np.float32)
        self._placement = Placement(config, generator, known, manifest, self.present)

    @property
    def present(self) -> tuple[str, ...]:
        """The conditions that are asked for, and which guidance strengthens."""
        return tuple(
            name for name in self._generator.vocabulary.names if name in self._config.given
        )

    def __call__(self, indices: Int[np.ndarray, "b"]) -> tuple[Request, dict[str, Any]]:
        """The requests of candidates `indices`, and their columns of the pool."""
        labels = (indices % len(self._own)).astype(np.int32)
        draws = [np.random.default_rng((self._config.seed, int(i), _STREAM)) for i in indices]

        def choose(among: Sequence[np.ndarray]) -> np.ndarray:
            return np.array([rng.choice(rows) for rng, rows in zip(draws, among, strict=True)])

        models = choose([self._own[label] for label in labels])
        source = None
        if self._config.method != "generate":
            source = choose([self._sources[label] for label in labels])
        seen = choose([self._rows] * len(labels)) if source is None else source
        places = self._placement(indices, labels, models, source)
        conditions = self._conditions(labels, models, seen, places)
        request = Request(
            conditions=conditions,
            own_group=None if source is None else self._groups[source],
            source=None if source is None else self._images[source],
            hole=places.hole,
            start=self._starts[labels] if self._config.method == "translate" else None,
            drawn=self._images[models] if "sketch" in self.present else None,
            drawn_mask=self._drawn_mask(models, places),
        )
        columns = {
            "source_label": labels if source is None else self._labels[source],
            "label_weight": self._label_weights(request.start, len(labels)),
            "conditions": self._notes(conditions, models, source),
        }
        return request, columns

    def _conditions(
        self, labels: np.ndarray, models: np.ndarray, seen: np.ndarray, places: Places
    ) -> Conditions:
        """As the vocabulary has them; devices are those of the rows `seen`."""
        height, width, _ = self._generator.image_shape
        nulls = conditioning.nulls(self._generator.vocabulary, len(labels), height, width)
        columns = self._known.columns
        asked = {
            "label": lambda: labels,
            "device": lambda: columns["device"][seen],
            "attributes": lambda: columns["attributes"][models],
            "boxes": lambda: places.boxes,
            "mask": lambda: places.shape,
        }
        told = {name: asked[name]() for name in self.present if name in asked}
        return jax.device_get(nulls).replace(**told)

    def _drawn_mask(
        self, models: np.ndarray, places: Places
    ) -> Float[np.ndarray, "b h w 1"] | None:
        """What the contour of a sketch is taken from, where the generator knows sketches so."""
        known = self._known.columns
        if "sketch" not in self.present or self._generator.config.sketch.source != "mask":
            return None
        if places.shape is not None and "mask" in self.present:
            return places.shape
        if "mask" not in known:
            return None
        given = known["mask_given"][models][:, None, None, None]
        return np.where(given, known["mask"][models] / np.float32(255), np.float32(NULL))

    def _label_weights(
        self, start: Float[np.ndarray, "b"] | None, count: int
    ) -> Float[np.ndarray, "b"]:
        """The class's part of each candidate's label; the rest is its source's."""
        if start is None or not self._config.soft_labels:
            return np.ones(count, np.float32)
        schedule = self._generator.process.schedule
        return np.asarray(inpaint.soft_label_weight(schedule, jnp.asarray(start)))

    def _notes(
        self, conditions: Conditions, models: np.ndarray, source: np.ndarray | None
    ) -> list[str]:
        """What each candidate was asked to show besides its class, and from which images: JSON."""
        notes: list[dict[str, Any]] = [{} for _ in models]
        # Then the sketch is the contour of the mask that is asked for, and of no image.
        contoured = self._generator.config.sketch.source == "mask" and "mask" in self.present
        for row, note in enumerate(notes):
            if "device" in self.present:
                number = int(conditions.device[row])
                note["device"] = None if number == NULL else self._known.devices[number]
            if "attributes" in self.present:
                note["attributes"] = self._attributes(conditions.attributes[row])
            if "boxes" in self.present:
                boxes = conditions.boxes[row]
                note["boxes"] = [[round(x, 5) for x in box.tolist()] for box in boxes if box.any()]
            if "sketch" in self.present and not contoured:
                note["sketch_of"] = self._ids[models[row]]
            if source is not None:
                note["source"] = self._ids[source[row]]
        return [json.dumps(note, sort_keys=True) for note in notes]

    def _attributes(self, standardised: np.ndarray) -> dict[str, float | None]:
        """By name, in the units of the data set; None for what is not known."""
        names = self._generator.config.conditions.attributes
        values = standardised * np.array(self._known.deviations) + np.array(self._known.means)
        return {
            name: None if np.isnan(value) else round(float(value), 5)
            for name, value in zip(names, values, strict=True)
        }


def check(config: SynthesizeConfig, vocabulary: Vocabulary, classes: tuple[str, ...]) -> None:
    """Raises ConfigError for what a generator of `vocabulary` and these classes cannot be asked."""
    if config.method == "inpaint" and not vocabulary.inpaint:
        raise ConfigError(
            "config.synthesize.method: inpaint takes a generator that was trained for it "
            "(config.generator.conditions.inpaint=True); repaint works with any"
        )
    if unknown := set(config.given) - set(guidance.SCALED):
        raise ConfigError(
            f"config.synthesize.given: no condition {min(unknown)!r}; takes some of "
            f"{', '.join(guidance.SCALED)}"
        )
    if unknown := set(config.source_classes) - set(classes):
        raise ConfigError(
            f"config.synthesize.source_classes: no class {min(unknown)!r}; takes some of "
            f"{', '.join(classes)}"
        )
    for name in ("strengths", "counts"):
        given = getattr(config, name)
        if given and len(given) != len(classes):
            raise ConfigError(
                f"config.synthesize.{name}: got {len(given)} numbers; takes one a class, "
                f"{len(classes)}, or none"
            )


def describe(config: SynthesizeConfig) -> str:
    """The way of synthesis in a few words, for the pool's description."""
    words = f"{config.sampler}, {config.steps} steps"
    if config.method == "repaint":
        jumps = f"jumps of {config.repaint_jump} x {config.repaint_resamples}"
        words = f"ancestral, {config.steps} steps, {jumps}"
    if config.guidance.mode == "composed":
        words += ", composed guidance"
    return words if config.method == "generate" else f"{config.method}, {words}"


def _source_rows(
    config: SynthesizeConfig, classes: tuple[str, ...], own: list[np.ndarray]
) -> list[np.ndarray]:
    """Of each class, the train rows that its images may start from; `own` are its own."""
    if config.source_classes:
        among = [own[classes.index(name)] for name in config.source_classes]
    elif config.source == "class":
        return own
    else:
        among = own if config.source == "all" else [max(own, key=len)]
    return [np.concatenate(among)] * len(classes)
