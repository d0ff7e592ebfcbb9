"""BUSGen's network: its parameters against the published layers, its shape at both sizes."""

import functools

import jax
import jax.numpy as jnp
import pytest

from configs import busgen
from lt_jax import config as config_lib
from lt_jax.models import module
from lt_jax.models.conditioning import Vocabulary, nulls
from lt_jax.models.unet import UNet

VOCABULARY = Vocabulary(2, devices=3, max_boxes=4)  # of the released example, with its "none" rows
PUBLISHED = 47_766_787
OURS = 47_698_947


def published(classes, devices, steps=500, width=128, levels=(1, 2, 2, 2)):
    """Parameters of the released UNet (BUSGen/Model.py), layer by layer."""
    embedding = 4 * width

    def dense(inside, outside):
        return inside * outside + outside

    def convolution(inside, outside, size):
        return size * size * inside * outside + outside

    def block(inside, outside, attends):
        count = 2 * inside + convolution(inside, outside, 3)
        count += 2 * dense(embedding, outside)  # noise level; class and device
        count += 2 * outside + convolution(outside, outside, 3)
        count += convolution(inside, outside, 1) if inside != outside else 0
        return count + (2 * outside + 4 * dense(outside, outside) if attends else 0)

    def resample(channels):
        return convolution(channels, channels, 3) + convolution(channels, channels, 5)

    count = steps * width + dense(width, embedding) + dense(embedding, embedding)
    count += (classes + 1 + devices + 1) * width
    count += dense(2 * width, embedding) + dense(embedding, embedding)
    count += convolution(4, width, 3)
    channels, skips = width, [width]
    for level, factor in enumerate(levels):
        for _ in range(2):
            count += block(channels, factor * width, attends=True)
            channels = factor * width
            skips.append(channels)
        if level < len(levels) - 1:
            count += resample(channels)
            skips.append(channels)
    count += block(channels, channels, attends=True) + block(channels, channels, attends=False)
    for level, factor in reversed(list(enumerate(levels))):
        for _ in range(3):
            count += block(channels + skips.pop(), factor * width, attends=False)
            channels = factor * width
        count += resample(channels) if level else 0
    return count + 2 * channels + convolution(channels, 3, 3)


CONFIG = config_lib.build(config_lib.Config, busgen.get_config())


@functools.cache
def shapes(size):
    """Of the parameters and of the prediction."""
    net = UNet(CONFIG.generator.model, VOCABULARY, CONFIG.data.channels)
    image = jax.ShapeDtypeStruct((1, size, size, CONFIG.data.channels), jnp.float32)
    log_snr = jax.ShapeDtypeStruct((1,), jnp.float32)
    args = image, log_snr, nulls(VOCABULARY, 1, size, size)
    params = module.abstract(net, *args, train=False)
    out = jax.eval_shape(lambda p, *a: module.apply(net, p, *a, train=False), params, *args)
    return params, out


def test_parameter_count_is_the_published_one():
    assert published(classes=2, devices=3) == PUBLISHED
    params, _ = shapes(CONFIG.data.image_size)
    assert module.count(params) == OURS
    assert abs(OURS / PUBLISHED - 1) < 0.005
    # All of the difference: no learned table of time steps, one bias a block in place of two (the
    # blocks' channels), and a second channel of the boxes.
    blocks = 2 * 128 + 6 * 256 + 2 * 256 + 9 * 256 + 3 * 128
    assert PUBLISHED - 500 * 128 - blocks + 3 * 3 * 128 == OURS


@pytest.mark.parametrize("size", [160, 128])
def test_every_block_going_down_and_the_first_middle_one_attend(size):
    params, out = shapes(size)
    assert out.shape == (1, size, size, 3) and out.dtype == jnp.float32
    names = {name for name in params["backbone"] if name.endswith("_attention")}
    down = {f"down_{level}_{i}_attention" for level in range(4) for i in range(2)}
    assert names == down | {"middle_0_attention"}


def test_heads_are_one_a_block_and_betas_those_published():
    model, process = CONFIG.generator.model, CONFIG.generator.process
    assert all(channels // model.head_channels <= 1 for channels in model.channels)
    assert process.beta_min == pytest.approx(500 * 1e-4)
    assert process.beta_max == pytest.approx(500 * 0.028)
    assert CONFIG.generator.optimizer.learning_rate == pytest.approx(2.5 * 6.25e-6)
