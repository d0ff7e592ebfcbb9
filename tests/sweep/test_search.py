"""Adaptive search: asked for and told on val, gone on with from its journal."""

import pathlib

import pytest

from lt_jax.config import ConfigError
from lt_jax.sweep import driver, jobs, measured, states
from lt_jax.sweep.definition import Search, Sweep
from lt_jax.sweep.space import Choice, Integers, Uniform
from lt_jax.sweep.states import State
from lt_jax.sweep.trial import carry_out

search = pytest.importorskip("lt_jax.sweep.search")
pytest.importorskip("optuna")
BASE = str(pathlib.Path(__file__).parents[2] / "configs/digits.py")
RATE = "classify.optimizer.learning_rate"
SPACE = {
    RATE: Uniform(1e-4, 1e-1, log=True),
    "classify.rounds": Integers(1, 4),
    "classify.arms.ce.loss": Choice(("cross_entropy", "focal")),
}


def sweep(trials=12, objective="val/ce/balanced_accuracy"):
    return Sweep(BASE, search=Search(SPACE, objective, trials))


@pytest.fixture(autouse=True)
def value(monkeypatch):
    """What trials measure: best at a rate of 0.01."""

    def objective(planned, _):
        rate = measured.value_of(planned, RATE)
        return 1.0 - abs(rate - 0.01)

    monkeypatch.setattr(measured, "objective", objective)


def study(out, sampler="tpe", **options):
    return search.Study(out, sweep(**options), out / "cache", sampler)


def run(out, source, work=lambda _: None):
    executor = jobs.InProcess(lambda folder: carry_out(folder, work))
    return driver.run(out, states.all_in(out), executor, source, pause=0.0, tell=lambda _: None)


def draws(out):
    return [one.trial.overrides for one in states.all_in(out)]


@pytest.mark.parametrize("sampler", search.SAMPLERS)
def test_a_search_ends_with_all_its_trials_and_its_best(tmp_path, sampler):
    source = study(tmp_path, sampler)
    found = run(tmp_path, source)
    assert len(found) == 12 and {one.state for one in found.values()} == {State.DONE}
    source.more(0, found)
    name, best = source.best()
    values = {one.name: measured.objective(one, None) for one in states.all_in(tmp_path)}
    assert best == max(values.values()) == values[name]
    assert {type(one["classify.rounds"]) for one in draws(tmp_path)} == {int}
    assert {one["classify.arms.ce.loss"] for one in draws(tmp_path)} <= {"cross_entropy", "focal"}


def test_a_search_that_is_cut_short_goes_on_as_an_unbroken_one_does(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        out.mkdir()
    run(whole, study(whole))

    class Killed(BaseException):
        pass

    def work(_):
        if len(states.all_in(cut)) == 5:
            raise Killed

    with pytest.raises(Killed):
        run(cut, study(cut), work)
    assert len(draws(cut)) == 5
    run(cut, study(cut))
    assert draws(cut) == draws(whole)


def test_a_kill_between_asking_and_planning_loses_no_trial(tmp_path):
    source = study(tmp_path)
    source._study.sampler = source._make_sampler(0)
    asked = source._study.ask(fixed_distributions=source._distributions)
    (planned,) = study(tmp_path).more(1, {})
    assert planned.trial.overrides[RATE] == asked.params[RATE]
    assert len(study(tmp_path)._study.trials) == 1


def test_a_failed_trial_that_is_put_back_counts_once_it_is_done(tmp_path):
    broken = True

    def work(planned):
        if broken and planned.name == states.all_in(tmp_path)[0].name:
            raise ValueError("broken")

    found = run(tmp_path, study(tmp_path), work)
    assert sum(one.state is State.FAILED for one in found.values()) == 1
    source = study(tmp_path)
    source.more(0, found)
    told = [held for held in source._study.trials if held.value is not None]
    assert len(told) == 11
    broken = False
    states.put_back(states.all_in(tmp_path)[0].folder)
    for _ in range(2):
        source = study(tmp_path)
        source.more(0, run(tmp_path, source, work))
        assert len([held for held in source._study.trials if held.value is not None]) == 12


def test_what_cannot_be_searched_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="the sweep has no Search"):
        search.Study(tmp_path, Sweep(BASE), tmp_path)
    with pytest.raises(ConfigError, match="got 'cmaes'; takes one of tpe"):
        study(tmp_path, "cmaes")
