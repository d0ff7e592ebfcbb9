"""A sweep as its file describes it, and the trials that follow from it, checked before any starts.

A sweep file has a function `get_sweep() -> Sweep`. It is code and runs once, in the process that
plans: a trial is written down as JSON, with its whole config, and nothing else reads the file.
"""

import copy
import dataclasses
import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lt_jax import config as config_lib
from lt_jax import pipeline
from lt_jax import specs as specs_lib
from lt_jax.config import ConfigError, json_file
from lt_jax.evaluate import metrics
from lt_jax.sweep.space import SEEDS, Overrides, check_space

STAGES = tuple(stage for stage in specs_lib.STAGES if stage != "report")  # none opens the test set
SPLITS = ("val", "policy_val")
DIGITS, EXACT = 4, 0  # of a number that is told; 0: as many as it has
_NAME = 10  # hex digits of a trial's name


@dataclasses.dataclass(frozen=True)
class Search:
    """A space to search, and what for.

    Attributes:
      space: distributions by field.
      objective: `<split>/<arm>/<metric>`, the mean over seeds; a split is val or policy_val.
      trials: in all.
      seed: of the sampler.
    """

    space: Mapping[str, Any]
    objective: str
    trials: int
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses what cannot be searched for, the test set above all."""
        split, _, rest = self.objective.partition("/")
        metric = rest.rpartition("/")[2]
        if split == "test":
            raise ConfigError(
                f"objective: got {self.objective!r}; nothing is chosen on the test set, take "
                f"{' or '.join(SPLITS)}"
            )
        if split not in SPLITS or metric not in metrics.METRICS or not rest.rpartition("/")[0]:
            raise ConfigError(
                f"objective: got {self.objective!r}; takes <split>/<arm>/<metric> of "
                f"{', '.join(SPLITS)} and {', '.join(metrics.METRICS)}"
            )
        if not self.space or self.trials < 1:
            raise ConfigError("search: takes a field or more in `space`, and one trial or more")
        check_space(self.space)

    @property
    def parts(self) -> tuple[str, str, str]:
        """Split, arm and metric of the objective."""
        split, _, rest = self.objective.partition("/")
        arm, _, metric = rest.rpartition("/")
        return split, arm, metric

    @property
    def minimize(self) -> bool:
        """Whether lower is better."""
        return self.parts[2] in metrics.LOWER_IS_BETTER


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep file returns.

    Attributes:
      base: the config file that is varied (.py, or the JSON of a run's config.json).
      trials: overrides of each trial; equal ones are one trial.
      shared: overrides of all trials, which are no part of what is compared.
      search: instead of `trials`, where each trial follows from those before.
      stages: that a trial runs; never the report, which opens the test set.
    """

    base: str
    trials: Iterable[Overrides] = ()
    shared: Overrides = dataclasses.field(default_factory=dict)
    search: Search | None = None
    stages: Sequence[str] = STAGES

    def __post_init__(self) -> None:
        """Refuses stages that open the test set, or are none, and trials beside a search."""
        if wrong := [stage for stage in self.stages if stage not in STAGES]:
            raise ConfigError(
                f"stages: got {wrong[0]!r}; takes some of {', '.join(STAGES)} (`collect --test` "
                "opens the test set)"
            )
        if self.search is not None and self.trials not in ((), []):
            raise ConfigError("get_sweep(): has trials and a search; takes one of both")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run of a sweep: its overrides, and the whole config that they make."""

    overrides: Overrides
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """A short hash of the overrides."""
        text = json.dumps(self.overrides, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:_NAME]


def _module(path: pathlib.Path, function: str) -> Any:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: got {path.suffix or 'no suffix'}; takes a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise ConfigError(f"{path}: has no function {function}()")
    return getattr(module, function)


def load(path: pathlib.Path) -> Sweep:
    """The sweep that a file describes."""
    sweep = _module(path, "get_sweep")()
    if not isinstance(sweep, Sweep):
        raise ConfigError(f"{path}: get_sweep() gave {type(sweep).__name__}; takes a Sweep")
    return sweep


def base_of(path: str) -> dict[str, Any]:
    """The config that a sweep varies, as nested plain values."""
    file = pathlib.Path(path)
    if file.suffix == ".json":
        return json_file.read(file, config_lib.Config).to_dict()
    return _module(file, "get_config")().copy_and_resolve_references().to_dict()


def resolve(base: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """`base` with the overrides; ConfigError names a section that does not exist.

    What is set, is checked where the config is built.
    """
    config = copy.deepcopy(dict(base))
    for field, value in overrides.items():
        section, path = config, "config"
        *parents, last = field.removeprefix("config.").split(".")
        for name in parents:
            if not isinstance(section.get(name), dict):
                known = sorted(key for key, held in section.items() if isinstance(held, dict))
                raise ConfigError(f"{path}.{name}: no such section; {path} has {', '.join(known)}")
            section, path = section[name], f"{path}.{name}"
        section[last] = value
    return config


def plan(base: Mapping[str, Any], shared: Overrides, overrides: Overrides) -> Trial:
    """One trial, as far as it can be checked without data.

    Raises:
      ConfigError: names the trial, the field, what it got and what it takes.
    """
    shared, overrides = _plain(shared, "shared"), _plain(overrides, "trial")
    for field in overrides:
        if both := [held for held in shared if held == field or held.startswith(f"{field}.")]:
            raise ConfigError(f"{both[0]} is both shared and varied; takes it in one place")
    try:
        return Trial(overrides, configured(base, shared, overrides))
    except (ConfigError, TypeError) as error:
        name = Trial(overrides, {}).name
        raise ConfigError(f"trial {name} ({words(overrides)}): {error}") from error


def configured(base: Mapping[str, Any], shared: Overrides, overrides: Overrides) -> dict[str, Any]:
    """The whole config of a trial, defaults included; ConfigError where it cannot be."""
    config = ConfigDict(resolve(base, {**shared, **overrides}))
    built = pipeline.Pipeline(config, pathlib.Path("unused")).config
    return json.loads(json.dumps(config_lib.to_dict(built)))


def _plain(overrides: Overrides, where: str) -> dict[str, Any]:
    """Overrides by their fields without "config.", through JSON: alike when they are read again.

    NumPy's scalars become Python's. Raises ConfigError, naming the field, for what JSON has not.
    """
    found = {}
    for field, value in overrides.items():
        name = field.removeprefix("config.")
        if name in found:
            raise ConfigError(f"{where}: {name} is set twice, with and without `config.`")
        try:
            found[name] = json.loads(json.dumps(value, default=_python))
        except (TypeError, ValueError) as error:
            told = " ".join(f"{name}={value!r}" for name, value in overrides.items())
            raise ConfigError(
                f"{where} ({told}): config.{name}: got {value!r}; takes text, numbers, true or "
                f"false, and tuples or dicts of them ({error})"
            ) from error
    return found


def _python(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, ConfigDict):
        return value.to_dict()
    raise TypeError(f"{type(value).__name__} is none of these")


def trials(sweep: Sweep) -> list[Trial]:
    """All trials of a sweep without a search, each once, in its order."""
    base = base_of(sweep.base)
    planned = [plan(base, sweep.shared, overrides) for overrides in sweep.trials]
    if not planned:
        raise ConfigError("get_sweep(): has no trials and no search; takes one of both")
    return list({trial.name: trial for trial in planned}.values())


def check_search(sweep: Sweep, search: Search) -> None:
    """Tries the ends of every distribution, and the objective's arm; ConfigError as from `plan`."""
    base = base_of(sweep.base)
    middle = {field: held.ends()[0] for field, held in search.space.items()}
    for field, held in search.space.items():
        for value in held.ends():
            trial = plan(base, sweep.shared, {**middle, field: value})
            arms = trial.config["classify"]["arms"]
            if search.parts[1] not in arms:
                raise ConfigError(
                    f"objective: got the arm {search.parts[1]!r}; takes one of {', '.join(arms)}"
                )


def short(fields: Iterable[str]) -> dict[str, str]:
    """The shortest ending of each field that no other one has."""
    paths = {field: field.split(".") for field in fields}

    def ending(field: str, parts: int) -> str:
        return ".".join(paths[field][-parts:])

    found = {}
    for field, path in paths.items():
        lengths = range(1, len(path) + 1)
        others = [other for other in paths if other != field]
        found[field] = next(
            (
                ending(field, n)
                for n in lengths
                if all(ending(field, n) != ending(other, n) for other in others)
            ),
            field,
        )
    return found


def words(
    overrides: Overrides, names: Mapping[str, str] | None = None, digits: int = DIGITS
) -> str:
    """Overrides in a line: `learning_rate=0.001 seeds=0`."""
    names = names or short(overrides)
    return " ".join(f"{names[field]}={told(held, digits)}" for field, held in overrides.items())


def told(value: Any, digits: int = DIGITS) -> str:
    """A value as tables have it; two numbers may look alike in few digits, and none in EXACT."""
    if isinstance(value, float):
        return f"{value:.{digits}g}" if digits else repr(value)
    if isinstance(value, list | tuple):
        return ",".join(told(held, digits) for held in value) if value else "()"
    if isinstance(value, dict):
        return "{" + " ".join(f"{key}:{told(held, digits)}" for key, held in value.items()) + "}"
    return str(value)


def seed_fields(trials: Iterable[Overrides]) -> set[str]:
    """Fields that are seeds: the classifiers', and others that always have the same number."""
    held, others = list(trials), set[str]()
    for overrides in held:
        others |= {field for field in overrides if field.rpartition(".")[2] == "seed"}

    def alike(field: str) -> bool:
        mine = [one for one in held if field in one]
        return all(list(one.get(SEEDS, ())) == [one[field]] for one in mine)

    return {SEEDS} | {field for field in others if alike(field)}
