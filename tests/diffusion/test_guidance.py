"""Guidance: exact limits, independence of the parametrisation, pairs kept apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.diffusion.guidance import ClassifierFree, denoiser
from lt_jax.diffusion.process import CosineSchedule, VPProcess

PROCESS = VPProcess(CosineSchedule(), "v")
LABELS = jnp.asarray([0, 2, 1, 2, 0])
NULL = jnp.full(5, 3)
LOG_SNR = jnp.asarray([-4.0, -1.0, 0.0, 2.0, 5.0])


class Counting:
    """A small label-conditional network that notes the batch size of each evaluation."""

    def __init__(self, process=PROCESS):
        self.process, self.batches = process, []

    def __call__(self, x_t, log_snr, labels):
        self.batches.append(x_t.shape[0])
        shift = (labels - 1.5)[:, None, None, None]
        x0 = jnp.tanh(x_t + shift) * jax.nn.sigmoid(log_snr)[:, None, None, None]
        return self.process.from_x0(x0, x_t, log_snr)


def images(key):
    return jax.random.normal(key, (5, 4, 4, 2))


@pytest.mark.parametrize(("scale", "labels"), [(1.0, LABELS), (0.0, NULL)])
def test_scales_one_and_zero_are_the_two_networks_in_one_evaluation(scale, labels, getkey):
    network = Counting()
    x_t = images(getkey())
    guided = denoiser(PROCESS, network, LABELS, NULL, ClassifierFree(scale))(x_t, LOG_SNR)
    assert network.batches == [5]
    expected = PROCESS.to_x0(network(x_t, LOG_SNR, labels), x_t, LOG_SNR)
    np.testing.assert_array_equal(guided, expected)


@pytest.mark.parametrize("scale", [0.5, 2.8])
def test_other_scales_are_the_line_through_both_in_one_doubled_evaluation(scale, getkey):
    network = Counting()
    x_t = images(getkey())
    guided = ClassifierFree(scale)(network, x_t, LOG_SNR, LABELS, NULL)
    assert network.batches == [10]
    conditional, unconditional = (network(x_t, LOG_SNR, labels) for labels in (LABELS, NULL))
    expected = (1 - scale) * unconditional + scale * conditional
    np.testing.assert_allclose(guided, expected, rtol=1e-5, atol=1e-6)


def test_condition_equal_to_the_null_is_left_alone_by_any_scale(getkey):
    network = Counting()
    x_t = images(getkey())
    guided = ClassifierFree(7.0)(network, x_t, LOG_SNR, NULL, NULL)
    np.testing.assert_allclose(guided, network(x_t, LOG_SNR, NULL), rtol=1e-6)


def test_guidance_gives_one_image_in_every_parametrisation(getkey):
    with jax.enable_x64(True):
        x_t, log_snr = images(getkey()).astype(jnp.float64), LOG_SNR.astype(jnp.float64)
        found = []
        for prediction in ("eps", "v", "x0"):
            process = VPProcess(CosineSchedule(), prediction)
            guide = ClassifierFree(2.5)
            denoise = denoiser(process, Counting(process), LABELS, NULL, guide)
            found.append(denoise(x_t, log_snr))
        np.testing.assert_allclose(found[1], found[0], atol=1e-10)
        np.testing.assert_allclose(found[2], found[0], atol=1e-10)


def test_conditions_may_be_trees_of_any_rank(getkey):
    """Labels and boxes drawn as a mask, each with its own null."""
    x_t = images(getkey())

    def network(x_t, log_snr, condition):
        return x_t * condition["mask"] + condition["label"][:, None, None, None]

    condition = {"label": jnp.arange(5.0), "mask": images(getkey())}
    null = jax.tree.map(jnp.zeros_like, condition)
    guided = ClassifierFree(3.0)(network, x_t, LOG_SNR, condition, null)
    np.testing.assert_allclose(guided, 3 * network(x_t, LOG_SNR, condition), rtol=1e-5, atol=1e-6)


def test_guided_image_depends_on_its_own_row_only(getkey):
    x_t = images(getkey())
    denoise = denoiser(PROCESS, Counting(), LABELS, NULL, ClassifierFree(2.0))
    gradient = jax.grad(lambda x_t: jnp.sum(denoise(x_t, LOG_SNR)[2]))(x_t)
    others = np.delete(np.asarray(gradient), 2, axis=0)
    np.testing.assert_array_equal(others, np.zeros_like(others))
    assert np.any(np.asarray(gradient[2]) != 0)
