"""Samplers against the closed form for Gaussian data, and their invariances."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import SynthesizeConfig
from lt_jax.diffusion import grids, samplers
from lt_jax.diffusion.process import CosineSchedule, LinearSchedule, VPProcess
from lt_jax.diffusion.samplers import DDIM, DPMSolverPP, Heun
from lt_jax.diffusion.thresholds import STATIC, DynamicThreshold, NoThreshold

MEAN, SPREAD = 0.3, 0.4
FREE = NoThreshold()


def alpha_sigma(log_snr):
    return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))


def posterior_mean(x_t, log_snr):
    """E[x_0 | x_t] for pixels N(MEAN, SPREAD^2)."""
    alpha, sigma = (part[:, None, None, None] for part in alpha_sigma(log_snr))
    gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
    return MEAN + gain * (x_t - alpha * MEAN)


def flow(x_t, schedule, start=1.0):
    """Where the probability-flow ODE takes x from `start`: it keeps each pixel's quantile."""
    (alpha_1, sigma_1), (alpha_0, sigma_0) = (
        alpha_sigma(schedule.log_snr(jnp.asarray(t))) for t in (start, 0.0)
    )
    ratio = (alpha_0**2 * SPREAD**2 + sigma_0**2) / (alpha_1**2 * SPREAD**2 + sigma_1**2)
    return alpha_0 * MEAN + jnp.sqrt(ratio) * (x_t - alpha_1 * MEAN)


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
    ("solver", "order"),
    [(DDIM, 1.0), (DPMSolverPP, 2.0), (Heun, 2.0)],
    ids=["ddim", "dpmpp_2m", "heun"],
)
@pytest.mark.parametrize(
    ("schedule", "grid"),
    [
        (CosineSchedule(-6.0, 8.0), "log_snr"),
        (CosineSchedule(-6.0, 6.0), "karras"),
        (CosineSchedule(-3.0, 3.0), "time"),
        (LinearSchedule(0.1, 20.0, log_snr_max=3.0), "time"),
    ],
    ids=["cosine-log_snr", "cosine-karras", "cosine-time", "linear-time"],
)
def test_observed_order_of_convergence(solver, order, schedule, grid, getkey):
    with jax.enable_x64(True):
        noise = jax.random.normal(getkey(), (2, 3, 3, 1), jnp.float64)
        exact = flow(noise, schedule)

        def error(steps):
            sampler = solver(schedule, steps, grid=grid, threshold=FREE)
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
        float(
            jnp.max(jnp.abs(s(schedule, 20, threshold=FREE).sample(posterior_mean, noise) - exact))
        )
        for s in (DDIM, DPMSolverPP)
    )
    assert second < 0.3 * first
    assert second < 0.02


@pytest.mark.parametrize("solver", [DDIM, DPMSolverPP, Heun])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("grid", ["time", "log_snr", "karras"])
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
        found = DPMSolverPP(schedule, steps, threshold=FREE).sample(network, noise)
        expected = reference_2m(network, noise, schedule, steps)
        np.testing.assert_allclose(found, expected, atol=1e-9)


def reference_heun(denoise, noise, schedule, steps):
    """Algorithm 1 of Karras et al. as printed, with gamma = 0; no level is free of noise here."""
    levels = np.asarray(grids.levels(schedule, steps, "karras"), np.float64)
    alpha, t = np.sqrt(1 / (1 + np.exp(-levels))), np.exp(-levels / 2)
    model = lambda x, i: denoise(alpha[i] * x, jnp.full(x.shape[0], levels[i]))
    x = noise / alpha[0]
    for i in range(steps):
        d = (x - model(x, i)) / t[i]
        following = x + (t[i + 1] - t[i]) * d
        if i < steps - 1:
            d_following = (following - model(following, i + 1)) / t[i + 1]
            following = x + (t[i + 1] - t[i]) * (d / 2 + d_following / 2)
        x = following
    return alpha[-1] * x


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_heun_against_the_printed_algorithm(steps, getkey):
    with jax.enable_x64(True):
        noise = jax.random.normal(getkey(), (2, 4, 4, 2), jnp.float64)
        schedule = CosineSchedule(-8.0, 8.0)
        found = Heun(schedule, steps, threshold=FREE).sample(network, noise)
        expected = reference_heun(network, noise, schedule, steps)
        np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("solver", "order"),
    [(DDIM, 1.0), (DPMSolverPP, 2.0), (Heun, 2.0)],
    ids=["ddim", "dpmpp_2m", "heun"],
)
@pytest.mark.parametrize("grid", ["time", "log_snr", "karras"])
def test_the_rest_is_solved_from_each_image_s_own_start(solver, order, grid, getkey):
    with jax.enable_x64(True):
        schedule, start = CosineSchedule(-3.0, 2.0), [0.6, 0.75, 0.9]
        x = jax.random.normal(getkey(), (3, 3, 3, 1), jnp.float64)
        exact = np.concatenate([flow(x[i : i + 1], schedule, t) for i, t in enumerate(start)])

        def errors(steps):
            sampler = solver(schedule, steps, grid=grid, threshold=FREE)
            found = sampler.sample(posterior_mean, x, start=jnp.asarray(start))
            return np.max(np.abs(found - exact), axis=(1, 2, 3))

        coarse, fine = errors(64), errors(128)
    np.testing.assert_allclose(np.log2(coarse / fine), order, atol=0.1)
    assert np.all(fine < (5e-3 if order == 1 else 2e-4))


SAMPLERS = {
    "ddim": DDIM(CosineSchedule(), 6),
    "ancestral": DDIM(CosineSchedule(), 6, eta=1.0),
    "dpmpp_2m": DPMSolverPP(CosineSchedule(), 6),
    "dpmpp_2m_sde": DPMSolverPP(CosineSchedule(), 6, eta=1.0),
    "heun": Heun(CosineSchedule(), 6),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


@every_sampler
def test_an_image_is_the_same_in_any_batch(sampler, getkey):
    """Image i from noise i, start i and key i: in twos, in another order."""
    noise = jax.random.normal(getkey(), (6, 8, 8, 2))
    start = jnp.linspace(0.4, 1.0, 6)
    keys = jax.random.split(getkey(), 6)
    sample = jax.jit(lambda *rows: sampler.sample(network, *rows))
    together = np.asarray(sample(noise, keys, start))
    pairs = [sample(noise[i : i + 2], keys[i : i + 2], start[i : i + 2]) for i in (0, 2, 4)]
    np.testing.assert_allclose(np.concatenate(pairs), together, rtol=0, atol=1e-6)
    order = jnp.asarray([3, 1, 5, 0, 4, 2])
    moved = sample(noise[order], keys[order], start[order])
    np.testing.assert_allclose(moved, together[order], atol=1e-6)
    assert np.ptp(together[:, 0, 0, 0]) > 1e-3


@every_sampler
def test_starting_at_one_is_starting_at_noise(sampler, getkey):
    noise = jax.random.normal(getkey(), (3, 4, 4, 2))
    keys = jax.random.split(getkey(), 3)
    plain = sampler.sample(network, noise, keys)
    np.testing.assert_allclose(
        sampler.sample(network, noise, keys, jnp.ones(3)), plain, rtol=0, atol=2e-6
    )


@every_sampler
def test_evaluations_are_those_that_are_made(sampler, getkey):
    asked = []

    def denoise(x_t, log_snr):
        jax.debug.callback(lambda level: asked.append(float(level[0])), log_snr)
        return network(x_t, log_snr)

    noise = jax.random.normal(getkey(), (2, 4, 4, 2))
    jax.block_until_ready(sampler.sample(denoise, noise, jax.random.split(getkey(), 2)))
    jax.effects_barrier()
    assert len(asked) == sampler.evaluations
    if not isinstance(sampler, Heun):
        assert len(set(asked)) == sampler.steps


@every_sampler
def test_thresholds_hold_images_in_range_and_do_nothing_inside_it(sampler, getkey):
    noise = jax.random.normal(getkey(), (2, 4, 4, 2))
    keys = jax.random.split(getkey(), 2)
    dynamic = dataclasses.replace(sampler, threshold=DynamicThreshold(0.9))
    free = dataclasses.replace(sampler, threshold=FREE)
    tame = lambda x, log_snr: 0.9 * network(x, log_snr)
    expected = free.sample(tame, noise, keys)
    for held in (sampler, dynamic):
        limit = 1.05 if not isinstance(held, Heun) else 2.0  # (4) goes beyond D_i and D'
        assert np.max(np.abs(held.sample(lambda x, _: 30 * x, noise, keys))) < limit
        np.testing.assert_allclose(held.sample(tame, noise, keys), expected, rtol=0, atol=1e-6)


def test_make_follows_the_config():
    schedule = CosineSchedule()
    process = VPProcess(schedule)
    made = lambda **fields: samplers.make(SynthesizeConfig(**fields), process)
    assert made() == DPMSolverPP(schedule, 20, 0.0, "time", STATIC)
    assert made(sampler="ddim", steps=7, eta=0.5) == DDIM(schedule, 7, eta=0.5)
    assert made(sampler="ancestral", grid="log_snr") == DDIM(schedule, 20, 1.0, "log_snr")
    assert made(sampler="dpmpp_2m_sde") == DPMSolverPP(schedule, 20, eta=1.0)
    assert made(sampler="heun", grid="karras", threshold="none") == Heun(
        schedule, 20, threshold=FREE
    )
    dynamic = made(sampler="heun", threshold="dynamic", percentile=0.9)
    assert dynamic == Heun(schedule, 20, "time", DynamicThreshold(0.9))


def test_settings_that_cannot_be_are_refused(getkey):
    for solver in (DDIM, DPMSolverPP, Heun):
        with pytest.raises(ValueError, match="steps=0"):
            solver(CosineSchedule(), 0)
    noise = jax.random.normal(getkey(), (2, 4, 4, 2))
    for solver in (DDIM, DPMSolverPP):
        with pytest.raises(ValueError, match=r"eta=1\.5"):
            solver(CosineSchedule(), 4, eta=1.5)
        with pytest.raises(ValueError, match="pass keys"):
            solver(CosineSchedule(), 4, eta=1.0).sample(network, noise)
