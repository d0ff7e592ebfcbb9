"""A config that is data: JSON in, a locked ConfigDict out, and nothing of it is ever executed.

A Python config file is a program; one that comes from somebody else can do whatever its reader may
do. JSON (a workdir's `config.json`, for one) can name fields and values alone, all of which are
checked. Fields that it leaves out have their defaults.
"""

import json
import pathlib
from typing import Any

import ml_collections

from lt_jax.config.fields import ConfigError, build, to_dict

_READERS_OWN = (("runtime", "compilation_cache", ""), ("data", "follow_links", False))


def read(path: pathlib.Path, cls: type) -> ml_collections.ConfigDict:
    """The config of dataclass `cls` that a JSON file holds.

    What only the reader may allow is left at its default, to be given on the command line:
    `runtime.compilation_cache`, a folder of compiled code that JAX runs as it finds it, and
    `data.follow_links`.

    Raises:
      ConfigError: no such file, no JSON, a name that stands twice, a field that is unknown, of the
        wrong type or out of range.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: no JSON ({error}); takes what a config.json holds") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: takes an object of fields, as a config.json holds")
    try:
        config = to_dict(build(cls, values))
    except OverflowError as error:
        raise ConfigError(f"{path}: a number is too large ({error})") from error
    for section, name, default in _READERS_OWN:
        if section in config:
            config[section][name] = default
    return ml_collections.ConfigDict(config).lock()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of two values under one name, readers would take one or the other."""
    held = dict(pairs)
    if len(held) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"field {twice!r} stands twice")
    return held
