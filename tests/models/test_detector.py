"""The detector: its grid by image size, both trunks, what it says before training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import ConfigError, DetectorConfig, ResNetConfig, ViTConfig
from lt_jax.models import detector, module
from lt_jax.models.vit import ViT

TINY = DetectorConfig(
    resnet=ResNetConfig(channels=(8, 8, 8), blocks=(1, 1, 1)),
    vit=ViTConfig(variant="custom", width=16, depth=1, heads=2, mlp=16, patch_size=8),
    width=8,
    head_blocks=1,
)


@pytest.mark.parametrize(
    ("size", "strides", "counts"),
    [
        (8, (2, 4), (4, 2)),
        (32, (4, 8, 16), (8, 4, 2)),
        (64, (8, 16, 32), (8, 4, 2)),
        (160, (8, 16, 32, 64), (20, 10, 5, 3)),
        (512, (8, 16, 32, 64, 128), (64, 32, 16, 8, 4)),
    ],
)
def test_strides_follow_the_image_size(size, strides, counts):
    grid = detector.make_grid(TINY, size)
    assert (grid.strides, grid.counts) == (strides, counts)
    assert len(grid.locations) == len(grid.level) == sum(count**2 for count in counts)
    np.testing.assert_allclose(grid.locations[0], strides[0] / 2 / size)
    np.testing.assert_allclose(grid.locations[1] - grid.locations[0], [strides[0] / size, 0])
    first = counts[0] ** 2  # levels follow each other, the finest first
    np.testing.assert_allclose(grid.locations[first], strides[1] / 2 / size)
    np.testing.assert_allclose(grid.stride[[0, first]], np.array(strides[:2]) / size)


@pytest.mark.parametrize(("field", "value"), [("finest", 6), ("levels", 5)])
def test_grids_that_cannot_be_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        detector.make_grid(dataclasses.replace(TINY, **{field: value}), 32)


def run(config, size, classes=2):
    network = detector.make(config, size, classes)
    params = module.init(network, jax.random.key(0), jnp.zeros((1, size, size, 1)), train=False)
    images = jax.random.normal(jax.random.key(1), (2, size, size, 1))
    forward = jax.jit(lambda params, images: module.apply(network, params, images, train=False))
    return network, params, forward(params, images)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (TINY, 32),
        (TINY, 20),  # odd sides: 10 at stride 2, 5 at 4, 3 at 8 (rounded up)
        (dataclasses.replace(TINY, trunk="vit"), 32),  # up, as it is, and pooled
    ],
    ids=["resnet", "odd", "vit"],
)
def test_both_trunks_speak_of_every_location(config, size):
    network, _, outputs = run(config, size)
    places = len(network.grid.locations)
    assert outputs.classes.shape == (2, places, 2)
    assert outputs.middle.shape == (2, places) and outputs.sides.shape == (2, places, 4)
    assert (np.asarray(outputs.sides) > 0).all()
    np.testing.assert_allclose(jax.nn.sigmoid(outputs.classes), detector.PRIOR, atol=0.003)


def test_the_head_serves_all_levels_and_each_has_its_scale():
    _, params, _ = run(TINY, 32)
    assert params["scales"].shape == (3,)
    fine = dataclasses.replace(TINY, levels=1)
    assert module.count(run(fine, 32)[1]["head"]) == module.count(params["head"])


def test_a_level_sees_its_own_place():
    """The finest level answers where the image changes: rows run first, y before x."""
    config = dataclasses.replace(TINY, levels=1)
    network, params, _ = run(config, 32, 1)
    base = jax.random.normal(jax.random.key(3), (1, 32, 32, 1))

    @jax.jit
    def asked(images):
        return module.apply(network, params, images, train=False).sides[0].sum(-1)

    at = 3 * 8 + 5  # third row, fifth column: pixels around (14, 22)
    change = jax.jit(jax.grad(lambda image: asked(image)[at]))(base)[0, :, :, 0]
    y, x = np.unravel_index(np.abs(np.asarray(change)).argmax(), (32, 32))
    assert abs(y - 13.5) < 8 and abs(x - 21.5) < 8


def test_a_transformers_tokens_are_those_that_its_head_reads():
    config = dataclasses.replace(TINY.vit, pool="token")
    images = jax.random.normal(jax.random.key(2), (2, 16, 16, 1))
    classifier = ViT(config, 3)
    params = module.init(classifier, jax.random.key(0), images, train=False)
    _, features = module.apply(classifier, params, images, train=False)
    body = {name: leaf for name, leaf in params.items() if name != "head"}
    maps = module.apply(detector.ViTMap(config, 0), body, images, train=False)
    assert maps.shape == (2, 2, 2, 16) and features.shape == (2, 16)
    gap = dataclasses.replace(config, pool="gap")
    body.pop("token")
    params = module.init(ViT(gap, 3), jax.random.key(0), images, train=False)
    _, features = module.apply(ViT(gap, 3), params, images, train=False)
    body = {name: leaf for name, leaf in params.items() if name != "head"}
    maps = module.apply(detector.ViTMap(gap, 0), body, images, train=False)
    np.testing.assert_allclose(maps.mean(axis=(1, 2)), features, atol=1e-5)


def test_misfits_name_the_field():
    uneven = dataclasses.replace(TINY, resnet=ResNetConfig(channels=(8, 8), blocks=(1,)))
    with pytest.raises(ConfigError, match="channels names 2 stages"):
        run(uneven, 32)
    one = dataclasses.replace(TINY, resnet=ResNetConfig(channels=(8,), blocks=(1,)))
    with pytest.raises(ConfigError, match="takes two or more"):
        run(one, 32)
    odd = dataclasses.replace(TINY, trunk="vit", vit=dataclasses.replace(TINY.vit, patch_size=6))
    with pytest.raises(ConfigError, match="patch_size"):
        run(odd, 36)
    network, params, _ = run(TINY, 32)
    with pytest.raises(ConfigError, match="32x32"):
        module.apply(network, params, jnp.zeros((1, 16, 16, 1)), train=False)


def test_a_published_trunk_brings_its_sizes():
    network = detector.make(DetectorConfig(resnet=ResNetConfig(variant="resnet18")), 224, 1)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    trunk = module.abstract(network, image, train=False)["trunk"]
    assert trunk["stage_3_1"]["conv_1"]["kernel"].shape == (3, 3, 512, 512)
    assert trunk["lateral_2"]["kernel"].shape == (1, 1, 512, 64)
    assert "coarse_3" in trunk and network.grid.strides == (8, 16, 32, 64)
