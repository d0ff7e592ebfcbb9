"""Learning: gradients that are right on average; the same in one go, in parts or in bulk."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lt_jax.config import ConfigError
from lt_jax.config.mixing import PolicyConfig
from lt_jax.mixing import estimators, learn, networks, objectives, toy
from lt_jax.mixing.rollout import play
from lt_jax.models import module
from lt_jax.runtime import checkpoint, keys, mesh
from tests.mixing.tiny import Bandit, Chain, Fate

ALGORITHMS = ["mappo", "reinforce"]
CONFIG = PolicyConfig(
    width=8, episodes=16, updates=3, epochs=2, minibatches=2, learning_rate=0.01, discount=0.9
)


def config_of(algorithm, **fields):
    return dataclasses.replace(CONFIG, algorithm=algorithm, **fields)


@functools.cache
def shared(algorithm):
    """A learner of episodes that may end early, and its update, compiled once for many tests."""
    learner = learn.Learner(config_of(algorithm, learning_rate=0.05), Chain(impatient=True))
    return learner, jax.jit(learner.update)


@functools.cache
def looped(algorithm, seed):
    """The states before and after each update of a training, and its curves."""
    learner, update = shared(algorithm)
    states, curves = [learner.init(jax.random.key(seed))], []
    for _ in range(learner.config.updates):
        state, metrics = update(states[-1])
        states.append(state)
        curves.append(metrics)
    return states, curves


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_episodes_shared_by_eight_devices_teach_the_same(algorithm):
    states, curves = looped(algorithm, 0)
    learner, _ = shared(algorithm)
    device_mesh = mesh.make_mesh(8, fsdp=2)
    split = dataclasses.replace(learner, device_mesh=device_mesh)
    key = jax.random.key(0)
    episodes = jax.jit(split.episodes)(states[0].policy, key)
    assert not episodes.reward.sharding.is_fully_replicated
    alone = jax.jit(learner.episodes)(states[0].policy, key)
    np.testing.assert_array_equal(episodes.action, alone.action)
    state = mesh.replicate(states[0], device_mesh)
    update = jax.jit(split.update)
    for curve in curves:
        state, metrics = update(state)
        for name, value in curve.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    left, right = (ravel_pytree(held.actor.params)[0] for held in (states[-1], state))
    np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def loudly(actor, key, agents, size):
    """A policy with preferences: of a fresh one the gradient is nearly symmetric."""
    policy = networks.init_policy(actor, key, agents, size)
    flat, back = ravel_pytree(policy.params)
    return policy.replace(params=back(flat + 0.5 * jax.random.normal(key, flat.shape)))


def gradient_estimates(count, policy_key, key):
    """Policy gradients of a bandit: estimates [2 count p] by 4 episodes each, with a baseline and
    without, and the truth [p]."""
    payoff = jnp.asarray([[2.0, 3.5, 2.0], [4.0, 2.0, 2.5], [2.0, 2.0, 3.0]])
    bandit, config = Bandit(payoff), config_of("reinforce", episodes=4)
    actor = networks.make(config, bandit.num_actions).actor
    policy = loudly(actor, policy_key, 2, 2)
    act = networks.make_act(config, bandit.num_actions)

    def estimate(baseline, key):
        choose = lambda observation, at: act(policy, observation, at, False)
        episodes = jax.vmap(lambda key: play(bandit, choose, key), out_axes=1)(
            jax.random.split(key, config.episodes)
        )
        returns = estimators.returns_to_go(episodes.reward, episodes.terminated, 1.0)
        advantage = returns - estimators.leave_one_out(returns, episodes.alive) * baseline
        samples = objectives.Samples(
            observation=episodes.observation[0],
            action=episodes.action[0],
            log_prob=jnp.zeros((4, 2)),
            advantage=advantage[0],
            target=advantage[0],
            weight=jnp.ones(4),
        )
        loss = lambda params: objectives.reinforce_loss(actor, params, samples, entropy=0.0)[0]
        # A loss is the mean over agents, the gradient of the team's return their sum.
        return -2 * ravel_pytree(jax.grad(loss)(policy.params))[0]

    def expected(params):
        chances = jax.nn.softmax(
            networks.logits(actor, policy.replace(params=params), jnp.eye(2))[0]
        )
        return jnp.einsum("i,j,ij->", chances[0], chances[1], payoff)

    every = jax.vmap(jax.vmap(estimate, in_axes=(None, 0)), in_axes=(0, None))
    estimates = jax.jit(every)(jnp.asarray([1.0, 0.0]), jax.random.split(key, count))
    return np.asarray(estimates), np.asarray(ravel_pytree(jax.grad(expected)(policy.params))[0])


def test_the_gradient_is_right_on_average_and_the_baseline_makes_it_steadier(getkey):
    both, truth = gradient_estimates(4000, getkey(), getkey())
    spreads = []
    for estimates in both:
        # Softmax of two agents and three choices: only 4 directions of the gradients vary.
        variances, directions = np.linalg.eigh(np.cov(estimates.T.astype(np.float64)))
        directions, errors = directions[:, -4:], np.sqrt(variances[-4:] / len(estimates))
        assert variances[-5] < 1e-6 * variances[-1]
        squared = lambda vector, at=directions, by=errors: (((vector @ at) / by) ** 2).sum()
        assert squared(estimates.mean(axis=0) - truth) < 25  # chi-squared of 4: beyond, p < 1e-4
        assert squared(truth) > 150  # a wrong sign or scale is far from within the error
        spreads.append(variances.sum())
    assert spreads[0] < 0.5 * spreads[1]


def test_episodes_are_those_of_a_python_loop(getkey):
    environment = Chain(impatient=True)
    act = networks.make_act(CONFIG, environment.num_actions)
    actor = networks.make(CONFIG, environment.num_actions).actor
    policy = networks.init_policy(actor, getkey(), 3, 2)
    choose = jax.jit(lambda observation, key: act(policy, observation, key, False))
    reset, step = jax.jit(environment.reset), jax.jit(environment.step)
    seeds = jnp.stack([jax.random.key(seed) for seed in range(3, 7)])
    played = jax.jit(jax.vmap(lambda key: play(environment, choose, key), out_axes=1))(seeds)
    for n, key in enumerate(seeds):
        observation, state = reset(keys.stream(key, "reset"))
        for t, at in enumerate(jax.random.split(keys.stream(key, "turns"), 2)):
            action = choose(observation, keys.stream(at, "action"))
            new = step(state, action, keys.stream(at, "step"))
            np.testing.assert_allclose(played.observation[t, n], observation, rtol=1e-6)
            np.testing.assert_array_equal(played.action[t, n, :, 0], action)
            np.testing.assert_allclose(played.reward[t, n], new.reward, rtol=1e-6)
            np.testing.assert_allclose(played.team[t, n], new.info["team"], rtol=1e-6)
            assert played.alive[t, n] and played.terminated[t, n] == new.terminated
            observation, state = new.observation, new.state
            if new.terminated:
                break
        assert played.alive[:, n].sum() == t + 1
        # What was seen at the end stays, for the value of what a truncated episode goes on to.
        np.testing.assert_allclose(played.observation[t + 1, n], observation, rtol=1e-6)
        np.testing.assert_allclose(played.observation[-1, n], observation, rtol=1e-6)
    early = np.asarray(played.terminated[0])
    assert 0 < early.sum() < len(seeds)
    np.testing.assert_array_equal(early, played.action[0, :, 0, 0] == 0)
    assert not played.reward[1][early].any() and not played.team[1][early].any()
    assert (played.terminated.sum(axis=0) == 1).all() and not played.truncated.any()


class Watched(toy.ToyEnv):
    """Stepped on after its end."""

    rounds = 4


def episodes_of(horizon, rounds, watched, key):
    """Of a toy problem, and a learner of these."""
    problem = toy.random_problem(key, 3, rounds=rounds, horizon=horizon, price=0.1)
    env = (Watched if watched else toy.ToyEnv)(problem)
    learner = learn.Learner(config_of("mappo", episodes=4, gae_lambda=0.7), env)
    return learner, learner.init(key)


@pytest.mark.parametrize("watched", [False, True])
def test_a_truncated_episode_s_value_goes_on_and_a_terminated_one_s_does_not(watched, getkey):
    """Cut in mid-episode, played, and learned from: at its last step the target has V(o_2)."""
    key, found = getkey(), {}
    for end, horizon, rounds in (("truncated", 2, 5), ("terminated", 0, 2)):
        learner, state = episodes_of(horizon, rounds, watched, key)
        flat, back = ravel_pytree(state.critic.params)  # a fresh critic says next to nothing
        louder = back(flat + 0.5 * jax.random.normal(key, flat.shape))
        state = dataclasses.replace(state, critic=state.critic.replace(params=louder))
        at = jax.random.fold_in(jax.random.wrap_key_data(state.key), 0)
        played = jax.jit(learner.episodes)(state.policy, at)
        steps = np.arange(4 if watched else 2)
        for flag in ("truncated", "terminated"):
            expected = (steps == 1) & (flag == end)
            np.testing.assert_array_equal(getattr(played, flag), np.tile(expected, (4, 1)).T)
        np.testing.assert_array_equal(played.alive, np.tile(steps < 2, (4, 1)).T)
        assert not played.reward[2:].any() and not played.team[2:].any()
        for later in played.observation[3:]:  # what was seen at the end stays
            np.testing.assert_array_equal(later, played.observation[2])
        progress = toy.OBSERVATIONS.index("progress")
        np.testing.assert_allclose(played.observation[2, ..., progress], 2 / rounds)
        seen = state.observations.normalize(played.observation)
        values = module.apply(learner.modules.critic, state.critic.params, seen)[..., 0]
        reward, discount, trace = played.reward.mean(-1), learner.config.discount, 0.7
        after = values[2] if end == "truncated" else 0.0
        last = reward[1] + discount * after
        first = reward[0] + discount * ((1 - trace) * values[1] + trace * last)
        moments = jax.jit(learner.update)(state)[0].values
        targets = np.concatenate([first, last])
        np.testing.assert_allclose(moments.mean, targets.mean(), rtol=1e-4)
        np.testing.assert_allclose(moments.variance, targets.var(), rtol=1e-3)
        found[end] = targets.mean(), np.abs(values[2]).min()
    assert min(found["truncated"][1], abs(found["truncated"][0] - found["terminated"][0])) > 1e-2


def test_the_ratio_is_one_in_the_first_minibatch_and_the_policy_moves_from_there():
    for metrics in looped("mappo", 0)[1]:
        assert metrics["first_ratio_error"] < 1e-5
        assert metrics["kl"] > 1e-6


def test_at_ratio_one_the_clipped_gradient_is_that_of_reinforce_and_beyond_it_is_cut(getkey):
    actor = networks.make(CONFIG, (3,)).actor
    observation = jax.random.normal(getkey(), (6, 2, 2))
    policy = loudly(actor, getkey(), 2, 2)
    parts = networks.logits(actor, policy, observation)
    action = jax.random.randint(getkey(), (6, 2, 1), 0, 3)
    advantage = jax.random.normal(getkey(), (6, 2))
    samples = objectives.Samples(
        observation, action, networks.log_prob(parts, action), advantage, advantage,
        jnp.asarray([1.0, 1, 1, 0, 1, 1]),
    )  # fmt: skip
    clipped = lambda params, held: objectives.clipped_loss(
        actor, params, held, clip=0.2, entropy=0.01
    )[0]
    plain = lambda params: objectives.reinforce_loss(actor, params, samples, entropy=0.01)[0]
    slopes = jax.jit(lambda params: (jax.grad(clipped)(params, samples), jax.grad(plain)(params)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *slopes(policy.params))
    # Played when they were half as likely: gains are cut at the clip, losses are not.
    drifted = samples.replace(log_prob=samples.log_prob - np.log(2))
    value, metrics = objectives.clipped_loss(actor, policy.params, drifted, clip=0.2, entropy=0.0)
    gain = np.where(advantage > 0, 1.2 * advantage, 2 * advantage).mean(axis=-1)
    np.testing.assert_allclose(value, -(gain * samples.weight).sum() / 6, rtol=1e-5)
    assert metrics["clip_fraction"] == 1
    np.testing.assert_allclose(metrics["ratio_error"], 1.0, rtol=1e-5)


def test_what_is_after_the_end_changes_no_loss(getkey):
    actor, critic = networks.make(CONFIG, (3,))
    policy = loudly(actor, getkey(), 2, 2)
    observation, advantage = (jax.random.normal(getkey(), (6, 2, size)) for size in (2, 1))
    action = jax.random.randint(getkey(), (6, 2, 1), 0, 3)
    weight = jnp.asarray([1.0, 1, 0, 0, 1, 1])
    samples = objectives.Samples(
        observation, action, advantage[..., 0], advantage[..., 0], advantage[:, :1, 0], weight
    )
    other = jax.tree.map(
        lambda leaf: jnp.where(weight.reshape(-1, *(1,) * (leaf.ndim - 1)) > 0, leaf, 0 * leaf + 1),
        samples,
    ).replace(weight=weight)
    values = module.init(critic, getkey(), observation)
    for loss in (
        lambda held: objectives.clipped_loss(actor, policy.params, held, clip=0.2, entropy=0.1),
        lambda held: objectives.reinforce_loss(actor, policy.params, held, entropy=0.1),
        lambda held: objectives.value_loss(critic, values, held),
    ):
        np.testing.assert_allclose(loss(samples)[0], loss(other)[0], rtol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_resumed_training_equals_an_unbroken_one(algorithm, tmp_path):
    learner, update = shared(algorithm)
    states, curves = looped(algorithm, 0)
    checkpoint.save_tree(tmp_path / "state", states[1])
    state = checkpoint.load_tree(tmp_path / "state", learner.init(jax.random.key(99)))
    assert state.updates == 1
    assert state.observations.count == states[1].observations.count > 0  # it is in the file
    for at in (1, 2):
        state, metrics = update(state)
        jax.tree.map(np.testing.assert_array_equal, metrics, curves[at])
    jax.tree.map(np.testing.assert_array_equal, state, states[-1])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_population_in_one_program_equals_a_loop_over_seeds_and_updates(algorithm):
    learner, seeds = shared(algorithm)[0], range(3)
    train = learn.make_train(learner.config, learner.environment)
    together = jax.vmap(train)(jnp.stack([jax.random.key(seed) for seed in seeds]))
    spent = learner.config.updates * learner.config.episodes
    assert (together.trainings == spent).all()
    assert (together.curves["trainings"][:, -1] == spent).all()
    for seed in seeds:
        states, curves = looped(algorithm, seed)
        alone = states[-1].policy, jax.tree.map(lambda *values: jnp.stack(values), *curves)
        member = jax.tree.map(lambda leaf: leaf[seed], (together.policy, together.curves))  # noqa: B023
        jax.tree.map(  # a compiler may round differently there
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), member, alone
        )
    returns = np.asarray(together.curves["return_mean"])
    assert len(np.unique(returns[:, 0])) == len(seeds)


def test_a_training_s_program_holds_none_of_its_environment_s_arrays():
    problem = toy.random_problem(jax.random.key(0), 3, rounds=2)
    marked = toy.ToyEnv(problem.replace(base=jnp.array([0.123456, 0.2, 0.3])))
    train = learn.make_train(config_of("reinforce", updates=1, episodes=2), marked)
    key = jax.random.key(1)
    assert "1.234560e-01" not in train.func.lower(*train.args, key).as_text()
    closed = jax.jit(train).lower(key).as_text()
    assert "1.234560e-01" in closed  # so that the mark would be found


def test_moments_are_those_of_all_that_was_observed_and_come_after_the_update():
    learner, seen = shared("reinforce")[0], []
    states = looped("reinforce", 0)[0]
    np.testing.assert_array_equal(states[0].policy.moments.count, 0)
    replay = jax.jit(learner.episodes)
    for state in states[:-1]:
        at = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.updates)
        episodes = replay(state.policy, at)
        seen.append(np.asarray(episodes.observation)[:-1][np.asarray(episodes.alive)])
    everything = np.concatenate(seen).reshape(-1, 2).astype(np.float64)
    moments = states[-1].policy.moments
    assert moments.count == len(everything) < 3 * 16 * 2 * 3
    np.testing.assert_allclose(moments.mean, everything.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, everything.var(axis=0), rtol=1e-4)


@pytest.mark.parametrize(
    ("algorithm", "pooling", "parts", "rate"),
    [("mappo", "attention", 2, 0.02), ("reinforce", "mean", 1, 0.05)],
)
def test_both_learn_to_look_ahead(algorithm, pooling, parts, rate):
    config = config_of(
        algorithm, pooling=pooling, episodes=64, updates=60, discount=1.0, entropy=0.003,
        learning_rate=rate,
    )  # fmt: skip
    trained = learn.make_train(config, Chain(parts=parts))(jax.random.key(1))
    returns = np.asarray(trained.curves["return_mean"])
    assert returns[0] < 0.75
    assert returns[-5:].mean() > 0.95  # 1 is the best; 0.3 for agents that do not look ahead
    assert trained.curves["entropy"][-1] < trained.curves["entropy"][0]


@pytest.mark.parametrize("class_values", [False, True])
def test_the_critic_foretells_what_the_team_or_each_class_gets(class_values):
    config = config_of("mappo", episodes=64, updates=40, learning_rate=0.02)
    train = learn.make_train(config, Fate(team=not class_values), class_values=class_values)
    explained = np.asarray(train(jax.random.key(2)).curves["explained_variance"])
    assert explained[0] < 0.5
    assert explained[-5:].mean() > 0.9


def test_a_hundred_classes(getkey):
    config = config_of("mappo", pooling="attention", episodes=4, epochs=1, minibatches=1)
    learner = learn.Learner(config, Chain(num_agents=100))
    state, metrics = jax.jit(learner.update)(learner.init(getkey()))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, metrics)))
    assert state.updates == 1


def test_more_minibatches_than_steps_are_refused():
    with pytest.raises(ConfigError, match=r"minibatches: got 40, more than the 32 steps"):
        learn.Learner(config_of("mappo", minibatches=40), Chain())
    learn.Learner(config_of("reinforce", minibatches=40), Chain())  # has none


def test_a_population_is_made_without_factorisations():
    """Batched QR hangs XLA's CPU thread pool, now and then: see `networks`."""
    learner = learn.Learner(config_of("mappo", pooling="attention"), Chain())
    population = jax.random.split(jax.random.key(5), 3)
    assert "lapack" not in jax.jit(jax.vmap(learner.init)).lower(population).as_text()
    orthogonal = jax.vmap(lambda key: jax.random.orthogonal(key, 4))
    assert "lapack" in jax.jit(orthogonal).lower(population).as_text()
