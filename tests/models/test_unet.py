"""The UNet: examples do not mix, absent conditions have no influence, options do what they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import ConfigError, UNetConfig
from lt_jax.models import module
from lt_jax.models.conditioning import ConditionError, Conditions, Vocabulary, null_like, nulls
from lt_jax.models.unet import Backbone, UNet
from tests import goldens
from tests.models.arrays import jit, random_params, run

TINY = UNetConfig(
    channels=(8, 16), blocks=1, attention_resolutions=(4,), head_channels=8, embedding=16
)
CLASSES = Vocabulary(4)
FULL = Vocabulary(
    4, devices=2, attributes=2, max_boxes=2, corners=True, mask=True, sketch=True, inpaint=True,
    channels=3, augmentation=6,
)  # fmt: skip


def inputs(key, batch=2, size=8, channels=3):
    x = jax.random.normal(key, (batch, size, size, channels))
    return x, jnp.linspace(-3.0, 3.0, batch), Conditions(label=jnp.arange(batch) % 4)


def all_told(key, batch=2, size=8):
    """Every condition, each told."""
    rng = np.random.default_rng(3)
    uniform = lambda *shape: jnp.asarray(rng.uniform(0.1, 0.9, (batch, *shape)), jnp.float32)
    x, log_snr, conditions = inputs(key, batch, size)
    boxes = jnp.array([[0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 1.0, 0.9]])
    return (
        x,
        log_snr,
        Conditions(
            label=conditions.label,
            device=jnp.arange(batch) % 2,
            attributes=uniform(2),
            boxes=jnp.broadcast_to(boxes[None], (batch, 2, 4)),
            mask=uniform(size, size, 1),
            sketch=uniform(size, size, 1),
            inpaint=uniform(size, size, 4),
            augmentation=uniform(6),
        ),
    )


@pytest.fixture(scope="module")
def network():
    net, args = UNet(TINY, CLASSES, out_channels=3), inputs(jax.random.key(7))
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
    net, args = UNet(config, CLASSES, 3), inputs(getkey())

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
    low = UNet(dataclasses.replace(TINY, dtype="bfloat16"), CLASSES, 3)
    full = run(net, params, *args, train=False)
    half = run(low, params, *args, train=False)
    error = np.linalg.norm(full - half) / np.linalg.norm(full)
    assert 1e-4 < error < 0.1
    jaxpr = str(jax.make_jaxpr(lambda p: module.apply(low, p, *args, train=False))(params))
    convolutions = [line for line in jaxpr.splitlines() if "= conv_general_dilated[" in line]
    assert convolutions and all(":bf16[" in line for line in convolutions)


def test_zero_dropout_adds_no_operation_and_dropout_does(getkey):
    net, args = UNet(TINY, CLASSES, 3), inputs(getkey())
    shapes = module.abstract(net, *args, train=False)
    trace = lambda net, train, key=None: str(
        jax.make_jaxpr(lambda p: module.apply(net, p, *args, key=key, train=train))(shapes)
    )
    assert trace(net, True) == trace(net, False)
    dropping = UNet(dataclasses.replace(TINY, dropout=0.1), CLASSES, 3)
    assert "random_bits" in trace(dropping, True, getkey())
    assert "random_bits" not in trace(dropping, False)


def test_attention_stands_at_the_chosen_resolutions_only(getkey):
    shapes = module.abstract(UNet(TINY, CLASSES, 3), *inputs(getkey()), train=False)
    names = {name for name in shapes["backbone"] if name.endswith("_attention")}
    levels = ["down_1_0", "middle_0", "middle_1", "up_1_0", "up_1_1"]
    assert names == {f"{name}_attention" for name in levels}
    # Counted after the stem: with patches of 2 the finest map is the one of 4x4.
    config = dataclasses.replace(TINY, patch_size=2)
    shapes = module.abstract(UNet(config, CLASSES, 3), *inputs(getkey()), train=False)
    names = {name for name in shapes["backbone"] if name.endswith("_attention")}
    assert names == {f"{name}_attention" for name in ["down_0_0", "up_0_0", "up_0_1"]}


def test_backbone_gives_every_level_of_the_decoder(getkey):
    features = jax.eval_shape(
        lambda key, *args: Backbone(TINY, CLASSES).init_with_output(key, *args, train=False)[0],
        jax.random.key(0), *inputs(getkey()),
    )  # fmt: skip
    assert [f.shape for f in features] == [(2, 4, 4, 16), (2, 8, 8, 8)]


@pytest.mark.parametrize(("size", "patch_size"), [(9, 1), (10, 2), (6, 2), (28, 4)])
def test_wrong_size_is_refused_with_the_multiple_it_takes(getkey, size, patch_size):
    net = UNet(dataclasses.replace(TINY, patch_size=patch_size), CLASSES, 3)
    with pytest.raises(ConfigError, match=rf"multiples of {2 * patch_size}, got {size}x{size}"):
        module.abstract(net, *inputs(getkey(), size=size), train=False)


def test_heads_that_do_not_divide_the_channels_are_refused(getkey):
    net = UNet(dataclasses.replace(TINY, channels=(8, 20), head_channels=6), CLASSES, 3)
    with pytest.raises(ConfigError, match="makes 3 heads, which do not divide 20 channels"):
        module.abstract(net, *inputs(getkey()), train=False)


FLOATS = ("attributes", "boxes", "mask", "sketch", "inpaint", "augmentation")


@pytest.fixture(scope="module")
def told():
    """A network with every input and the branch, and a gradient by the first example's output."""
    net, args = UNet(TINY, FULL, 3, sketch=True), all_told(jax.random.key(8))
    params = random_params(net, *args)

    def first(floats, x, log_snr, conditions):
        conditions = dataclasses.replace(conditions, **floats)
        prediction, logits = module.apply(
            net, params, x, log_snr, conditions, train=True, perceive=True
        )
        return sum(jnp.sum(out[0] ** 2) for out in (prediction, *logits))

    gradient = jit(jax.grad(first))

    def gradient_of(conditions):
        floats = {name: getattr(conditions, name) for name in FLOATS}
        return jax.tree.map(np.asarray, gradient(floats, *args[:2], conditions))

    return net, params, args, gradient_of


def test_absent_conditions_have_no_influence(told):
    *_, (_, _, conditions), gradient_of = told
    given, absent = gradient_of(conditions), gradient_of(null_like(conditions))
    for name in FLOATS:
        assert np.any(given[name][0] != 0), name
        if name != "augmentation":  # which has no null
            assert np.all(absent[name] == 0), name
        # One absent by itself, the others as they were.
        alone = dataclasses.replace(conditions, **{name: getattr(null_like(conditions), name)})
        if name != "augmentation":
            found = gradient_of(alone)
            assert np.all(found[name] == 0), name
            assert all(np.any(found[other][0] != 0) for other in FLOATS if other != name)


def test_conditions_of_one_example_do_not_reach_another(told):
    *_, (_, _, conditions), gradient_of = told
    for name, leaf in gradient_of(conditions).items():
        assert np.all(leaf[1] == 0), name


def test_sampling_does_not_need_the_branch(told):
    net, params, args, _ = told
    prediction, logits = run(net, params, *args, train=False, perceive=True)
    # Coarse to fine: of the sizes of the decoder's levels.
    assert [leaf.shape for leaf in logits] == [(2, 4, 4, 1), (2, 8, 8, 1)]
    assert all(leaf.dtype == jnp.float32 and np.std(leaf) > 0.01 for leaf in logits)
    without = {name: leaf for name, leaf in params.items() if name != "perception"}
    plain = run(UNet(TINY, FULL, 3), without, *args, train=False)
    np.testing.assert_array_equal(plain, prediction)
    np.testing.assert_array_equal(run(net, without, *args, train=False), prediction)
    # And initialisation makes its parameters without being asked to perceive.
    assert set(module.abstract(net, *args, train=False)) - set(without) == {"perception"}


def test_branch_on_patches_has_maps_of_whole_pixels_and_starts_at_zero(getkey):
    net = UNet(dataclasses.replace(TINY, patch_size=2), CLASSES, 3, sketch=True)
    args = inputs(getkey(), size=16)

    @jit
    def start(key):
        params = module.init(net, key, *args, train=False)
        return module.apply(net, params, *args, train=False, perceive=True)[1]

    logits = start(getkey())
    assert [leaf.shape for leaf in logits] == [(2, 8, 8, 1), (2, 16, 16, 1)]
    assert all(np.all(np.asarray(leaf) == 0) for leaf in logits)


def test_perceiving_without_the_branch_is_refused(getkey):
    with pytest.raises(ConfigError, match=r"train one with generator\.sketch\.weight > 0"):
        module.abstract(UNet(TINY, CLASSES, 3), *inputs(getkey()), train=False, perceive=True)


def test_conditions_the_network_does_not_know_are_refused(getkey):
    x, log_snr, conditions = inputs(getkey())
    with pytest.raises(ConditionError, match="takes the conditions label, got label, device"):
        told = dataclasses.replace(conditions, device=jnp.zeros(2, jnp.int32))
        module.abstract(UNet(TINY, CLASSES, 3), x, log_snr, told, train=False)


def test_a_network_of_classes_alone_is_the_one_it_was(update_goldens):
    """Norms of the demo network's first parameters, written before there were other conditions."""
    config = UNetConfig(channels=(32, 64), blocks=1, attention_resolutions=(4,))
    x = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    log_snr = jax.ShapeDtypeStruct((1,), jnp.float32)
    net = UNet(config, Vocabulary(10), 1)
    args = x, log_snr, nulls(Vocabulary(10), 1, 8, 8)
    params = module.init(net, jax.random.key(3), *args, train=False)
    norms = {
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {leaf.shape}": float(
            np.linalg.norm(leaf)
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    goldens.check_numbers("digits_unet", norms, update_goldens)


def test_options_place_attention_and_resampling(getkey):
    config = dataclasses.replace(
        TINY, attention="encoder", attention_resolutions=(4, 8), resample="convolution", groups=4
    )
    net, args = UNet(config, CLASSES, 3), inputs(getkey())
    shapes = module.abstract(net, *args, train=False)["backbone"]
    names = {name for name in shapes if name.endswith("_attention")}
    assert names == {f"{name}_attention" for name in ["down_0_0", "down_1_0", "middle_0"]}
    assert set(shapes["down_0_half"]) == set(shapes["up_0_double"]) == {"conv_3", "conv_5"}
    # The first block going up reads what came up, of the coarser level's width, and a skip.
    assert shapes["up_0_0"]["conv_0"]["kernel"].shape == (3, 3, 16 + 8, 8)
    assert run(net, random_params(net, *args), *args, train=False).shape == (2, 8, 8, 3)


def test_chunks_of_attention_leave_the_output_as_it_is(network):
    net, params, args = network
    chunks = UNet(dataclasses.replace(TINY, attention_chunk=5), CLASSES, 3)
    np.testing.assert_allclose(
        run(chunks, params, *args, train=False),
        run(net, params, *args, train=False),
        rtol=1e-4,
        atol=1e-4,
    )
