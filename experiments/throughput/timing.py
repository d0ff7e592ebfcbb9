"""How anything here is timed: cases take turns, figures are medians, ratios are within a turn."""

import contextlib
import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from experiments.throughput.cases import Case
from lt_jax.runtime import files


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median, least and greatest of n repetitions."""

    median: float
    min: float
    max: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value; of an even number, the mean of the middle two."""
        ordered = sorted(values)
        half = len(ordered) // 2
        median = (ordered[half] + ordered[-half - 1]) / 2
        return cls(median, ordered[0], ordered[-1], len(ordered))

    def times(self, factor: float) -> "Spread":
        """The same repetitions in another unit."""
        return Spread(self.median * factor, self.min * factor, self.max * factor, self.n)


Guard = Callable[[Case], contextlib.AbstractContextManager[Any]]


def time_all(
    cases: Sequence[Case],
    repetitions: int,
    seconds: float,
    guard: Guard = contextlib.nullcontext,
) -> list[list[float]]:
    """Images per second of each case in each repetition, which lasts about `seconds` a case.

    The first call of a case is waited for and not counted; the second sets how many calls a
    repetition makes. All that a case does is inside its `guard`; where that holds an error back,
    the case has fewer rates.
    """
    calls: dict[int, int] = {}
    for i, case in enumerate(cases):
        with guard(case):
            case.wait(case.call())
            calls[i] = max(1, math.ceil(seconds / _seconds(case, 1)))
    rates: list[list[float]] = [[] for _ in cases]
    for _ in range(repetitions):
        for i, count in calls.items():
            with guard(cases[i]):
                rates[i].append(cases[i].images * count / _seconds(cases[i], count))
    return rates


def save(path: str, told: Mapping[str, Any]) -> None:
    """Writes what was measured as JSON, whole or not at all."""
    text = json.dumps(told, indent=1, allow_nan=False) + "\n"
    files.write_atomically(pathlib.Path(path), text, "the measurements")


def _seconds(case: Case, calls: int) -> float:
    for _ in range(case.drain):
        case.call()
    since = time.perf_counter()
    for _ in range(calls):
        result = case.call()
    case.wait(result)
    return time.perf_counter() - since


def ratio(name: str, above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """How many times faster, repetition by repetition."""
    spread = Spread.of([a / b for a, b in zip(above, below, strict=True)])
    return {"name": name, **dataclasses.asdict(spread)}


def trace(cases: Sequence[Case], folder: pathlib.Path, calls: int = 2) -> pathlib.Path:
    """Runs each case a few times under the profiler, each under its name, untimed.

    On a GPU XLA launches operations one by one meanwhile, where it else replays CUDA graphs: gaps
    between kernels may be the profiler's (`--xla_enable_command_buffers_during_profiling=true` in
    XLA_FLAGS keeps the graphs).

    Returns:
      `perfetto_trace.json.gz`, for ui.perfetto.dev. Beside it lies `*.xplane.pb`, for TensorBoard's
      profile plugin (`pip install xprof`, then `tensorboard --logdir` of `folder`).
    """
    with jax.profiler.trace(str(folder), create_perfetto_trace=True):
        for case in cases:
            with jax.profiler.TraceAnnotation(case.name):
                for _ in range(calls):
                    result = case.call()
                case.wait(result)
    written = folder.rglob("perfetto_trace.json.gz")
    return max(written, key=lambda path: path.stat().st_mtime)


@contextlib.contextmanager
def closing(cases: Sequence[Case]):
    """Ends what the cases do in the background, however the block ends."""
    try:
        yield
    finally:
        for case in cases:
            case.close()


def number(value: float | None) -> str:
    """For a cell: three digits, or whole numbers from 100 on; "-" for None."""
    return "-" if value is None else f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def spread(entry: Mapping[str, float] | None) -> str:
    """For a cell: median (least - greatest)."""
    if entry is None:
        return "-"
    return f"{number(entry['median'])} ({number(entry['min'])} - {number(entry['max'])})"
