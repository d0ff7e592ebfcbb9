"""Augmentation: exact where nothing moves, exact permutations, independent per image."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax.sharding import NamedSharding, PartitionSpec

from lt_jax.config import AugmentConfig, ConfigError
from lt_jax.data import augment as module
from lt_jax.data.augment import augment, normalize, quantize

EVERYTHING = AugmentConfig(
    horizontal_flip=True,
    vertical_flip=True,
    rotate90=True,
    shift=2,
    scale=0.2,
    rotate=20.0,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    cutout=4,
)


def images(n=16, size=8, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def run(x, key, **fields):
    return np.asarray(jax.jit(functools.partial(augment, config=AugmentConfig(**fields)))(x, key))


def test_quantize_inverts_normalize_for_every_value():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    for apply in (lambda f: f, jax.jit):
        x = apply(normalize)(values)
        np.testing.assert_array_equal(apply(quantize)(x), values)
        assert x.dtype == jnp.float32 and x.min() == -1 and x.max() == 1
        # The same bits as on host.
        np.testing.assert_array_equal(
            x, (2 * values.astype(np.float32) - 255) * np.float32(1 / 255)
        )
    np.testing.assert_array_equal(jnp.diff(normalize(values).ravel()) > 0, True)


def test_quantize_clips_and_rounds_to_the_nearest():
    x = jnp.array([-3.0, -1.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1.0, 1.7]).reshape(1, 1, 6, 1)
    np.testing.assert_array_equal(quantize(x).ravel(), [0, 0, 0, 1, 255, 255])


def test_nothing_configured_is_normalisation_bit_for_bit(getkey):
    x = images()
    expected = np.asarray(normalize(x))
    np.testing.assert_array_equal(run(x, getkey()), expected)
    np.testing.assert_array_equal(run(normalize(x), getkey()), expected)


@pytest.mark.parametrize(("field", "axis"), [("horizontal_flip", 2), ("vertical_flip", 1)])
def test_flip_is_exact_involutive_and_fair(getkey, field, axis):
    x, key = np.asarray(normalize(images(400, 5))), getkey()
    out = run(x, key, **{field: True})
    same = np.all(out == x, axis=(1, 2, 3))
    flipped = np.all(out == np.flip(x, axis), axis=(1, 2, 3))
    assert np.all(same ^ flipped) and 150 < flipped.sum() < 250
    np.testing.assert_array_equal(run(out, key, **{field: True}), x)


def test_rotate90_takes_all_quarter_turns(getkey):
    x = np.asarray(normalize(images(400, 6)))
    out = run(x, getkey(), rotate90=True)
    turns = [np.rot90(x, k, axes=(1, 2)) for k in range(4)]
    matches = np.stack([np.all(out == turn, axis=(1, 2, 3)) for turn in turns])
    assert np.all(matches.sum(0) == 1) and np.all(matches.sum(1) > 60)
    with pytest.raises(ConfigError, match="rotate90 takes square images, got 4x6"):
        augment(jnp.zeros((1, 4, 6, 3)), getkey(), AugmentConfig(rotate90=True))


def test_shift_repeats_the_edge_and_reaches_its_bounds(getkey):
    x = np.asarray(normalize(images(300, 6)))
    out = run(x, getkey(), shift=2)
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    windows = {(dy, dx): padded[:, dy : dy + 6, dx : dx + 6] for dy in range(5) for dx in range(5)}
    counts = [np.all(out == w, axis=(1, 2, 3)) for w in windows.values()]
    assert np.all(np.sum(counts, axis=0) == 1)
    assert np.all(np.sum(counts, axis=1) > 0)


@pytest.mark.parametrize(("angle", "zoom"), [(0.0, 1.0), (30.0, 1.0), (0.0, 1.25), (-12.0, 0.8)])
def test_affine_agrees_with_scipy(angle, zoom):
    x = np.asarray(normalize(images(1, 9))[0])
    config = AugmentConfig(scale=0.5, rotate=45.0)
    uniform = dict.fromkeys(module.DRAWS, 0.5)
    uniform["scale"], uniform["rotate"] = (zoom - 1) + 0.5, angle / 90 + 0.5
    out = module._resample(jnp.asarray(x), jax.tree.map(jnp.float32, uniform), config)
    radians = np.deg2rad(angle)
    matrix = np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
    matrix = matrix / zoom
    offset = 4 - matrix @ np.array([4.0, 4.0])
    expected = np.stack(
        [
            scipy.ndimage.affine_transform(x[..., c], matrix, offset, order=1, mode="nearest")
            for c in range(3)
        ],
        axis=-1,
    )
    np.testing.assert_allclose(out, expected, atol=2e-5)


def test_zoom_above_one_magnifies():
    x = jnp.zeros((9, 9, 1)).at[3:6, 3:6].set(1.0)
    uniform = dict.fromkeys(module.DRAWS, jnp.float32(0.5)) | {"scale": jnp.float32(0.99)}
    assert module._resample(x, uniform, AugmentConfig(scale=0.5)).sum() > 1.5 * x.sum()


def test_colour_factors_keep_what_they_should(getkey):
    x, key = 0.5 * np.asarray(normalize(images(64))), getkey()
    brighter = run(x, key, brightness=0.3)
    factors = (brighter + 1) / (x + 1)
    np.testing.assert_allclose(factors.min((1, 2, 3)), factors.max((1, 2, 3)), rtol=1e-4)
    assert 0.7 < factors.min() < 0.8 and 1.2 < factors.max() < 1.3
    contrast = run(x, key, contrast=0.3)
    np.testing.assert_allclose(contrast.mean((1, 2, 3)), x.mean((1, 2, 3)), atol=1e-5)
    ratios = contrast.std((1, 2, 3)) / x.std((1, 2, 3))
    assert 0.7 < ratios.min() < 0.8 and 1.2 < ratios.max() < 1.3
    saturated = run(x, key, saturation=0.3)
    np.testing.assert_allclose(saturated.mean(-1), x.mean(-1), atol=1e-5)
    assert np.abs(saturated - x).max() > 0.05
    grey = normalize(images(8, channels=1))
    np.testing.assert_allclose(run(grey, key, saturation=0.3), grey, atol=1e-6)


def test_colour_stays_in_range(getkey):
    out = run(images(64), getkey(), brightness=1.0, contrast=1.0, saturation=1.0)
    assert out.min() >= -1 and out.max() <= 1


@pytest.mark.parametrize("side", [3, 4])
def test_cutout_erases_a_square_and_nothing_else(getkey, side):
    x = np.full((600, 9, 9, 3), 0.7, np.float32)
    out = run(x, getkey(), cutout=side)
    erased = np.all(out == 0, axis=-1)
    np.testing.assert_array_equal(out[~erased], np.float32(0.7))
    heights, widths = erased.any(2).sum(1), erased.any(1).sum(1)
    np.testing.assert_array_equal(erased.sum((1, 2)), heights * widths)
    assert heights.max() == widths.max() == side and heights.min() == side - side // 2
    assert np.all(erased.any(0))  # every pixel is erased in some image


def test_image_depends_on_its_position_and_pixels_alone(getkey):
    x, key = images(), getkey()
    run_all = lambda x: run(x, key, **dataclasses.asdict(EVERYTHING))
    out = run_all(x)
    changed = x.copy()
    changed[3] = 255 - changed[3]
    np.testing.assert_array_equal(np.delete(run_all(changed), 3, 0), np.delete(out, 3, 0))
    np.testing.assert_allclose(run_all(x[:5]), out[:5], atol=1e-6)
    same = run_all(np.broadcast_to(x[:1], x.shape).copy())
    assert len(np.unique(same.reshape(len(x), -1), axis=0)) == len(x)
    assert np.abs(run(x, getkey(), **dataclasses.asdict(EVERYTHING)) - out).max() > 0.1


def test_turning_one_augmentation_on_moves_no_other_draw(getkey):
    x, key = np.asarray(normalize(images())), getkey()
    flipped = run(x, key, horizontal_flip=True)
    both = run(x, key, horizontal_flip=True, cutout=3)
    kept = np.any(both != 0, axis=-1)
    np.testing.assert_array_equal(both[kept], flipped[kept])


def test_gradient_does_not_reach_another_image(getkey):
    x, key = normalize(images(3)), getkey()
    total = lambda x: augment(x, key, EVERYTHING)[1].sum()
    gradient = jax.jit(jax.grad(total))(x)
    assert np.all(np.delete(gradient, 1, 0) == 0) and np.any(gradient[1] != 0)


def test_two_devices_see_what_one_sees(getkey):
    mesh = jax.make_mesh(
        (2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2]
    )
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    x, key = images(), getkey()
    apply = jax.jit(functools.partial(augment, config=EVERYTHING))
    split = apply(
        jax.device_put(x, sharding), jax.device_put(key, NamedSharding(mesh, PartitionSpec()))
    )
    assert len(split.sharding.device_set) == 2
    np.testing.assert_allclose(split, apply(x, key), atol=1e-6)


def annotated(x, maps, boxes, key, **fields):
    call = functools.partial(module.augment_annotated, config=AugmentConfig(**fields))
    return [np.asarray(part) for part in jax.jit(call)(x, maps, boxes, key)]


def painted(boxes, size):
    """1 inside each image's first box, for boxes that lie on whole pixels."""
    maps = np.zeros((len(boxes), size, size, 1), np.float32)
    for one, (x0, y0, x1, y1) in zip(maps, np.rint(boxes[:, 0] * size).astype(int), strict=True):
        one[y0:y1, x0:x1] = 1
    return maps


def test_annotated_images_are_augmented_as_others_are(getkey):
    x, key = images(), getkey()
    fields = dataclasses.asdict(EVERYTHING)
    nothing = np.zeros((16, 8, 8, 0), np.float32), np.zeros((16, 0, 4), np.float32)
    moved, *_ = annotated(x, *nothing, key, **fields)
    np.testing.assert_array_equal(moved, run(x, key, **fields))


def test_maps_and_boxes_move_with_their_image(getkey):
    """Flips, quarter turns and shifts are exact: the box is that of the moved map, cut off."""
    rng = np.random.default_rng(0)
    low, extent = rng.integers(0, 6, (64, 1, 2)), rng.integers(1, 5, (64, 1, 2))
    boxes = np.concatenate([low, np.minimum(low + extent, 8)], -1).astype(np.float32) / 8
    maps = painted(boxes, 8)
    x = np.repeat((255 * maps).astype(np.uint8), 3, axis=-1)
    moved, placed_maps, placed, told = annotated(
        x, maps, boxes, getkey(), horizontal_flip=True, vertical_flip=True, rotate90=True, shift=1
    )
    np.testing.assert_array_equal(placed_maps, (moved[..., :1] + 1) / 2)
    # A shift repeats the border's pixels, a box ends there: compare where nothing was repeated.
    names = module.DESCRIPTION
    still = (told[:, [names.index("shift_y"), names.index("shift_x")]] == 0).all(axis=1)
    assert still.sum() > 1 and (~still).sum() > 1
    np.testing.assert_allclose(painted(placed, 8)[still], placed_maps[still], atol=1e-6)
    inside = painted(placed, 8)
    assert (inside <= placed_maps + 1e-6).all()
    assert ((placed >= 0) & (placed <= 1)).all()


def test_zoomed_and_turned_boxes_hold_the_moved_lesion(getkey):
    boxes = np.tile(np.array([[[0.25, 0.375, 0.625, 0.75]]], np.float32), (32, 1, 1))
    maps = painted(boxes, 32)
    x = np.repeat((255 * maps).astype(np.uint8), 3, axis=-1)
    _, placed_maps, placed, _ = annotated(x, maps, boxes, getkey(), scale=0.2, rotate=30.0)
    y, x = np.mgrid[:32, :32]
    for drawn, (x0, y0, x1, y1) in zip(placed_maps[..., 0] > 0.5, placed[:, 0], strict=True):
        assert drawn.any()
        inside = (x + 0.5 >= 32 * x0 - 1) & (x + 0.5 <= 32 * x1 + 1)
        inside &= (y + 0.5 >= 32 * y0 - 1) & (y + 0.5 <= 32 * y1 + 1)
        assert not (drawn & ~inside).any()
        assert (x1 - x0) * (y1 - y0) < 4 * drawn.mean()


def test_unknown_maps_and_absent_boxes_stay_as_they_are(getkey):
    fields = dataclasses.asdict(EVERYTHING)
    maps, boxes = -np.ones((16, 8, 8, 1), np.float32), -np.ones((16, 2, 4), np.float32)
    boxes[:8] = 0
    _, placed_maps, placed, _ = annotated(images(), maps, boxes, getkey(), **fields)
    np.testing.assert_array_equal(placed_maps, maps)
    np.testing.assert_array_equal(placed, boxes)


def test_description_is_zero_for_what_is_left_as_it_is_and_tells_the_rest(getkey):
    nothing = np.zeros((16, 8, 8, 0), np.float32), np.zeros((16, 0, 4), np.float32)
    *_, told = annotated(images(), *nothing, getkey())
    np.testing.assert_array_equal(told, 0)
    x = images()
    moved, _, _, told = annotated(x, *nothing, getkey(), horizontal_flip=True)
    flipped = told[:, module.DESCRIPTION.index("horizontal_flip")] == 1
    assert 0 < flipped.sum() < 16
    expected = np.where(flipped[:, None, None, None], x[:, :, ::-1], x)
    np.testing.assert_array_equal(moved, normalize(expected))
