"""CBDM's regulariser against a direct implementation, its stopped gradients, its labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.diffusion import balance
from lt_jax.diffusion.process import CosineSchedule, LinearSchedule, VPProcess

LABELS = jnp.asarray([0, 1, 2, 2, -1])
OTHERS = jnp.asarray([1, 1, 0, 1, -1])  # the second drew its own label, the last has none


def batch(key, count=5):
    return jax.random.normal(key, (count, 4, 4, 2))


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_cbdm_against_a_direct_implementation(prediction, gamma, getkey):
    """By way of the noise that each prediction stands for, and NumPy."""
    with jax.enable_x64(True):
        process = VPProcess(LinearSchedule(), prediction, gamma)
        noised = process.draw(batch(getkey()).astype(jnp.float64), getkey())
        first, second = (batch(getkey()).astype(jnp.float64) for _ in range(2))
        got = balance.cbdm(
            process, noised, first, second, LABELS, OTHERS, weight=0.7, commitment=0.25
        )
        eps, other = (
            np.asarray(process.to_eps(p, noised.x_t, noised.log_snr)) for p in (first, second)
        )
    snr = np.exp(np.asarray(noised.log_snr))
    level_weight = np.minimum(snr, gamma) / snr if gamma else np.ones(5)
    expected = []
    for i in range(5):
        squared = np.mean((eps[i] - other[i]) ** 2)
        term = 0.7 * float(noised.t[i]) * level_weight[i] * (squared + 0.25 * squared)
        expected.append(term if int(LABELS[i]) != int(OTHERS[i]) else 0.0)
    assert min(expected[0], expected[2], expected[3]) > 0
    np.testing.assert_allclose(got, expected, rtol=1e-7)


def test_each_term_moves_only_the_prediction_that_it_should(getkey):
    """With gradient g of |a - b|^2 in a: the first term gives a g, the second gives b -gamma g."""
    process = VPProcess(CosineSchedule(), "eps", 0.0)
    noised = process.draw(batch(getkey()), getkey())
    first, second = batch(getkey()), batch(getkey())

    def gradients(weight, commitment):
        loss = lambda a, b: balance.cbdm(
            process, noised, a, b, LABELS, OTHERS, weight=weight, commitment=commitment
        ).sum()
        return jax.grad(loss, (0, 1))(first, second)

    level = (noised.t * (LABELS != OTHERS))[:, None, None, None]
    whole = 2 * level * (first - second) / (4 * 4 * 2)
    to_first, to_second = gradients(1.0, 0.25)
    np.testing.assert_allclose(to_first, whole, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(to_second, -0.25 * whole, rtol=1e-5, atol=1e-8)
    assert np.any(np.asarray(to_first) != 0)
    np.testing.assert_array_equal(gradients(1.0, 0.0)[1], jnp.zeros_like(second))
    for gradient in gradients(0.0, 0.25):
        np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))


def test_nothing_is_asked_without_weight_difference_or_other_label(getkey):
    process = VPProcess(CosineSchedule())
    noised = process.draw(batch(getkey()), getkey())
    first, second = batch(getkey()), batch(getkey())
    arguments = {"weight": 1.0, "commitment": 0.25}
    zeros = np.zeros(5)
    none = balance.cbdm(process, noised, first, second, LABELS, OTHERS, weight=0.0)
    np.testing.assert_array_equal(none, zeros)
    same = balance.cbdm(process, noised, first, first, LABELS, OTHERS, **arguments)
    np.testing.assert_array_equal(same, zeros)
    # Two evaluations under one label may differ by dropout; that is no matter of classes.
    own = balance.cbdm(process, noised, first, second, LABELS, LABELS, **arguments)
    np.testing.assert_array_equal(own, zeros)
    other = balance.cbdm(process, noised, first, second, LABELS, OTHERS, **arguments)
    np.testing.assert_array_equal(np.asarray(other) > 0, LABELS != OTHERS)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_other_labels_follow_their_distribution(power, getkey):
    counts = jnp.asarray([90.0, 9.0, 0.0, 1.0])
    n = 20_000
    drawn = np.asarray(balance.other_labels(getkey(), jnp.zeros(n, jnp.int32), counts, power))
    expected = np.where(np.asarray(counts) > 0, np.asarray(counts, np.float64) ** power, 0)
    expected *= n / expected.sum()
    seen = np.bincount(drawn, minlength=4)
    assert np.all(np.abs(seen - expected) <= 5 * np.sqrt(expected))


def test_an_example_without_label_keeps_none(getkey):
    labels = jnp.asarray([-1, 3, 0, 1] * 50)  # 3 classes: 3 stands for "no label", like -1
    drawn = np.asarray(balance.other_labels(getkey(), labels, jnp.ones(3)))
    told = np.asarray((labels >= 0) & (labels < 3))
    np.testing.assert_array_equal(drawn[~told], np.asarray(labels)[~told])
    assert set(drawn[told].tolist()) == {0, 1, 2}
