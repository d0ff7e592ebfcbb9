"""The gates by which a pool is judged: kept beside its parts, and judged by once more.

`gates.json` is written before the first part. A run that goes on behind parts of an earlier one has
fitted its gates anew: they must be those of the file, since a pool of which one half was judged by
other thresholds is neither's. Fitted to the same images they differ by rounding at most, and the
run goes on with the limits of the file.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lt_jax.data.pool import schema
from lt_jax.data.pool.schema import PoolError, PoolInfo
from lt_jax.runtime import distributed, files

FILE = "gates.json"
FIELDS = ("extractor", "scores", "least_label_probability", *schema.THRESHOLDS)
ROUNDING = 1e-4  # relative: of a fit that sums in another order


def keep(folder: pathlib.Path, info: PoolInfo, parts: int) -> PoolInfo:
    """Writes the gates of a pool without a part; compares them with those of one that has some.

    Of several processes, of which each has fitted its own, all take those of the first.

    Returns:
      `info` with the limits that are kept: every part of the pool is to be judged by them.

    Raises:
      PoolError: the parts were judged by other gates, or it is not known by which. Nothing has been
        changed.
      DiskFullError: no space left.
    """
    told = distributed.told(lambda: _kept(folder / FILE, info, parts))
    return dataclasses.replace(info, **schema.of_json(told))


def _kept(path: pathlib.Path, info: PoolInfo, parts: int) -> dict[str, Any]:
    """FIELDS as JSON."""
    mine = schema.to_json({name: getattr(info, name) for name in FIELDS})
    if not parts:
        files.write_atomically(path, json.dumps(mine, indent=1), "the gates of the pool")
        return mine
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        values = schema.of_json(told)
        kept = dataclasses.replace(info, **{name: values[name] for name in FIELDS})
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise PoolError(
            f"{path}: does not say by which gates the {parts} parts beside it were judged "
            f"({type(error).__name__}: {error}); {schema.AGAIN}"
        ) from error
    if differences := [text for name in FIELDS if (text := _difference(name, kept, info))]:
        raise PoolError(
            f"{path}: the {parts} parts beside it were judged by other gates than this run's: "
            f"{'; '.join(differences)}. To go on, run with the config, the data and the program "
            f"of then; to judge all by these gates, {schema.AGAIN}. Nothing has been changed"
        )
    return {name: told[name] for name in FIELDS}


def failures(info: PoolInfo, columns: Mapping[str, np.ndarray]) -> Bool[np.ndarray, "n g"]:
    """Which of GATES each candidate fails by its values and the pool's limits, in float32.

    A value that was not measured (NaN) passes the gate on copies, and no other. Labels are in
    [0, classes).
    """
    label = columns["label"]

    def limits(name: str) -> Float[np.ndarray, "n"] | None:
        given = np.array(getattr(info, name), np.float32)
        return given[label] if len(given) else None

    out = np.zeros((len(label), len(schema.GATES)), bool)
    if (most := limits("thresholds")) is not None:
        out[:, 0] = ~(columns["score"] <= most)
    out[:, 1] = ~(columns["label_probability"] >= np.float32(info.least_label_probability))
    for measure in ("cosine", "ms_ssim"):
        if (most := limits(f"{measure}_thresholds")) is not None:
            out[:, 2] |= columns[measure] > most
    return out


def _difference(name: str, kept: PoolInfo, info: PoolInfo) -> str:
    """What a field was and is; "" where that is the same up to rounding."""
    then, now = getattr(kept, name), getattr(info, name)
    if name not in schema.THRESHOLDS:
        same = _close(then, now) if isinstance(now, float) else then == now
        return "" if same else f"{name} {then!r} then, {now!r} now"
    if len(then) != len(now):
        return f"{name} of {len(then)} classes then, of {len(now)} now (of none: the gate is off)"
    other = [k for k in range(len(now)) if not _close(then[k], now[k])]
    if not other:
        return ""
    first = other[0]
    more = f" (and of {len(other) - 1} more classes)" if len(other) > 1 else ""
    return f"{name} of {info.classes[first]} {then[first]:g} then, {now[first]:g} now{more}"


def _close(then: Any, now: Any) -> bool:
    return bool(np.isclose(then, now, rtol=ROUNDING, atol=1e-6))
