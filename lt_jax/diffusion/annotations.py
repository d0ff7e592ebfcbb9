"""What a generator is told of real images: columns of the manifest as arrays, and its vocabulary.

An image of a set that annotates lesions and of which none is known is taken to be free of lesions;
a device or an attribute that is not known is null. Numbers are standardised by the train split, and
devices are those of the train split: what stands in other splits alone is null as well.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lt_jax.config import ConditionsConfig, ConfigError
from lt_jax.data.augment import DESCRIPTION
from lt_jax.data.images import Images
from lt_jax.data.manifest import SplitManifest
from lt_jax.models.conditioning import NULL, Vocabulary


@dataclasses.dataclass(frozen=True)
class Annotations:
    """Conditions of all rows of a manifest.

    Attributes:
      vocabulary: which inputs the generator has.
      columns: by name, arrays or stores with the rows of the manifest: device int32 [n], attributes
        float32 [n a], boxes float32 [n m 4], mask uint8 [n h w 1] and mask_given bool [n].
      devices: names, in the order of their numbers.
      means, deviations: of the attributes, before they were standardised.
    """

    vocabulary: Vocabulary
    columns: dict[str, Any]
    devices: tuple[str, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]


def annotate(
    manifest: SplitManifest, masks: Images | None, config: ConditionsConfig, channels: int
) -> Annotations:
    """The conditions that `config` asks for.

    Args:
      manifest: all splits; nothing is learned but from its train rows.
      masks: of its rows, uint8 [n h w 1], 0 or 255; None where there are none.
      config: see `ConditionsConfig`.
      channels: of the images.

    Raises:
      ConfigError: the set does not annotate what is asked for.
    """
    train = manifest.rows("train")
    columns: dict[str, Any] = {}
    devices: tuple[str, ...] = ()
    means, deviations = (), ()
    if config.device:
        pairs = zip(manifest.devices, manifest.attributes, strict=True)
        names = [category(config.device, *pair) for pair in pairs]
        devices = tuple(sorted({names[row] for row in train} - {None}))
        if not devices:
            raise ConfigError(
                f"config.generator.conditions.device: no train image has a {config.device!r}; "
                "name another column, or leave it empty"
            )
        number: dict[str | None, int] = {name: i for i, name in enumerate(devices)}
        columns["device"] = np.array([number.get(name, NULL) for name in names], np.int32)
    if config.attributes:
        values = np.stack([_numbers(manifest, name) for name in config.attributes], axis=1)
        means, deviations = _moments(values[train], config.attributes)
        columns["attributes"] = ((values - means) / deviations).astype(np.float32)
    if config.boxes != "none":
        columns["boxes"] = _boxes(manifest, config.max_boxes)
    if config.mask and masks is None:
        raise ConfigError(
            "config.generator.conditions.mask: this data set has no decoded lesion masks; "
            "leave it off, or use a source with masks within config.data.decode_once_mib"
        )
    if masks is not None:  # also where the generator is told none: holes are drawn from them
        columns["mask"] = masks
        columns["mask_given"] = np.array([bool(held) for held in manifest.masks])
    vocabulary = make_vocabulary(config, len(manifest.classes), len(devices), channels)
    return Annotations(
        vocabulary, columns, devices, tuple(map(float, means)), tuple(map(float, deviations))
    )


def make_vocabulary(
    config: ConditionsConfig, num_classes: int, devices: int, channels: int
) -> Vocabulary:
    """The inputs of a generator of `num_classes` classes and `devices` devices."""
    return Vocabulary(
        num_classes=num_classes,
        devices=devices if config.device else 0,
        attributes=len(config.attributes),
        max_boxes=config.max_boxes if config.boxes != "none" else 0,
        corners=config.boxes == "channel_and_corners",
        mask=config.mask,
        sketch=config.sketch,
        inpaint=config.inpaint,
        channels=channels if config.inpaint else 0,
        augmentation=len(DESCRIPTION) if config.augmentation else 0,
    )


def category(column: str, device: str | None, attributes: Mapping[str, Any]) -> str | None:
    """An image's value in a categorical column: "device", or an attribute's name."""
    value = device if column == "device" else attributes.get(column)
    return None if value is None else str(value)


def _numbers(manifest: SplitManifest, column: str) -> np.ndarray:
    values = np.full(len(manifest), np.nan)
    for row, known in enumerate(manifest.attributes):
        value = known.get(column)
        if isinstance(value, str):
            raise ConfigError(
                f"config.generator.conditions.attributes: {column!r} is {value!r} for image "
                f"{manifest.ids[row]!r}; takes columns of numbers (a categorical one can be "
                "conditions.device)"
            )
        if value is not None:
            values[row] = value
    return values


def _moments(values: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column's known train values; 1 where they are alike."""
    for name, column in zip(names, values.T, strict=True):
        if np.isnan(column).all():
            raise ConfigError(
                f"config.generator.conditions.attributes: no train image has a {name!r}; "
                "name other columns"
            )
    deviations = np.nanstd(values, axis=0)
    return np.nanmean(values, axis=0), np.where(deviations > 0, deviations, 1.0)


def _boxes(manifest: SplitManifest, most: int) -> np.ndarray:
    """[n m 4], the largest boxes of each image first, zeros behind them."""
    if not any(manifest.boxes):
        raise ConfigError(
            "config.generator.conditions.boxes: this data set has neither boxes nor masks; set it "
            "to none"
        )
    boxes = np.zeros((len(manifest), most, 4), np.float32)
    for row, held in enumerate(manifest.boxes):
        largest = sorted(held, key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))[:most]
        for slot, box in enumerate(largest):
            boxes[row, slot] = box
    return boxes
