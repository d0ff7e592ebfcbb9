"""Adaptive search: Optuna's samplers ask for trials and are told what came of them on val.

Its journal, OUT/journal.log, is JSON lines, from which a search goes on wherever it was killed. All
trials of a search, however many run at once, share it; only the driver writes into it, since a
trial's result is a fact in the trial's own folder. CMA-ES is left out: Optuna keeps its state as a
pickle in the journal.
"""

import functools
import json
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from lt_jax.config import ConfigError
from lt_jax.sweep import definition, measured, states
from lt_jax.sweep.definition import Sweep
from lt_jax.sweep.jobs import MissingLibraryError
from lt_jax.sweep.space import Choice, Distribution, Integers, Uniform
from lt_jax.sweep.states import Planned, State, Status

SAMPLERS = ("tpe", "random", "qmc")
JOURNAL = "journal.log"


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

        Raises ConfigError where the sweep has no search, no such sampler, or fields that cannot be.
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
        journal = self._library.storages.journal.JournalFileBackend(str(out / JOURNAL))
        self._study = self._library.create_study(
            study_name=self._search.objective,
            storage=self._library.storages.JournalStorage(journal),
            direction="minimize" if self._search.minimize else "maximize",
            load_if_exists=True,
        )
        self._distributions = {
            field: _distribution(self._library, held) for field, held in self._search.space.items()
        }

    def more(self, room: int, known: Mapping[str, Status]) -> Sequence[Planned]:
        """Tells the sampler what has ended, and asks it for up to `room` new trials."""
        new = self._settle(known)
        while len(new) < room and len(self._study.trials) < self._search.trials:
            # Anew for each trial: which values it gets depends on its number and those before it,
            # and not on where the search was killed.
            self._study.sampler = self._make_sampler(len(self._study.trials))
            asked = self._study.ask(fixed_distributions=self._distributions)
            planned = self._plan(asked)
            if planned.name not in known:
                new.setdefault(planned.name, planned)
        return list(new.values())

    def _settle(self, known: Mapping[str, Status]) -> dict[str, Planned]:
        """Tells all that has ended since; returns trials that were asked for and are not known."""
        live, trials = self._library.trial.TrialState, self._study.trials
        complete = {held.user_attrs.get("trial") for held in trials if held.state == live.COMPLETE}
        done = {name for name, one in known.items() if one.state is State.DONE}
        new = {}
        for held in trials:
            name = held.user_attrs.get("trial")
            if held.state == live.RUNNING:
                if name not in known:  # a kill came between asking and planning
                    planned = self._plan(self._library.trial.Trial(self._study, held._trial_id))
                    new[planned.name] = planned
                elif name in done:
                    self._tell(held.number, name)
                elif known[name].state is State.FAILED:
                    self._study.tell(held.number, state=live.FAIL)
            elif held.state == live.FAIL and name in done - complete:  # put back after it failed
                self._add(held, name)
                complete.add(name)
        return new

    def _plan(self, asked: Any) -> Planned:
        overrides = {
            field: _value(held, asked.params[field]) for field, held in self._search.space.items()
        }
        trial = definition.plan(self._base, self._sweep.shared, overrides)
        planned = states.write(self._out, trial, self._sweep.stages, self._cache)
        states.add_to_order(self._out, [planned.name])
        asked.set_user_attr("trial", planned.name)
        return planned

    def _objective(self, name: str) -> float | None:
        planned = states.read_trial(states.folder_of(self._out, name))
        return measured.objective(planned, self._search)

    def _tell(self, number: int, name: str) -> None:
        value = self._objective(name)
        fail = self._library.trial.TrialState.FAIL
        self._study.tell(number, value, state=fail if value is None else None)

    def _add(self, held: Any, name: str) -> None:
        if (value := self._objective(name)) is not None:
            self._study.add_trial(
                self._library.trial.create_trial(
                    value=value,
                    params=held.params,
                    distributions=held.distributions,
                    user_attrs={"trial": name},
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
