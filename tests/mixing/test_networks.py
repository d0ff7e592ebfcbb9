"""Networks of the policy: classes have no order, and any number of them will do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lt_jax.config.mixing import PolicyConfig
from lt_jax.mixing import networks
from lt_jax.models import module
from lt_jax.runtime import checkpoint

logits = jax.jit(networks.logits, static_argnums=0)
apply = jax.jit(module.apply, static_argnums=0)

CONFIG = PolicyConfig(width=8)
POOLINGS = ["mean", "attention"]


def make(pooling, class_values=False, num_actions=(4, 3)):
    config = dataclasses.replace(CONFIG, pooling=pooling)
    return networks.make(config, num_actions, class_values)


@jax.jit
def loud(params, key):
    """Parameters that are far from zero, last layers too, so that nothing hides in small logits."""
    flat, back = ravel_pytree(params)
    return back(0.7 * jax.random.normal(key, flat.shape))


def policy_of(actor, key, agents, size):
    fresh = networks.init_policy(actor, key, agents, size)
    return fresh.replace(params=loud(fresh.params, key))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("agents", [2, 100])
def test_permuting_classes_permutes_logits_and_leaves_the_value(pooling, agents, getkey):
    observation = jax.random.normal(getkey(), (3, agents, 5))
    order = jax.random.permutation(getkey(), agents)
    actor, critic = make(pooling)
    policy = policy_of(actor, getkey(), agents, 5)
    there = logits(actor, policy, observation)
    permuted = logits(actor, policy, observation[:, order])
    assert [part.shape for part in there] == [(3, agents, 4), (3, agents, 3)]
    for before, after in zip(there, permuted, strict=True):
        np.testing.assert_allclose(after, before[:, order], atol=1e-4)
        assert np.ptp(before, axis=1).max() > 0.1  # classes are told apart
    params = loud(module.init(critic, getkey(), observation), getkey())
    value = apply(critic, params, observation)
    assert value.shape == (3, 1)
    np.testing.assert_allclose(apply(critic, params, observation[:, order]), value, atol=1e-4)
    assert np.ptp(value) > 1e-2


@pytest.mark.parametrize("pooling", POOLINGS)
def test_values_of_classes_are_permuted_with_them(pooling, getkey):
    observation = jax.random.normal(getkey(), (6, 5))
    order = jax.random.permutation(getkey(), 6)
    critic = make(pooling, class_values=True).critic
    params = loud(module.init(critic, getkey(), observation), getkey())
    values = apply(critic, params, observation)
    assert values.shape == (6,)
    assert np.ptp(values) > 1e-2
    permuted = apply(critic, params, observation[order])
    np.testing.assert_allclose(permuted, values[order], atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_each_agent_is_told_of_the_others(pooling, getkey):
    observation = jax.random.normal(getkey(), (4, 5))
    actor, _ = make(pooling)
    policy = policy_of(actor, getkey(), 4, 5)
    changed = logits(actor, policy, observation.at[3].add(1.0))[0]
    assert np.abs(changed - logits(actor, policy, observation)[0])[:3].max() > 1e-3


@pytest.mark.parametrize("pooling", POOLINGS)
def test_weights_do_not_depend_on_the_number_of_classes(pooling, getkey):
    actor, _ = make(pooling)
    key = getkey()
    few, many = (networks.init_policy(actor, key, agents, 5) for agents in (2, 100))
    jax.tree.map(np.testing.assert_array_equal, few, many)


def test_a_fresh_policy_finds_all_choices_about_as_likely(getkey):
    actor, _ = make("mean")
    policy = networks.init_policy(actor, getkey(), 6, 5)
    parts = logits(actor, policy, jax.random.normal(getkey(), (6, 5)))
    np.testing.assert_allclose(networks.entropy(parts), np.log(4 * 3), atol=1e-2)


def test_log_prob_entropy_and_divergence_are_those_of_the_joint_choice(getkey):
    keys = iter([getkey() for _ in range(4)])
    old = tuple(jax.random.normal(next(keys), (2, choices)) for choices in (4, 3))
    new = tuple(jax.random.normal(next(keys), (2, choices)) for choices in (4, 3))
    joint = lambda parts: np.einsum("ki,kj->kij", *(np.asarray(jax.nn.softmax(p)) for p in parts))
    p, q = joint(old), joint(new)
    for i, j in np.ndindex(4, 3):
        action = jnp.broadcast_to(jnp.asarray([i, j]), (2, 2))
        np.testing.assert_allclose(networks.log_prob(old, action), np.log(p[:, i, j]), atol=1e-5)
    np.testing.assert_allclose(networks.entropy(old), -(p * np.log(p)).sum((1, 2)), rtol=1e-5)
    expected = (p * np.log(p / q)).sum((1, 2))
    np.testing.assert_allclose(networks.divergence(old, new), expected, rtol=1e-4)
    np.testing.assert_allclose(networks.divergence(old, old), 0, atol=1e-7)


@pytest.mark.parametrize("num_actions", [(4,), (4, 3)])
def test_acting_draws_by_the_logits_or_takes_the_likeliest(num_actions, getkey):
    actor = networks.make(CONFIG, num_actions).actor
    policy = policy_of(actor, getkey(), 3, 5)
    observation = jax.random.normal(getkey(), (3, 5))
    act = jax.jit(networks.make_act(CONFIG, num_actions), static_argnums=3)
    parts = logits(actor, policy, observation)
    greedy = act(policy, observation, getkey(), True)
    assert greedy.dtype == jnp.int32
    assert greedy.shape == ((3,) if len(num_actions) == 1 else (3, 2))
    best = np.stack([part.argmax(-1) for part in parts], axis=-1)
    np.testing.assert_array_equal(greedy.reshape(3, -1), best)
    draws = jax.vmap(lambda key: act(policy, observation, key, False))(
        jax.random.split(getkey(), 4000)
    ).reshape(4000, 3, -1)
    for i, part in enumerate(parts):
        seen = np.stack([(draws[:, :, i] == choice).mean(0) for choice in range(part.shape[1])], -1)
        np.testing.assert_allclose(seen, jax.nn.softmax(part), atol=4 * 0.5 / np.sqrt(4000))


def test_the_moments_of_observations_are_part_of_the_policy_and_of_its_file(tmp_path, getkey):
    actor, _ = make("mean")
    policy = policy_of(actor, getkey(), 3, 5)
    seen = policy.moments.replace(count=jnp.asarray(9.0), mean=jnp.arange(5.0), square=jnp.ones(5))
    policy = policy.replace(moments=seen)
    checkpoint.save_tree(tmp_path / "policy", policy)
    target = networks.init_policy(actor, getkey(), 3, 5)
    loaded = checkpoint.load_tree(tmp_path / "policy", target)
    jax.tree.map(np.testing.assert_array_equal, loaded, policy)
    observation = 3 + jax.random.normal(getkey(), (3, 5))
    raw = logits(actor, policy, observation)[0]
    np.testing.assert_array_equal(logits(actor, loaded, observation)[0], raw)
    blind = policy.replace(moments=target.moments)
    assert not np.allclose(logits(actor, blind, observation)[0], raw)
