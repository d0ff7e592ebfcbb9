"""ViT and ResNet: published parameter counts, pooling, drop path, independence of examples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import ClassifierConfig, ConfigError, ExpertsConfig, ResNetConfig, ViTConfig
from lt_jax.models import classifier, module
from lt_jax.models.resnet import ResNet, padded
from lt_jax.models.vit import DropPath, ViT, sincos_positions
from tests.models.arrays import jit, random_params, run

SMALL = ViTConfig(variant="custom", width=16, depth=2, heads=2, mlp=32, patch_size=4)
CONFIG = ClassifierConfig(
    kind="vit", vit=SMALL, resnet=ResNetConfig(channels=(8, 16), blocks=(1, 1))
)


def make(getkey, net, size=8):
    images = jax.random.normal(getkey(), (3, size, size, 3))
    return random_params(net, images), images


# timm's vit_{tiny,small,base}_patch16_224: 5,717,416, 22,050,664 and 86,567,656.
@pytest.mark.parametrize(
    ("variant", "count"), [("Ti", 5_717_416), ("S", 22_050_664), ("B", 86_567_656)]
)
def test_parameter_counts_are_the_published_ones(variant, count):
    config = ViTConfig(variant=variant, patch_size=16, position="learned", pool="token")
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    assert module.count(module.abstract(ViT(config, 1000), image, train=False)) == count
    # Fixed positions and mean pooling save the token and 197 positions.
    fixed = ViTConfig(variant=variant, patch_size=16)
    width = {"Ti": 192, "S": 384, "B": 768}[variant]
    shapes = module.abstract(ViT(fixed, 1000), image, train=False)
    assert module.count(shapes) == count - width * 198


@pytest.mark.parametrize(("kind", "dtype"), [("vit", "bfloat16"), ("resnet", "float32")])
def test_signature_and_zero_start(getkey, kind, dtype):
    config = dataclasses.replace(
        CONFIG,
        vit=dataclasses.replace(SMALL, dtype=dtype),
        resnet=dataclasses.replace(CONFIG.resnet, dtype=dtype),
    )
    net = classifier.make(config, 5, kind)
    images = jax.random.normal(getkey(), (3, 8, 8, 3))

    @jit
    def start(key):
        params = module.init(net, key, images, train=False)
        return params, module.apply(net, params, images, train=True)

    params, (logits, features) = start(getkey())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert logits.shape == (3, 5) and features.shape == (3, 16)
    assert logits.dtype == features.dtype == jnp.float32
    assert np.all(np.asarray(logits) == 0) and np.asarray(features).std() > 0.01


def test_many_tokens_are_attended_to_by_chunks(getkey):
    net = ViT(SMALL, 5)
    params, images = make(getkey, net, size=16)
    whole = run(net, params, images, train=False)
    cut = ViT(dataclasses.replace(SMALL, attention_chunk=7), 5)
    text = str(jax.make_jaxpr(lambda p: module.apply(cut, p, images, train=False))(params))
    assert "scan" in text
    for ours, theirs in zip(run(cut, params, images, train=False), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_one_example_does_not_reach_another(getkey, kind):
    net = classifier.make(CONFIG, 5, kind)
    params, images = make(getkey, net)
    first = lambda x: jnp.sum(module.apply(net, params, x, train=True)[0][0] ** 2)
    gradient = np.asarray(jit(jax.grad(first))(images))
    assert np.all(gradient[1:] == 0) and np.any(gradient[0] != 0)
    order = jnp.array([2, 0, 1])
    forward = jit(lambda x: module.apply(net, params, x, train=False))
    (logits, features), permuted = forward(images), forward(images[order])
    np.testing.assert_allclose(permuted[0], logits[order], atol=1e-5)
    np.testing.assert_allclose(permuted[1], features[order], atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_logits_are_the_head_of_the_features(getkey, kind):
    net = classifier.make(CONFIG, 5, kind)
    params, images = make(getkey, net)
    logits, features = run(net, params, images, train=False)
    head = params["head"]
    np.testing.assert_allclose(logits, features @ head["kernel"] + head["bias"][None], atol=1e-5)


def test_gap_ignores_the_order_of_patches_without_positions_and_positions_break_it(getkey):
    config = dataclasses.replace(SMALL, position="learned")
    net = ViT(config, 5)
    params, images = make(getkey, net)
    without = {**params, "positions": jnp.zeros_like(params["positions"])}
    patches_swapped = jnp.concatenate([images[:, 4:], images[:, :4]], axis=1)
    pooled = jit(lambda p, x: module.apply(net, p, x, train=False)[1])
    np.testing.assert_allclose(pooled(without, images), pooled(without, patches_swapped), atol=1e-5)
    assert np.abs(pooled(params, images) - pooled(params, patches_swapped)).max() > 1e-2


def test_token_and_mean_pool_differ_by_the_token_alone(getkey):
    token = ViT(dataclasses.replace(SMALL, pool="token"), 5)
    gap = ViT(SMALL, 5)
    params, images = make(getkey, token)
    without = {name: value for name, value in params.items() if name != "token"}
    a = run(token, params, images, train=False)[1]
    b = run(gap, without, images, train=False)[1]
    assert a.shape == b.shape and np.abs(a - b).max() > 1e-2
    # The token's features reach the parameter, the mean's have none.
    loss = lambda p: jnp.sum(module.apply(token, p, images, train=False)[1] ** 2)
    assert np.any(np.asarray(jit(jax.grad(loss))(params)["token"]) != 0)
    shapes = module.abstract(gap, images, train=False)
    assert "token" not in shapes


def test_drop_path_is_per_example_and_keeps_the_expectation(getkey):
    n, rate = 4000, 0.3
    x = jax.random.normal(getkey(), (n, 2, 3)) + 2
    out = np.asarray(module.apply(DropPath(rate), {}, x, key=getkey(), train=True))
    dropped = np.all(out == 0, axis=(1, 2))
    assert abs(dropped.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
    np.testing.assert_allclose(out[~dropped], x[~dropped] / (1 - rate), rtol=1e-5)
    np.testing.assert_allclose(out.mean(axis=0), x.mean(axis=0), atol=0.15)
    np.testing.assert_array_equal(module.apply(DropPath(rate), {}, x, train=False), x)


def test_drop_path_grows_with_depth_and_costs_nothing_at_zero(getkey):
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)

    def masks(drop_path, train=True):
        net = ViT(dataclasses.replace(SMALL, depth=3, drop_path=drop_path), 5)
        shapes = module.abstract(net, images, train=False)
        apply = lambda p, x: module.apply(net, p, x, key=jax.random.key(0), train=train)
        return str(jax.make_jaxpr(apply)(shapes, images)).count("name=_bernoulli")

    assert masks(0.0) == masks(0.5, train=False) == 0
    assert masks(0.5) == 2 * 2  # the first of three blocks never drops; two residuals in each


def test_sincos_positions_are_distinct_and_factor_into_axes():
    positions = sincos_positions(3, 5, 16).reshape(3, 5, 16)
    assert len(np.unique(positions.reshape(15, 16), axis=0)) == 15
    np.testing.assert_array_equal(positions[0, :, :8], positions[2, :, :8])  # x alone
    np.testing.assert_array_equal(positions[:, 0, 8:], positions[:, 4, 8:])  # y alone
    np.testing.assert_allclose(positions[2, 3, [0, 4]], [np.sin(3), np.cos(3)], rtol=1e-6)
    np.testing.assert_allclose(positions[2, 3, [8, 12]], [np.sin(2), np.cos(2)], rtol=1e-6)
    lowest = positions[2, 3, [3, 11]]
    np.testing.assert_allclose(lowest, [np.sin(3e-4), np.sin(2e-4)], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "size", "message"),
    [
        ({}, 10, "patch_size = 4 does not divide images of 10x10"),
        ({"heads": 3}, 8, "heads = 3 does not divide width = 16"),
        ({"width": 18, "heads": 2}, 8, "multiple of 4 and at least 8, got 18"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, size, message):
    net = ViT(dataclasses.replace(SMALL, **change), 5)
    with pytest.raises(ConfigError, match=message):
        module.abstract(net, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32), train=False)


def test_make_chooses_and_refuses():
    assert classifier.make(CONFIG, 5).config is CONFIG.vit
    assert classifier.make(CONFIG, 5, "resnet").config is CONFIG.resnet
    with pytest.raises(ConfigError, match="no classifier 'mlp'; takes default, vit or resnet"):
        classifier.make(CONFIG, 5, "mlp")
    uneven = ResNetConfig(channels=(8, 16), blocks=(1,))
    net = classifier.make(dataclasses.replace(CONFIG, resnet=uneven), 5, "resnet")
    with pytest.raises(ConfigError, match="channels names 2 stages and blocks 1"):
        module.abstract(net, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32), train=False)


# He et al. 2016, table 6: 0.46 M; with batch norm, which has as many parameters: 464,154. The
# ResNet-18 of torchvision: 11,689,512; with ten classes 11,181,642, and 11,173,962 on CIFAR.
@pytest.mark.parametrize(
    ("variant", "stem", "size", "classes", "count"),
    [
        ("resnet32", "3x3", 32, 10, 464_154),
        ("resnet18", "auto", 224, 1000, 11_689_512),
        ("resnet18", "7x7", 64, 10, 11_181_642),
        ("resnet18", "auto", 32, 10, 11_173_962),
    ],
)
def test_named_resnets_have_the_published_parameters(variant, stem, size, classes, count):
    net = ResNet(ResNetConfig(variant=variant, stem=stem), classes)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    assert module.count(module.abstract(net, image, train=False)) == count


def features_at(config, size):
    """The sizes that feature maps have, from the stem on."""
    net = ResNet(config, 2)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = module.abstract(net, image, train=False)
    text = str(jax.make_jaxpr(lambda p, x: module.apply(net, p, x, train=False))(shapes, image))
    return [n for n in (112, 56, 28, 14, 7, 64, 32, 16, 8) if f"f32[1,{n},{n}," in text]


def test_the_large_stem_leaves_a_quarter_and_auto_takes_it_from_128_pixels_on():
    small = ResNetConfig(channels=(4, 4), blocks=(1, 1))
    assert features_at(small, 64) == [64, 32]
    large = dataclasses.replace(small, stem="7x7")
    assert features_at(large, 224) == [112, 56, 28]
    auto = dataclasses.replace(small, stem="auto")
    assert features_at(auto, 64) == [64, 32] and features_at(auto, 128) == [64, 32, 16]


def test_a_shortcut_without_parameters_skips_pixels_and_pads_channels(getkey):
    x = jax.random.normal(getkey(), (2, 5, 6, 3))
    out = padded(x, 8, 2)
    assert out.shape == (2, 3, 3, 8)
    np.testing.assert_array_equal(out[..., 2:5], x[:, ::2, ::2])
    np.testing.assert_array_equal(np.delete(out, [2, 3, 4], axis=-1), 0)


EXPERTS = ExpertsConfig(vit=CONFIG.vit, resnet=CONFIG.resnet, experts=3)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_experts_share_all_but_their_last_part(getkey, kind):
    alone, together = classifier.make(CONFIG, 5, kind), classifier.make(EXPERTS, 5, kind)
    params, images = make(getkey, together)
    single = module.abstract(alone, images, train=False)
    shared = {name for name in params if not name.startswith("expert_")}
    last = {"vit": {"block_1", "norm", "head"}, "resnet": {"stage_1_0", "head"}}[kind]
    assert shared == set(single) - last
    own = {name: leaf for name, leaf in single.items() if name in last}
    assert module.count(params) == module.count(single) + 2 * module.count(own)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_an_expert_is_the_single_network_with_its_parts(getkey, kind):
    alone, together = classifier.make(CONFIG, 5, kind), classifier.make(EXPERTS, 5, kind)
    params, images = make(getkey, together)

    @jit
    def forward(params, images):
        each, features = module.apply(together, params, images, train=False, each=True)
        mean = module.apply(together, params, images, train=False)[0]
        return each, mean, features

    each, mean, features = forward(params, images)
    assert each.shape == (3, 3, 5) and features.shape == (3, 3 * 16)
    np.testing.assert_allclose(mean, each.mean(axis=1), atol=1e-5)
    call = jit(lambda p, x: module.apply(alone, p, x, train=False))
    for e in range(3):
        own = {name.removeprefix(f"expert_{e}_"): leaf for name, leaf in params.items()}
        own = {name: leaf for name, leaf in own.items() if not name.startswith("expert_")}
        logits, found = call(own, images)
        np.testing.assert_allclose(each[:, e], logits, atol=1e-5)
        np.testing.assert_allclose(features[:, 16 * e : 16 * e + 16], found, atol=1e-5)
    assert np.abs(each[:, 0] - each[:, 1]).max() > 1e-3
