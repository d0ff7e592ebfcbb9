"""RandAugment against Pillow's own operations, and what holds for every draw."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps

from lt_jax.data import augment, randaugment
from lt_jax.data.randaugment import OPERATIONS, RandAugment

MAGNITUDES = (0.0, 9.0, 22.5, 30.0)
GREY = (128, 128, 128)


@functools.cache
def jitted(magnitude):
    return jax.jit(functools.partial(randaugment.operate, magnitude=magnitude))


def images(n=6, h=20, w=24, channels=3, seed=0):
    """Smooth and rough ones, of a narrow range and of the whole one."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (n, h, w, channels))
    ramp = np.linspace(40, 180, w)[None, None, :, None] + rng.integers(-30, 30, (n, h, 1, channels))
    smooth = np.arange(n)[:, None, None, None] % 2 == 0
    return np.clip(np.where(smooth, ramp, noise), 0, 255).astype(np.uint8)


def run(x, name, magnitude, sign=1.0):
    choice = np.full(len(x), OPERATIONS.index(name), np.int32)
    out = jitted(magnitude)(x.astype(np.float32), choice, np.full(len(x), sign, np.float32))
    out = np.asarray(out)
    np.testing.assert_array_equal(out, np.round(out))
    assert out.min() >= 0 and out.max() <= 255
    return out


def affine(image, *numbers):
    return image.transform(
        image.size, Image.Transform.AFFINE, numbers, Image.Resampling.NEAREST, fillcolor=GREY
    )


def by_pillow(image, name, magnitude, sign):
    """What Pillow makes of an image: ranges as torchvision has them."""
    t = magnitude / 30
    w, h = image.size
    enhance = {
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "brightness": ImageEnhance.Brightness,
        "sharpness": ImageEnhance.Sharpness,
    }
    if name in enhance:
        return enhance[name](image).enhance(1 + 0.9 * t * sign)
    return {
        "identity": lambda: image,
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "solarize": lambda: ImageOps.solarize(image, 255 * (1 - t)),
        "posterize": lambda: ImageOps.posterize(image, 8 - round(4 * t)),
        "rotate": lambda: image.rotate(30 * t * sign, Image.Resampling.NEAREST, fillcolor=GREY),
        "shear_x": lambda: affine(image, 1, 0.3 * t * sign, 0, 0, 1, 0),
        "shear_y": lambda: affine(image, 1, 0, 0, 0.3 * t * sign, 1, 0),
        "translate_x": lambda: affine(image, 1, 0, sign * int(150 / 331 * t * w), 0, 1, 0),
        "translate_y": lambda: affine(image, 1, 0, 0, 0, 1, sign * int(150 / 331 * t * h)),
    }[name]()


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_is_pillow_s(name, magnitude):
    x = images()
    for sign in (1.0, -1.0):
        expected = np.stack(
            [by_pillow(Image.fromarray(image), name, magnitude, sign) for image in x]
        ).astype(np.float32)
        out = run(x, name, magnitude, sign)
        if name in ("rotate", "shear_x", "shear_y"):  # a place on the edge of two pixels
            assert (out != expected).any(axis=-1).mean() < 0.01
        else:
            assert np.abs(out - expected).max() <= 1
            assert (out != expected).mean() < (0.02 if name == "autocontrast" else 0.001)
        if magnitude > 9 and name != "identity":
            assert np.abs(expected - x).max() > 1  # else nothing was compared


def test_grey_images_take_the_same_operations():
    x = images(channels=1)
    for name in OPERATIONS:
        expected = np.stack(
            [
                np.asarray(by_pillow(Image.fromarray(image).convert("RGB"), name, 22.5, 1.0))
                for image in x[..., 0]
            ]
        )
        out = run(x, name, 22.5)
        assert (np.abs(out[..., 0] - expected[..., 0]) > 1).mean() < 0.01
    np.testing.assert_array_equal(run(x, "color", 22.5), x)  # there is nothing but grey


def test_too_few_pixels_or_one_value_are_not_equalized():
    small = images(h=8, w=8)
    np.testing.assert_array_equal(run(small, "equalize", 9.0), small)
    flat = np.full((2, 20, 24, 3), 77, np.uint8)
    for name in ("equalize", "autocontrast"):
        np.testing.assert_array_equal(run(flat, name, 9.0), flat)


def test_each_image_gets_its_own_operation_alone():
    x = np.repeat(images(1), len(OPERATIONS), axis=0)
    sign = np.ones(len(x), np.float32)
    together = jitted(22.5)(x.astype(np.float32), np.arange(len(x), dtype=np.int32), sign)
    for i, name in enumerate(OPERATIONS):
        np.testing.assert_array_equal(together[i], run(x[:1], name, 22.5)[0])


@functools.cache
def twice():
    return jax.jit(RandAugment(2, 22.5))


def test_operations_are_drawn_alike_and_follow_the_key(getkey):
    x = augment.normalize(np.repeat(images(1), 2800, axis=0))
    once = np.asarray(jax.jit(RandAugment(1, 22.5))(x, getkey()))
    kinds, counts = np.unique(once.reshape(len(once), -1), axis=0, return_counts=True)
    assert len(kinds) == 1 + 4 + 2 * 9  # identity and four without a sign, nine with one
    share = counts / len(once)
    limit = 5 * np.sqrt(1 / 14 / len(once))
    alone = (share > 0.75 / 14).sum()
    assert alone == 5 and np.abs(share[share > 0.75 / 14] - 1 / 14).max() < limit
    assert np.abs(share[share < 0.75 / 14] - 1 / 28).max() < limit


def test_an_image_s_draws_are_its_own(getkey):
    x, key = augment.normalize(images(16)), getkey()
    out = twice()(x, key)
    np.testing.assert_array_equal(jax.jit(RandAugment(2, 22.5))(x[:5], key), out[:5])
    assert (np.asarray(twice()(x, getkey())) != np.asarray(out)).any()
    values = (np.asarray(out, np.float64) + 1) * 127.5
    np.testing.assert_allclose(values, np.round(values), atol=1e-4)
    assert out.dtype == jnp.float32 and np.abs(out).max() <= 1


def test_two_devices_see_what_one_sees(getkey):
    mesh = jax.make_mesh(
        (2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2]
    )
    x, key = augment.normalize(images(16)), getkey()
    parts = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    split = twice()(*(jax.device_put(v, s) for v, s in zip((x, key), parts, strict=True)))
    assert len(split.sharding.device_set) == 2
    np.testing.assert_array_equal(split, twice()(x, key))


def test_a_rotation_is_the_other_sign_s_backwards():
    """The middle of an image, far from what comes in at its border."""
    x = np.asarray(images(2, 41, 41))[:1]
    there = run(x, "rotate", 30.0).astype(np.uint8)
    back = run(there, "rotate", 30.0, -1.0)
    same = (back == x)[0, 10:-10, 10:-10].all(axis=-1)
    assert same.mean() > 0.6
