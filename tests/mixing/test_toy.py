"""Toy problems: the oracle against every action sequence, the environment against its equations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.mixing import toy
from lt_jax.mixing.environment import Environment

LEVELS = (0.0, 0.3, 0.7)


@pytest.fixture
def problem(getkey):
    return toy.random_problem(getkey(), 3, LEVELS, 3)


def play(problem, actions, key):
    env = toy.ToyEnv(problem)
    turns = jax.random.split(key, len(actions) + 1)

    def turn(state, each):
        after = env.step(state, *each)
        return after.state, after

    start, state = env.reset(turns[0])
    return start, jax.lax.scan(turn, state, (jnp.asarray(actions), turns[1:]))[1]


@pytest.mark.parametrize(
    ("levels", "others"),
    [
        (LEVELS, {}),
        (LEVELS, {"retention": 0.6, "price": 0.05}),
        (LEVELS, {"horizon": 2}),
        ((0.0, 0.4, 0.8), {"retention": 0.5, "price": 0.3}),  # one dose by dear and cheap ways
    ],
)
def test_no_action_sequence_beats_the_oracle(getkey, levels, others):
    problem = toy.random_problem(getkey(), 2, levels, 3, **others)
    actions, value = toy.oracle(problem)
    rounds = len(actions)
    rows = itertools.product(range(3), repeat=2 * rounds)
    every = [toy.returns(problem, np.reshape(row, (rounds, 2))) for row in rows]
    np.testing.assert_allclose(value, max(every), rtol=1e-12)
    np.testing.assert_allclose(value, toy.returns(problem, actions), rtol=1e-12)
    assert value > 0 and min(every) < 0


def test_with_weights_the_oracle_picks_pairs(getkey):
    problem = toy.random_problem(getkey(), 2, (0.0, 0.5), 2, weights=(0.5, 1.0, 2.0))
    actions, value = toy.oracle(problem)
    assert actions.shape == (2, 2, 2)
    pairs = list(itertools.product(range(2), range(3)))
    every = [
        toy.returns(problem, np.reshape(row, (2, 2, 2)))
        for row in itertools.product(pairs, repeat=4)
    ]
    np.testing.assert_allclose(value, max(every), rtol=1e-12)
    _, steps = play(problem, actions, getkey())
    np.testing.assert_allclose(steps.reward[:, 0].sum(), value, rtol=1e-4)


def test_the_oracle_leaves_harmful_and_useless_classes_alone(getkey):
    for _ in range(5):
        problem = toy.random_problem(getkey(), 6)
        actions, value = toy.oracle(problem)
        quality = np.asarray(problem.quality)
        assert not actions[:, quality <= 0].any()
        assert actions[:, quality > 0].any(axis=0).all()
        fixed = [toy.returns(problem, np.full((8, 6), level)) for level in range(5)]
        assert value > max(fixed) and fixed[0] == 0


def test_forgetting_makes_the_best_share_depend_on_the_round(getkey):
    problem = toy.random_problem(getkey(), 3, (0.0, 0.8), 6, retention=0.5, price=0.05)
    actions, _ = toy.oracle(problem)
    helped = actions[:, actions.any(axis=0)]
    assert helped.size and not helped[0].any() and helped[-1].all()


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_environment_pays_what_the_equations_say(problem, getkey, noise):
    problem = problem.replace(noise=noise, retention=0.9)
    actions = np.array([[0, 1, 2], [2, 2, 0], [1, 0, 2]])
    start, steps = play(problem, actions, getkey())
    value = toy.returns(problem, actions)
    quiet = steps.observation[-1, :, 3] - start[:, 3]  # recall at the end less that at first
    spent = problem.price * np.array(LEVELS)[actions].sum() / 3
    np.testing.assert_allclose(steps.reward[:, 0].sum(), quiet.mean() - spent, atol=1e-5)
    np.testing.assert_allclose(steps.reward.sum(0), steps.reward.sum(0)[0], rtol=1e-6)
    assert np.isclose(steps.reward[:, 0].sum(), value, atol=1e-5) == (noise == 0)


def test_difference_rewards_compare_with_no_share_in_this_round(problem, getkey):
    actions = np.array([[0, 1, 2], [2, 2, 1], [1, 0, 2]])
    own = play(problem.replace(difference=True), actions, getkey())[1].reward
    for k in range(3):
        without = actions.copy()
        without[-1, k] = 0
        lost = toy.returns(problem, actions) - toy.returns(problem, without)
        np.testing.assert_allclose(own[-1, k], lost, atol=1e-6)
    assert (own[actions == 0] == 0).all()


def test_within_a_round_difference_rewards_rank_shares_as_the_team_s_reward(problem, getkey):
    """Whatever came before, and whatever the others do; by the same differences."""
    env = toy.ToyEnv(problem.replace(difference=True, retention=0.8, price=0.05))
    state = env.reset(getkey())[1]
    state = env.step(state, jnp.array([2, 1, 2]), getkey()).state
    others = jnp.array([1, 2, 1])
    for k in range(3):
        steps = [env.step(state, others.at[k].set(level), getkey()) for level in range(3)]
        own = np.array([step.reward[k] for step in steps])
        team = np.array([step.info["team"] for step in steps])
        np.testing.assert_allclose(own - own[0], team - team[0], atol=1e-6)
        assert own[0] == 0 and np.ptp(own) > 1e-4


def test_over_an_episode_difference_rewards_are_the_return_s_where_no_dose_is_forgotten(getkey):
    """By every sequence of shares: a class's own reward depends on its own shares alone."""
    problem = toy.random_problem(getkey(), 2, LEVELS, 4, difference=True)
    every = np.array(list(itertools.product(range(3), repeat=4)))
    both = jnp.asarray(np.stack([every, every], axis=-1))  # of either class, the other's as well
    total = jax.jit(jax.vmap(lambda problem, rows, key: play(problem, rows, key)[1].reward.sum(0),
                             (None, 0, None)))  # fmt: skip

    def reached(retention):
        kept = problem.replace(retention=retention)
        chosen = every[np.asarray(total(kept, both, getkey())).argmax(axis=0)].T
        return toy.returns(kept, chosen) / toy.oracle(kept)[1]

    assert reached(1.0) == pytest.approx(1, abs=1e-6)
    lost = [1 - reached(retention) for retention in (0.8, 0.5)]
    assert all(1e-3 < part < 0.5 for part in lost)


def test_an_episode_ends_by_its_rounds_or_is_cut(problem, getkey):
    actions = np.zeros((3, 3), int)
    whole = play(problem, actions, getkey())[1]
    assert whole.terminated.tolist() == [False, False, True] and not whole.truncated.any()
    cut = play(problem.replace(horizon=2), actions, getkey())[1]
    assert cut.truncated[:2].tolist() == [False, True] and not cut.terminated[:2].any()
    equal = play(problem.replace(horizon=3), actions, getkey())[1]
    assert equal.terminated[2] and not equal.truncated.any()
    assert toy.ToyEnv(problem.replace(horizon=2)).rounds == 2


def test_permuting_classes_permutes_what_agents_see(problem, getkey):
    order = np.array([2, 0, 1])
    actions = np.array([[0, 1, 2], [2, 1, 0], [1, 1, 2]])
    other = jax.tree.map(lambda leaf: leaf[order], problem)
    _, steps = play(problem, actions, getkey())
    _, moved = play(other, actions[:, order], getkey())
    np.testing.assert_allclose(moved.observation, steps.observation[:, order], rtol=1e-6)
    np.testing.assert_allclose(moved.reward, steps.reward, rtol=1e-5, atol=1e-7)


def test_it_is_an_environment_and_refuses_what_is_none(problem, getkey):
    env = toy.ToyEnv(problem)
    assert isinstance(env, Environment)
    assert (env.num_agents, env.num_actions, env.rounds) == (3, (3,), 3)
    assert env.reset(getkey())[0].shape == (3, len(env.observations))
    with pytest.raises(toy.ToyError, match="ascending from"):
        problem.replace(levels=(0.1, 0.2))
    with pytest.raises(toy.ToyError, match="2 or more"):
        toy.random_problem(getkey(), 1)
    with pytest.raises(toy.ToyError, match="retention = 1"):
        toy.oracle(problem.replace(retention=0.77, rounds=40))
