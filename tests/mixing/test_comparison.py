"""What is asked of a learned policy, on toy problems: returns, schedules, what it reads."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import MixingConfig, PolicyConfig
from lt_jax.mixing import comparison, controllers, learn, networks, toy
from lt_jax.runtime import faults

LEVELS, ROUNDS = (0.0, 0.3, 0.7), 3
CONFIG = PolicyConfig(width=4, episodes=8, updates=2, minibatches=1)


def learner_of(seed=0, config=CONFIG, **problem):
    made = toy.random_problem(jax.random.key(seed), 3, LEVELS, ROUNDS, **problem)
    return learn.Learner(config, toy.ToyEnv(made))


def policy_of(learner, seed=0):
    """One whose choices depend on all that it sees."""
    env = learner.environment
    key = jax.random.key(seed)
    fresh = networks.init_policy(learner.modules.actor, key, 3, len(env.observations))
    louder = lambda leaf: leaf + jax.random.normal(jax.random.fold_in(key, leaf.size), leaf.shape)
    return fresh.replace(params=jax.tree.map(louder, fresh.params))


def deaf_to(policy, feature):
    """The same, but for the weights of one observation, which are 0."""
    size = len(toy.OBSERVATIONS)
    quiet = lambda leaf: leaf.at[feature].set(0) if leaf.shape[0] == size else leaf
    return policy.replace(params=jax.tree.map(quiet, policy.params))


def test_an_observation_that_is_not_read_has_no_importance(getkey):
    learner = learner_of()
    fidelity = toy.OBSERVATIONS.index("fidelity")
    found = comparison.importance(learner, deaf_to(policy_of(learner), fidelity), getkey())
    assert len(found) == len(toy.OBSERVATIONS)
    assert found[fidelity] == pytest.approx(0, abs=1e-6)
    assert found[toy.OBSERVATIONS.index("recall")] > 1e-3


@pytest.mark.parametrize("weights", [(), (0.5, 2.0)])
def test_returns_are_those_of_the_problem(weights, getkey):
    learner = learner_of(weights=weights, retention=0.8)
    problem, policy = learner.environment.problem, policy_of(learner)
    greedy = comparison.greedy_schedule(learner, policy, getkey())
    assert greedy.shape == (ROUNDS, 3, 1 + bool(weights))
    schedules = {"greedy": greedy, "none": 0 * greedy, "most": 0 * greedy + 1}
    found = comparison.returns(learner, policy, schedules, getkey())
    plain = lambda actions: actions if weights else actions[..., 0]
    for name, actions in schedules.items():
        exact = toy.returns(problem, plain(actions))
        assert found[name]["mean"] == pytest.approx(exact, abs=1e-5)
        assert found[name]["std"] == pytest.approx(0, abs=1e-6)
        assert found[name]["n"] == comparison.COMPARED
    # Without noise the policy sees in every episode what it saw in the first.
    assert found["policy"]["mean"] == pytest.approx(found["greedy"]["mean"], abs=1e-6)
    assert found["most"]["mean"] != pytest.approx(found["none"]["mean"], abs=1e-4)


def test_the_greedy_schedule_is_what_the_policy_likes_best_of_what_it_sees(getkey):
    learner = learner_of()
    env, policy, key = learner.environment, policy_of(learner), getkey()
    chosen = comparison.greedy_schedule(learner, policy, key)
    observation, state = env.reset(key)  # without noise no key matters
    for now in chosen:
        (logits,) = networks.logits(learner.modules.actor, policy, observation)
        np.testing.assert_array_equal(now[:, 0], np.asarray(logits).argmax(-1))
        after = env.step(state, jnp.asarray(now[:, 0]), key)
        observation, state = after.observation, after.state
    assert len(np.unique(chosen)) > 1


def test_the_searched_schedule_is_the_best_of_as_many_as_the_policy_had(getkey):
    learner, key = learner_of(retention=0.8), getkey()
    found = comparison.searched_schedule(learner, key, learner.trainings)
    drawn = [comparison.search.schedule(learner.environment, key, n) for n in range(8 * 2)]
    got = [toy.returns(learner.environment.problem, np.asarray(each)) for each in drawn]
    np.testing.assert_array_equal(found[..., 0], drawn[int(np.argmax(got))])
    assert max(got) > min(got)


def test_a_search_that_diverged_everywhere_is_an_error(getkey):
    learner = learner_of()
    broken = learner.environment.problem.replace(quality=jnp.full(3, jnp.nan))
    with pytest.raises(faults.NonFiniteError, match="no finite return in 16 trainings"):
        comparison.searched_schedule(learner.of(toy.ToyEnv(broken)), getkey(), 16)


def test_fixed_schedules_are_each_level_at_the_factor_nearest_to_one():
    learner = learner_of(weights=(0.5, 1.2, 3.0))
    config = MixingConfig(levels=LEVELS, weights=(0.5, 1.2, 3.0), rounds=ROUNDS)
    found = comparison.fixed_schedules(learner.environment, config)
    assert list(found) == ["fixed 0", "fixed 0.3", "fixed 0.7"]
    for level, parts in enumerate(found.values()):
        assert (parts[..., 0] == level).all() and (parts[..., 1] == 1).all()


@pytest.mark.parametrize("weights", [(), (0.5, 1.0, 2.0)])
def test_what_is_written_of_a_schedule_is_read_again(weights, tmp_path):
    config = MixingConfig(levels=LEVELS, weights=weights, rounds=ROUNDS)
    shape = ROUNDS, 4, 1 + bool(weights)
    parts = np.random.default_rng(0).integers(3, size=shape)
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(comparison.entries(config, parts)))
    rounds = controllers.read_schedule(path)
    assert [now.share for now in rounds] == [tuple(np.array(LEVELS)[now[:, 0]]) for now in parts]
    for now, chosen in zip(rounds, parts, strict=True):
        assert (now.factor is None) == (not weights)
        assert not weights or now.factor == tuple(np.array(weights)[chosen[:, 1]])


def test_no_program_holds_the_environment_s_arrays(getkey, monkeypatch):
    """They are its arguments: as constants, data would be in the text of each."""
    seen, real = [], jax.jit

    def spying(function, **options):
        jitted = real(function, **options)

        def call(*args):
            seen.append(jitted.lower(*args).as_text())
            return jitted(*args)

        return call

    marked = learner_of().environment.problem.replace(base=jnp.array([0.123456, 0.2, 0.3]))
    learner = learner_of().of(toy.ToyEnv(marked))
    policy = policy_of(learner)
    monkeypatch.setattr(comparison.jax, "jit", spying)
    schedule = comparison.greedy_schedule(learner, policy, getkey())
    comparison.searched_schedule(learner, getkey(), 16)
    comparison.returns(learner, policy, {"greedy": schedule}, getkey())
    assert len(seen) == 4 and not any("1.234560e-01" in text for text in seen)
    closed = real(lambda key: learner.environment.reset(key)[0]).lower(getkey()).as_text()
    assert "1.234560e-01" in closed  # so that the mark would be found
