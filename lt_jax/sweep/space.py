"""What a sweep varies: a small algebra of overrides, and distributions to draw them from.

Overrides map fields of the config to values: {"classify.optimizer.learning_rate": 1e-3}. Every
function below gives an iterable of them, so that they nest:

    product(grid({"synthesize.guidance_scale": (1.0, 2.0)}), seeds(3))
    itertools.chain(grid({...}), random({...}, 20))
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lt_jax.config import ConfigError

Overrides = Mapping[str, Any]
SEEDS = "classify.seeds"


@runtime_checkable
class Distribution(Protocol):
    """What a field's values are drawn from."""

    def draw(self, generator: np.random.Generator) -> Any:
        """One value."""
        ...

    def ends(self) -> tuple[Any, ...]:
        """Values that stand for all where they are checked: the ends, or every choice."""
        ...


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Real numbers in [low, high], `log`: uniform in their logarithm."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        """Refuses an empty interval."""
        _check_interval(self.low, self.high, self.log)

    def draw(self, generator: np.random.Generator) -> float:
        """One number."""
        if self.log:
            return float(np.exp(generator.uniform(math.log(self.low), math.log(self.high))))
        return float(generator.uniform(self.low, self.high))

    def ends(self) -> tuple[float, ...]:
        """Both."""
        return self.low, self.high


@dataclasses.dataclass(frozen=True)
class Integers:
    """Whole numbers in [low, high]."""

    low: int
    high: int

    def __post_init__(self) -> None:
        """Refuses an empty interval."""
        _check_interval(self.low, self.high, False)

    def draw(self, generator: np.random.Generator) -> int:
        """One number."""
        return int(generator.integers(self.low, self.high, endpoint=True))

    def ends(self) -> tuple[int, ...]:
        """Both."""
        return self.low, self.high


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some values, each as likely."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        """Refuses a choice among none."""
        if not self.values:
            raise ConfigError("Choice: got no values; takes one or more")

    def draw(self, generator: np.random.Generator) -> Any:
        """One of them."""
        return self.values[int(generator.integers(len(self.values)))]

    def ends(self) -> tuple[Any, ...]:
        """All of them."""
        return self.values


def _check_interval(low: float, high: float, log: bool) -> None:
    if not low < high or (log and low <= 0):
        raise ConfigError(
            f"got the interval [{low}, {high}]; takes low < high{', low > 0' if log else ''}"
        )


def check_space(space: Mapping[str, Any]) -> None:
    """Raises ConfigError, naming the field, where a value is no distribution."""
    for field, held in space.items():
        if not isinstance(held, Distribution):
            raise ConfigError(f"space: {field}: got {held!r}; takes Uniform, Integers or Choice")


def _columns(values: Mapping[str, Iterable[Any]], what: str) -> dict[str, tuple[Any, ...]]:
    for field, column in values.items():
        if isinstance(column, str) or not isinstance(column, Iterable):
            raise ConfigError(
                f"{what}: {field}: got {column!r}; takes several values, such as ({column!r},)"
            )
    return {field: tuple(column) for field, column in values.items()}


def grid(values: Mapping[str, Iterable[Any]]) -> Iterator[Overrides]:
    """Every combination of the fields' values, the last field the fastest.

    Raises ConfigError where a field has one value (a text, say) in place of several.
    """
    columns = _columns(values, "grid").values()
    return (dict(zip(values, row, strict=True)) for row in itertools.product(*columns))


def zipped(values: Mapping[str, Iterable[Any]]) -> Iterator[Overrides]:
    """The fields' first values, then their second ones, and so on.

    Raises ConfigError where one field has more values than another, or as `grid` does.
    """
    columns = _columns(values, "zipped")
    lengths = {field: len(column) for field, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"zipped: got {lengths}; takes as many values of each field")
    return (dict(zip(values, row, strict=True)) for row in zip(*columns.values(), strict=True))


def random(space: Mapping[str, Any], n: int, seed: int = 0) -> Iterator[Overrides]:
    """`n` draws; draw i depends on (seed, i) alone: more draws leave the first as they are.

    Raises ConfigError where a field has no distribution.
    """
    check_space(space)
    for i in range(n):
        generator = np.random.default_rng((seed, i))
        yield {field: held.draw(generator) for field, held in space.items()}


def seeds(n: int, first: int = 0, also: Sequence[str] = ()) -> Iterator[Overrides]:
    """`n` seeds of the classifiers, a trial each; `also` names fields that take the same number.

    A split that follows the seed ("data.split.seed") costs the comparison: trials then have no
    images in common, so that their means stand without interval and test.
    """
    for seed in range(first, first + n):
        yield {SEEDS: (seed,), **dict.fromkeys(also, seed)}


def product(*parts: Iterable[Overrides]) -> Iterator[Overrides]:
    """Every combination of trials of the parts, joined.

    Raises ConfigError where two parts set one field.
    """
    for row in itertools.product(*map(tuple, parts)):
        joined: dict[str, Any] = {}
        for overrides in row:
            if twice := sorted(set(joined) & set(overrides)):
                raise ConfigError(f"product: {twice[0]} is set by two of its parts")
            joined |= overrides
        yield joined
