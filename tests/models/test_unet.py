"""The UNet: examples do not mix, the output starts at zero, sizes are checked, dtypes hold."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import ConfigError, UNetConfig
from lt_jax.models import blocks, module
from lt_jax.models.conditioning import Conditions, null_like
from lt_jax.models.unet import Backbone, UNet
from tests.models.arrays import jit, random_params, run

TINY = UNetConfig(
    channels=(8, 16), blocks=1, attention_resolutions=(4,), head_channels=8, embedding=16
)


def inputs(key, batch=2, size=8, channels=3):
    x = jax.random.normal(key, (batch, size, size, channels))
    return x, jnp.linspace(-3.0, 3.0, batch), Conditions(label=jnp.arange(batch) % 4)


@pytest.fixture(scope="module")
def network():
    net, args = UNet(TINY, num_classes=4, out_channels=3), inputs(jax.random.key(7))
    return net, random_params(net, *args), args


def test_gradient_of_one_example_does_not_reach_another(network):
    net, params, (x, log_snr, conditions) = network

    def first(x, log_snr):
        return jnp.sum(module.apply(net, params, x, log_snr, conditions, train=True)[0] ** 2)

    to_x, to_log_snr = jit(jax.grad(first, argnums=(0, 1)))(x, log_snr)
    assert np.all(np.asarray(to_x[1]) == 0) and to_log_snr[1] == 0
    # Attention at 4x4 and the decoder see the whole of the first image.
    assert np.all(np.any(np.asarray(to_x[0]) != 0, axis=-1)) and to_log_snr[0] != 0


def test_batch_order_does_not_matter(network):
    net, params, (x, log_snr, conditions) = network
    forward = jit(lambda *args: module.apply(net, params, *args, train=False))
    out = forward(x, log_snr, conditions)
    back = forward(x[::-1], log_snr[::-1], Conditions(label=conditions.label[::-1]))[::-1]
    np.testing.assert_allclose(out, back, atol=1e-5)


def test_conditions_reach_the_output(network):
    net, params, (x, log_snr, conditions) = network
    forward = jit(lambda s, c: module.apply(net, params, x, s, c, train=False))
    out = forward(log_snr, conditions)
    assert np.abs(out - forward(log_snr, null_like(conditions))).max() > 1e-3
    assert np.abs(out - forward(log_snr + 1, conditions)).max() > 1e-3


@pytest.mark.parametrize(("patch_size", "dtype"), [(1, "float32"), (2, "bfloat16")])
def test_starts_at_zero_in_float32_with_float32_params(getkey, patch_size, dtype):
    config = dataclasses.replace(TINY, channels=(4,), patch_size=patch_size, dtype=dtype)
    net, args = UNet(config, 4, 3), inputs(getkey())

    @jit
    def start(key):
        params = module.init(net, key, *args, train=False)
        return params, module.apply(net, params, *args, train=True)

    params, out = start(getkey())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert out.shape == (2, 8, 8, 3) and out.dtype == jnp.float32
    assert np.all(np.asarray(out) == 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_bfloat16_nears_float32_and_computes_in_bfloat16(network):
    net, params, args = network
    low = UNet(dataclasses.replace(TINY, dtype="bfloat16"), 4, 3)
    full = run(net, params, *args, train=False)
    half = run(low, params, *args, train=False)
    error = np.linalg.norm(full - half) / np.linalg.norm(full)
    assert 1e-4 < error < 0.1
    jaxpr = str(jax.make_jaxpr(lambda p: module.apply(low, p, *args, train=False))(params))
    convolutions = [line for line in jaxpr.splitlines() if "= conv_general_dilated[" in line]
    assert convolutions and all(":bf16[" in line for line in convolutions)


def test_zero_dropout_adds_no_operation_and_dropout_does(getkey):
    net, args = UNet(TINY, 4, 3), inputs(getkey())
    shapes = module.abstract(net, *args, train=False)
    trace = lambda net, train, key=None: str(
        jax.make_jaxpr(lambda p: module.apply(net, p, *args, key=key, train=train))(shapes)
    )
    assert trace(net, True) == trace(net, False)
    dropping = UNet(dataclasses.replace(TINY, dropout=0.1), 4, 3)
    assert "random_bits" in trace(dropping, True, getkey())
    assert "random_bits" not in trace(dropping, False)


def test_attention_stands_at_the_chosen_resolutions_only(getkey):
    shapes = module.abstract(UNet(TINY, 4, 3), *inputs(getkey()), train=False)
    names = {name for name in shapes["backbone"] if name.endswith("_attention")}
    levels = ["down_1_0", "middle_0", "middle_1", "up_1_0", "up_1_1"]
    assert names == {f"{name}_attention" for name in levels}
    # Counted after the stem: with patches of 2 the finest map is the one of 4x4.
    config = dataclasses.replace(TINY, patch_size=2)
    shapes = module.abstract(UNet(config, 4, 3), *inputs(getkey()), train=False)
    names = {name for name in shapes["backbone"] if name.endswith("_attention")}
    assert names == {f"{name}_attention" for name in ["down_0_0", "up_0_0", "up_0_1"]}


def test_backbone_gives_every_level_of_the_decoder(getkey):
    features = jax.eval_shape(
        lambda key, *args: Backbone(TINY, 4).init_with_output(key, *args, train=False)[0],
        jax.random.key(0), *inputs(getkey()),
    )  # fmt: skip
    assert [f.shape for f in features] == [(2, 4, 4, 16), (2, 8, 8, 8)]


@pytest.mark.parametrize(("size", "patch_size"), [(9, 1), (10, 2), (6, 2), (28, 4)])
def test_wrong_size_is_refused_with_the_multiple_it_takes(getkey, size, patch_size):
    net = UNet(dataclasses.replace(TINY, patch_size=patch_size), 4, 3)
    with pytest.raises(ConfigError, match=rf"multiples of {2 * patch_size}, got {size}x{size}"):
        module.abstract(net, *inputs(getkey(), size=size), train=False)


def test_heads_that_do_not_divide_the_channels_are_refused(getkey):
    net = UNet(dataclasses.replace(TINY, channels=(8, 20), head_channels=6), 4, 3)
    with pytest.raises(ConfigError, match="makes 3 heads, which do not divide 20 channels"):
        module.abstract(net, *inputs(getkey()), train=False)


@pytest.mark.parametrize("channels", [1, 3, 7, 8, 36, 64, 96, 130, 512])
def test_groups_divide_and_are_bounded(channels):
    groups = blocks.num_groups(channels)
    assert channels % groups == 0 and groups <= max(1, min(32, channels // 4))


def test_resampling_identities(getkey):
    x = jax.random.normal(getkey(), (2, 4, 6, 3))
    np.testing.assert_array_equal(blocks.depth_to_space(blocks.space_to_depth(x, 2), 2), x)
    np.testing.assert_array_equal(blocks.space_to_depth(x, 2)[0, 1, 2], x[0, 2:4, 4:6].reshape(-1))
    np.testing.assert_allclose(blocks.halve(blocks.double(x)), x, rtol=1e-6)
    np.testing.assert_array_equal(blocks.double(x)[0, 2:4, 4:6, 1], jnp.full((2, 2), x[0, 1, 2, 1]))
    np.testing.assert_allclose(blocks.halve(x)[1, 0, 2], x[1, :2, 4:].mean((0, 1)), rtol=1e-5)


def test_residual_block_is_its_resampled_input_while_the_last_convolution_is_zero(getkey):
    x, embedding = jax.random.normal(getkey(), (2, 4, 4, 8)), jnp.ones((2, 5))
    for resample, expected in [("same", x), ("down", blocks.halve(x)), ("up", blocks.double(x))]:
        block = blocks.ResidualBlock(8, resample)
        params = random_params(block, x, embedding)
        params["conv_1"] = jax.tree.map(jnp.zeros_like, params["conv_1"])
        out = run(block, params, x, embedding, train=False)
        np.testing.assert_allclose(out, expected, atol=1e-6)
