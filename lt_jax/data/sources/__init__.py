"""Where images come from: one class a dataset behind one Protocol, found by its registered name.

A new source is one new module in this folder with a class under `@register("name")` that takes the
`DataConfig`; every module here is imported when a source is first asked for.
"""

import dataclasses
import importlib
import pkgutil
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from lt_jax.config import ConfigError, DataConfig
from lt_jax.data import images
from lt_jax.data.images import Box
from lt_jax.errors import UserError
from lt_jax.runtime.files import inside

Attribute = str | float | int | None


class SourceError(UserError, ValueError):
    """A dataset that is not where, or not what, its source takes it for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One labelled image.

    Attributes:
      id: unique in its source, stable over machines.
      image: locator of the image relative to the source's root, for `Source.decode`.
      label: index into `Source.classes`.
      group: what must not be torn apart by a split (lesion, patient, duplicate group).
      masks: locators of lesion masks, one a lesion, each of the image's size.
      boxes: (x0, y0, x1, y1) of each lesion in [0, 1] of the whole image's width and height.
      device: what took the image, where known.
      attributes: anything else that is known (age, sex, site, ...).
    """

    id: str
    image: str
    label: int
    group: str
    masks: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    device: str | None = None
    attributes: Mapping[str, Attribute] = dataclasses.field(
        default_factory=lambda: types.MappingProxyType({})
    )


@runtime_checkable
class Source(Protocol):
    """A dataset: its classes, its records, and their pixels."""

    @property
    def name(self) -> str:
        """As registered."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the labels."""
        ...

    def records(self) -> list[Record]:
        """All records, in an order that is the same on every machine."""
        ...

    def decode(self, locator: str) -> UInt8[np.ndarray, "h w c"]:
        """The image or mask at `locator`; raises `images.ImageError` if it cannot be read."""
        ...


class FileSource:
    """What sources made of image files share: a root, and decoding below it."""

    def __init__(self, data: DataConfig) -> None:
        """Raises ConfigError where `data.root` is not a folder."""
        if not data.root or not Path(data.root).is_dir():
            raise ConfigError(
                f"config.data.root: got {data.root!r}; takes the folder that holds the images of "
                f"source {data.source!r}"
            )
        self.root = Path(data.root)

    def decode(self, locator: str) -> UInt8[np.ndarray, "h w c"]:
        """Decodes a file below the root; a locator that leads out of it is refused."""
        return images.decode(inside(self.root, locator))


_SOURCES: dict[str, Callable[[DataConfig], Source]] = {}
T = TypeVar("T", bound=Callable[[DataConfig], Source])


def register(name: str) -> Callable[[T], T]:
    """Class decorator: `config.data.source = name` (or "name:<rest>") makes this source."""

    def add(cls: T) -> T:
        if name in _SOURCES:
            raise ValueError(f"two sources are registered as {name!r}")
        _SOURCES[name] = cls
        return cls

    return add


def load(data: DataConfig) -> Source:
    """The source that `data.source` names, of the classes that `data.classes` names.

    Raises:
      ConfigError: no such source or class, or its root is missing.
    """
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    name = data.source.partition(":")[0]
    if name not in _SOURCES:
        raise ConfigError(
            f"config.data.source: got {data.source!r}; takes one of {', '.join(sorted(_SOURCES))}"
        )
    source = _SOURCES[name](data)
    return Subset(source, data.classes) if data.classes else source


class Subset:
    """Some classes of a source, in the order asked for; what is left out is as if it were not."""

    def __init__(self, whole: Source, classes: tuple[str, ...]) -> None:
        """Raises ConfigError for a class that the source has not, or that is named twice."""
        for name in classes:
            if name not in whole.classes:
                raise ConfigError(
                    f"config.data.classes: no class {name!r}; takes some of "
                    f"{', '.join(whole.classes)}"
                )
        if len(set(classes)) != len(classes):
            raise ConfigError(f"config.data.classes: got {classes}; takes each class once")
        self.name, self.classes, self.decode = whole.name, classes, whole.decode
        self._whole = whole

    def records(self) -> list[Record]:
        """Records of these classes, labels counted anew."""
        new = {self._whole.classes.index(name): label for label, name in enumerate(self.classes)}
        return [
            dataclasses.replace(record, label=new[record.label])
            for record in self._whole.records()
            if record.label in new
        ]
