"""Samplers against the closed-form probability flow of Gaussian data, and their invariances."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import SynthesizeConfig
from lt_jax.diffusion import samplers
from lt_jax.diffusion.process import CosineSchedule, LinearSchedule, VPProcess
from lt_jax.diffusion.samplers import DDIM, DPMSolverPP

MEAN, SPREAD = 0.3, 0.4


def alpha_sigma(log_snr):
    return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))


def posterior_mean(x_t, log_snr):
    """E[x_0 | x_t] for pixels N(MEAN, SPREAD^2)."""
    alpha, sigma = (part[:, None, None, None] for part in alpha_sigma(log_snr))
    gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
    return MEAN + gain * (x_t - alpha * MEAN)


def flow(x_1, schedule):
    """Where the probability-flow ODE takes x_1: it keeps each pixel's quantile."""
    (alpha_1, sigma_1), (alpha_0, sigma_0) = (
        alpha_sigma(schedule.log_snr(jnp.asarray(t))) for t in (1.0, 0.0)
    )
    ratio = (alpha_0**2 * SPREAD**2 + sigma_0**2) / (alpha_1**2 * SPREAD**2 + sigma_1**2)
    return alpha_0 * MEAN + jnp.sqrt(ratio) * (x_1 - alpha_1 * MEAN)


def network(x_t, log_snr):
    """A denoiser with a convolution and a matrix product, whose rows do not interact."""
    kernel = jnp.linspace(-0.3, 0.3, 3 * 3 * 2 * 2).reshape(3, 3, 2, 2)
    convolved = jax.lax.conv_general_dilated(
        x_t, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    scale = jax.nn.sigmoid(log_snr)[:, None, None, None]
    return jnp.tanh(convolved @ jnp.asarray([[0.6, -0.8], [0.8, 0.6]])) * scale


def test_posterior_mean_is_the_best_linear_guess(getkey):
    """Independent of the formula above: regression of x_0 on x_t over many draws."""
    x0 = MEAN + SPREAD * jax.random.normal(getkey(), (1, 200, 200, 2))
    noise = jax.random.normal(getkey(), x0.shape)
    log_snr = jnp.asarray([0.7])
    x_t = VPProcess(CosineSchedule()).add_noise(x0, noise, log_snr)
    slope, intercept = np.polyfit(np.ravel(x_t), np.ravel(x0), 1)
    guess = np.ravel(posterior_mean(jnp.asarray([[[[0.0]]], [[[1.0]]]]), jnp.full(2, 0.7)))
    np.testing.assert_allclose(guess, [intercept, intercept + slope], atol=0.01)


@pytest.mark.parametrize(
    ("solver", "order"), [(DDIM, 1.0), (DPMSolverPP, 2.0)], ids=["ddim", "dpmpp_2m"]
)
@pytest.mark.parametrize(
    ("schedule", "grid"),
    [
        (CosineSchedule(-6.0, 8.0), "log_snr"),
        (CosineSchedule(-3.0, 3.0), "time"),
        (LinearSchedule(0.1, 20.0, log_snr_max=3.0), "time"),
    ],
    ids=["cosine-log_snr", "cosine-time", "linear-time"],
)
def test_observed_order_of_convergence(solver, order, schedule, grid, getkey):
    with jax.enable_x64(True):
        noise = jax.random.normal(getkey(), (2, 3, 3, 1), jnp.float64)
        exact = flow(noise, schedule)

        def error(steps):
            sampler = solver(schedule, steps, grid=grid, clip=False)
            found = sampler.sample(posterior_mean, noise)
            assert found.dtype == jnp.float64
            return float(jnp.max(jnp.abs(found - exact)))

        errors = [error(steps) for steps in (64, 128, 256)]
    observed = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(observed, [order, order], atol=0.15)
    assert errors[-1] < (2e-2 if order == 1 else 5e-4)


def test_second_order_beats_first_at_the_demo_s_setting(getkey):
    """20 steps, even in time, full range of noise: the setting that configs use."""
    noise = jax.random.normal(getkey(), (4, 8, 8, 2))
    schedule = CosineSchedule()
    exact = flow(noise, schedule)
    first, second = (
        float(jnp.max(jnp.abs(s(schedule, 20, clip=False).sample(posterior_mean, noise) - exact)))
        for s in (DDIM, DPMSolverPP)
    )
    assert second < 0.3 * first
    assert second < 0.02


@pytest.mark.parametrize("solver", [DDIM, DPMSolverPP])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("grid", ["time", "log_snr"])
def test_data_of_one_point_is_reached_in_any_number_of_steps(solver, steps, grid, getkey):
    """A constant denoiser makes the flow linear, which every exponential integrator solves."""
    noise = jax.random.normal(getkey(), (2, 2, 2, 1))
    schedule = LinearSchedule(log_snr_max=4.0)
    found = solver(schedule, steps, grid=grid).sample(lambda x, _: jnp.full_like(x, 0.25), noise)
    (alpha_1, sigma_1), (alpha_0, sigma_0) = (
        alpha_sigma(schedule.log_snr(jnp.asarray(t))) for t in (1.0, 0.0)
    )
    expected = alpha_0 * 0.25 + sigma_0 * (noise - alpha_1 * 0.25) / sigma_1
    np.testing.assert_allclose(found, expected, atol=2e-5)


def reference_2m(denoise, noise, schedule, steps):
    """Algorithm 2 of DPM-Solver++ as printed, with half log-SNRs and a last step of order one."""
    levels = np.asarray(schedule.log_snr(jnp.linspace(1.0, 0.0, steps + 1)), np.float64)
    half = levels / 2
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-levels))), np.sqrt(1 / (1 + np.exp(levels)))
    x, history = noise, []
    for i in range(1, steps + 1):
        history.append(denoise(x, jnp.full(x.shape[0], levels[i - 1])))
        width = half[i] - half[i - 1]
        guess = history[-1]
        if 1 < i < steps:
            ratio = (half[i - 1] - half[i - 2]) / width
            guess = (1 + 1 / (2 * ratio)) * history[-1] - 1 / (2 * ratio) * history[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * (np.exp(-width) - 1) * guess
    return x


@pytest.mark.parametrize("steps", [2, 3, 9])
def test_dpm_solver_against_the_printed_algorithm(steps, getkey):
    with jax.enable_x64(True):
        noise = jax.random.normal(getkey(), (2, 4, 4, 2), jnp.float64)
        schedule = CosineSchedule(-8.0, 8.0)
        found = DPMSolverPP(schedule, steps, clip=False).sample(network, noise)
        expected = reference_2m(network, noise, schedule, steps)
        np.testing.assert_allclose(found, expected, atol=1e-9)


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


SAMPLERS = [
    DDIM(CosineSchedule(), 6),
    DDIM(CosineSchedule(), 6, eta=1.0),
    DPMSolverPP(CosineSchedule(), 6),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["ddim", "ddim-eta", "dpmpp_2m"])
def test_an_image_is_the_same_in_any_batch(sampler, getkey):
    """Image i from noise i and key i: alone, in twos, in another order."""
    noise = jax.random.normal(getkey(), (6, 8, 8, 2))
    keys = jax.random.split(getkey(), 6)
    sample = jax.jit(lambda noise, keys: sampler.sample(network, noise, keys))
    together = np.asarray(sample(noise, keys))
    pairs = [sample(noise[i : i + 2], keys[i : i + 2]) for i in (0, 2, 4)]
    np.testing.assert_allclose(np.concatenate(pairs), together, rtol=0, atol=1e-6)
    order = jnp.asarray([3, 1, 5, 0, 4, 2])
    np.testing.assert_allclose(sample(noise[order], keys[order]), together[order], atol=1e-6)
    assert np.ptp(together[:, 0, 0, 0]) > 1e-3


def test_keys_decide_the_stochastic_part_alone(getkey):
    noise = jax.random.normal(getkey(), (2, 4, 4, 2))
    keys, others = (jax.random.split(getkey(), 2) for _ in range(2))
    stochastic, plain = DDIM(CosineSchedule(), 4, eta=0.7), DDIM(CosineSchedule(), 4)
    first, again, other = (stochastic.sample(network, noise, k) for k in (keys, keys, others))
    np.testing.assert_array_equal(first, again)
    assert np.max(np.abs(first - other)) > 1e-3
    np.testing.assert_array_equal(plain.sample(network, noise, keys), plain.sample(network, noise))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["ddim", "ddim-eta", "dpmpp_2m"])
def test_clipping_holds_images_in_range_and_does_nothing_inside_it(sampler, getkey):
    noise = jax.random.normal(getkey(), (2, 4, 4, 2))
    keys = jax.random.split(getkey(), 2)
    wild = sampler.sample(lambda x, _: 30 * x, noise, keys)
    assert np.max(np.abs(wild)) < 1.05
    free = dataclasses.replace(sampler, clip=False)
    tame = lambda x, log_snr: 0.9 * network(x, log_snr)
    clipped, unclipped = (each.sample(tame, noise, keys) for each in (sampler, free))
    np.testing.assert_allclose(clipped, unclipped, rtol=0, atol=1e-6)


def test_make_follows_the_config():
    process = VPProcess(CosineSchedule())
    made = samplers.make(SynthesizeConfig(sampler="ddim", steps=7), process)
    assert made == DDIM(process.schedule, 7)
    assert samplers.make(SynthesizeConfig(), process) == DPMSolverPP(process.schedule, 20)


def test_settings_that_cannot_be_are_refused(getkey):
    with pytest.raises(ValueError, match="steps=0"):
        DPMSolverPP(CosineSchedule(), 0)
    with pytest.raises(ValueError, match=r"eta=1\.5"):
        DDIM(CosineSchedule(), 4, eta=1.5)
    noise = jax.random.normal(getkey(), (2, 4, 4, 2))
    with pytest.raises(ValueError, match="pass keys"):
        DDIM(CosineSchedule(), 4, eta=1.0).sample(network, noise)
