"""Thresholding against its definition, image by image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import SynthesizeConfig
from lt_jax.diffusion import thresholds
from lt_jax.diffusion.thresholds import DynamicThreshold, NoThreshold, StaticThreshold


def images(key):
    """Some within range, some with a few pixels out of it, some with most."""
    scale = jnp.asarray([0.1, 0.5, 1.0, 4.0])[:, None, None, None]
    return scale * jax.random.normal(key, (4, 9, 7, 3))


@pytest.mark.parametrize("percentile", [0.8, 0.995, 1.0])
def test_dynamic_threshold_is_the_definition(percentile, getkey):
    x0 = images(getkey())
    found = DynamicThreshold(percentile)(x0)
    for got, image in zip(found, np.asarray(x0, np.float64), strict=True):
        s = max(1.0, np.quantile(np.abs(image), percentile))
        np.testing.assert_allclose(got, np.clip(image, -s, s) / s, rtol=1e-5, atol=1e-6)


def test_dynamic_threshold_is_static_where_few_pixels_stand_out(getkey):
    x0 = 0.3 * jax.random.normal(getkey(), (2, 20, 20, 1))
    x0 = x0.at[:, 0, 0].set(5.0)
    np.testing.assert_array_equal(DynamicThreshold(0.99)(x0), StaticThreshold()(x0))
    assert np.max(np.abs(DynamicThreshold(1.0)(x0)[:, 1:])) < 0.4


def test_an_image_is_held_by_its_own_pixels_alone(getkey):
    x0 = images(getkey())
    together = DynamicThreshold(0.9)(x0)
    np.testing.assert_array_equal(DynamicThreshold(0.9)(x0[1:2]), together[1:2])


def test_static_clips_and_none_does_nothing(getkey):
    x0 = images(getkey())
    np.testing.assert_array_equal(StaticThreshold()(x0), np.clip(x0, -1, 1))
    assert NoThreshold()(x0) is x0


def test_make_follows_the_config():
    made = lambda **fields: thresholds.make(SynthesizeConfig(**fields))
    assert made() == StaticThreshold()
    assert made(threshold="none") == NoThreshold()
    assert made(threshold="dynamic", percentile=0.9) == DynamicThreshold(0.9)
    with pytest.raises(ValueError, match=r"percentile=1\.5"):
        DynamicThreshold(1.5)
