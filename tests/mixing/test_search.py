"""Random search: its schedules are of both kinds, what it takes is the best, and budgets nest."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.mixing import search, toy
from lt_jax.mixing.rollout import play, replay
from tests.mixing.tiny import Chain

LEVELS = (0.0, 0.3, 0.7)
TRAININGS = search.CHUNK


def environment_of(key, classes=3, **others):
    return toy.ToyEnv(toy.random_problem(key, classes, LEVELS, 4, **others))


def searching(environment, trainings=TRAININGS):
    return jax.jit(lambda key: search.random_search(environment, key, trainings))


def drawn(environment, key, count):
    draw = jax.jit(jax.vmap(lambda index: search.schedule(environment, key, index)))
    return np.asarray(draw(jnp.arange(count)))


def test_it_returns_what_each_schedule_earns_and_the_best_of_them(getkey):
    environment, key = environment_of(getkey(), retention=0.8), getkey()
    best, returns = searching(environment)(key)
    assert best.shape == (4, 3) and returns.shape == (TRAININGS,)
    schedules = drawn(environment, key, TRAININGS)
    expected = [toy.returns(environment.problem, np.asarray(actions)) for actions in schedules]
    np.testing.assert_allclose(returns, expected, atol=1e-5)
    np.testing.assert_array_equal(best, schedules[int(np.argmax(expected))])
    assert max(expected) <= toy.oracle(environment.problem)[1] + 1e-9


def test_what_was_not_measured_is_not_the_best(getkey):
    """A classifier that diverged returns NaN, which `argmax` takes for the largest."""

    class Diverging(toy.ToyEnv):
        def step(self, state, action, key):
            after = super().step(state, action, key)
            team = jnp.where(action[0] == 0, jnp.nan, after.info["team"])
            return after.replace(info={**after.info, "team": team})

    environment, key = Diverging(environment_of(getkey()).problem), getkey()
    best, returns = searching(environment)(key)
    assert np.isnan(returns).any() and (np.asarray(best)[:, 0] != 0).all()
    np.testing.assert_array_equal(best, drawn(environment, key, TRAININGS)[np.nanargmax(returns)])


def test_half_of_the_schedules_are_constant_and_all_choices_are_alike(getkey):
    environment, key = environment_of(getkey(), 6), getkey()
    schedules = drawn(environment, key, 2000)
    constant = (schedules == schedules[:, :1]).all(axis=(1, 2))
    np.testing.assert_array_equal(constant, np.arange(2000) % 2 == 0)  # by chance: 1 of 3^18
    for kind in (schedules[::2, 0], schedules[1::2]):
        rates = np.stack([(kind == level).mean(axis=0) for level in range(3)])
        np.testing.assert_allclose(rates, 1 / 3, atol=5 * np.sqrt(2 / 9 / 1000))


def test_a_shorter_search_is_the_beginning_of_a_longer_one(getkey):
    environment, key = environment_of(getkey(), noise=0.1), getkey()
    # Of the longer one the second chunk is not full.
    shorter, longer = searching(environment), searching(environment, TRAININGS + 5)
    (_, few), (_, many) = shorter(key), longer(key)
    assert many.shape == (TRAININGS + 5,)
    np.testing.assert_allclose(few, many[:TRAININGS], rtol=1e-5, atol=1e-6)
    assert not np.allclose(shorter(getkey())[1], few)


def test_two_parts_of_an_action_keep_to_their_own_choices(getkey):
    environment, key = Chain(parts=2), getkey()
    best, returns = searching(environment)(key)
    assert best.shape == (2, 3, 2)
    schedules = drawn(environment, key, TRAININGS)
    assert [len(np.unique(schedules[..., part])) for part in range(2)] == [2, 3]
    assert returns.max() > returns.min()


def test_a_replayed_schedule_is_the_episode_it_was_taken_from(getkey):
    environment = Chain(impatient=True)
    draw = lambda observation, key: jax.random.randint(key, (3,), 0, 2)
    both = jax.jit(jax.vmap(lambda key: (
        live := play(environment, draw, key), replay(environment, live.action[..., 0], key)
    )))  # fmt: skip
    live, again = both(jax.random.split(getkey(), 8))
    for field in dataclasses.fields(live):
        name = field.name
        np.testing.assert_array_equal(getattr(live, name), getattr(again, name))
    assert len(np.unique(live.terminated[:, 0])) == 2  # some ended early, others did not
