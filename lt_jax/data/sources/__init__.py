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
from typing import Any, Protocol, TypeVar, runtime_checkable

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
        self._follow_links = data.follow_links

    def decode(self, locator: str) -> UInt8[np.ndarray, "h w c"]:
        """Decodes a file below the root; a locator that leads out of it is refused."""
        return images.decode(inside(self.root, locator, self._follow_links))


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
    """The source that `data.source` names, under the labels that `data` asks for (see `Task`).

    Raises:
      ConfigError: no such source, column, class or value, or its root is missing.
    """
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    name = data.source.partition(":")[0]
    if name not in _SOURCES:
        raise ConfigError(
            f"config.data.source: got {data.source!r}; takes one of {', '.join(sorted(_SOURCES))}"
        )
    source = _SOURCES[name](data)
    return Task(source, data.label, data.classes) if is_task(data) else source


def is_task(data: DataConfig) -> bool:
    """Whether the labels are others than the source's own."""
    return bool(data.classes) or data.label != "label"


class Task:
    """A source under other labels: which values of a column make each class, and in what order.

    What has no such value is as if it were not there. A column that has become the label is no
    attribute (or device) any more, so that no test image tells its class by it.
    """

    def __init__(self, source: Source, column: str, entries: tuple[str, ...]) -> None:
        """Reads the records of a column that is not "label", to know its values.

        Args:
          source: with its own classes.
          column: "label" (the source's classes), "device", or an attribute.
          entries: a class each: "name=value,value", or "name" for the value of that name. Empty:
            each value is a class, numbers by size and then text.

        Raises:
          ConfigError: no such column or value; a value in two classes; a class named twice.
        """
        self.name, self.decode = source.name, source.decode
        self._whole, self._column = source, column
        known = source.classes if column == "label" else self._values()
        gathered = [_gathered(entry) for entry in entries or known]
        self.classes = tuple(name for name, _ in gathered)
        values = [value for _, held in gathered for value in held]
        for value in values:
            if value not in known:
                raise ConfigError(
                    f"config.data.classes: no class {value!r} in column {column!r}; takes some of "
                    f"{', '.join(known)}"
                )
        if len(set(self.classes)) < len(self.classes) or len(set(values)) < len(values):
            raise ConfigError(
                f"config.data.classes: got {entries}; takes each class and each value once"
            )
        self._label_of = {value: k for k, (_, held) in enumerate(gathered) for value in held}

    def records(self) -> list[Record]:
        """The records that the task asks for, under its labels."""
        found = []
        for record in self._whole.records():
            label = self._label_of.get(self._value(record))
            if label is not None:
                found.append(dataclasses.replace(record, label=label, **self._without(record)))
        return found

    def _value(self, record: Record) -> str:
        """What the column says of a record; "" where that is not known."""
        if self._column == "label":
            return self._whole.classes[record.label]
        return text_of(record, self._column)

    def _without(self, record: Record) -> dict[str, Any]:
        if self._column == "label":
            return {}
        if self._column == "device":
            return {"device": None}
        kept = {name: value for name, value in record.attributes.items() if name != self._column}
        return {"attributes": kept}

    def _values(self) -> tuple[str, ...]:
        records = self._whole.records()
        values = {self._value(record) for record in records} - {""}
        if not values:
            columns = sorted({name for record in records for name in record.attributes})
            raise ConfigError(
                f"config.data.label: no image has a {self._column!r}; takes one of "
                f"{', '.join(['label', 'device', *columns])}"
            )
        return tuple(sorted(values, key=_by_size))


def text_of(record: Record, column: str) -> str:
    """What "device" or an attribute says of a record, as text; "" where that is not known."""
    known = record.device if column == "device" else record.attributes.get(column)
    if isinstance(known, float) and known.is_integer():
        return str(int(known))
    return "" if known is None else str(known)


def _gathered(entry: str) -> tuple[str, tuple[str, ...]]:
    """A class's name and values, of "name=value,value" or "name"."""
    name, assigned, values = (part.strip() for part in entry.partition("="))
    held = tuple(value.strip() for value in values.split(",")) if assigned else (name,)
    if not name or not all(held):
        raise ConfigError(f'config.data.classes: got {entry!r}; takes "name" or "name=value,value"')
    return name, held


def _by_size(value: str) -> tuple[bool, float, str]:
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value
