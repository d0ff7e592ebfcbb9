"""Adaptive search: asked for and told on val, gone on with from its journal."""

import pathlib

import pytest

from lt_jax.config import ConfigError
from lt_jax.sweep import definition, driver, jobs, measured, states
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


def test_the_first_trial_has_the_base_s_own_values(tmp_path):
    study(tmp_path)  # a kill came before it was asked for
    source = study(tmp_path)
    assert len(source._study.trials) == 1
    base = definition.base_of(BASE)["classify"]
    (first, second) = source.more(2, {})
    assert states.all_in(tmp_path) == [first, second]
    own = {RATE: base["optimizer"]["learning_rate"], "classify.rounds": base["rounds"]}
    assert own.items() <= first.trial.overrides.items()
    assert second.trial.overrides[RATE] != own[RATE]


def test_a_kill_amid_asking_costs_a_draw_and_no_more(tmp_path):
    source = study(tmp_path, trials=2)
    source._study.ask(fixed_distributions={RATE: source._distributions[RATE]})
    found = run(tmp_path, study(tmp_path, trials=2))
    assert len(found) == 2 and {one.state for one in found.values()} == {State.DONE}
    assert study(tmp_path)._study.trials[0].state.name == "FAIL"
    assert (
        draws(tmp_path)[0][RATE]
        == definition.base_of(BASE)["classify"]["optimizer"]["learning_rate"]
    )


def test_a_combination_that_is_refused_is_told_and_another_is_drawn(tmp_path, capsys):
    space = {
        "classify.arms.ce.second_stage": Choice(("", "crt")),
        "classify.arms.ce.experts": Choice((1, 3)),  # several have no second stage
        RATE: SPACE[RATE],
    }
    wanted = Sweep(BASE, search=Search(space, "val/ce/balanced_accuracy", 8))
    found = run(tmp_path, search.Study(tmp_path, wanted, tmp_path / "cache", "random"))
    assert len(found) == 8 and {one.state for one in found.values()} == {State.DONE}
    refused = capsys.readouterr().err.count("search: another one is drawn instead of trial")
    held = search.Study(tmp_path, wanted, tmp_path / "cache", "random")._study.trials
    assert refused > 0 and len(held) == 8 + refused


def test_a_search_that_is_refused_everywhere_ends(tmp_path, monkeypatch):
    def plan(_, shared, overrides):
        raise ConfigError("no")

    source = study(tmp_path, trials=2)
    monkeypatch.setattr(definition, "plan", plan)
    assert not source.more(2, {}) and len(source._study.trials) == 20


def test_another_search_in_the_same_folder_is_refused(tmp_path, monkeypatch):
    run(tmp_path, study(tmp_path, trials=2))
    assert len(run(tmp_path, study(tmp_path, "random", trials=3))) == 3  # a longer one is the same
    monkeypatch.setitem(SPACE, "classify.arms.ce.loss", Choice(("focal", "ldam_drw")))
    with pytest.raises(ConfigError, match=r"(?s)another search:.*ce\.loss\.Choice.*another --out"):
        study(tmp_path)


@pytest.mark.parametrize("fails_first", [False, True])
def test_a_trial_without_a_value_is_measured_once(tmp_path, monkeypatch, fails_first):
    measured_, broken = [], fails_first

    def work(_):
        if broken:
            raise ValueError("broken")

    monkeypatch.setattr(measured, "objective", lambda planned, _: measured_.append(planned.name))
    found = run(tmp_path, study(tmp_path, trials=1), work)
    if fails_first:
        study(tmp_path, trials=1).more(0, found)
        broken = False
        states.put_back(states.all_in(tmp_path)[0].folder)
    for _ in range(3):
        source = study(tmp_path, trials=1)
        source.more(0, run(tmp_path, source, work))
    assert len(measured_) == 1 and source.best() is None


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
