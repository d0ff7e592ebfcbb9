"""Boxes inside the image, neither copies nor strangers; lesion masks moved whole."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from lt_jax.diffusion import priors
from lt_jax.diffusion.priors import BoxPrior, PriorError, by_class, distance_report
from lt_jax.diffusion.shape_prior import ShapePrior


def boxes_of(rng, n, centre=(0.5, 0.5), side=0.25):
    """Boxes about a place, of correlated position and size."""
    z = rng.standard_normal((n, 4))
    centres = np.asarray(centre) + 0.08 * z[:, :2]
    sides = side * np.exp(0.2 * z[:, 2:] + 0.15 * z[:, :1])
    boxes = np.clip(np.concatenate([centres - sides / 2, centres + sides / 2], axis=1), 0, 1)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    return boxes


@pytest.fixture(scope="module")
def fitted():
    """Three classes: many boxes, few, none but images without lesions."""
    rng = np.random.default_rng(0)
    boxes = [boxes_of(rng, 90), boxes_of(rng, 5, (0.2, 0.8), 0.1), np.zeros((0, 4))]
    counts = [np.array([1] * 60 + [2] * 15), np.ones(5, int), np.zeros(40, int)]
    return boxes, counts, BoxPrior.fit(boxes, counts)


def drawn(prior, label, n=400, seed=0):
    boxes = prior.sample(seed, np.arange(n), np.full(n, label))
    return boxes.reshape(-1, 4)[(boxes.reshape(-1, 4) != 0).any(axis=1)]


def test_boxes_lie_inside_the_image_and_have_a_size(fitted):
    rng = np.random.default_rng(1)
    at_borders = [boxes_of(rng, 30, (0.1, 0.9), 0.5), np.array([[0.0, 0.0, 1.0, 1.0]] * 3)]
    for prior in (
        fitted[2],
        BoxPrior.fit(at_borders, [np.ones(30, int), np.ones(3, int)], min_side=0.1),
        BoxPrior.fit(at_borders, [np.ones(30, int), np.ones(3, int)], bandwidth=2.0),
    ):
        for label in (0, 1):
            boxes = drawn(prior, label, 200)
            assert boxes.dtype == np.float32 and len(boxes) >= 200
            assert boxes.min() >= 0 and boxes.max() <= 1
            assert (boxes[:, 2:] - boxes[:, :2]).min() >= prior.min_side - 1e-6


def test_a_draw_depends_on_seed_and_index_only(fitted):
    prior = fitted[2]
    labels = np.array([0, 1, 0, 1, 0, 0])
    indices = np.array([3, 4, 5, 6, 70, 8])
    together = prior.sample(7, indices, labels)
    order = np.array([4, 2, 0])
    np.testing.assert_array_equal(prior.sample(7, indices[order], labels[order]), together[order])
    assert (prior.sample(8, indices, labels) != together).any()
    assert len({tuple(box) for box in together[:, 0].tolist()}) == 6


def test_counts_are_the_class_s_own(fitted):
    prior = fitted[2]
    boxes = prior.sample(0, np.arange(600), np.zeros(600, int))
    assert boxes.shape == (600, 2, 4)
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    assert (np.diff(area, axis=1) <= 0).all()  # the largest first, empty slots last
    np.testing.assert_allclose((area[:, 1] > 0).mean(), 15 / 75, atol=0.06)
    assert (prior.sample(0, np.arange(50), np.full(50, 2)) == 0).all()


def test_the_density_has_the_moments_and_the_dependence_of_its_boxes():
    """Centre and size are correlated, which independent densities would lose."""
    rng = np.random.default_rng(2)
    z = np.column_stack([rng.uniform(0.3, 0.7, (200, 2)), rng.normal(0, 0.2, 200), np.zeros(200)])
    z[:, 3] = -3.5 + 3 * (z[:, 0] - 0.5)  # lesions to the right are larger
    sides = np.exp(np.column_stack([z[:, 3] + z[:, 2], z[:, 3] - z[:, 2]]) / 2)
    boxes = np.concatenate([z[:, :2] - sides / 2, z[:, :2] + sides / 2], axis=1)
    found = drawn(BoxPrior.fit([boxes], [np.ones(200, int)]), 0, 1500)
    sides = found[:, 2:] - found[:, :2]
    centre, area = (found[:, 0] + found[:, 2]) / 2, np.log(sides[:, 0] * sides[:, 1])
    np.testing.assert_allclose(centre.mean(), 0.5, atol=0.02)
    np.testing.assert_allclose(area.mean(), -3.5, atol=0.06)
    assert np.corrcoef(centre, area)[0, 1] > 0.9
    assert abs(np.corrcoef(centre, np.log(sides[:, 0] / sides[:, 1]))[0, 1]) < 0.15


def test_few_boxes_borrow_from_the_others(fitted):
    """Equation (2): of five boxes at pooling 10, a third of the draws are the class's own."""
    boxes, counts, prior = fitted
    np.testing.assert_allclose(prior.credibility, [0.9, 1 / 3, 0.0])
    small = lambda boxes: np.mean(boxes[:, 2] - boxes[:, 0] < 0.15)
    np.testing.assert_allclose(small(drawn(prior, 1)), 1 / 3, atol=0.12)
    assert small(drawn(BoxPrior.fit(boxes, counts, pooling=0.0), 1)) > 0.85
    # A class without boxes whose images are not known either has those of all.
    unknown = BoxPrior.fit([boxes[0], np.zeros((0, 4))], [counts[0], np.zeros(0, int)])
    np.testing.assert_allclose(
        np.median(drawn(unknown, 1), axis=0), np.median(boxes[0], axis=0), atol=0.05
    )


def test_bandwidth_is_the_likeliest_and_falls_with_n():
    """Normal data: near the bandwidth of least error, (4 / (d + 2) n)^(1 / (d + 4))."""
    rng = np.random.default_rng(3)
    small, large = (priors.choose_bandwidth(rng.standard_normal((n, 4))) for n in (40, 1600))
    np.testing.assert_allclose(large, (4 / (6 * 1600)) ** (1 / 8), rtol=0.3)
    assert small > 1.15 * large
    # Against scores of its own: leave-one-out likelihood of each candidate, written out.
    u = rng.standard_t(3, (9, 4))
    gaps = np.square(u[:, None] - u[None]).sum(-1)
    np.fill_diagonal(gaps, np.inf)
    scores = [np.log(np.exp(-0.5 * gaps / h**2).sum(1) / h**4).sum() for h in priors.BANDWIDTHS]
    np.testing.assert_allclose(priors.choose_bandwidth(u), priors.BANDWIDTHS[np.argmax(scores)])
    # Copies in the data must not be taken for density: they count once.
    np.testing.assert_allclose(
        priors.choose_bandwidth(np.repeat(u, 3, axis=0)), priors.choose_bandwidth(u)
    )


def test_a_prior_that_copies_is_seen(fitted):
    """BUSGen's released bandwidth of 0.001 against the one by cross-validation."""
    boxes, counts, _ = fitted
    fresh, copies = (
        distance_report(
            drawn(BoxPrior.fit(boxes, counts, pooling=0.0, bandwidth=h), 0, 300), boxes[0]
        )
        for h in (None, 0.001)
    )
    assert copies.ratio < 0.02 and copies.near_copies > 0.97
    assert 0.8 < fresh.ratio < 2 and fresh.near_copies < 0.12
    # The yardstick itself: boxes of the same distribution are neither near nor far.
    rng = np.random.default_rng(4)
    same = distance_report(boxes_of(rng, 400), boxes_of(rng, 400))
    np.testing.assert_allclose(same.ratio, 1.0, atol=0.12)
    assert same.near_copies < 0.1


def test_distances_are_one_minus_the_best_overlap():
    train = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0.5, 0.5, 1, 1], [0.4, 0, 0.9, 0.5]])
    found = distance_report(np.array([[0.0, 0.0, 0.5, 0.25], [0, 0, 0, 0]]), train)
    assert found.sampled == pytest.approx(0.5)
    # Overlap of the first and the last: 0.1 of 0.9; the equal ones count once and touch neither.
    assert found.train == pytest.approx(1 - 1 / 9)
    assert found.ratio == pytest.approx(0.5 / (8 / 9))


def test_by_class_tells_unknown_from_free_of_lesions():
    boxes = np.zeros((4, 2, 4), np.float32)
    boxes[0] = [[0.1, 0.1, 0.3, 0.4], [0.5, 0.5, 0.7, 0.6]]
    boxes[2, 0] = [0.2, 0.2, 0.4, 0.4]
    boxes[3] = -1
    held, counts = by_class(boxes, np.array([0, 0, 1, 1]), 3)
    assert [len(each) for each in held] == [2, 1, 0]
    assert [each.tolist() for each in counts] == [[2, 0], [1], []]
    np.testing.assert_array_equal(held[0], boxes[0])


def test_what_no_prior_can_be_made_of_is_refused():
    with pytest.raises(PriorError, match="no train image has a box"):
        BoxPrior.fit([np.zeros((0, 4))], [np.zeros(3, int)])
    for bad in ([0.2, 0.2, 0.2, 0.5], [0.2, 0.2, 1.4, 0.5], [0.2, 0.2, np.nan, 0.5]):
        with pytest.raises(PriorError, match="class 1 has no area or leaves the image"):
            BoxPrior.fit([np.zeros((0, 4)), np.array([bad])], [np.zeros(1, int)] * 2)
    with pytest.raises(PriorError, match="distinct train boxes"):
        distance_report(np.array([[0, 0, 1.0, 1.0]]), np.array([[0, 0, 1.0, 1.0]] * 2))
    with pytest.raises(PriorError, match="no train mask has a lesion"):
        ShapePrior.fit(np.full((2, 4, 4, 1), -1.0), np.zeros(2, int))
    with pytest.raises(PriorError, match="scale=1"):
        ShapePrior.fit(np.ones((2, 4, 4, 1)), np.zeros(2, int), scale=1.0)


@pytest.fixture(scope="module")
def shapes():
    """Masks of classes 0 (squares of 6 pixels), 1 (one L of 5 in a corner); one of none."""
    masks = np.zeros((4, 24, 32, 1), np.uint8)
    masks[0, 4:10, 5:11] = masks[1, 12:18, 20:26] = 255
    masks[2, 20:24, 0] = masks[2, 23, :2] = 255
    return masks, np.array([0, 0, 1, 1])


def test_masks_are_their_class_s_and_whole(shapes):
    """Without scaling a lesion has as many pixels as the annotator gave it, wherever it goes."""
    prior = ShapePrior.fit(*shapes, scale=0.0, shift=0.5)
    assert len(prior.masks) == 3
    indices = np.arange(60)
    for label, pixels in ((0, 36), (1, 5)):
        found = prior.sample(0, indices, np.full(60, label))
        assert set(np.unique(found)) == {0.0, 1.0}
        np.testing.assert_array_equal(found.sum(axis=(1, 2, 3)), pixels)
        assert len(np.unique(found.reshape(60, -1), axis=0)) > 30
    of_all = prior.sample(0, indices).sum(axis=(1, 2, 3))
    np.testing.assert_allclose((of_all == 36).mean(), 2 / 3, atol=0.2)
    # A class without masks takes those of all.
    np.testing.assert_array_equal(
        prior.sample(0, indices, np.full(60, 9)), prior.sample(0, indices)
    )


def test_masks_as_they_were_where_nothing_is_moved(shapes):
    still = ShapePrior.fit(*shapes, flip=False, scale=0.0, shift=0.0)
    found = still.sample(0, np.arange(30), np.zeros(30, int))
    assert all(any((each == mask // 255).all() for mask in shapes[0][:2]) for each in found)
    flipped = dataclasses.replace(still, flip=True).sample(0, np.arange(40), np.ones(40, int))
    corner = shapes[0][2] // 255
    mirrored = [corner, corner[::-1], corner[:, ::-1], corner[::-1, ::-1]]
    # A mirror image keeps its place; what it looks like is one of four.
    cut = lambda mask: mask[np.ix_(mask[..., 0].any(1), mask[..., 0].any(0))].tobytes()
    assert {cut(each) for each in flipped} == {cut(each.astype(np.float32)) for each in mirrored}


def test_masks_are_scaled_about_the_place_asked_for(shapes):
    prior = ShapePrior.fit(*shapes, scale=0.5, shift=0.0)
    centres = np.tile([[0.5, 0.25], [0.75, 0.5]], (50, 1))
    found = prior.sample(0, np.arange(100), np.zeros(100, int), centres)[..., 0]
    x = (found * (np.arange(32) + 0.5)).sum((1, 2)) / found.sum((1, 2)) / 32
    y = (found * (np.arange(24) + 0.5)[:, None]).sum((1, 2)) / found.sum((1, 2)) / 24
    np.testing.assert_allclose(np.stack([x, y], 1), centres, atol=0.03)
    side = np.sqrt(found.sum((1, 2))) / 6
    assert side.min() >= 0.5 and side.max() <= 1.5
    assert stats.kstest(side, stats.uniform(0.5, 1).cdf).statistic < 0.2
    # Lesions of which the centre would push them out, or too large for the image, still lie inside.
    whole = ShapePrior.fit(np.ones((1, 8, 8, 1)), np.zeros(1, int), scale=0.5)
    assert whole.sample(0, np.arange(20)).sum((1, 2, 3)).min() >= 16
    cornered = prior.sample(0, np.arange(50), np.zeros(50, int), np.zeros((50, 2)))
    assert (np.sqrt(cornered.sum((1, 2, 3))) >= 3).all()


def test_a_mask_depends_on_seed_and_index_only(shapes):
    prior = ShapePrior.fit(*shapes)
    labels = np.array([0, 1, 0, 1])
    together = prior.sample(3, np.arange(4), labels)
    np.testing.assert_array_equal(prior.sample(3, np.array([2]), labels[2:3]), together[2:3])
    assert (prior.sample(4, np.arange(4), labels) != together).any()
