"""Overlaps of boxes against arithmetic by hand, and the slope of GIoU against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lt_jax.detect import boxes


def random_boxes(rng, *shape):
    low = rng.uniform(0, 0.6, (*shape, 2))
    return jnp.asarray(np.concatenate([low, low + rng.uniform(0.05, 0.4, (*shape, 2))], -1))


def reference(a, b):
    """(IoU, GIoU) of two boxes, by their definition."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
    either = area(a) + area(b) - both
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return both / either, both / either - (hull - either) / hull


def test_overlaps_are_their_definitions():
    rng = np.random.default_rng(0)
    first, second = random_boxes(rng, 200), random_boxes(rng, 200)
    pairs = zip(np.asarray(first, float), np.asarray(second, float), strict=True)
    expected = np.array([reference(a, b) for a, b in pairs])
    np.testing.assert_allclose(boxes.iou(first, second), expected[:, 0], atol=1e-6)
    np.testing.assert_allclose(boxes.giou(first, second), expected[:, 1], atol=1e-6)
    assert (expected[:, 0] == 0).any() and (expected[:, 0] > 0.3).any()


def test_identities():
    rng = np.random.default_rng(1)
    a, b = random_boxes(rng, 50), random_boxes(rng, 50)
    np.testing.assert_allclose(boxes.giou(a, a), 1, atol=1e-5)
    np.testing.assert_allclose(boxes.giou(a, b), boxes.giou(b, a), atol=1e-6)
    moved = lambda box: box * 0.5 + 0.1  # neither shift nor scale changes it
    np.testing.assert_allclose(boxes.giou(moved(a), moved(b)), boxes.giou(a, b), atol=1e-5)
    assert (np.asarray(boxes.giou(a, b)) <= np.asarray(boxes.iou(a, b)) + 1e-6).all()
    # Two specks far apart fill nothing of what is around them both.
    far = jnp.array([[0.0, 0, 0.001, 0.001], [0.999, 0.999, 1, 1]])
    assert float(boxes.giou(far[0], far[1])) < -0.999
    inside = jnp.array([0.2, 0.2, 0.4, 0.4]), jnp.array([0.0, 0.0, 1.0, 1.0])
    assert float(boxes.giou(*inside)) == pytest.approx(float(boxes.iou(*inside)), abs=1e-6)


@pytest.mark.parametrize("apart", [False, True])
def test_the_slope_is_that_of_differences(apart):
    target = jnp.array([0.5, 0.45, 0.8, 0.9])
    start = jnp.array([0.05, 0.1, 0.2, 0.3]) if apart else jnp.array([0.31, 0.2, 0.64, 0.71])
    check_grads(
        lambda box: boxes.giou(jnp.asarray(box), target),
        (start,),
        1,
        modes=["rev"],
        eps=1e-3,
        rtol=0.02,
    )
    slope = jax.grad(lambda box: boxes.giou(box, target))(start)
    assert (np.abs(np.asarray(slope)) > 1e-3).any(), "boxes that do not meet must be drawn together"


def test_boxes_without_area():
    nothing, some = jnp.zeros(4), jnp.array([0.1, 0.1, 0.3, 0.2])
    assert not bool(boxes.given(nothing)) and bool(boxes.given(some))
    assert float(boxes.iou(nothing, some)) == 0 == float(boxes.iou(nothing, nothing))
    assert np.isfinite(float(boxes.giou(nothing, nothing)))
    slope = jax.grad(lambda box: boxes.giou(box, nothing))(some)
    assert np.isfinite(np.asarray(slope)).all()
    assert float(boxes.area(jnp.array([0.3, 0.1, 0.1, 0.2]))) == 0  # inside out


def test_lists_are_padded():
    lists = [((0.1, 0.1, 0.2, 0.2),), (), ((0.0, 0.0, 1.0, 1.0), (0.5, 0.5, 0.6, 0.7))]
    even = boxes.padded(lists, 2)
    assert np.asarray(boxes.given(jnp.asarray(even))).sum(axis=1).tolist() == [1, 0, 2]
    np.testing.assert_array_equal(even[2, 1], np.float32([0.5, 0.5, 0.6, 0.7]))
    with pytest.raises(ValueError, match="row 2 has 2 boxes"):
        boxes.padded(lists, 1)


def test_sides_go_around_their_location():
    places = jnp.array([[0.5, 0.25], [0.1, 0.9]])
    sides = jnp.array([[[0.1, 0.2, 0.3, 0.4], [0.0, 0.1, 0.2, 0.05]]])
    found = boxes.around(places, sides)
    np.testing.assert_allclose(found[0], [[0.4, 0.05, 0.8, 0.65], [0.1, 0.8, 0.3, 0.95]], atol=1e-6)
