"""Blocks: resampling, norms and modulation against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import ConfigError
from lt_jax.models import blocks, module
from tests.models.arrays import random_params, run


@pytest.mark.parametrize("channels", [1, 3, 7, 8, 36, 64, 96, 130, 512])
def test_groups_divide_and_are_bounded(channels):
    groups = blocks.num_groups(channels)
    assert channels % groups == 0 and groups <= max(1, min(32, channels // 4))
    assert blocks.group_norm(channels).num_groups == groups


def test_groups_can_be_given_and_must_divide():
    assert blocks.group_norm(12, 6).num_groups == 6
    with pytest.raises(ConfigError, match="groups = 5 do not divide 12 channels; choose groups"):
        blocks.group_norm(12, 5)


def test_resampling_identities(getkey):
    x = jax.random.normal(getkey(), (2, 4, 6, 3))
    np.testing.assert_array_equal(blocks.depth_to_space(blocks.space_to_depth(x, 2), 2), x)
    np.testing.assert_array_equal(blocks.space_to_depth(x, 2)[0, 1, 2], x[0, 2:4, 4:6].reshape(-1))
    np.testing.assert_allclose(blocks.halve(blocks.double(x)), x, rtol=1e-6)
    np.testing.assert_array_equal(blocks.double(x)[0, 2:4, 4:6, 1], jnp.full((2, 2), x[0, 1, 2, 1]))
    np.testing.assert_allclose(blocks.halve(x)[1, 0, 2], x[1, :2, 4:].mean((0, 1)), rtol=1e-5)


def filled(net, x):
    """Parameters without zeros, of a module that is the same in training."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 4, leaf.dtype)
    return jax.tree.map(draw, module.abstract(net, x))


def correlate(x, kernel, stride):
    """Output i looks at the inputs around `stride * i`; zeros outside. [h w c], [k k c d]."""
    reach = kernel.shape[0] // 2
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)))
    rows, columns = (range(0, size, stride) for size in x.shape[:2])
    window = lambda i, j: padded[i : i + 2 * reach + 1, j : j + 2 * reach + 1]
    return np.array([[np.tensordot(window(i, j), kernel, 3) for j in columns] for i in rows])


def test_convolutions_halve_and_double_about_the_same_pixels(getkey):
    x = jax.random.normal(getkey(), (1, 4, 6, 3))
    down = filled(blocks.Downsample(), x)
    out = run(blocks.Downsample(), down, x)
    kernels = {name: np.asarray(layer["kernel"]) for name, layer in down.items()}
    bias = np.asarray(down["conv_3"]["bias"] + down["conv_5"]["bias"])
    halves = [correlate(np.asarray(x[0]), kernels[name], 2) for name in ("conv_3", "conv_5")]
    np.testing.assert_allclose(out[0], sum(halves) + bias, rtol=1e-4, atol=1e-5)

    up = filled(blocks.Upsample(), x)
    out = run(blocks.Upsample(), up, x)
    # A transposed convolution is one of the image with zeros between its pixels.
    spread = np.zeros((8, 12, 3), np.float32)
    spread[::2, ::2] = x[0]
    up = jax.tree.map(np.asarray, up)
    spread = correlate(spread, up["conv_5"]["kernel"], 1) + up["conv_5"]["bias"]
    expected = correlate(spread, up["conv_3"]["kernel"], 1) + up["conv_3"]["bias"]
    np.testing.assert_allclose(out[0], expected, rtol=1e-4, atol=1e-5)


def test_residual_block_is_its_resampled_input_while_the_last_convolution_is_zero(getkey):
    x, embedding = jax.random.normal(getkey(), (2, 4, 4, 8)), jnp.ones((2, 5))
    for resample, expected in [("same", x), ("down", blocks.halve(x)), ("up", blocks.double(x))]:
        block = blocks.ResidualBlock(8, resample)
        params = random_params(block, x, embedding)
        params["conv_1"] = jax.tree.map(jnp.zeros_like, params["conv_1"])
        out = run(block, params, x, embedding, train=False)
        np.testing.assert_allclose(out, expected, atol=1e-6)


def test_a_shift_is_added_before_the_second_norm(getkey):
    """So one that is the same for all channels of a group changes nothing."""
    x, embedding = jax.random.normal(getkey(), (2, 4, 4, 8)), jnp.ones((2, 5))
    block = blocks.ResidualBlock(8, groups=4, modulation="shift")
    params = random_params(block, x, embedding)
    assert params["modulation"]["kernel"].shape == (5, 8)
    shifted = lambda by: run(
        block,
        {**params, "modulation": {**params["modulation"], "bias": jnp.asarray(by, jnp.float32)}},
        x,
        embedding,
        train=False,
    )
    plain = shifted(np.zeros(8))
    np.testing.assert_allclose(shifted(np.repeat([3.0, -1, 2, 0], 2)), plain, atol=1e-4)
    assert np.abs(shifted(np.arange(8)) - plain).max() > 0.1
