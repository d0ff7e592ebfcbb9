"""Bounded fields of frozen dataclasses, and the one edge from mappings to them.

`build(cls, mapping)` refuses unknown fields, wrong types and values out of range, each with the
field's path, what it got and what it takes.
"""

import dataclasses
import re
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import ml_collections

from lt_jax.errors import UserError

T = TypeVar("T")


class ConfigError(UserError, ValueError):
    """A config field that is unknown, of the wrong type, or out of range."""


class FrozenDict(dict):
    """A dict that is hashable and refuses changes, so that configs stay usable as cache keys."""

    def __hash__(self) -> int:  # type: ignore[override]
        """Equal mappings hash alike, whatever their order."""
        return hash(frozenset(self.items()))

    def __setitem__(self, key: Any, value: Any) -> None:
        """Refused."""
        raise TypeError("a config is frozen; override it with --config.<path>=<value>")

    __delitem__ = __setitem__  # type: ignore[assignment]


def bounded(default: Any, low: float | None = None, high: float | None = None) -> Any:
    """A field whose numbers (each one, for a tuple) lie in [low, high]."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high})


def choice(default: str, *choices: str) -> Any:
    """A field that takes one of a few names."""
    return dataclasses.field(default=default, metadata={"choices": (default, *choices)})


def each_of(default: tuple[str, ...], *choices: str) -> Any:
    """A field that takes a tuple of some of these names, in any order."""
    return dataclasses.field(default=default, metadata={"choices": choices})


def not_in_key(default: Any) -> Any:
    """A field that changes no result (workers, logging), so that it stays out of cache keys."""
    return dataclasses.field(default=default, metadata={"in_key": False})


def in_key_if_set(default: Any, low: float | None = None, high: float | None = None) -> Any:
    """A later field, which at its default changes no result: only another value enters keys, so
    that what was finished before there was such a field stays finished. Bounds: as `bounded`."""
    metadata = {"in_key": "if set", "low": low, "high": high}
    return dataclasses.field(default=default, metadata=metadata)


def choice_not_in_key(default: str, *choices: str) -> Any:
    """As `choice`, of a field that is `not_in_key`."""
    metadata = {"choices": (default, *choices), "in_key": False}
    return dataclasses.field(default=default, metadata=metadata)


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as nested plain dicts, tuples kept."""
    result = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        elif isinstance(value, Mapping):
            value = {name: to_dict(item) for name, item in value.items()}
        result[field.name] = value
    return result


def key_fields(config: Any) -> dict[str, Any]:
    """The part of a dataclass that decides results: `to_dict` without its `not_in_key` fields, and
    without those `in_key_if_set` that are at their default."""
    kept = to_dict(config)
    for field in dataclasses.fields(config):
        value, in_key = getattr(config, field.name), field.metadata.get("in_key", True)
        if in_key is False or (in_key == "if set" and value == field.default):
            del kept[field.name]
        elif dataclasses.is_dataclass(value):
            kept[field.name] = key_fields(value)
    return kept


def free_paths(config: Any, path: str = "config") -> set[str]:
    """Where the fields lie that `key_fields` leaves out, as "config.data.follow_links"."""
    found: set[str] = set()
    for field in dataclasses.fields(config):
        value, here = getattr(config, field.name), f"{path}.{field.name}"
        if field.metadata.get("in_key") is False:
            found.add(here)
        elif dataclasses.is_dataclass(value):
            found |= free_paths(value, here)
    return found


def build(
    cls: type[T], values: Mapping[str, Any] | ml_collections.ConfigDict, path: str = "config"
) -> T:
    """Turns a (nested) mapping into the frozen dataclass `cls`.

    Raises:
      ConfigError: an unknown field, a wrong type, or a value out of range; the message holds the
        field's path, what it got and what it takes.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    if unknown := sorted(set(values) - set(fields)):
        raise ConfigError(
            f"{path}.{unknown[0]}: no such field; {path} takes {', '.join(sorted(fields))}"
        )
    built = {
        name: _field(hints[name], fields[name], value, f"{path}.{name}")
        for name, value in values.items()
    }
    return cls(**built)


def _field(hint: Any, field: dataclasses.Field, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(hint, _mapping(value, path), path)  # type: ignore[arg-type]
    if typing.get_origin(hint) is Mapping:
        return _entries(typing.get_args(hint)[1], _mapping(value, path), path)
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if not isinstance(value, tuple | list):
            raise ConfigError(f"{path}: got {value!r}; takes a tuple of {item.__name__}")
        return tuple(_scalar(item, field, entry, f"{path}[{i}]") for i, entry in enumerate(value))
    return _scalar(hint, field, value, path)


def _entries(item: Any, values: Mapping[str, Any] | ml_collections.ConfigDict, path: str) -> Any:
    """Sections by name; the names become folders."""
    for name in values:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ConfigError(f"{path}: got {name!r}; takes names of letters, digits, '_' and '-'")
    return FrozenDict(
        {
            name: build(item, _mapping(entry, f"{path}.{name}"), f"{path}.{name}")
            for name, entry in values.items()
        }
    )


def _mapping(value: Any, path: str) -> Mapping[str, Any] | ml_collections.ConfigDict:
    if not isinstance(value, Mapping | ml_collections.ConfigDict):
        raise ConfigError(f"{path}: got {value!r}; takes a section of fields")
    return value


def _scalar(hint: type, field: dataclasses.Field, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        raise ConfigError(f"{path}: got {value!r}; takes {hint.__name__}")
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        raise ConfigError(f"{path}: got {value!r}; takes one of {', '.join(choices)}")
    low, high = field.metadata.get("low"), field.metadata.get("high")
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        interval = f"[{'-inf' if low is None else low}, {'inf' if high is None else high}]"
        raise ConfigError(f"{path}: got {value!r}; takes {hint.__name__} in {interval}")
    return value
