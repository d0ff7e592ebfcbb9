"""Kept pixels bit for bit, RePaint against a Gaussian's conditional, translation at both ends."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from lt_jax.config import ConfigError
from lt_jax.data import augment
from lt_jax.diffusion import inpaint
from lt_jax.diffusion.holes import (
    FREE_FORM_AREA,
    choose_holes,
    free_form_holes,
    squared_distance,
)
from lt_jax.diffusion.inpaint import RePaint, repaint_schedule
from lt_jax.diffusion.process import CosineSchedule, LinearSchedule
from lt_jax.diffusion.samplers import DDIM, DPMSolverPP
from lt_jax.diffusion.thresholds import NoThreshold

# Four pixels of a 2x2 image, the upper row known.
MEAN = np.array([0.1, -0.2, 0.3, 0.0])
COVARIANCE = np.array(
    [
        [0.250, 0.087, 0.130, 0.069],
        [0.087, 0.160, 0.074, 0.078],
        [0.130, 0.074, 0.360, 0.117],
        [0.069, 0.078, 0.117, 0.203],
    ]
)
KNOWN = np.array([0.8, 0.5])
SCHEDULE = CosineSchedule(-6.0, 8.0)

# Compiled once for all tests of a size.
free_form = jax.jit(free_form_holes, static_argnums=(1, 2))
choose = jax.jit(choose_holes, static_argnames=("height", "width", "free_form", "grow"))


def denoise_gaussian(x_t, log_snr):
    """E[x_0 | x_t] for images of which each channel by itself is N(MEAN, COVARIANCE)."""
    values, vectors = (jnp.asarray(part, jnp.float32) for part in np.linalg.eigh(COVARIANCE))
    mean = jnp.asarray(MEAN, jnp.float32)[None, :, None]
    signal, noise = (jax.nn.sigmoid(sign * log_snr)[:, None, None] for sign in (1, -1))
    alpha, values = jnp.sqrt(signal), values[None, :, None]
    gain = alpha * values / (alpha**2 * values + noise)
    away = x_t.reshape(x_t.shape[0], 4, -1) - alpha * mean
    along = gain * jnp.einsum("pe,bpc->bec", vectors, away)
    return (mean + jnp.einsum("pe,bec->bpc", vectors, along)).reshape(x_t.shape)


def conditional():
    """Mean and covariance of the lower row given the upper, in closed form."""
    slope = COVARIANCE[2:, :2] @ np.linalg.inv(COVARIANCE[:2, :2])
    return MEAN[2:] + slope @ (KNOWN - MEAN[:2]), COVARIANCE[2:, 2:] - slope @ COVARIANCE[:2, 2:]


def moments_of_repaint(steps, jump, resamples):
    """What the algorithm as printed does to mean and covariance, in alpha-bar; NumPy, no draws."""
    bar = 1 / (1 + np.exp(-np.linspace(-6.0, 8.0, steps + 1)))
    mean, covariance = np.zeros(4), np.eye(4)
    path = repaint_schedule(steps, jump, resamples)
    for now, following in itertools.pairwise(path):
        a, b = bar[now], bar[following]
        if following < now:
            mean, covariance = mean * np.sqrt(b / a), covariance * b / a + (1 - b / a) * np.eye(4)
            continue
        gain = np.sqrt(a) * COVARIANCE @ np.linalg.inv(a * COVARIANCE + (1 - a) * np.eye(4))
        of_x0 = np.sqrt(b) * (1 - a / b) / (1 - a)  # Ho et al. 2020, equations 6 and 7
        of_x = np.sqrt(a / b) * (1 - b) / (1 - a)
        step = of_x * np.eye(4) + of_x0 * gain
        mean = step @ mean + of_x0 * (MEAN - gain @ MEAN * np.sqrt(a))
        covariance = step @ covariance @ step.T + (1 - b) / (1 - a) * (1 - a / b) * np.eye(4)
        mean[:2] = np.sqrt(b) * KNOWN
        covariance[:2], covariance[:, :2] = 0, 0
        covariance[:2, :2] = (1 - b) * np.eye(2)
    return mean[2:], covariance[2:, 2:]


def errors(found):
    """Largest error of the mean, and of the covariance as a share of the largest variance."""
    mean, covariance = conditional()
    return np.max(np.abs(found[0] - mean)), np.max(np.abs(found[1] - covariance)) / covariance.max()


def test_repaint_reaches_the_conditional_as_resamples_grow():
    """Exactly, by moments: the mean in resamples, what is left of the covariance in steps."""
    assert np.abs(conditional()[0] - MEAN[2:]).min() > 0.3  # there is something to miss
    means = [errors(moments_of_repaint(100, 1, r))[0] for r in (1, 4, 16, 64)]
    assert means[0] > 0.2
    assert all(later < 0.6 * earlier for earlier, later in itertools.pairwise(means))
    assert means[-1] < 0.012
    coarse, fine = (errors(moments_of_repaint(steps, 1, 16))[1] for steps in (50, 200))
    assert fine < 0.35 * coarse
    assert fine < 0.03


@pytest.mark.parametrize(("steps", "jump", "resamples"), [(8, 1, 1), (12, 3, 3), (80, 1, 12)])
def test_repaint_draws_from_what_its_algorithm_says(steps, jump, resamples, getkey):
    """Monte Carlo against the moments above; and with resampling against the truth itself."""
    shape = (40, 2, 2, 150)  # each channel of each image is a draw
    sampler = RePaint(SCHEDULE, steps, jump, resamples, grid="log_snr", threshold=NoThreshold())
    upper = np.broadcast_to(KNOWN.astype(np.float32)[:, None], (40, 2, 150))
    known = jnp.full(shape, jnp.nan).at[:, 0].set(upper)
    holes = jnp.zeros((40, 2, 2, 1)).at[:, 1].set(1.0)
    found = np.asarray(
        jax.jit(functools.partial(sampler.sample, denoise_gaussian))(
            jax.random.normal(getkey(), shape), jax.random.split(getkey(), 40), known, holes
        )
    )
    np.testing.assert_array_equal(found[:, 0], upper)
    lower = np.moveaxis(found[:, 1], 1, 0).reshape(2, -1)
    count, mean, covariance = lower.shape[1], lower.mean(axis=1), np.cov(lower)
    expected = moments_of_repaint(steps, jump, resamples)
    deviation = 5 / np.sqrt(count)  # five standard errors
    np.testing.assert_allclose(mean, expected[0], atol=deviation * 0.6)
    np.testing.assert_allclose(covariance, expected[1], atol=deviation * 0.36 * np.sqrt(2))
    of_mean, of_covariance = errors((mean, covariance))
    if resamples == 1:
        assert of_mean > 0.2
    elif steps == 80:
        assert of_mean < 0.1 and of_covariance < 0.15


def test_the_denoiser_sees_the_known_image_at_the_level_s_noise(getkey):
    """Levels -6, 1 and 8: the last step copies into the hole what is seen beside it at 1."""
    beside = lambda x, log_snr: jnp.where(log_snr[:, None, None, None] > 0, x[:, ::-1], 0.0)
    sampler = RePaint(SCHEDULE, 2, 1, 1, grid="log_snr", threshold=NoThreshold())
    shape = (8, 2, 2, 400)
    found = sampler.sample(
        beside,
        jax.random.normal(getkey(), shape),
        jax.random.split(getkey(), 8),
        jnp.full(shape, 0.8),
        jnp.zeros((8, 2, 2, 1)).at[:, 1].set(1.0),
    )
    signal = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(found[:, 1].mean(), 0.8 * np.sqrt(signal), atol=0.03)
    np.testing.assert_allclose(found[:, 1].std(), np.sqrt(1 - signal), atol=0.03)


def test_repaint_schedule_against_the_paper_s():
    """Times of the paper's code for T = 7, j = 2, r = 3, and its length for the paper's setting."""
    times = [6, 5, 4, 5, 6, 5, 4, 5, 6, 5, 4, 3, 2, 3, 4, 3, 2, 3, 4, 3, 2, 1, 0]
    times += [1, 2, 1, 0, 1, 2, 1, 0, -1]
    assert [6 - level for level in repaint_schedule(7, 2, 3)] == times
    paper = repaint_schedule(250, 10, 10)
    assert len(paper) == 4571
    assert set(np.diff(paper)) == {-1, 1}
    # Nine times back from each tenth time, from 230 on, and never from the image.
    turns = [249 - paper[i] for i in range(1, 4570) if paper[i - 1] < paper[i] > paper[i + 1]]
    assert turns == [time for time in range(230, -10, -10) for _ in range(9)]
    assert repaint_schedule(6, 3, 1) == list(range(7))


def test_evaluations_are_the_steps_down():
    assert RePaint(SCHEDULE, 250, 10, 10).evaluations == 250 + 24 * 9 * 10
    assert RePaint(SCHEDULE, 9, 20, 1).evaluations == 9


def test_repaint_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="jump of 20 does not fit into 20 steps"):
        RePaint(SCHEDULE, 20, 20, 2)
    with pytest.raises(ConfigError, match="resamples=0"):
        RePaint(SCHEDULE, 20, 2, 0)
    with pytest.raises(ConfigError, match=r"eta=1\.5"):
        RePaint(SCHEDULE, 20, 2, 2, eta=1.5)


def network(x_t, log_snr):
    """Neighbours matter, rows of the batch do not interact; an image without noise is itself."""
    around = sum(jnp.roll(x_t, shift, axis) for shift in (-1, 1) for axis in (1, 2))
    signal = jax.nn.sigmoid(log_snr)[:, None, None, None]
    return signal * x_t + (1 - signal) * jnp.tanh(0.3 * around + 0.2)


@pytest.fixture
def scene(getkey):
    """Six stored images, their holes, noise and keys."""
    stored = jax.random.randint(getkey(), (6, 12, 20, 3), 0, 256).astype(jnp.uint8)
    holes = free_form(jax.random.split(getkey(), 6), 12, 20)
    return stored, holes, jax.random.normal(getkey(), stored.shape), jax.random.split(getkey(), 6)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_repaint_keeps_what_is_known_and_images_apart(eta, scene):
    stored, holes, noise, keys = scene
    sample = jax.jit(functools.partial(RePaint(CosineSchedule(), 8, 2, 2, eta).sample, network))
    known = augment.normalize(stored)
    together = sample(noise, keys, known, holes)
    outside = np.broadcast_to(np.asarray(holes) == 0, known.shape)
    np.testing.assert_array_equal(np.asarray(together)[outside], np.asarray(known)[outside])
    quantised = np.asarray(augment.quantize(together))
    np.testing.assert_array_equal(quantised[outside], np.asarray(stored)[outside])
    # What lies inside the hole is never read; image i needs nothing of the others.
    order = jnp.asarray([3, 1])
    hidden = jnp.where(holes > 0, jnp.nan, known)
    alone = sample(noise[order], keys[order], hidden[order], holes[order])
    np.testing.assert_allclose(alone, together[order], rtol=0, atol=1e-6)
    assert np.isfinite(alone).all()
    other = sample(noise, jax.random.split(keys[0], 6), known, holes)
    assert np.max(np.abs(other - together)) > 1e-3


def test_paste_without_a_seam_changes_nothing_outside(scene):
    stored, holes, noise, _ = scene
    made = augment.quantize(noise)
    for known, generated in ((stored, made), (augment.normalize(stored), noise)):
        found = inpaint.paste(known, generated, holes)
        assert found.dtype == known.dtype
        np.testing.assert_array_equal(found, np.where(holes > 0, generated, known))
    with pytest.raises(TypeError, match="quantise both or neither"):
        inpaint.paste(stored, noise, holes)
    with pytest.raises(ValueError, match="seam=-1"):
        inpaint.paste(stored, made, holes, -1)


@pytest.mark.parametrize("seam", [1, 3])
def test_a_seam_changes_the_pixels_within_its_distance_and_no_other(seam, scene):
    stored, _, noise, _ = scene
    holes = jnp.zeros((6, 12, 20, 1)).at[:, 5:8, 6:9].set(1.0).at[3:, 11, 19].set(1.0)
    away = np.stack([ndimage.distance_transform_edt(hole == 0) for hole in np.asarray(holes)])
    black, white = jnp.zeros_like(stored), jnp.full_like(stored, 255)
    weight = np.asarray(inpaint.paste(black, white, holes, seam)) / 255
    near = np.broadcast_to(away <= seam, weight.shape)
    assert (weight[near] > 0).all() and (weight[~near] == 0).all()
    assert (weight[np.broadcast_to(away == 0, weight.shape)] == 1).all()
    u = np.clip(1 - away / (seam + 1), 0, 1)
    np.testing.assert_allclose(
        weight[near], np.broadcast_to(u**2 * (3 - 2 * u), weight.shape)[near], atol=2e-3
    )
    for known, generated in ((stored, augment.quantize(noise)), (augment.normalize(stored), noise)):
        found = np.asarray(inpaint.paste(known, generated, holes, seam))
        np.testing.assert_array_equal(found[~near], np.asarray(known)[~near])
        inside = np.broadcast_to(away == 0, found.shape)
        np.testing.assert_array_equal(found[inside], np.asarray(generated)[inside])


@pytest.mark.parametrize("radius", [0, 1, 4])
def test_distances_against_scipy(radius, getkey):
    holes = jax.random.bernoulli(getkey(), 0.03, (4, 15, 9, 1)).astype(jnp.float32)
    holes = holes.at[0].set(0.0)
    found = np.asarray(squared_distance(holes, radius))
    assert (found[0] > radius**2).all()
    for mask, distance in zip(np.asarray(holes[1:]), found[1:], strict=True):
        exact = np.square(ndimage.distance_transform_edt(mask == 0))
        np.testing.assert_allclose(
            distance[exact <= radius**2], exact[exact <= radius**2], atol=1e-4
        )
        assert (distance[exact > radius**2] > radius**2).all()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (12, 20)])
def test_free_form_holes_have_the_area_they_say(height, width, getkey):
    keys = jax.random.split(getkey(), 64)
    holes = np.asarray(free_form(keys, height, width))
    assert holes.shape == (64, height, width, 1) and set(np.unique(holes)) == {0.0, 1.0}
    pixels = height * width
    count = holes.sum(axis=(1, 2, 3))
    low, high = FREE_FORM_AREA
    assert (count >= np.floor(low * pixels)).all()
    assert (count <= np.ceil(high * pixels)).all()
    np.testing.assert_allclose(count.mean() / pixels, (low + high) / 2, atol=0.05)
    assert len(np.unique(holes.reshape(64, -1), axis=0)) == 64
    # Shapes, not scattered pixels: many of a hole's pixels have all eight neighbours in it.
    inner = ndimage.binary_erosion(holes[..., 0] > 0, np.ones((1, 3, 3)), border_value=1)
    assert inner.sum() > 0.4 * count.sum()
    np.testing.assert_array_equal(free_form(keys[::-1], height, width), holes[::-1])


def test_holes_of_lesions_and_boxes(getkey):
    """Of each image's kinds of annotation: grown, whole, and at the rates they should come."""
    count, size = 300, 16
    masks = jnp.zeros((count, size, size, 1)).at[:, 4:7, 4:7].set(1.0)
    boxes = jnp.zeros((count, 2, 4)).at[:, 0].set(jnp.asarray([0.5, 0.25, 0.75, 0.5]))
    keys = jax.random.split(getkey(), count)
    pick = functools.partial(choose, keys, height=size, width=size, grow=2)

    def spared(holes, rows, columns):
        """Share of images whose hole has the lesion, and nothing `grow` pixels further."""
        whole = (holes[:, rows, columns] == 1).all(axis=(1, 2, 3))
        reach = np.zeros((size, size), bool)
        reach[rows.start - 2 : rows.stop + 2, columns.start - 2 : columns.stop + 2] = True
        return (whole & ~(holes[:, ~reach] == 1).any(axis=(1, 2))).mean()

    lesion, box = (slice(4, 7), slice(4, 7)), (slice(4, 8), slice(8, 12))
    only_mask = np.asarray(pick(masks=masks, boxes=0 * boxes, free_form=0.0))
    assert spared(only_mask, *lesion) == 1
    radii = np.unique(only_mask.sum(axis=(1, 2, 3)), return_counts=True)
    assert radii[0].tolist() == [9, 21, 37]  # of a disc grown by 0, 1 and 2
    assert radii[1].min() > 60
    unknown = jnp.full_like(masks, -1)
    only_box = np.asarray(pick(masks=unknown, boxes=boxes, free_form=0.0))
    assert spared(only_box, *box) == 1
    assert np.unique(only_box.sum(axis=(1, 2, 3))).tolist() == [16, 36, 64]
    both = np.asarray(pick(masks=masks, boxes=boxes, free_form=0.0))
    np.testing.assert_allclose(spared(both, *lesion), 0.5, atol=0.12)
    np.testing.assert_allclose(spared(both, *box), 0.5, atol=0.12)
    mixed = np.asarray(pick(masks=masks, boxes=boxes, free_form=0.4))
    free = (mixed != both).any(axis=(1, 2, 3)).mean()
    np.testing.assert_allclose(free, 0.4, atol=0.1)
    # Neither known, or known to be free of lesions: a free form, the same one.
    nothing = pick(free_form=0.0)
    np.testing.assert_array_equal(pick(masks=0 * masks, boxes=0 * boxes, free_form=0.0), nothing)
    not_told = pick(masks=unknown, boxes=jnp.full_like(boxes, -1), free_form=0.0)
    np.testing.assert_array_equal(not_told, nothing)
    assert (np.asarray(nothing).sum(axis=(1, 2, 3)) >= 1).all()


def test_the_condition_hides_the_hole(scene):
    stored, holes, noise, _ = scene
    images = augment.normalize(stored)
    told = np.asarray(inpaint.as_condition(images, holes))
    np.testing.assert_array_equal(told[..., :3], np.where(holes > 0, 0, images))
    np.testing.assert_array_equal(told[..., 3:], holes)
    other = jnp.where(holes > 0, noise, images)
    np.testing.assert_array_equal(inpaint.as_condition(other, holes), told)


@pytest.mark.parametrize("solver", [DDIM, DPMSolverPP])
def test_translation_returns_the_source_at_zero_and_forgets_it_at_one(solver, scene):
    stored, _, _, keys = scene
    schedule = CosineSchedule()
    images = augment.normalize(stored)
    translate = jax.jit(
        functools.partial(inpaint.translate, schedule, solver(schedule, 6), network)
    )
    barely = translate(images, jnp.full(6, 1e-4), keys)
    np.testing.assert_allclose(barely, images, atol=8e-3)
    np.testing.assert_allclose(
        translate(images, jnp.ones(6), keys), translate(-images, jnp.ones(6), keys), atol=0.01
    )
    # Each image has its own time and its own key.
    times = jnp.asarray([0.2, 1.0, 0.5, 1e-4, 0.7, 0.5])
    mixed = translate(images, times, keys)
    for i in (2, 3):
        alone = translate(images[i : i + 1], times[i : i + 1], keys[i : i + 1])
        np.testing.assert_allclose(alone, mixed[i : i + 1], atol=1e-5)
    twice = translate(jnp.stack([images[0]] * 2), jnp.full(2, 0.5), keys[:2])
    assert np.max(np.abs(twice[0] - twice[1])) > 1e-2


@pytest.mark.parametrize("schedule", [CosineSchedule(), LinearSchedule()])
def test_soft_label_weight_goes_from_zero_to_one(schedule):
    weight = np.asarray(inpaint.soft_label_weight(schedule, jnp.linspace(0, 1, 101)))
    np.testing.assert_allclose(weight[[0, -1]], [0, 1], atol=1e-6)
    assert (np.diff(weight) > 0).all()
    middle = jnp.asarray(0.5)
    kept = jax.nn.sigmoid(schedule.log_snr(middle))
    np.testing.assert_allclose(inpaint.soft_label_weight(schedule, middle), 1 - kept, atol=1e-4)
