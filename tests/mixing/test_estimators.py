"""Estimators: equal to their definitions, whatever ends where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.mixing import estimators

STEPS, EPISODES, AGENTS = 7, 5, 3


@pytest.fixture
def played():
    """Rewards, values and ends, among them both kinds in mid-episode and at the last step."""
    generator = np.random.default_rng(0)
    rewards = generator.normal(size=(STEPS, EPISODES, AGENTS)).astype(np.float32)
    values = generator.normal(size=(STEPS + 1, EPISODES, AGENTS)).astype(np.float32)
    terminated = np.zeros((STEPS, EPISODES), bool)
    truncated = np.zeros((STEPS, EPISODES), bool)
    terminated[3, 0] = truncated[2, 1] = terminated[6, 2] = truncated[6, 3] = True
    return rewards, values, terminated, truncated


def advantages_by_definition(rewards, values, terminated, truncated, discount, trace):
    """Sums of discounted one-step errors, one step, episode and agent at a time."""
    found = np.zeros(rewards.shape)
    for start, n, k in np.ndindex(rewards.shape):
        for t in range(start, STEPS):
            follows = 0.0 if terminated[t, n] else values[t + 1, n, k]
            delta = rewards[t, n, k] + discount * follows - values[t, n, k]
            found[start, n, k] += (discount * trace) ** (t - start) * delta
            if terminated[t, n] or truncated[t, n]:
                break
    return found


@pytest.mark.parametrize(("discount", "trace"), [(1.0, 1.0), (0.9, 0.8), (0.9, 0.0)])
def test_advantages_equal_their_definition(played, discount, trace):
    found = estimators.generalized_advantages(
        *map(jnp.asarray, played), discount=discount, trace=trace
    )
    expected = advantages_by_definition(*played, discount, trace)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_truncation_is_bootstrapped_and_termination_is_not(played):
    rewards, values, terminated, truncated = map(jnp.asarray, played)
    advantages = lambda *ends: estimators.generalized_advantages(
        rewards, values, *ends, discount=0.9, trace=0.8
    )
    as_told, as_ends = advantages(terminated, truncated), advantages(
        terminated | truncated, jnp.zeros_like(truncated)
    )  # fmt: skip
    lost = 0.9 * values[3, 1]  # what episode 1, truncated at step 2, would have gone on to
    np.testing.assert_allclose(as_told[2, 1] - as_ends[2, 1], lost, atol=1e-6)
    np.testing.assert_array_equal(as_told[:, 0], as_ends[:, 0])
    assert not np.allclose(as_told[:3, 1], as_ends[:3, 1])
    # And nothing leaks over the end, of either kind, into what was before.
    later = rewards.at[4:].add(100.0)
    np.testing.assert_array_equal(
        estimators.generalized_advantages(
            later, values, terminated, truncated, discount=0.9, trace=0.8
        )[:3, :2],
        as_told[:3, :2],
    )


def test_one_value_of_the_team_serves_all_agents(played):
    rewards, values, terminated, truncated = map(jnp.asarray, played)
    team = estimators.generalized_advantages(
        rewards, values[:, :, :1], terminated, truncated, discount=0.9, trace=0.8
    )
    spread = jnp.broadcast_to(values[:, :, :1], values.shape)
    each = estimators.generalized_advantages(
        rewards, spread, terminated, truncated, discount=0.9, trace=0.8
    )
    np.testing.assert_allclose(team, each, atol=1e-6)


def test_returns_are_advantages_without_values(played):
    rewards, values, terminated, truncated = map(jnp.asarray, played)
    ended = terminated | truncated
    found = estimators.returns_to_go(rewards, ended, 0.9)
    same = estimators.generalized_advantages(
        rewards, jnp.zeros_like(values), terminated, truncated, discount=0.9, trace=1.0
    )
    np.testing.assert_allclose(found, same, atol=1e-5)
    np.testing.assert_allclose(found[-1], rewards[-1])


def test_the_baseline_is_the_mean_of_the_others_that_are_alive():
    generator = np.random.default_rng(1)
    returns = generator.normal(size=(3, 4, 2)).astype(np.float32)
    alive = np.ones((3, 4), bool)
    alive[1, 2] = False
    alive[2] = [True, False, False, False]
    found = np.asarray(estimators.leave_one_out(jnp.asarray(returns), jnp.asarray(alive)))
    for t, n in np.ndindex(3, 4):
        others = [j for j in range(4) if j != n and alive[t, j]]
        expected = returns[t, others].mean(axis=0) if others else np.zeros(2)
        np.testing.assert_allclose(found[t, n], expected, atol=1e-6)


def test_standardized_values_have_mean_zero_and_variance_one_over_what_counts():
    generator = np.random.default_rng(2)
    values = generator.normal(3.0, 5.0, size=(6, 4, 2)).astype(np.float32)
    weight = (generator.random((6, 4)) < 0.6).astype(np.float32)
    found = np.asarray(estimators.standardize(jnp.asarray(values), jnp.asarray(weight)))
    counted = found[weight == 1]
    np.testing.assert_allclose([counted.mean(), counted.std()], [0, 1], atol=1e-5)


def test_moments_are_those_of_all_that_was_seen():
    generator = np.random.default_rng(3)
    scale, centre = np.array([1.0, 1e-3, 50.0, 0.0]), np.array([0.0, 8.0, -300.0, 2.0])
    parts = [
        (centre + scale * generator.normal(size=(n, 3, 4))).astype(np.float32) for n in (5, 1, 40)
    ]
    moments = estimators.no_moments(4)
    for part in parts:
        moments = jax.jit(estimators.observe)(moments, jnp.asarray(part), jnp.ones(part.shape[:2]))
    everything = np.concatenate(parts).reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(moments.count, len(everything))
    np.testing.assert_allclose(moments.mean, everything.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(moments.variance, everything.var(axis=0), rtol=1e-3, atol=1e-10)
    normal = moments.normalize(jnp.asarray(parts[2]))
    expected = (parts[2] - everything.mean(axis=0)) / np.sqrt(everything.var(axis=0) + 1e-8)
    np.testing.assert_allclose(normal, np.clip(expected, -10, 10), atol=2e-2)
    np.testing.assert_array_equal(normal[..., 3], 0.0)  # a feature that does not vary
    np.testing.assert_allclose(moments.restore(normal), parts[2], rtol=1e-5, atol=1e-5)


def test_moments_leave_out_what_has_no_weight():
    values = jnp.asarray([[1.0], [2.0], [6.0], [np.float32(1e6)]])
    weight = jnp.asarray([1.0, 1.0, 1.0, 0.0])
    moments = estimators.observe(estimators.no_moments(1), values, weight)
    np.testing.assert_allclose(moments.mean, [3.0])
    np.testing.assert_allclose(moments.variance, [14 / 3], rtol=1e-6)
    same = estimators.observe(moments, values, jnp.zeros(4))
    np.testing.assert_array_equal(same.mean, moments.mean)
    np.testing.assert_array_equal(same.variance, moments.variance)


def test_without_moments_values_pass_and_are_only_clipped():
    fresh = estimators.no_moments(2)
    values = jnp.asarray([[0.5, -3.0], [40.0, -40.0]])
    np.testing.assert_allclose(fresh.normalize(values), [[0.5, -3.0], [10.0, -10.0]], rtol=1e-6)
