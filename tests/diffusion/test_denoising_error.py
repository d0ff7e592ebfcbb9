"""Denoising errors: a Gaussian's closed form, one draw an image, the generator's own network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import GeneratorConfig, UNetConfig
from lt_jax.diffusion import annotations, denoising_error
from lt_jax.diffusion.generator import Generator
from lt_jax.diffusion.process import CosineSchedule, VPProcess
from lt_jax.models import conditioning, module
from lt_jax.runtime import keys
from tests.diffusion.lesion_set import ALL, MANIFEST, MASKS, SIZE

TIMES = (0.1, 0.45, 0.8)
MEAN, SPREAD = 0.2, 0.3  # of each pixel
MODEL = UNetConfig(channels=(8,), blocks=1, attention_resolutions=(), embedding=8)
GENERATOR = Generator(
    GeneratorConfig(model=MODEL, conditions=ALL),
    annotations.annotate(MANIFEST, MASKS, ALL, 1).vocabulary,
    (SIZE, SIZE, 1),
)


def gaussian(x_t, log_snr):
    """E[x_0 | x_t] of independent pixels N(MEAN, SPREAD^2)."""
    variance, noise = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)
    gain = jnp.sqrt(variance) * SPREAD**2 / (variance * SPREAD**2 + noise)
    alpha = jnp.sqrt(variance)
    expand = lambda a: a[:, None, None, None]
    return MEAN + expand(gain) * (x_t - expand(alpha) * MEAN)


def measure(images, example_keys, times=TIMES, denoise=gaussian):
    process = VPProcess(CosineSchedule(), "v")
    return np.asarray(
        jax.jit(lambda x, k: denoising_error.of_denoiser(process, denoise, x, k, times))(
            images, example_keys
        )
    )


def closed_form(offsets, times=TIMES):
    """The expected error [b l] of the best denoiser of a Gaussian, of images MEAN + offset.

    With a^2 and s^2 the shares of image and noise, and v the pixels' variance, the estimate is off
    by (a v s e - s^2 offset) / (a^2 v + s^2).
    """
    log_snr = np.asarray(CosineSchedule().log_snr(jnp.asarray(times)), np.float64)
    signal, noise = 1 / (1 + np.exp(-log_snr)), 1 / (1 + np.exp(log_snr))
    variance = SPREAD**2
    squared = np.mean(np.square(offsets), axis=(1, 2, 3))[:, None]
    total = signal * variance + noise
    return (signal * variance**2 * noise + noise**2 * squared) / total**2


def test_errors_of_the_best_denoiser_of_a_gaussian_are_its_closed_form(getkey):
    shape = (3, 64, 64, 2)
    offsets = SPREAD * jax.random.normal(getkey(), shape)
    offsets = (
        offsets * jnp.asarray([1.0, 0.0, 3.0])[:, None, None, None]
    )  # of it, its mean, far out
    found = measure(MEAN + offsets, jax.random.split(getkey(), 3))
    np.testing.assert_allclose(found, closed_form(np.asarray(offsets)), rtol=0.06)
    assert np.all(np.diff(found[np.asarray([1, 0, 2])], axis=0) > 0)
    # Over images of the distribution it is the variance of x_0 given x_t, v s^2 / (a^2 v + s^2).
    noise = 1 / (1 + np.exp(np.asarray(CosineSchedule().log_snr(jnp.asarray(TIMES)))))
    posterior = SPREAD**2 * noise / ((1 - noise) * SPREAD**2 + noise)
    np.testing.assert_allclose(found[0], posterior, rtol=0.06)


def test_a_denoiser_that_knows_the_image_makes_no_error_and_one_that_sees_nothing_its_square(
    getkey,
):
    images = jax.random.normal(getkey(), (4, 8, 8, 1))
    example_keys = jax.random.split(getkey(), 4)
    exact = measure(images, example_keys, denoise=lambda x_t, log_snr: images)
    np.testing.assert_array_equal(exact, np.zeros((4, 3)))
    blind = measure(images, example_keys, denoise=lambda x_t, log_snr: jnp.zeros_like(x_t))
    squares = np.square(np.asarray(images)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(blind, np.repeat(squares[:, None], 3, axis=1), rtol=1e-5)
    assert measure(images, example_keys, times=()).shape == (4, 0)


def test_noise_comes_from_the_image_s_key_and_the_number_of_the_time_alone(getkey):
    images = jax.random.uniform(getkey(), (4, 8, 8, 1), minval=-1)
    example_keys = jax.random.split(getkey(), 4)
    whole = measure(images, example_keys)
    np.testing.assert_allclose(measure(images[2:], example_keys[2:]), whole[2:], rtol=1e-5)
    np.testing.assert_allclose(measure(images, example_keys, TIMES[:1]), whole[:, :1], rtol=1e-5)
    others = measure(images, jax.random.split(getkey(), 4))
    assert np.all(np.abs(others / whole - 1) > 1e-4)
    # At one and the same time, noise of another number is another draw.
    again = measure(images, example_keys, (0.45, 0.45))
    assert np.all(np.abs(again[:, 0] / again[:, 1] - 1) > 1e-4)


@pytest.fixture(scope="module")
def params():
    """Of the generator's network; none is zero, as those that it begins with are."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: leaf + 0.2 * rng.standard_normal(leaf.shape, np.float32), GENERATOR.init()
    )


def test_the_network_is_told_the_class_and_nothing_else(params, getkey):
    """Against its prediction written out, x_0 = alpha x_t - sigma v, one time after the other."""
    images = jax.random.uniform(getkey(), (4, SIZE, SIZE, 1), minval=-1)
    labels, example_keys = jnp.asarray([0, 1, 2, 0]), jax.random.split(getkey(), 4)
    run = jax.jit(lambda p, x, y, k: denoising_error.errors(GENERATOR, p, x, y, k, TIMES))
    found = np.asarray(run(params, images, labels, example_keys))
    told = conditioning.nulls(GENERATOR.vocabulary, 4, SIZE, SIZE)
    told = dataclasses.replace(told, label=labels)
    ask = jax.jit(lambda x, s: module.apply(GENERATOR.unet, params, x, s, told, train=False))
    assert GENERATOR.process.prediction == "v"
    for number, time in enumerate(TIMES):
        log_snr = jnp.full(4, GENERATOR.process.schedule.log_snr(jnp.asarray(time)))
        alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(s * log_snr[0])) for s in (1, -1))
        noise = jnp.stack(
            [
                jax.random.normal(jax.random.fold_in(k, number), images.shape[1:])
                for k in example_keys
            ]
        )
        x_t = alpha * images + sigma * noise
        x_0 = alpha * x_t - sigma * ask(x_t, log_snr)
        expected = np.square(np.asarray(x_0 - images)).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(found[:, number], expected, rtol=1e-4)
    other = np.asarray(run(params, images, (labels + 1) % 3, example_keys))
    assert np.all(np.abs(other / found - 1).max(axis=1) > 1e-4)


def test_images_over_devices_have_the_errors_that_they_have_on_one(params, getkey):
    from jax.sharding import NamedSharding, PartitionSpec

    from lt_jax.runtime import mesh

    images = jax.random.uniform(getkey(), (8, SIZE, SIZE, 1), minval=-1)
    labels = jnp.arange(8) % 3
    example_keys = keys.per_example(getkey(), jnp.arange(8))
    run = jax.jit(lambda p, x, y, k: denoising_error.errors(GENERATOR, p, x, y, k, TIMES))
    whole = run(params, images, labels, example_keys)
    split = NamedSharding(mesh.make_mesh(8), PartitionSpec("data"))
    parts = jax.device_put((images, labels, example_keys), split)
    np.testing.assert_allclose(run(params, *parts), whole, rtol=1e-5)
