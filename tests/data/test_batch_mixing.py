"""mixup and CutMix: what is mixed, with which weight, and that labels match the pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.data.batch_mixing import BatchMixing

SHAPE = (64, 12, 10, 1)


@functools.cache
def jitted(*fields):
    return jax.jit(BatchMixing(*fields))


def mix(key, *fields, x=None):
    """Images of one value each, so that every pixel tells its weight."""
    if x is None:
        x = jnp.broadcast_to(jnp.linspace(-1, 1, SHAPE[0])[:, None, None, None], SHAPE)
    mixed, partner, weight = (np.asarray(part) for part in jitted(*fields)(x, key))
    return np.asarray(x), mixed, partner, weight


def test_mixup_is_the_convex_combination_that_its_weight_says(getkey):
    x, mixed, partner, weight = mix(getkey(), True, False, 0.4, 1.0)
    assert sorted(partner) == list(range(len(x)))
    w = weight[:, None, None, None]
    np.testing.assert_allclose(mixed, w * x + (1 - w) * x[partner], atol=1e-6)
    assert 0 <= weight.min() < 0.1 and 0.9 < weight.max() <= 1


def test_cutmix_pastes_a_box_and_counts_what_is_left(getkey):
    x, mixed, partner, weight = mix(getkey(), False, True, 1.0, 1.0)
    other = np.isclose(mixed, x[partner], atol=1e-6)[..., 0]
    own = np.isclose(mixed, x, atol=1e-6)[..., 0]
    assert (own | other).all()
    apart = partner != np.arange(len(x))
    np.testing.assert_allclose(own.mean(axis=(1, 2))[apart], weight[apart], atol=1e-6)
    for box in other[apart]:
        rows, columns = box.any(axis=1).sum(), box.any(axis=0).sum()
        assert box.sum() == rows * columns  # one rectangle
    assert len(np.unique(weight.round(3))) > 20


def test_a_box_s_area_is_one_minus_lambda_where_nothing_is_cut_off(getkey):
    """Over many draws: E[1 - lambda] = 1/2, of which boxes that reach beyond the border lose."""
    x = jnp.zeros((4000, 32, 32, 1))
    weight = mix(getkey(), False, True, 1.0, 1.0, x=x)[3]
    # The square of side s, centred uniformly: a side keeps 1 - s / 4 of it on average. With
    # s = sqrt(1 - lambda): E[s^2 (1 - s / 4)^2] = 1/2 - (1/2) (2/5) + (1/16) (1/3).
    expected = 1 - (1 / 2 - 1 / 5 + 1 / 48)
    assert abs(weight.mean() - expected) < 0.03


@pytest.mark.parametrize("fields", [(True, False), (False, True), (True, True)])
def test_what_is_not_mixed_is_the_image_to_the_bit(getkey, fields):
    x = jax.random.normal(getkey(), SHAPE)
    x, mixed, _, weight = mix(getkey(), *fields, 1.0, 0.0, x=x)
    np.testing.assert_array_equal(mixed, x)
    np.testing.assert_array_equal(weight, 1.0)


def test_probability_and_coin_are_those_of_the_config(getkey):
    x = jax.random.normal(getkey(), (3000, 6, 6, 1))
    _, mixed, partner, weight = mix(getkey(), True, True, 1.0, 0.4, x=x)
    x = np.asarray(x)
    touched = weight < 1
    # Of CutMix at 6x6, boxes under two pixels a side leave nothing: side < 1/3, 1/9 of its draws.
    assert abs(touched.mean() - 0.4 * (1 - 0.5 / 9)) < 0.05
    pixels = np.isclose(mixed, x) | np.isclose(mixed, x[partner])
    cut = pixels.all(axis=(1, 2, 3)) & touched
    assert abs(cut.sum() / touched.sum() - 8 / 17) < 0.06
    assert (jitted(True, True, 1.0, 0.4)(x, getkey())[0] != mixed).any()


def test_weights_are_beta_distributed(getkey):
    x = jnp.zeros((4000, 2, 2, 1))
    for alpha in (0.2, 1.0, 4.0):
        weight = mix(getkey(), True, False, alpha, 1.0, x=x)[3]
        assert abs(weight.mean() - 0.5) < 0.03
        assert weight.var() == pytest.approx(0.25 / (2 * alpha + 1), rel=0.1)
