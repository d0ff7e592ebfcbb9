"""Samplers that draw: the law of what they make, and each step against its published form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.diffusion import grids, samplers
from lt_jax.diffusion.process import CosineSchedule
from lt_jax.diffusion.samplers import DDIM, DPMSolverPP
from tests.diffusion.test_samplers import FREE, alpha_sigma, network

# Data of two correlated channels, for the samplers that draw.
MEANS = np.asarray([0.3, -0.2])
COVARIANCE = np.asarray([[0.16, 0.09], [0.09, 0.12]])


def posterior_mean_of_pairs(x_t, log_snr):
    """E[x_0 | x_t] for pixels whose channels are N(MEANS, COVARIANCE)."""
    alpha, sigma = (part[:, None, None] for part in alpha_sigma(log_snr))
    gain = (
        alpha
        * COVARIANCE[None]
        @ jnp.linalg.inv(alpha**2 * COVARIANCE[None] + sigma**2 * np.eye(2)[None])
    )
    centred = x_t - (alpha * MEANS[None, None])[:, None]
    return MEANS[None, None, None] + jnp.einsum("bcd,bhwd->bhwc", gain, centred)


def moments(sampler, start, keys):
    """The exact mean and covariance of what a sampler makes of x_t as it is at `start`.

    The denoiser is affine, so the result is an affine function of all draws. Those are known (x_t
    is passed in, z is `step_noise`), so regression on them finds that function to the last digit,
    and with it mean and covariance under standard normal draws.
    """
    mean, root = marginal(sampler.schedule, start)
    root = np.linalg.cholesky(root)
    shape = (len(keys), 16, 2 * sampler.steps, 2)
    draws = [jax.random.normal(jax.random.key(7), shape, jnp.float64)]
    found = sampler.sample(
        posterior_mean_of_pairs,
        mean[None, None, None] + draws[0] @ root.T,
        keys,
        None if start is None else jnp.full(len(keys), start, jnp.float64),
    )
    steps = jnp.arange(sampler.steps)
    draws += list(jax.vmap(lambda i: samplers.step_noise(keys, i, found))(steps))
    inputs = np.concatenate([np.reshape(draw, (-1, 2)) for draw in draws], axis=1)
    inputs = np.concatenate([np.ones((len(inputs), 1)), inputs], axis=1)
    fit, residual, rank, _ = np.linalg.lstsq(inputs, np.reshape(found, (-1, 2)), rcond=None)
    assert rank == inputs.shape[1]
    np.testing.assert_allclose(residual, 0, atol=1e-18)
    return fit[0], fit[1:].T @ fit[1:]


def marginal(schedule, t):
    """Mean and covariance of the pairs at time t (None: 1)."""
    level = schedule.log_snr(jnp.asarray(1.0 if t is None else t))
    alpha, sigma = (np.asarray(part) for part in alpha_sigma(level))
    return alpha * MEANS, alpha**2 * COVARIANCE + sigma**2 * np.eye(2)


@pytest.mark.parametrize("start", [None, 0.5])
@pytest.mark.parametrize(
    ("solver", "order"), [(DDIM, 1.0), (DPMSolverPP, 2.0)], ids=["ancestral", "dpmpp_2m_sde"]
)
def test_stochastic_samplers_draw_from_the_data_s_law(solver, order, start, getkey):
    with jax.enable_x64(True):
        schedule = CosineSchedule(-5.0, 4.0)
        keys = jax.random.split(getkey(), 2)
        mean, covariance = marginal(schedule, 0.0)

        def error(steps):
            sampler = solver(schedule, steps, 1.0, "log_snr", FREE)
            found_mean, found_covariance = moments(sampler, start, keys)
            np.testing.assert_allclose(found_mean, mean, atol=1e-9)  # D is constant along the mean
            return np.max(np.abs(found_covariance - covariance))

        coarse, fine = error(24), error(48)
    np.testing.assert_allclose(np.log2(coarse / fine), order, atol=0.25)
    assert fine < (2e-2 if order == 1 else 2e-3)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_step_against_the_paper(eta, getkey):
    """One step's mean and variance from equations 12 and 16, in the paper's alpha-bar."""
    schedule = CosineSchedule(-2.0, 2.5)
    x_1, x0 = 0.8, -0.35
    noise = jnp.full((1, 200, 200, 1), x_1)
    sampler = DDIM(schedule, 1, eta=eta)
    keys = jax.random.split(getkey(), 1)
    found = np.asarray(sampler.sample(lambda x, _: jnp.full_like(x, x0), noise, keys))
    now, following = 1 / (1 + np.exp(2.0)), 1 / (1 + np.exp(-2.5))
    variance = eta**2 * (1 - following) / (1 - now) * (1 - now / following)
    eps = (x_1 - np.sqrt(now) * x0) / np.sqrt(1 - now)
    mean = np.sqrt(following) * x0 + np.sqrt(1 - following - variance) * eps
    deviation = np.sqrt(variance)
    np.testing.assert_allclose(found.mean(), mean, atol=5 * deviation / 200 + 1e-5)
    np.testing.assert_allclose(found.std(), deviation, rtol=0.02, atol=1e-5)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_stochastic_ddim_keeps_the_noise_level_of_a_point(eta, getkey):
    """For data at one point, x_t is N(alpha x_0, sigma^2) at every level whatever eta is."""
    schedule = CosineSchedule(-15.0, 1.0)
    noise = jax.random.normal(getkey(), (4, 64, 64, 1))
    sampler = DDIM(schedule, 8, eta=eta)
    keys = jax.random.split(getkey(), 4)
    found = sampler.sample(lambda x, _: jnp.full_like(x, 0.5), noise, keys)
    alpha, sigma = alpha_sigma(jnp.asarray(1.0))
    standard = np.asarray((found - alpha * 0.5) / sigma)
    np.testing.assert_allclose([standard.mean(), standard.std()], [0.0, 1.0], atol=0.04)
    assert np.abs(np.corrcoef(np.ravel(standard), np.ravel(noise))[0, 1]) < 0.9


def reference_2m_sde(denoise, noise, schedule, steps, keys):
    """The usual dpmpp_2m_sde (midpoint, eta = 1), in x / alpha and sigma / alpha."""
    levels = np.asarray(grids.levels(schedule, steps, "karras"), np.float64)
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-levels))), np.exp(-levels / 2)
    x, previous, previous_h = noise / alpha[0], None, None
    for i in range(steps):
        denoised = denoise(alpha[i] * x, jnp.full(x.shape[0], levels[i]))
        h = np.log(sigma[i] / sigma[i + 1])
        x = sigma[i + 1] / sigma[i] * np.exp(-h) * x - np.expm1(-2 * h) * denoised
        if 0 < i < steps - 1:
            x = x - 0.5 * np.expm1(-2 * h) * h / previous_h * (denoised - previous)
        z = samplers.step_noise(keys, i, noise)
        x = x + z * sigma[i + 1] * np.sqrt(-np.expm1(-2 * h))
        previous, previous_h = denoised, h
    return alpha[-1] * x


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_dpm_solver_sde_against_its_usual_form(steps, getkey):
    with jax.enable_x64(True):
        noise = jax.random.normal(getkey(), (2, 4, 4, 2), jnp.float64)
        keys = jax.random.split(getkey(), 2)
        schedule = CosineSchedule(-8.0, 8.0)
        sampler = DPMSolverPP(schedule, steps, 1.0, "karras", FREE)
        expected = reference_2m_sde(network, noise, schedule, steps, keys)
        np.testing.assert_allclose(sampler.sample(network, noise, keys), expected, atol=1e-9)


def test_keys_decide_the_stochastic_part_alone(getkey):
    noise = jax.random.normal(getkey(), (2, 4, 4, 2))
    keys, others = (jax.random.split(getkey(), 2) for _ in range(2))
    stochastic, plain = DDIM(CosineSchedule(), 4, eta=0.7), DDIM(CosineSchedule(), 4)
    first, again, other = (stochastic.sample(network, noise, k) for k in (keys, keys, others))
    np.testing.assert_array_equal(first, again)
    assert np.max(np.abs(first - other)) > 1e-3
    np.testing.assert_array_equal(plain.sample(network, noise, keys), plain.sample(network, noise))
