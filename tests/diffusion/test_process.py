"""The process's identities: inverses, round trips, min-SNR weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import ConfigError, ProcessConfig
from lt_jax.diffusion import process as process_lib
from lt_jax.diffusion.process import CosineSchedule, LinearSchedule, VPProcess, stratified_times

SCHEDULES = [
    CosineSchedule(),
    CosineSchedule(-6.0, 9.0),
    LinearSchedule(),
    LinearSchedule(0.0, 20.0),
    LinearSchedule(8.0, 8.0),
    LinearSchedule(50.0, 1000.0),  # its own end lies far below the truncation
]
LEVELS = jnp.asarray([-15.0, -7.0, -1.0, 0.0, 2.0, 6.0, 15.0])
PREDICTIONS = ["eps", "v", "x0"]


def images(key, count=7):
    return jax.random.normal(key, (count, 3, 3, 2))


def bar(x):
    return x[:, None, None, None]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_falls_and_its_inverse_is_its_inverse(schedule):
    t = jnp.linspace(0.0, 1.0, 1001)
    log_snr = schedule.log_snr(t)
    assert np.all(np.isfinite(log_snr))
    assert np.all(np.diff(log_snr) < 0)
    np.testing.assert_allclose(schedule.inverse(log_snr), t, atol=2e-6)
    np.testing.assert_allclose(log_snr[0], schedule.log_snr_max, rtol=1e-6)
    assert log_snr[-1] >= schedule.log_snr_min * (1 + 1e-6)
    # Beyond its ends the inverse stays in [0, 1].
    beyond = schedule.inverse(jnp.asarray([-30.0, 30.0]))
    np.testing.assert_array_equal(beyond, [1.0, 0.0])


def test_schedules_against_their_definitions_in_float64():
    t = np.linspace(0.0, 1.0, 201)
    angles = [np.arctan(np.exp(-0.5 * end)) for end in (15.0, -15.0)]
    cosine = -2 * np.log(np.tan(angles[0] + t * (angles[1] - angles[0])))
    np.testing.assert_allclose(CosineSchedule().log_snr(jnp.asarray(t)), cosine, atol=1e-5)

    # alpha^2 = exp(-integral of beta), by quadrature of beta(u) = 0.1 + 19.9 u.
    start = (np.sqrt(0.1**2 + 2 * 19.9 * np.log1p(np.exp(-15.0))) - 0.1) / 19.9
    u = start + t * (1 - start)
    fine = np.linspace(0.0, u, 101)
    integral = np.trapezoid(0.1 + 19.9 * fine, fine, axis=0)
    alpha2 = np.exp(-integral)
    linear = np.log(alpha2) - np.log(-np.expm1(-integral))
    np.testing.assert_allclose(LinearSchedule().log_snr(jnp.asarray(t)), linear, atol=2e-5)


def test_noising_preserves_variance_and_its_log_snr(getkey):
    ones = jnp.ones((len(LEVELS), 1, 1, 1))
    process = VPProcess(CosineSchedule())
    alpha = process.add_noise(ones, 0 * ones, LEVELS)[:, 0, 0, 0]
    sigma = process.add_noise(0 * ones, ones, LEVELS)[:, 0, 0, 0]
    np.testing.assert_allclose(alpha**2 + sigma**2, np.ones(len(LEVELS)), rtol=1e-6)
    np.testing.assert_allclose(2 * jnp.log(alpha / sigma), LEVELS, atol=3e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_target_stands_for_the_image_and_the_noise(prediction, getkey):
    with jax.enable_x64(True):
        levels = LEVELS.astype(jnp.float64)
        x0, noise = (images(getkey()).astype(jnp.float64) for _ in range(2))
        process = VPProcess(CosineSchedule(), prediction)
        x_t = process.add_noise(x0, noise, levels)
        target = process.target(x0, noise, levels)
        np.testing.assert_allclose(process.to_x0(target, x_t, levels), x0, atol=1e-10)
        np.testing.assert_allclose(process.to_eps(target, x_t, levels), noise, atol=1e-10)
        np.testing.assert_allclose(process.from_x0(x0, x_t, levels), target, atol=1e-10)


@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("via", PREDICTIONS)
def test_conversions_of_any_prediction_round_trip(source, via, getkey):
    """Also of predictions that are wrong, which no image and noise would give."""
    with jax.enable_x64(True):
        levels = LEVELS.astype(jnp.float64)
        x_t, wrong = (images(getkey()).astype(jnp.float64) for _ in range(2))
        first, second = (VPProcess(CosineSchedule(), name) for name in (source, via))
        there = second.from_x0(first.to_x0(wrong, x_t, levels), x_t, levels)
        back = first.from_x0(second.to_x0(there, x_t, levels), x_t, levels)
        np.testing.assert_allclose(back, wrong, atol=1e-8)
        # The implied image and noise agree with x_t, and with those of the other form.
        implied = first.to_x0(wrong, x_t, levels), first.to_eps(wrong, x_t, levels)
        np.testing.assert_allclose(first.add_noise(*implied, levels), x_t, atol=1e-8)
        np.testing.assert_allclose(second.to_eps(there, x_t, levels), implied[1], atol=1e-6)


def test_v_is_stable_in_float32_at_both_ends(getkey):
    process = VPProcess(CosineSchedule(), "v")
    x0, noise = images(getkey()), images(getkey())
    x_t = process.add_noise(x0, noise, LEVELS)
    target = process.target(x0, noise, LEVELS)
    np.testing.assert_allclose(process.to_x0(target, x_t, LEVELS), x0, atol=1e-6)
    np.testing.assert_allclose(process.to_eps(target, x_t, LEVELS), noise, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 5.0])
def test_min_snr_weights_against_the_formula(gamma):
    snr = np.exp(np.asarray(LEVELS, np.float64))
    capped = np.minimum(snr, gamma) if gamma else snr
    expected = {"x0": capped, "eps": capped / snr, "v": capped / (snr + 1)}
    for prediction, weight in expected.items():
        process = VPProcess(CosineSchedule(), prediction, gamma)
        np.testing.assert_allclose(process.weight(LEVELS), weight, rtol=2e-6)


@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_one_denoiser_has_one_loss_in_every_parametrisation(gamma, getkey):
    """With min-SNR weights the loss depends on the implied image alone. Equations (8), (9)."""
    with jax.enable_x64(True):
        x0 = images(getkey(), 16).astype(jnp.float64)
        key = getkey()

        def loss(prediction):
            process = VPProcess(LinearSchedule(), prediction, gamma)
            guess = lambda x_t, log_snr: jnp.tanh(x_t) * bar(jax.nn.sigmoid(log_snr))
            predict = lambda x_t, log_snr: process.from_x0(guess(x_t, log_snr), x_t, log_snr)
            return process.loss(predict, x0, key)

        losses = [np.asarray(loss(prediction)) for prediction in PREDICTIONS]
    assert losses[0].shape == (16,)
    assert np.all(losses[0] > 0)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    np.testing.assert_allclose(losses[2], losses[0], rtol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_perfect_prediction_has_no_loss_and_zero_prediction_that_of_its_target(prediction, getkey):
    """x_0 = 0 leaves x_t = sigma e, from which the network can know e exactly."""
    process = VPProcess(CosineSchedule(-3.0, 3.0), prediction, min_snr_gamma=0.0)
    x0 = jnp.zeros((4, 8, 8, 3))
    perfect = lambda x_t, log_snr: process.from_x0(0 * x_t, x_t, log_snr)
    np.testing.assert_allclose(process.loss(perfect, x0, getkey()), np.zeros(4), atol=1e-10)
    if prediction == "eps":  # unit weights: the mean square of the noise itself
        zero = process.loss(lambda x_t, log_snr: 0 * x_t, x0, getkey())
        np.testing.assert_allclose(zero, np.ones(4), atol=5 / np.sqrt(8 * 8 * 3 / 2))


def test_loss_is_its_two_halves_and_draws_are_those_of_the_schedule(getkey):
    process = VPProcess(LinearSchedule())
    x0, key = images(getkey(), 6), getkey()
    predict = lambda x_t, log_snr: jnp.tanh(x_t) * bar(jax.nn.sigmoid(log_snr))
    noised = process.draw(x0, key)
    halves = process.error(predict(noised.x_t, noised.log_snr), x0, noised)
    np.testing.assert_array_equal(halves, process.loss(predict, x0, key))
    np.testing.assert_array_equal(noised.log_snr, process.schedule.log_snr(noised.t))
    np.testing.assert_array_equal(noised.x_t, process.add_noise(x0, noised.noise, noised.log_snr))
    assert np.all((noised.t >= 0) & (noised.t < 1))


def test_loss_of_one_example_is_unmoved_by_another(getkey):
    process = VPProcess(CosineSchedule())
    x0, key = images(getkey(), 6), getkey()
    first = lambda x0: process.loss(lambda x_t, _: jnp.tanh(x_t), x0, key)[0]
    gradient = jax.grad(first)(x0)
    assert np.any(np.asarray(gradient[0]) != 0)
    np.testing.assert_array_equal(gradient[1:], np.zeros_like(gradient[1:]))


def test_loss_is_the_same_when_the_batch_is_sharded(getkey):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    process = VPProcess(CosineSchedule())
    x0, key = images(getkey(), 8), getkey()
    loss = jax.jit(lambda x0, key: process.loss(lambda x_t, _: jnp.tanh(x_t), x0, key))
    np.testing.assert_allclose(loss(jax.device_put(x0, rows), key), loss(x0, key), rtol=1e-6)


def test_times_are_even_in_a_batch_and_uniform_one_by_one(getkey):
    t = np.asarray(stratified_times(getkey(), 10))
    assert np.all((t >= 0) & (t < 1))
    np.testing.assert_allclose(np.diff(np.sort(t)), np.full(9, 0.1), atol=1e-6)
    keys = jax.random.split(getkey(), 4000)
    third = np.asarray(jax.vmap(lambda key: stratified_times(key, 10)[3])(keys))
    histogram = np.histogram(third, bins=10, range=(0, 1))[0]
    assert np.all(np.abs(histogram - 400) < 5 * np.sqrt(400))


def test_make_follows_the_config():
    made = process_lib.make(ProcessConfig(schedule="linear", beta_max=14.0, prediction="eps"))
    assert made == VPProcess(LinearSchedule(0.1, 14.0), "eps", 5.0)
    assert process_lib.make(ProcessConfig()).schedule == CosineSchedule()


def test_schedules_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="beta_min <= beta_max"):
        LinearSchedule(2.0, 1.0)
    with pytest.raises(ConfigError, match="raise beta_max"):
        LinearSchedule(0.1, 2.0)
    with pytest.raises(ValueError, match="log_snr_min"):
        CosineSchedule(3.0, -3.0)
