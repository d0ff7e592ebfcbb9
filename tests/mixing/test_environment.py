"""The environment in JaxMARL's form: dicts by agent, an end that is told apart, auto-reset."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.mixing import environment, toy


@pytest.fixture
def env(getkey):
    return toy.ToyEnv(toy.random_problem(getkey(), 3, (0.0, 0.5), 2))


def actions_of(agents, row):
    return dict(zip(agents.agents, jnp.asarray(row), strict=True))


def test_a_step_is_that_of_the_environment(env, getkey):
    agents = environment.as_multi_agent(env)
    key = getkey()
    observations, state = agents.reset(key)
    first, plain = env.reset(key)
    assert list(observations) == ["agent_0", "agent_1", "agent_2"]
    np.testing.assert_array_equal(jnp.stack(list(observations.values())), first)
    after = env.step(plain, jnp.array([1, 0, 1]), key)
    observations, _, rewards, dones, infos = agents.step_env(
        key, state, actions_of(agents, [1, 0, 1])
    )
    np.testing.assert_array_equal(jnp.stack(list(observations.values())), after.observation)
    np.testing.assert_array_equal(jnp.stack(list(rewards.values())), after.reward)
    assert not dones["__all__"] and set(dones) == {*agents.agents, "__all__"}
    assert all(info.shape == (3,) for info in infos.values())


def test_dones_reset_and_infos_say_which_end_it_was(env, getkey):
    cut = toy.ToyEnv(env.problem.replace(rounds=5, horizon=2))
    for wrapped, ends in ((env, "terminated"), (cut, "truncated")):
        agents = environment.as_multi_agent(wrapped)
        step = jax.jit(agents.step)
        first, state = agents.reset(getkey())
        for r in range(4):
            row = actions_of(agents, [1, 1, 1])
            observations, state, _, dones, infos = step(getkey(), state, row)
            over = r % 2 == 1
            assert all(bool(done) == over for done in dones.values())
            assert bool(infos[ends].all()) == over
            assert not infos["terminated" if ends == "truncated" else "truncated"].any()
            assert int(state.round) == (0 if over else 1)
            same = np.array_equal(observations["agent_0"], first["agent_0"])
            assert same == over


def test_raw_keys_do_as_well(env):
    agents = environment.as_multi_agent(env)
    raw = jax.random.key_data(jax.random.key(7))
    ours, theirs = agents.reset(jax.random.key(7))[0], agents.reset(raw)[0]
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    row = actions_of(agents, [1, 0, 1])
    state = agents.reset(raw)[1]
    for one, other in zip(
        agents.step(jax.random.key(8), state, row),
        agents.step(jax.random.key_data(jax.random.key(8)), state, row),
        strict=True,
    ):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_loop_in_the_style_of_its_wrappers_scans_and_vmaps(env, getkey):
    agents = environment.as_multi_agent(env)

    def episode(key):
        def turn(carry, key):
            state, total = carry
            draw, move = jax.random.split(key)
            row = {
                agent: agents.action_space(agent).sample(each)
                for agent, each in zip(agents.agents, jax.random.split(draw, 3), strict=True)
            }
            _, state, rewards, dones, _ = agents.step(move, state, row)
            total = total + jnp.stack([rewards[agent] for agent in agents.agents])
            return (state, total * (1 - dones["__all__"])), dones["__all__"]

        return jax.lax.scan(turn, (agents.reset(key)[1], jnp.zeros(3)), jax.random.split(key, 4))[1]

    over = jax.jit(jax.vmap(episode))(jax.random.split(getkey(), 5))
    np.testing.assert_array_equal(over, np.tile([False, True, False, True], (5, 1)))


def test_spaces_describe_actions_and_observations(env, getkey):
    agents = environment.as_multi_agent(env)
    space = agents.action_space("agent_1")
    assert space.n == 2 and space.contains(space.sample(getkey())) and not space.contains(2)
    assert agents.observation_space("agent_0").shape == (len(env.observations),)
    pairs = toy.ToyEnv(env.problem.replace(weights=(0.5, 1.0, 2.0)))
    both = environment.as_multi_agent(pairs)
    space = both.action_space("agent_0")
    assert space.shape == (2,) and space.contains(space.sample(getkey()))
    assert not space.contains(jnp.array([0, 3]))
    state = both.reset(getkey())[1]
    row = {agent: jnp.array([1, 2]) for agent in both.agents}
    assert both.step_env(getkey(), state, row)[1].dose.tolist() == [1.0, 1.0, 1.0]
    bounded = environment.Box(-1.0, 2.0, (4,))
    assert bounded.contains(bounded.sample(getkey())) and not bounded.contains(jnp.full(4, 3.0))
    with pytest.raises(ValueError, match="reset_state"):
        both.step(getkey(), state, row, state)


@pytest.mark.parametrize("weights", [(), (0.5, 1.0, 2.0)])
def test_in_gymnax_s_form_one_agent_acts_for_all(env, getkey, weights):
    env = toy.ToyEnv(env.problem.replace(weights=weights, difference=True))
    alone, key = environment.SingleAgent(env), getkey()
    observation, state = alone.reset(key, alone.default_params)
    assert observation.shape == alone.observation_space().shape == (3, len(env.observations))
    action = alone.action_space(alone.default_params).sample(getkey())
    assert action.shape == (3 * (1 + bool(weights)),)
    step = jax.jit(alone.step)
    for r in range(2):
        plain = env.step(state, action.reshape(3, -1), key)
        told = step(key, state, action, alone.default_params)
        observation, state, reward, terminated, truncated, info = told
        np.testing.assert_allclose(reward, plain.info["team"], rtol=1e-6)
        np.testing.assert_allclose(info["final_observation"], plain.observation, rtol=1e-6)
        assert reward.shape == terminated.shape == truncated.shape == ()
        assert bool(terminated) == bool(info["terminated"]) == (r > 0)
        assert not truncated and not info["truncated"]
        if r == 0:
            np.testing.assert_allclose(observation, plain.observation, rtol=1e-6)
    np.testing.assert_allclose(observation, env.reset(key)[0], rtol=1e-6)  # of a new episode
    assert int(state.round) == 0


def test_what_a_cut_episode_s_value_goes_on_from_is_told(env, getkey):
    """In either form, in JaxMARL's where it is asked for."""
    cut = toy.ToyEnv(env.problem.replace(rounds=5, horizon=1))
    key, action = getkey(), jnp.array([1, 0, 1])
    alone, agents = environment.SingleAgent(cut), environment.as_multi_agent(cut, None, True)
    first, state = cut.reset(key)
    last = cut.step(state, action, key).observation  # without noise no key matters
    observation, _, _, terminated, truncated, info = alone.step(key, state, action)
    assert truncated and not terminated
    np.testing.assert_allclose(info["final_observation"], last, rtol=1e-6)
    observations, *_, infos = agents.step(key, state, actions_of(agents, action))
    np.testing.assert_allclose(infos["final_observation"], last, rtol=1e-6)
    for shown in (observation, jnp.stack(list(observations.values()))):
        np.testing.assert_allclose(shown, first, rtol=1e-6)
    assert np.abs(first - last).max() > 0.1
    plain = environment.as_multi_agent(cut)
    assert "final_observation" not in plain.step(key, state, actions_of(agents, action))[-1]


def test_gymnax_wrappers_take_it(env, getkey):
    pytest.importorskip("gymnax.wrappers.compat")  # since 1.0
    wrappers = pytest.importorskip("gymnax.wrappers")
    spaces = pytest.importorskip("gymnax.environments.spaces")
    alone = environment.SingleAgent(env, spaces)
    size = 3 * len(env.observations)
    wrapped = wrappers.LogWrapper(wrappers.FlattenObservationWrapper(alone))
    assert wrapped.observation_space(alone.default_params).shape == (size,)
    key = getkey()
    observation, state = wrapped.reset(key, alone.default_params)
    total, action = 0.0, wrapped.action_space(alone.default_params).sample(key)
    for r in range(2):
        told = wrapped.step(key, state, action, alone.default_params)
        observation, state, reward, terminated, truncated, info = told
        assert observation.shape == info["final_observation"].shape == (size,)
        assert bool(terminated) == bool(info["returned_episode"]) == (r > 0) and not truncated
        total += reward
    np.testing.assert_allclose(info["returned_episode_returns"], total, rtol=1e-5)
    legacy = wrappers.LegacyStepAPIWrapper(alone)
    assert len(legacy.step(key, legacy.reset(key)[1], action)) == 5


def test_jaxmarl_wrappers_take_it(env, getkey):
    baselines = pytest.importorskip("jaxmarl.wrappers.baselines")
    spaces = pytest.importorskip("jaxmarl.environments.spaces")
    agents = environment.as_multi_agent(env, spaces)
    logged = baselines.LogWrapper(agents)
    _, state = logged.reset(getkey())
    total = 0.0
    for _ in range(2):
        _, state, rewards, _, info = logged.step(getkey(), state, actions_of(agents, [1, 0, 1]))
        total += rewards["agent_0"]
    np.testing.assert_allclose(info["returned_episode_returns"][0], total, rtol=1e-5)
    rollout = baselines.CTRolloutManager(agents, batch_size=3)
    observations, states = rollout.batch_reset(getkey())
    row = {agent: rollout.batch_sample(getkey(), agent) for agent in agents.agents}
    _, _, rewards, dones, _ = rollout.batch_step(getkey(), states, row)
    assert rewards["__all__"].shape == dones["__all__"].shape == (3,)
    assert observations["__all__"].shape == (3, 3 * len(env.observations))
