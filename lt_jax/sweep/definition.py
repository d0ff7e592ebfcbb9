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

from ml_collections import ConfigDict

from lt_jax import config as config_lib
from lt_jax import pipeline
from lt_jax import specs as specs_lib
from lt_jax.config import ConfigError, json_file
from lt_jax.evaluate import metrics
from lt_jax.sweep.space import SEEDS, Distribution, Overrides

STAGES = tuple(stage for stage in specs_lib.STAGES if stage != "report")  # none opens the test set
SPLITS = ("val", "policy_val")
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

    space: Mapping[str, Distribution]
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
        """Refuses stages that open the test set, or are none."""
        if wrong := [stage for stage in self.stages if stage not in STAGES]:
            raise ConfigError(
                f"stages: got {wrong[0]!r}; takes some of {', '.join(STAGES)} (`collect --test` "
                "makes the reports)"
            )


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
    if both := sorted(set(shared) & set(overrides)):
        raise ConfigError(f"{both[0]} is both shared and varied; takes it in one place")
    # Through JSON, so that a trial is the same when it is read again.
    overrides = json.loads(json.dumps(dict(overrides)))
    trial = Trial(overrides, {})
    try:
        config = ConfigDict(resolve(base, {**shared, **overrides}))
        built = pipeline.Pipeline(config, pathlib.Path("unused")).config
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"trial {trial.name} ({words(overrides)}): {error}") from error
    return Trial(overrides, json.loads(json.dumps(config_lib.to_dict(built))))


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


def words(overrides: Overrides, names: Mapping[str, str] | None = None) -> str:
    """Overrides in a line: `learning_rate=0.001 seeds=0`."""
    names = names or short(overrides)
    return " ".join(f"{names[field]}={told(value)}" for field, value in overrides.items())


def told(value: Any) -> str:
    """A value as tables have it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ",".join(map(told, value)) if value else "()"
    if isinstance(value, dict):
        return "{" + " ".join(f"{key}:{told(held)}" for key, held in value.items()) + "}"
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
