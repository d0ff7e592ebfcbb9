"""Sketches: what they show and do not, the branch's loss against its definition, boundary F1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import ConfigError, SketchConfig
from lt_jax.diffusion import sketch


def disk(size=24, radius=7.0, centre=(11.0, 12.0)):
    y, x = np.mgrid[:size, :size]
    inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2
    return inside.astype(np.float32)[None, :, :, None]


def noise(key, count=3, size=24, channels=3):
    return jax.random.uniform(key, (count, size, size, channels), minval=-1, maxval=1)


def test_a_flat_image_has_no_edges_and_a_disk_has_them_on_its_rim():
    flat = jnp.full((1, 24, 24, 3), 0.3)
    np.testing.assert_array_equal(sketch.edges(flat, 1.0), np.zeros((1, 24, 24, 1)))
    drawn = np.asarray(sketch.edges(jnp.asarray(2 * disk() - 1), 1.0))
    assert drawn.min() >= 0 and drawn.max() <= 1
    rim = np.asarray(sketch.contour(jnp.asarray(disk())))
    assert drawn[rim > 0].min() > 0.5
    y, x = np.mgrid[:24, :24]
    off = np.abs(np.hypot(y - 11.0, x - 12.0) - 7.0) > 4.5
    assert drawn[0, off].max() < 0.01


@pytest.mark.parametrize("scale", [0.1, 1.0, 2.5])
def test_edges_follow_their_definition(scale, getkey):
    """Smoothed by SciPy, differences by NumPy, in float64."""
    scipy_ndimage = pytest.importorskip("scipy.ndimage")
    images = noise(getkey(), 2)
    radius = max(1, int(np.ceil(4 * scale)))
    pairs = zip(np.asarray(images, np.float64), sketch.edges(images, scale), strict=True)
    for image, drawn in pairs:
        grey = np.pad(image.mean(-1), 2 * radius + 2, mode="edge")
        smooth = scipy_ndimage.gaussian_filter(grey, scale, radius=radius, mode="nearest")
        slopes = [(np.roll(smooth, -1, axis) - np.roll(smooth, 1, axis)) / 2 for axis in (0, 1)]
        inner = slice(2 * radius + 2, 2 * radius + 26)
        energy = (slopes[0] ** 2 + slopes[1] ** 2)[inner, inner]
        level = sketch.CONTRAST**2 * (energy.mean() + sketch.FLATTEST**2)
        np.testing.assert_allclose(drawn[..., 0], 1 - np.exp(-energy / (2 * level)), atol=2e-5)


def test_edges_ignore_brightness_contrast_and_turn_with_the_image(getkey):
    images = noise(getkey())
    drawn = sketch.edges(images, 1.0)
    np.testing.assert_allclose(sketch.edges(0.4 * images + 0.3, 1.0), drawn, atol=6e-3)  # r_0
    np.testing.assert_allclose(sketch.edges(-images, 1.0), drawn, atol=1e-5)
    turned = sketch.edges(jnp.rot90(images, axes=(1, 2)), 1.0)
    np.testing.assert_allclose(turned, jnp.rot90(drawn, axes=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(sketch.edges(images.mean(-1, keepdims=True), 1.0), drawn, atol=1e-5)


def test_edges_have_a_gradient_also_where_the_image_is_flat(getkey):
    images = noise(getkey(), 2).at[0].set(0.1)
    gradient = jax.grad(lambda x: jnp.sum(sketch.edges(x, 1.0)[:, 5:9]))(images)
    assert np.all(np.isfinite(gradient))
    assert np.any(np.asarray(gradient[1]) != 0)


def test_a_contour_is_one_pixel_wide_inside_and_closed():
    mask = np.zeros((3, 12, 12, 1), np.float32)
    mask[0, 3:8, 2:9] = 1
    mask[1] = 1
    outline = np.asarray(sketch.contour(jnp.asarray(mask)))
    expected = mask[0, :, :, 0].copy()
    expected[4:7, 3:8] = 0
    np.testing.assert_array_equal(outline[0, :, :, 0], expected)
    # The border of the image is no contour of a mask that it cuts; an empty mask has none.
    np.testing.assert_array_equal(outline[1:], np.zeros((2, 12, 12, 1)))
    cut = mask[:1].copy()
    cut[0, 3:8, 0:2] = 1
    cut_outline = np.asarray(sketch.contour(jnp.asarray(cut)))
    assert cut_outline[0, 4:7, 0].max() == 0 and cut_outline[0, 3, 0] == 1


def test_sketch_takes_the_contour_where_a_mask_is_known_and_asked_for(getkey):
    images = noise(getkey(), 3)
    masks = np.concatenate([disk(), np.full((1, 24, 24, 1), -1.0), np.zeros((1, 24, 24, 1))])
    masks = jnp.asarray(masks, jnp.float32)
    edges = sketch.edges(images, 1.5)
    made = sketch.sketch(images, masks, SketchConfig(source="mask", scale=1.5))
    np.testing.assert_array_equal(made[0], sketch.contour(masks[:1])[0])
    np.testing.assert_array_equal(made[1], edges[1])
    np.testing.assert_array_equal(made[2], jnp.zeros_like(made[2]))  # lesion-free, and known so
    for masks_or_none, source in ((masks, "edges"), (None, "mask")):
        config = SketchConfig(source=source, scale=1.5)
        np.testing.assert_array_equal(sketch.sketch(images, masks_or_none, config), edges)


def test_pyramid_keeps_a_thin_line_at_every_scale(getkey):
    line = jnp.zeros((1, 16, 16, 1)).at[:, 5].set(1.0)
    for size, level in zip((2, 8, 16), sketch.pyramid(line, (2, 8, 16)), strict=True):
        expected = np.zeros((1, size, size, 1))
        expected[:, 5 * size // 16] = 1
        np.testing.assert_array_equal(level, expected)
    with pytest.raises(ConfigError, match="6x6"):
        sketch.pyramid(line, (8, 6))


def test_branch_loss_against_a_direct_implementation(getkey):
    config = SketchConfig(log_snr_centre=1.0)
    target = jax.random.uniform(getkey(), (3, 8, 8, 1))
    logits = tuple(3 * jax.random.normal(getkey(), (3, size, size, 1)) for size in (4, 8))
    log_snr = jnp.asarray([-2.0, 1.0, 6.0])
    loss = sketch.branch_loss(logits, target, log_snr, config)
    pooled = np.asarray(target, np.float64).reshape(3, 4, 2, 4, 2, 1).max((2, 4))
    for i in range(3):
        scales = []
        for z, s in ((logits[0][i], pooled[i]), (logits[1][i], np.asarray(target[i], np.float64))):
            p = 1 / (1 + np.exp(-np.asarray(z, np.float64)))
            on = (s * -np.log(p)).sum() / s.sum()
            off = ((1 - s) * -np.log(1 - p)).sum() / (1 - s).sum()
            scales.append((on + off) / 2)
        weight = 1 / (1 + np.exp(-(float(log_snr[i]) - 1.0)))
        np.testing.assert_allclose(loss[i], weight * np.mean(scales), rtol=1e-5)


def test_branch_loss_is_balanced_and_silent_in_pure_noise():
    config = SketchConfig()
    thin = jnp.asarray(sketch.contour(jnp.asarray(disk())))
    both = jnp.concatenate([thin, 1 - thin])
    clean, noisy = jnp.full(2, 40.0), jnp.full(2, -15.0)
    none = (jnp.zeros((2, 24, 24, 1)),)
    np.testing.assert_allclose(
        sketch.branch_loss(none, both, clean, config), np.full(2, np.log(2)), rtol=1e-5
    )
    # To say "no edge" everywhere costs as much as to say "edge" everywhere.
    at = lambda z: sketch.branch_loss((jnp.full((2, 24, 24, 1), z),), both, clean, config)
    np.testing.assert_allclose(at(-2.0), at(2.0), rtol=1e-5)
    assert np.all(sketch.branch_loss(none, both, noisy, config) < 1e-6)
    # The truth costs nothing, and an empty sketch teaches that it is empty.
    right = sketch.branch_loss((20 * (2 * both - 1),), both, clean, config)
    np.testing.assert_allclose(right, np.zeros(2), atol=1e-6)
    empty = lambda z: sketch.branch_loss((z,), jnp.zeros((2, 8, 8, 1)), clean, config).sum()
    assert np.all(jax.grad(empty)(jnp.zeros((2, 8, 8, 1))) > 0)


def test_f1_counts_edges_within_its_tolerance():
    line = lambda row: jnp.zeros((1, 16, 16, 1)).at[:, row].set(1.0)
    f1 = lambda a, b, tolerance: float(sketch.edge_f1(a, b, 0.5, tolerance)[0])
    assert f1(line(5), line(5), 0) == 1
    assert f1(line(5), line(7), 1) == 0 and f1(line(5), line(7), 2) == 1
    # Half of what is predicted is right, all that is given is found: F1 = 2/3, either way round.
    double = line(3) + line(12)
    np.testing.assert_allclose(f1(double, line(3), 1), 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(f1(line(3), double, 1), 2 / 3, rtol=1e-6)
    empty = jnp.zeros((1, 16, 16, 1))
    assert f1(empty, empty, 1) == 1 and f1(empty, line(3), 1) == 0 and f1(line(3), empty, 1) == 0


def test_chance_is_far_below_agreement_and_never_compares_an_image_with_itself():
    rows = jnp.concatenate([jnp.zeros((1, 16, 16, 1)).at[:, 3 * i].set(1.0) for i in range(5)])
    np.testing.assert_array_equal(sketch.edge_f1(rows, rows), np.ones(5))
    np.testing.assert_array_equal(sketch.chance_f1(rows, rows, others=99), np.zeros(5))
    # Of the four others one is the same here: each of the pair finds its twin once.
    twins = rows.at[1].set(rows[0])
    np.testing.assert_allclose(sketch.chance_f1(twins, twins), [0.25, 0.25, 0, 0, 0])
    with pytest.raises(ValueError, match="two or more"):
        sketch.chance_f1(rows[:1], rows[:1])


def test_an_example_s_sketch_and_loss_are_its_own(getkey):
    images, logits = noise(getkey(), 3, 8), jax.random.normal(getkey(), (3, 8, 8, 1))

    def first(images, logits):
        target = sketch.edges(images, 1.0)
        return sketch.branch_loss((logits,), target, jnp.zeros(3), SketchConfig())[0]

    for gradient in jax.jit(jax.grad(first, (0, 1)))(images, logits):
        assert np.any(np.asarray(gradient[0]) != 0)
        np.testing.assert_array_equal(gradient[1:], jnp.zeros_like(gradient[1:]))
