"""Adaptive search: Optuna's samplers ask for trials and are told what came of them on val.

Its journal, OUT/journal.log, is JSON lines, from which a search goes on wherever it was killed. All
trials of a search, however many run at once, share it; only the driver writes into it, since a
trial's result is a fact in the trial's own folder. OUT/search.json says what is searched: another
space is another search. The first trial has the base's own values where the space has them, and is
what the others are compared with. CMA-ES is left out: Optuna keeps its state as a pickle in the
journal.
"""

import functools
import json
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from lt_jax import pipeline
from lt_jax.config import ConfigError
from lt_jax.runtime import files
from lt_jax.runtime.progress import say
from lt_jax.sweep import definition, measured, states
from lt_jax.sweep.definition import Sweep
from lt_jax.sweep.jobs import MissingLibraryError
from lt_jax.sweep.space import Choice, Distribution, Integers, Uniform
from lt_jax.sweep.states import Planned, State, Status

SAMPLERS = ("tpe", "random", "qmc")
JOURNAL = "journal.log"
DEFINITION = "search.json"
_DRAWS = 10  # draws a trial that is wanted, at most: a space may be refused nearly everywhere


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingLibraryError(
            "--search takes optuna: pip install -r requirements-sweep.txt"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Study:
    """The search of a sweep's folder: a `driver.Source`."""

    def __init__(self, out: pathlib.Path, sweep: Sweep, cache: pathlib.Path, sampler: str = "tpe"):
        """Opens the journal, or begins it.

        Raises ConfigError where the sweep has no search, no such sampler, or fields that cannot be,
        or where the folder holds another search.
        """
        if sweep.search is None:
            raise ConfigError("--search: the sweep has no Search(space, objective, trials)")
        if sampler not in SAMPLERS:
            raise ConfigError(f"--search: got {sampler!r}; takes one of {', '.join(SAMPLERS)}")
        definition.check_search(sweep, sweep.search)
        self._search, self._sweep, self._out = sweep.search, sweep, out
        self._cache, self._sampler = cache, sampler
        self._base = definition.base_of(sweep.base)
        self._library = _optuna()
        self._distributions = {
            field: _distribution(self._library, held) for field, held in self._search.space.items()
        }
        _same(out / DEFINITION, self._definition())
        journal = self._library.storages.journal.JournalFileBackend(str(out / JOURNAL))
        self._study = self._library.create_study(
            study_name=self._search.objective,
            storage=self._library.storages.JournalStorage(journal),
            direction="minimize" if self._search.minimize else "maximize",
            load_if_exists=True,
        )
        if not self._study.trials and (own := self._own_values()):
            self._study.enqueue_trial(own)

    def _definition(self) -> dict[str, Any]:
        """What must not change under a search, beside what `states.check_sweep` looks at."""
        return {
            "objective": self._search.objective,
            "space": {
                field: {type(held).__name__: vars(held)}
                for field, held in self._search.space.items()
            },
        }

    def _own_values(self) -> dict[str, Any]:
        """The base's own values where the space has them: of the first trial, the baseline."""
        try:
            trial = definition.plan(self._base, self._sweep.shared, {})
        except ConfigError:  # it takes what the space sets
            return {}
        base = Planned(self._out, trial, (), self._cache)
        own = {
            field: _param(held, measured.value_of(base, field))
            for field, held in self._search.space.items()
        }
        return {field: param for field, param in own.items() if param is not None}

    def more(self, room: int, known: Mapping[str, Status]) -> Sequence[Planned]:
        """Tells the sampler what has ended, and asks it for up to `room` new trials."""
        new, wanted = self._settle(known), self._search.trials
        while len(new) < room and self._drawn() < wanted:
            number = len(self._study.trials)
            if number >= _DRAWS * wanted:
                break
            # Anew for each trial: which values it gets depends on its number and those before it,
            # and not on where the search was killed.
            self._study.sampler = self._make_sampler(number)
            planned = self._plan(self._study.ask(fixed_distributions=self._distributions))
            if planned is not None and planned.name not in known:
                new.setdefault(planned.name, planned)
        return list(new.values())

    def _drawn(self) -> int:
        """How many trials were asked for, without those refused, each once."""
        attrs = [held.user_attrs for held in self._study.trials]
        return sum("trial" in held and "again" not in held for held in attrs)

    def _settle(self, known: Mapping[str, Status]) -> dict[str, Planned]:
        """Tells all that has ended since; returns trials that were asked for and are not known."""
        live, trials = self._library.trial.TrialState, self._study.trials
        told = {
            held.user_attrs.get("trial")
            for held in trials
            if held.state == live.COMPLETE or "undefined" in held.user_attrs
        }
        done = {name for name, one in known.items() if one.state is State.DONE}
        new = {}
        for held in trials:
            name = held.user_attrs.get("trial")
            if held.state == live.RUNNING:
                asked = self._library.trial.Trial(self._study, held._trial_id)
                if name not in known:  # a kill came between asking and planning
                    if planned := self._plan(asked):
                        new[planned.name] = planned
                elif name in done:
                    self._tell(asked, name)
                elif known[name].state is State.FAILED:
                    self._study.tell(asked, state=live.FAIL)
            elif held.state == live.FAIL and name in done - told:  # put back after it failed
                self._add(held, name)
                told.add(name)
        return new

    def _plan(self, asked: Any) -> Planned | None:
        """Writes a trial down; None where there can be none, which the sampler is told."""
        space, params, fail = self._search.space, asked.params, self._library.trial.TrialState.FAIL
        if set(params) != set(space):  # a kill came amid asking
            if not self._drawn() and (own := self._own_values()):  # they remain the first trial's
                self._study.enqueue_trial(own)
            self._study.tell(asked, state=fail)
            return None
        overrides = {field: _value(held, params[field]) for field, held in space.items()}
        try:
            trial = definition.plan(self._base, self._sweep.shared, overrides)
        except ConfigError as error:
            say(f"search: another one is drawn instead of {error}")
            self._study.tell(asked, state=fail)
            return None
        planned = states.write(self._out, trial, self._sweep.stages, self._cache)
        states.add_to_order(self._out, [planned.name])
        asked.set_user_attr("trial", planned.name)
        return planned

    def _objective(self, name: str) -> float | None:
        planned = states.read_trial(states.folder_of(self._out, name))
        return measured.objective(planned, self._search)

    def _tell(self, asked: Any, name: str) -> None:
        """What a trial measured; one without a value is noted, so that it is not measured again."""
        value = self._objective(name)
        if value is None:
            asked.set_user_attr("undefined", True)
        fail = self._library.trial.TrialState.FAIL
        self._study.tell(asked, value, state=fail if value is None else None)

    def _add(self, held: Any, name: str) -> None:
        """The same of a trial that was told as failed, which it stays: a second one beside it."""
        value, live = self._objective(name), self._library.trial.TrialState
        attrs = {"trial": name, "again": True}
        self._study.add_trial(
            self._library.trial.create_trial(
                state=live.FAIL if value is None else live.COMPLETE,
                value=value,
                params=held.params,
                distributions=held.distributions,
                user_attrs=attrs if value is not None else {**attrs, "undefined": True},
            )
        )

    def _make_sampler(self, number: int) -> Any:
        samplers, seed = self._library.samplers, self._search.seed
        make = {
            # Trials that still run count as bad ones, so that those at once differ.
            "tpe": functools.partial(samplers.TPESampler, constant_liar=True),
            "random": samplers.RandomSampler,
            "qmc": functools.partial(samplers.QMCSampler, warn_independent_sampling=False),
        }[self._sampler]
        with warnings.catch_warnings():
            # The interface of QMCSampler may change: its version is pinned.
            warnings.simplefilter("ignore", self._library.exceptions.ExperimentalWarning)
            # A quasi-random sequence is one, whatever the number; others are drawn anew each time.
            return make(seed=seed if self._sampler == "qmc" else seed * 1_000_003 + number)

    def best(self) -> tuple[str, float] | None:
        """The best trial so far and its value, flattered by being chosen; None without one."""
        complete = self._library.trial.TrialState.COMPLETE
        if not any(held.state == complete for held in self._study.trials):
            return None
        best = self._study.best_trial
        return best.user_attrs["trial"], best.value


def _distribution(library: Any, held: Distribution) -> Any:
    kinds = library.distributions
    if isinstance(held, Uniform):
        return kinds.FloatDistribution(held.low, held.high, log=held.log)
    if isinstance(held, Integers):
        return kinds.IntDistribution(held.low, held.high)
    if isinstance(held, Choice):
        return kinds.CategoricalDistribution([json.dumps(value) for value in held.values])
    raise ConfigError(f"space: got {held!r}; takes Uniform, Integers or Choice")


def _value(held: Distribution, param: Any) -> Any:
    return json.loads(param) if isinstance(held, Choice) else param


def _param(held: Distribution, value: Any) -> Any:
    """A field's value as the sampler has it; None where the space does not have it."""
    if isinstance(held, Choice):
        texts = [json.dumps(one) for one in held.values]
        return next((text for text in texts if json.loads(text) == value), None)
    assert isinstance(held, Uniform | Integers)
    kinds = (int, float) if isinstance(held, Uniform) else int
    inside = isinstance(value, kinds) and held.low <= value <= held.high
    return value if inside and not isinstance(value, bool) else None


def _same(path: pathlib.Path, now: Mapping[str, Any]) -> None:
    """Writes down what a search is; ConfigError where the folder holds another one."""
    text = json.dumps(now, indent=1, default=str)  # NumPy's numbers, which trials take, too
    if not path.exists():
        files.write_atomically(path, text, "the search's definition")
    elif changes := pipeline.differences(json.loads(path.read_text()), json.loads(text), "search"):
        raise ConfigError(
            f"{path.parent} holds another search:\n  "
            + "\n  ".join(changes[:10])
            + "\nuse another --out (with --cache to share finished stages)"
        )
