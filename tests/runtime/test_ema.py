"""Averages against their closed forms, and one length rebuilt from others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import ConfigError
from lt_jax.runtime import ema
from lt_jax.runtime.ema import Exponential, Power


def run(rule, params):
    """Averages after each update, and the last one, of parameters [n d] of which row 0 is the
    start.
    """

    def one(average, row):
        step, new = row
        average = rule.update(average, {"w": new}, step)
        return average, average

    first = rule.init({"w": params[0]})
    rows = (jnp.arange(1, len(params)), params[1:])
    last, after = jax.jit(lambda: jax.lax.scan(one, first, rows))()
    return after, last


def walk(seed, steps, width=16):
    """A random walk: neighbouring steps are alike, as in training."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(steps + 1, width)).cumsum(axis=0), jnp.float32)


def test_the_exponential_average_follows_its_closed_form():
    """ema_N = p_0 prod d_n + sum_n (1 - d_n) p_n prod_{m > n} d_m."""
    params = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    decay = 0.9
    n = np.arange(1, 40)
    d = np.minimum(decay, (1 + n) / (10 + n))
    after = np.append(np.cumprod(d[::-1])[::-1][1:], 1.0)  # products of the later decays
    expected = params[0] * d.prod() + ((1 - d) * after) @ params[1:]
    _, last = run(Exponential(decay), jnp.asarray(params))
    np.testing.assert_allclose(last["w"], expected, rtol=1e-5, atol=1e-6)


def test_an_average_of_no_memory_is_the_parameters_and_a_constant_stays():
    params = {"w": jnp.arange(3.0)}
    zero = Exponential(0.0).update({"w": jnp.ones(3)}, params, jnp.asarray(5))
    np.testing.assert_array_equal(zero["w"], params["w"])
    same = Exponential(0.999).update(params, params, jnp.asarray(5))
    np.testing.assert_allclose(same["w"], params["w"], rtol=1e-6)
    power = Power((0.1,)).update((params,), params, jnp.asarray(5))
    np.testing.assert_array_equal(power[0]["w"], params["w"])


def test_power_averages_follow_the_product_of_their_decays():
    """Equations (1), (3) by explicit products, and the sum that they telescope to."""
    params = np.random.default_rng(1).normal(size=(61, 3)).astype(np.float32)
    rule = Power((0.05, 0.1, ema.LONGEST))
    _, last = run(rule, jnp.asarray(params))
    t = np.arange(1, 61, dtype=np.float64)
    for gamma, got in zip(rule.gammas, last, strict=True):
        beta = (1 - 1 / t) ** (gamma + 1)
        weights = [(1 - beta[i]) * beta[i + 1 :].prod() for i in range(60)]
        telescoped = np.diff(np.arange(61) ** (gamma + 1)) / 60 ** (gamma + 1)
        np.testing.assert_allclose(weights, telescoped, rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(got["w"], weights @ params[1:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last[2]["w"], params[1:].mean(axis=0), atol=1e-6)  # gamma = 0


def test_a_power_average_forgets_the_initial_parameters_at_once():
    rule = Power((0.05,))
    start = rule.init({"w": jnp.full(2, 1e3)})
    first = rule.update(start, {"w": jnp.ones(2)}, jnp.asarray(1))
    np.testing.assert_allclose(first[0]["w"], np.ones(2), atol=1e-4)


def test_late_updates_keep_their_digits():
    """beta in float32 rounds to one unit in 17 at a million steps, off by a percent and more."""
    gamma = ema.gamma_of(0.05)
    step = 3_000_000
    got = ema.update({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, jnp.asarray(step), gamma)
    exact = -np.expm1((gamma + 1) * np.log1p(-1 / step))
    np.testing.assert_allclose(got["w"], [exact], rtol=1e-5)


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.2, 0.28, ema.LONGEST])
def test_the_length_is_the_standard_deviation_of_the_weights(length):
    gamma = ema.gamma_of(length)
    np.testing.assert_allclose(ema.sigma_rel_of(gamma), length, rtol=1e-9)
    steps = 200_000
    weights = np.diff((np.arange(steps + 1) / steps) ** (gamma + 1))
    times = (np.arange(steps) + 0.5) / steps
    mean = weights @ times
    np.testing.assert_allclose(mean, (gamma + 1) / (gamma + 2), rtol=1e-5)
    np.testing.assert_allclose(np.sqrt(weights @ (times - mean) ** 2), length, rtol=1e-4)


def test_published_exponents():
    """EDM2 gives 16.97 and 6.94 for its two lengths."""
    np.testing.assert_allclose([ema.gamma_of(0.05), ema.gamma_of(0.1)], [16.97, 6.94], atol=0.005)


@pytest.mark.parametrize("length", [0.0, -0.1, 0.29, float("nan")])
def test_lengths_out_of_range_are_refused(length):
    with pytest.raises(ConfigError, match=r"takes a number in \(0, 0\.2887\]"):
        Power((0.1, length))


@pytest.mark.parametrize("lengths", [(), (0.1, 0.1)])
def test_no_length_or_one_given_twice_is_refused(lengths):
    with pytest.raises(ConfigError, match="takes one or more, no two alike"):
        Power(lengths)


def test_weights_solve_the_least_squares_problem_on_a_grid():
    """The same minimiser by brute force: profiles sampled at 40,000 points."""
    steps, gammas = np.array([100.0, 100.0, 70.0, 40.0]), np.array([6.94, 16.97, 6.94, 16.97])
    tau = (np.arange(40_000) + 0.5) / 400
    profile = lambda t, g: np.where(tau <= t, (g + 1) * (tau / t) ** g / t, 0.0)
    columns = np.stack([profile(t, g) for t, g in zip(steps, gammas, strict=True)], axis=1)
    expected = np.linalg.lstsq(columns, profile(90.0, 10.0), rcond=None)[0]
    got = ema.solve_weights(steps, gammas, 90.0, 10.0)
    np.testing.assert_allclose(got, expected / expected.sum(), rtol=1e-3, atol=1e-4)


def test_a_tracked_average_is_its_own_snapshot():
    steps, gammas = [50, 50, 100, 100], [6.94, 16.97] * 2
    weights = ema.solve_weights(steps, gammas, 100, 6.94)
    np.testing.assert_allclose(weights, [0, 0, 1, 0], atol=1e-9)
    twice = ema.solve_weights([100, 100], [6.94, 6.94], 100, 6.94)  # a singular matrix
    np.testing.assert_allclose(twice, [0.5, 0.5])


def test_a_length_is_rebuilt_from_two_others():
    """Against the average tracked directly, and far nearer to it than any snapshot is."""
    steps, rule = 512, Power((0.05, 0.1))
    targets = Power((0.03, 0.07, 0.15))
    tracked, _ = run(Power(rule.lengths + targets.lengths), walk(2, steps))
    at = ema.snapshot_steps(steps, 8)
    snapshots = [{"w": tracked[i]["w"][s - 1]} for s in at for i in range(2)]
    wanted = [tracked[2 + i] for i in range(3)]
    when = np.repeat(at, 2)
    for length, gamma, average in zip(targets.lengths, targets.gammas, wanted, strict=True):
        weights = ema.solve_weights(when, rule.gammas * 8, steps, gamma)
        np.testing.assert_allclose(weights.sum(), 1.0)
        rebuilt = ema.reconstruct(snapshots, weights)["w"]
        error = np.linalg.norm(rebuilt - average["w"][-1])
        nearest = min(np.linalg.norm(s["w"] - average["w"][-1]) for s in snapshots)
        assert error < {0.03: 0.3, 0.07: 0.05, 0.15: 0.05}[length] * nearest, (length, error)
    # Also of an earlier step, between two snapshots.
    gamma = targets.gammas[1]
    earlier = ema.solve_weights(when, rule.gammas * 8, 480, gamma)
    error = np.linalg.norm(ema.reconstruct(snapshots, earlier)["w"] - wanted[1]["w"][479])
    nearest = min(np.linalg.norm(s["w"] - wanted[1]["w"][479]) for s in snapshots)
    assert error < 0.5 * nearest


def test_reconstruction_is_a_weighted_sum_of_every_leaf_in_its_dtype():
    trees = [{"a": jnp.full(2, v), "b": (jnp.full((1, 3), v, jnp.bfloat16),)} for v in (1.0, 3.0)]
    got = ema.reconstruct(iter(trees), [-0.5, 1.5])
    np.testing.assert_array_equal(got["a"], [4.0, 4.0])
    assert got["a"].dtype == np.float32
    assert got["b"][0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(got["b"][0].astype(np.float32), [[4.0, 4.0, 4.0]])
    leaf = np.random.default_rng(0).normal(size=9).astype(np.float32)
    cancelled = ema.reconstruct([{"a": leaf}] * 2, [1e6 + 0.3, 0.7 - 1e6])["a"]
    np.testing.assert_allclose(cancelled, leaf, rtol=1e-6)  # in float32 nothing of it is left
    with pytest.raises(ValueError, match="no snapshots"):
        ema.reconstruct([], [])
    with pytest.raises(ValueError, match="shorter"):
        ema.reconstruct(trees, [1.0])


@pytest.mark.parametrize("steps", [[], [10, 20]])
def test_a_target_beyond_the_snapshots_is_refused(steps):
    with pytest.raises(ValueError, match="do not give an average at step 30"):
        ema.solve_weights(steps, [6.94] * len(steps), 30, 6.94)


def test_snapshots_are_even_and_end_with_the_training():
    assert ema.snapshot_steps(400, 8) == (50, 100, 150, 200, 250, 300, 350, 400)
    assert ema.snapshot_steps(10, 4) == (3, 5, 8, 10)
    assert ema.snapshot_steps(3, 8) == (1, 2, 3)


def test_rules_by_name():
    assert ema.make("exponential", 0.9, (0.1,)) == Exponential(0.9)
    assert ema.make("power", 0.9, (0.1,)) == Power((0.1,))
    assert all(isinstance(rule, ema.Rule) for rule in (Exponential(0.9), Power((0.1,))))
