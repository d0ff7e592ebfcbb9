"""Planted copies are caught and fresh images are not, at the asked rate; groups are left out."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import AugmentConfig, MemorizationConfig
from lt_jax.runtime import mesh
from lt_jax.selection import memorization, registration
from tests.selection.pictures import COPIES, blobs, embed, phantoms, shifted

CONFIG = MemorizationConfig()
MIRRORED = AugmentConfig(horizontal_flip=True)
BATCH = 32
_compiled = jax.jit(memorization.nearest, static_argnums=0)


def fit(config, train, val, labels=None, classes=1, pooling=0.0, augment=MIRRORED):
    labels = np.zeros(len(val), np.int32) if labels is None else labels
    groups = np.arange(len(train)) // 2
    return memorization.fit(
        config, train, embed(train), groups, val, embed(val), labels, classes, pooling, augment
    )


def nearest(config, bank, images, own=None):
    """In batches of one size, so that little is compiled."""
    own = np.full(len(images), -1) if own is None else np.asarray(own)
    found = []
    for start in range(0, len(images), BATCH):
        rows = np.minimum(start + np.arange(BATCH), len(images) - 1)
        args = images[rows], jnp.asarray(embed(images[rows])), jnp.asarray(own[rows])
        found.append(jax.device_get(_compiled(config, bank, *args)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(images)], *found)


def share(config, bank, found, label=0):
    labels = jnp.full(len(found.cosine), label)
    return float(memorization.is_copy(config, bank, found, labels).mean())


@pytest.fixture(scope="module")
def ultrasound():
    """Train, val and fresh images, and the bank of the first two."""
    images = phantoms(0, 480)
    train, val, fresh = np.split(images, [256, 416])
    return train, val, fresh, fit(CONFIG, train, val)


@pytest.mark.parametrize("kind", list(COPIES))
def test_planted_copies_are_caught_and_traced(ultrasound, kind):
    train, _, _, bank = ultrasound
    rows = np.arange(0, 256, 8)
    found = nearest(CONFIG, bank, COPIES[kind](train[rows]))
    assert share(CONFIG, bank, found) >= 0.96, found.ms_ssim
    assert np.mean(found.ms_ssim_rows == rows) >= 0.96
    structure = dataclasses.replace(CONFIG, similarity="ms_ssim")
    assert share(structure, bank, found) >= 0.96
    # Alignment and contrast undo the change: only what is cut off or recompressed is lost.
    lost = kind in ("recompressed", "all at once")
    assert np.median(found.ms_ssim) > (0.97 if lost else 0.999)
    if kind == "exact":
        np.testing.assert_allclose(found.ms_ssim, 1, atol=1e-5)
        np.testing.assert_allclose(found.cosine, 1, atol=1e-5)
        np.testing.assert_array_equal(found.cosine_rows, rows)


def test_fresh_images_are_no_copies(ultrasound):
    _, val, fresh, bank = ultrasound
    found = nearest(CONFIG, bank, fresh)
    assert share(CONFIG, bank, found) <= 0.05  # 1% asked; of 64 images three are one too many
    assert np.median(found.ms_ssim) < 0.75 < float(bank.ms_ssim_limits[0])
    assert share(CONFIG, bank, bank.val) == 0  # 160 cannot vouch for half a percent: none is one
    np.testing.assert_array_equal(
        nearest(CONFIG, bank, val[:32]).ms_ssim_rows, bank.val.ms_ssim_rows[:32]
    )


def test_a_mirrored_copy_is_one_only_where_augmentation_mirrors(ultrasound):
    train, val, _, _ = ultrasound
    bank = fit(CONFIG, train, val, augment=AugmentConfig())
    assert bank.symmetries == ("none",)
    structure = dataclasses.replace(CONFIG, similarity="ms_ssim")
    found = nearest(structure, bank, train[:32, :, ::-1])
    assert share(structure, bank, found) < 0.1
    assert share(structure, bank, nearest(structure, bank, train[:32])) == 1


@pytest.mark.parametrize("similarity", ["both", "cosine", "ms_ssim"])
def test_false_alarms_come_at_the_asked_rate_in_each_class(similarity):
    config = MemorizationConfig(false_alarm=0.2, similarity=similarity, candidates=2)
    spreads, n, v, f = (6.0, 25.0), 60, 250, 500
    draw = lambda seed, count: [blobs((seed, k), count, s) for k, s in enumerate(spreads)]
    train, val, fresh = np.concatenate(draw(0, n)), draw(1, v), draw(2, f)
    labels = np.repeat([0, 1], v)
    bank = fit(config, train, np.concatenate(val), labels, classes=2)
    assert abs(float(bank.ms_ssim_limits[0] - bank.ms_ssim_limits[1])) > 0.01
    for k in (0, 1):
        rate = share(config, bank, nearest(config, bank, fresh[k]), k)
        # Of the fresh images, and of a quantile estimated from v; four standard errors.
        margin = 4 * np.sqrt(0.2 * 0.8 * (1 / f + 1 / v))
        least = 0.1 if similarity == "both" else 0.2
        assert least - margin < rate < 0.2 + margin


@pytest.fixture(scope="module")
def small():
    """A bank of 40 small images in groups of two, with 30 of val."""
    train, val = blobs(0, 40, 25.0), blobs(1, 30, 25.0)
    return train, val, fit(CONFIG, train, val, augment=AugmentConfig())


def test_few_val_images_have_their_highest_as_threshold_and_classes_are_drawn_together(small):
    train, val, bank = small
    np.testing.assert_allclose(bank.cosine_limits, bank.val.cosine.max(), rtol=1e-6)
    np.testing.assert_allclose(bank.ms_ssim_limits, bank.val.ms_ssim.max(), rtol=1e-6)
    labels = np.repeat([0, 1], [27, 3])
    own = fit(CONFIG, train, val, labels, classes=3, pooling=0.0).cosine_limits
    drawn = fit(CONFIG, train, val, labels, classes=3, pooling=20.0).cosine_limits
    highest = [bank.val.cosine[labels == k].max() for k in (0, 1)]
    np.testing.assert_allclose(own[:2], highest, rtol=1e-6)
    np.testing.assert_allclose(own[2], max(highest), rtol=1e-6)  # of no val image: the pool's
    expected = min(3 / 23 * highest[1] + 20 / 23 * drawn[2], highest[1])
    np.testing.assert_allclose(drawn[1], expected, rtol=1e-6)


@pytest.mark.parametrize("similarity", ["both", "cosine", "ms_ssim"])
def test_train_images_in_val_do_not_open_the_gate(small, similarity):
    train, val, _ = small
    config = MemorizationConfig(similarity=similarity)
    bank = fit(config, train, np.concatenate([val, train]))
    assert float(bank.ms_ssim_limits[0]) == np.float32(memorization.SURELY)
    assert share(config, bank, nearest(config, bank, train)) == 1


def test_a_large_class_near_to_train_does_not_raise_a_small_one_s_limit(small):
    """The small class's three val images are further from train than all of the large one's."""
    train, val, bank = small
    order = np.argsort(bank.val.ms_ssim, kind="stable")
    labels = np.zeros(len(val), np.int32)
    labels[order[:3]] = 1
    pooled = fit(CONFIG, train, val, labels, classes=2, pooling=20.0)
    for name in ("cosine", "ms_ssim"):
        found, limits = getattr(pooled.val, name), getattr(pooled, f"{name}_limits")
        assert limits[1] <= found[labels == 1].max() + 1e-6
        assert limits[0] <= found[labels == 0].max() + 1e-6


def test_images_of_the_own_group_are_left_out(small):
    train, _, bank = small
    found = nearest(CONFIG, bank, train, np.arange(40) // 2)
    plain = nearest(CONFIG, bank, train)
    np.testing.assert_array_equal(plain.ms_ssim_rows, np.arange(40))
    for rows in (found.ms_ssim_rows, found.cosine_rows):
        assert np.all(rows // 2 != np.arange(40) // 2)
    assert np.all(found.ms_ssim < 0.99)
    unit = embed(train) / np.linalg.norm(embed(train), axis=1, keepdims=True)
    likeness = np.where(np.equal.outer(np.arange(40) // 2, np.arange(40) // 2), -2, unit @ unit.T)
    np.testing.assert_allclose(found.cosine, likeness.max(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(found.cosine_rows, likeness.argmax(axis=1))


def test_without_a_train_image_to_compare_with_nothing_is_measured_and_nothing_a_copy(small):
    train, val, _ = small
    bank = fit(CONFIG, train, val, augment=AugmentConfig()).replace(groups=jnp.zeros(40, int))
    found = nearest(CONFIG, bank, train[:32], np.zeros(32, int))
    assert np.isnan(found.cosine).all() and np.isnan(found.ms_ssim).all()
    assert np.all(found.ms_ssim_rows == -1) and np.all(found.cosine_rows == -1)
    assert share(CONFIG, bank, found) == 0


def test_each_image_by_itself_on_any_number_of_devices(small):
    """Other images of the batch, their order, and the devices that share them change nothing."""
    train, _, bank = small
    images = shifted(np.concatenate([train[:20], blobs(2, 12, 25.0)]), 1, 0)
    own = np.where(np.arange(32) % 3, -1, 4)
    together = nearest(CONFIG, bank, images, own)
    turned = nearest(CONFIG, bank, images[::-1], own[::-1])
    alone = nearest(CONFIG, bank, images[7:8], own[7:8])
    devices = mesh.make_mesh()
    whole, split = mesh.replicated(devices), mesh.batched(devices)
    compiled = jax.jit(
        functools.partial(memorization.nearest, CONFIG),
        in_shardings=(whole, split, split, split),
        out_shardings=split,
    ).lower(bank, images, jnp.asarray(embed(images)), jnp.asarray(own)).compile()  # fmt: skip
    shared = compiled(jax.device_put(bank, whole), *mesh.put((images, embed(images), own), devices))
    for name in ("cosine", "cosine_rows", "ms_ssim", "ms_ssim_rows"):
        expected = getattr(together, name)
        np.testing.assert_allclose(getattr(turned, name)[::-1], expected, atol=1e-5)
        np.testing.assert_allclose(getattr(alone, name), expected[7:8], atol=1e-5)
        np.testing.assert_allclose(getattr(shared, name), expected, atol=1e-5)
    # The bank is on every device and each image stays on its own.
    assert "all-gather" not in compiled.as_text() and "all-reduce" not in compiled.as_text()


def test_more_candidates_than_train_images_find_the_most_alike_of_all():
    train, val = blobs(0, 6, 25.0), blobs(1, 8, 25.0)
    many = MemorizationConfig(candidates=50)
    bank = fit(many, train, val, augment=AugmentConfig())
    few = MemorizationConfig(candidates=1)
    every, one = nearest(many, bank, val), nearest(few, bank, val)
    assert np.all(every.ms_ssim >= one.ms_ssim - 1e-6)
    np.testing.assert_array_equal(every.cosine, one.cosine)
    bank_of_one = lambda k: fit(many, train[k : k + 1], val, augment=AugmentConfig())
    each = [nearest(many, bank_of_one(k), val).ms_ssim for k in range(6)]
    np.testing.assert_allclose(every.ms_ssim, np.max(each, axis=0), atol=1e-5)


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=3)))
def test_symmetries_are_the_group_that_the_flips_make_up(flags):
    across, down, quarter = flags
    augment = AugmentConfig(horizontal_flip=across, vertical_flip=down, rotate90=quarter)
    names = registration.symmetries(augment)
    image = np.arange(9, dtype=np.float32).reshape(1, 3, 3)
    move = {name: registration.SYMMETRIES[name] for name in names}
    reached = {move[name](image).tobytes() for name in names}
    assert len(reached) == len(names) and image.tobytes() in reached
    for first, second in itertools.product(names, names):
        assert np.asarray(move[second](move[first](image))).tobytes() in reached
    for used, name in ((across, "mirrored"), (down, "upside_down"), (quarter, "quarter_turn")):
        assert (name in names) >= used
    assert len(names) == {0: 1, 1: 4 if quarter else 2, 2: 8 if quarter else 4, 3: 8}[sum(flags)]


def test_shifts_are_searched_as_far_as_augmentation_moves_and_the_side_allows():
    still, moved = AugmentConfig(), AugmentConfig(shift=6)
    assert [registration.reach(still, side, 64) for side in (4, 8, 16, 64)] == [0, 1, 2, 2]
    assert [registration.reach(moved, side, 64) for side in (32, 48, 64)] == [4, 6, 6]
    assert registration.offsets(6, 64) == (-6, -4, 0, 4, 6)
    assert registration.offsets(0, 64) == (0,)


def test_no_val_image_and_turned_oblongs_are_refused(small):
    train, val, _ = small
    with pytest.raises(ValueError, match=r"config\.data\.split\.val.*memorization\.gate=False"):
        fit(CONFIG, train, val[:0])
    with pytest.raises(ValueError, match="rotate90: got images of 16x12"):
        memorization.fit(
            CONFIG, train[:, :, :12], embed(train), np.arange(40), val[:, :, :12], embed(val),
            np.zeros(30, int), 1, 0.0, AugmentConfig(rotate90=True),
        )  # fmt: skip


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_alignment_finds_the_shift_of_highest_correlation_place_by_place(shift):
    rng = np.random.default_rng(shift)
    x, y = rng.integers(0, 256, (2, 6, 18, 14)).astype(np.float32)
    y[:3] += 3 * np.roll(x[:3], (1, -1), (1, 2))  # three have a likely one
    height, width = 18 - 2 * shift, 14 - 2 * shift
    middle = registration.middle(jnp.asarray(x)[None], shift)[0]
    assert middle.shape == (6, height, width)
    spreads = registration.spreads(jnp.asarray(y), shift)
    found = registration.align(middle, jnp.asarray(y), spreads, shift)
    steps = range(2 * shift + 1)
    for i in range(6):
        windows = [y[i, t : t + height, u : u + width] for t in steps for u in steps]
        np.testing.assert_allclose(spreads[i], [w.std() for w in windows], rtol=1e-4)
        fits = [np.corrcoef(middle[i].ravel(), w.ravel())[0, 1] for w in windows]
        np.testing.assert_array_equal(found[i], windows[int(np.argmax(fits))])
