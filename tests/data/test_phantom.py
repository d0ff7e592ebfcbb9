import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from lt_jax.data import images, phantom
from lt_jax.data.lesions import distance_outside

SIZE, COUNT = 32, 48
NAMES = [spec.name for spec in phantom.CLASSES]
LABELS = jnp.arange(COUNT) % len(NAMES)
DEVICES = jnp.arange(COUNT) // len(NAMES) % len(phantom.DEVICES)


def simulate(keys, labels=LABELS, devices=DEVICES, **options):
    made = phantom.simulate_batch(keys, labels, devices, size=SIZE, **options)
    return jax.tree.map(np.asarray, made)


def keys(seed=0):
    return phantom.image_keys(seed, jnp.arange(COUNT))


@pytest.fixture(scope="module")
def made():
    return simulate(keys())


@pytest.fixture(scope="module")
def without():
    return simulate(keys(), lesion=False)


def masks_at(size):
    """Masks alone: what they do not need is not compiled."""
    one = lambda key, label: phantom.simulate(key, label, jnp.int32(0), size).mask[..., 0]
    return np.asarray(jax.jit(jax.vmap(one))(keys(), LABELS)) > 0


def test_an_image_depends_on_its_seed_and_index_alone(made):
    order = np.random.default_rng(0).permutation(COUNT)
    moved = simulate(phantom.image_keys(0, jnp.asarray(order)), LABELS[order], DEVICES[order])
    for name in ("image", "mask", "sketch", "box"):
        np.testing.assert_array_equal(getattr(moved, name), getattr(made, name)[order])
    other = simulate(keys(1))
    assert all(np.abs(a - b).mean() > 0.02 for a, b in zip(other.image, made.image, strict=True))


def test_images_are_whole_gray_levels_that_are_rarely_cut_off(made):
    levels = made.image * 255
    np.testing.assert_allclose(levels, levels.round(), atol=1e-4)
    assert made.image.shape == (COUNT, SIZE, SIZE, 1) and made.image.dtype == np.float32
    assert made.image.min() >= 0 and made.image.max() <= 1
    assert 0.3 < made.image.mean() < 0.7 and ((levels == 0) | (levels == 255)).mean() < 0.01


def test_boxes_are_tight_and_sketches_are_contours(made):
    for mask, box, sketch in zip(made.mask[..., 0] > 0, made.box, made.sketch[..., 0], strict=True):
        np.testing.assert_allclose(box, images.mask_box(mask), rtol=1e-6)
        np.testing.assert_array_equal(sketch > 0, mask & ~ndimage.binary_erosion(mask))
        assert ndimage.label(mask, np.ones((3, 3)))[1] == 1


def test_devices_change_the_look_and_not_the_mask(made):
    other = simulate(keys(), devices=(DEVICES + 1) % 3)
    np.testing.assert_array_equal(other.mask, made.mask)
    assert all(np.abs(a - b).mean() > 0.02 for a, b in zip(other.image, made.image, strict=True))


def test_a_lesion_changes_itself_and_what_lies_behind_it(made, without):
    """Same tissue, same scatterers: all else stays, but for the width of pulse and margin."""
    assert not without.mask.any() and not without.box.any() and not without.sketch.any()
    changed = np.abs(made.image - without.image)[..., 0]
    for mask, change in zip(made.mask[..., 0] > 0, changed, strict=True):
        below = np.maximum.accumulate(mask, axis=0)
        near = ndimage.binary_dilation(below, np.ones((3, 3)), iterations=4)
        assert change[~near].max(initial=0) < 2.5 / 255
        assert change[mask].mean() > 4 * change[~near].mean()


@pytest.mark.parametrize(
    ("name", "inside", "behind"),
    [("cyst", -1, 1), ("invasive_ductal", -1, -1), ("fibroadenoma", -1, 0), ("lipoma", 1, 0)],
)
def test_signs_of_the_classes_are_seen(made, without, name, inside, behind):
    """Echo pattern, shadow and enhancement, as differences to the same tissue without a lesion."""
    rows = np.flatnonzero(np.asarray(LABELS) == NAMES.index(name))
    change = (made.image - without.image)[rows, ..., 0]
    masks = made.mask[rows, ..., 0] > 0
    shadows = np.maximum.accumulate(masks, axis=1) & ~masks
    shadows &= ~np.stack([ndimage.binary_dilation(mask, iterations=2) for mask in masks])
    within = np.array([c[m].mean() for c, m in zip(change, masks, strict=True)])
    beyond = np.array([c[m].mean() for c, m in zip(change, shadows, strict=True) if m.any()])
    assert np.mean(np.sign(within) == inside) >= 0.75
    if behind:
        assert behind * beyond.mean() > 0.03 and np.mean(np.sign(beyond) == behind) >= 0.75
    else:
        assert abs(beyond.mean()) < 0.03


def test_a_cyst_is_darker_than_what_surrounds_it(made):
    rows = np.flatnonzero(np.asarray(LABELS) == NAMES.index("cyst"))
    for row in rows:
        mask = made.mask[row, ..., 0] > 0
        ring = ndimage.binary_dilation(mask, iterations=3) & ~mask
        gray = made.image[row, ..., 0]
        assert gray[mask].mean() < gray[ring].mean()


def test_speckle_is_rayleigh_and_finer_at_higher_frequencies(getkey):
    """mean / sd = sqrt(pi / (4 - pi)) = 1.91 for one look; looks average independent ones."""
    n, each = 64, jax.random.split(getkey(), 12)
    flat = jnp.ones((n, n))
    scan = lambda looks: jax.jit(
        jax.vmap(
            jax.vmap(functools.partial(phantom.envelope, looks=looks), (None, None, 0)),
            (0, None, None),
        )
    )
    single = np.asarray(scan(1)(each, flat, jnp.arange(3)))
    flattened = single.swapaxes(0, 1).reshape(3, -1)
    np.testing.assert_allclose((flattened**2).mean(axis=1), 1.0, atol=0.03)
    np.testing.assert_allclose(
        flattened.mean(axis=1) / flattened.std(axis=1), np.sqrt(np.pi / (4 - np.pi)), atol=0.05
    )
    below_half = (flattened**2 < 0.5).mean(axis=1)  # of the whole law, not its moments alone
    np.testing.assert_allclose(below_half, 1 - np.exp(-0.5), atol=0.02)
    # Of E^2, the correlation is the square of the pulse's own: exp(-d^2 / 2 s^2) at distance d.
    power = single**2 - 1
    wavelengths = np.array([n * 12 / (2 / 3 * n * spec.frequency_mhz) for spec in phantom.DEVICES])
    lateral = wavelengths * [spec.lateral for spec in phantom.DEVICES]
    for one, next_one, sigma in (
        (power[..., 1:], power[..., :-1], lateral),
        (power[..., 1:, :], power[..., :-1, :], wavelengths / 2),
    ):
        grain = (one * next_one).mean(axis=(0, 2, 3)) / (power**2).mean(axis=(0, 2, 3))
        np.testing.assert_allclose(grain, np.exp(-0.5 / sigma**2), atol=0.05)
        assert (np.diff(grain) < 0).all()
    many = np.asarray(scan(3)(each, flat, jnp.arange(3)))
    np.testing.assert_allclose(single.std() / many.std(), np.sqrt(3), atol=0.07)


def test_the_depth_gain_undoes_the_expected_attenuation():
    """Flat tissue that attenuates as the machine expects is flat, down to the noise it lifts."""
    n, flat = 40, jnp.zeros((40, 40))
    at = (jnp.arange(n) + 0.5) / n
    for device, spec in enumerate(phantom.DEVICES):
        level = np.asarray(phantom.received(flat, flat, at, jnp.int32(device)))
        noise = spec.noise_db + spec.frequency_mhz * 2.4 * np.asarray(at)
        np.testing.assert_allclose(level[:, 0], 10 * np.log10(1 + 10 ** (noise / 10)), atol=1e-3)
        more = np.asarray(phantom.received(flat + 30, flat + 1.5, at, jnp.int32(device)))
        expected = 30 - 1.5 * spec.frequency_mhz * np.asarray(at)
        assert spec.frequency_mhz > 7 or np.allclose(more[:, 0], expected, atol=0.05)
        assert (np.diff(more[:20, 0]) < 0).all()


def test_the_numbers_told_of_a_lesion_are_its_own():
    """Area and middle against a fine mask; all of every lesion lies in the image."""
    n = 200
    at = (jnp.arange(n) + 0.5) / n

    def one(key, label):
        lesion = phantom.drawn_lesion(key, label)
        return lesion, distance_outside(lesion, at) < 0

    lesions, masks = jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys(), LABELS))
    diameters = 40 * np.sqrt(masks.mean(axis=(1, 2)) * 4 / np.pi)
    np.testing.assert_allclose(lesions.size_mm, diameters, rtol=0.02)
    rim = np.ones((n, n), bool)
    rim[1:-1, 1:-1] = False
    assert not masks[:, rim].any()
    inside = masks[np.arange(COUNT), (lesions.z * n).astype(int), (lesions.x * n).astype(int)]
    assert inside.all()
    np.testing.assert_allclose(lesions.depth_mm, 40 * lesions.z, rtol=1e-6)
    tall = lesions.aspect > 1
    labels = np.asarray(LABELS)
    assert tall[labels == NAMES.index("invasive_ductal")].any()
    assert not tall[labels == NAMES.index("lipoma")].any()


def test_masks_of_all_sizes_show_the_same_lesions():
    fine, coarse, tiny = masks_at(64), masks_at(16), masks_at(5)
    pooled = fine.reshape(COUNT, 16, 4, 16, 4).mean(axis=(2, 4))
    np.testing.assert_array_equal(
        coarse, pooled >= np.minimum(0.5, pooled.max((1, 2)))[:, None, None]
    )
    assert tiny.any(axis=(1, 2)).all()
