"""Conditions: nulls, dropping, jitter, box maps and the channels beside the image."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.models.conditioning import (
    DROPPABLE,
    NULL,
    ConditionError,
    Conditions,
    Vocabulary,
    box_map,
    drop,
    is_given,
    jitter,
    null_like,
    nulls,
    spatial,
)
from tests.models.arrays import jit

FULL = Vocabulary(
    3, devices=2, attributes=2, max_boxes=2, corners=True, mask=True, sketch=True, inpaint=True,
    channels=1, augmentation=6,
)  # fmt: skip


def batch(n, size=4, seed=0):
    """Every condition, each told, of `n` examples."""
    rng = np.random.default_rng(seed)
    uniform = lambda *shape: jnp.asarray(rng.uniform(size=(n, *shape)), jnp.float32)
    low = uniform(2, 2) / 2
    return Conditions(
        label=jnp.arange(n) % 3,
        device=jnp.arange(n) % 2,
        attributes=uniform(2),
        boxes=jnp.concatenate([low, low + 0.1 + uniform(2, 2) * 0.4], axis=-1),
        mask=uniform(size, size, 1),
        sketch=uniform(size, size, 1),
        inpaint=uniform(size, size, 2),
        augmentation=uniform(6),
    )


def is_null(conditions, name):
    """Which examples hold the null of a condition, all of it."""
    leaf = np.asarray(getattr(conditions, name))
    null = np.isnan(leaf) if name == "attributes" else leaf == NULL
    return null.reshape(len(leaf), -1).all(axis=1)


def test_null_of_each_condition():
    null = null_like(batch(3))
    assert all(is_null(null, name).all() for name in DROPPABLE)
    np.testing.assert_array_equal(null.augmentation, batch(3).augmentation)
    assert null_like(Conditions(label=jnp.arange(2))).boxes is None
    fresh = nulls(FULL, 3, 4, 4)
    FULL.check(fresh)
    assert all(is_null(fresh, name).all() for name in DROPPABLE)
    assert np.all(np.asarray(fresh.augmentation) == 0)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, batch(3))


def test_joint_drop_is_per_example_and_at_the_asked_rate(getkey):
    n, rate = 20_000, 0.2
    conditions = Conditions(label=jnp.arange(n) % 3)
    dropped = drop(conditions, getkey(), {}, rate).label
    gone = np.asarray(dropped == NULL)
    np.testing.assert_array_equal(dropped[~gone], conditions.label[~gone])
    error = 5 * np.sqrt(rate * (1 - rate) / n)
    assert abs(gone.mean() - rate) < error
    # Neighbours are independent: both gone at rate squared.
    assert abs((gone[1:] & gone[:-1]).mean() - rate**2) < error
    for label in range(3):
        assert abs(gone[label::3].mean() - rate) < 2 * error


@pytest.mark.parametrize(("rate", "expected"), [(0.0, [0, 1, 2]), (1.0, [NULL] * 3)])
def test_drop_at_its_ends(getkey, rate, expected):
    for rates, joint in (({}, rate), ({"label": rate}, 0.0)):
        labels = drop(Conditions(label=jnp.arange(3)), getkey(), rates, joint).label
        np.testing.assert_array_equal(labels, expected)


def test_conditions_go_one_by_one_at_their_rates_and_together(getkey):
    n, joint = 4_000, 0.1
    rates = {name: 0.05 * (i + 1) for i, name in enumerate(DROPPABLE)}
    whole, key = batch(n, size=1), getkey()
    dropped = drop(whole, key, rates, joint)
    gone = {name: is_null(dropped, name) for name in DROPPABLE}
    together = is_null(drop(whole, key, {}, joint), "label")
    for name, rate in rates.items():
        left = np.asarray(getattr(dropped, name))[~gone[name]]
        np.testing.assert_array_equal(left, np.asarray(getattr(whole, name))[~gone[name]])
        assert np.all(gone[name][together])
        alone = gone[name][~together]
        assert abs(alone.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / alone.size)
    for i, first in enumerate(DROPPABLE):
        for second in DROPPABLE[i + 1 :]:
            expected = rates[first] * rates[second]
            both = (gone[first] & gone[second])[~together].mean()
            assert abs(both - expected) < 5 * np.sqrt(expected / n), (first, second)
    np.testing.assert_array_equal(dropped.augmentation, whole.augmentation)


def test_draws_of_a_condition_do_not_move_when_others_are_added(getkey):
    key, whole = getkey(), batch(200)
    rates = dict.fromkeys(DROPPABLE, 0.4)
    together = jit(lambda whole: drop(whole, key, rates, 0.1))(whole)
    for name in DROPPABLE:
        alone = drop(Conditions(**{name: getattr(whole, name)}), key, {name: 0.4}, 0.1)
        np.testing.assert_array_equal(getattr(alone, name), getattr(together, name))
    # A network that knows classes alone: one draw, of the key itself.
    labels = drop(Conditions(label=whole.label), key, {}, 0.3).label
    gone = jax.random.bernoulli(key, 0.3, (200,))
    np.testing.assert_array_equal(labels, jnp.where(gone, NULL, whole.label))


def test_a_rate_without_a_null_is_refused(getkey):
    with pytest.raises(ValueError, match="a rate for 'augmentation'; takes any of label, device"):
        drop(batch(2), getkey(), {"augmentation": 0.1}, 0.1)


def test_conditions_survive_transformations_that_hold_no_arrays():
    conditions = Conditions(label=jnp.arange(3))
    assert jax.tree.map(jnp.shape, conditions).label == (3,)
    assert jax.tree.map(lambda _: None, conditions).label is None
    vmapped = jax.vmap(lambda c: c.label + 1, in_axes=(Conditions(label=0),))(conditions)
    np.testing.assert_array_equal(vmapped, [1, 2, 3])


def rasterise(boxes, height, width):
    """Each pixel asked by itself, in float64."""
    out = np.zeros((len(boxes), height, width, 1), np.float32)
    for b, slots in enumerate(np.asarray(boxes, np.float64)):
        for y in range(height):
            for x in range(width):
                centre_x, centre_y = (x + 0.5) / width, (y + 0.5) / height
                out[b, y, x] = any(
                    x0 <= centre_x < x1 and y0 <= centre_y < y1 for x0, y0, x1, y1 in slots
                )
    return out


def test_box_map_against_a_rasteriser():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(size=(6, 3, 2, 2)), axis=2)
    boxes = corners.reshape(6, 3, 4).astype(np.float32)
    # At the borders: whole image, each edge, the last pixel in a corner, an overlapping pair.
    edges = np.array(
        [
            [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]],
            [[0, 0, 0.25, 1], [0.75, 0, 1, 1], [0, 0, 0, 0]],
            [[0, 0, 1, 0.25], [0, 0.75, 1, 1], [0, 0, 0, 0]],
            [[0.875, 0.875, 1, 1], [0, 0, 0.125, 0.125], [0, 0, 0, 0]],
            [[0.12, 0.12, 0.6, 0.6], [0.4, 0.4, 0.88, 0.88], [0, 0, 0, 0]],
        ],
        np.float32,
    )
    boxes = np.concatenate([boxes, edges])
    for height, width in ((8, 8), (5, 12)):
        found = box_map(jnp.asarray(boxes), height, width)
        np.testing.assert_array_equal(found, rasterise(boxes, height, width))
    assert box_map(jnp.asarray(edges), 8, 8)[:, :, :, 0].sum((1, 2)).tolist()[:4] == [64, 32, 32, 2]


def test_slots_without_area_and_nulls_add_nothing_and_neighbours_share_no_pixel():
    empty = jnp.array([[[0, 0, 0, 0], [0.5, 0, 0.5, 1], [0, 0.5, 1, 0.5]], [[-1.0] * 4] * 3])
    assert np.all(np.asarray(box_map(empty, 8, 8)) == 0)
    # The common edge runs through the pixels' centres.
    middle = 3.5 / 8
    halves = jnp.array([[[0, 0, middle, 1]], [[middle, 0, 1, 1]]])
    left, right = box_map(halves, 8, 8)
    np.testing.assert_array_equal(left + right, np.ones((8, 8, 1)))


def test_spatial_has_value_and_given_of_each_input():
    conditions = batch(2)
    channels = spatial(conditions, FULL, 4, 4)
    assert channels.shape == (2, 4, 4, FULL.spatial_channels) == (2, 4, 4, 9)
    np.testing.assert_array_equal(channels[..., :1], box_map(conditions.boxes, 4, 4))
    np.testing.assert_array_equal(channels[..., 2:3], conditions.mask)
    np.testing.assert_array_equal(channels[..., 4:5], conditions.sketch)
    np.testing.assert_array_equal(channels[..., 6:8], conditions.inpaint)
    assert np.all(np.asarray(channels[..., jnp.array([1, 3, 5, 8])]) == 1)
    assert np.all(np.asarray(spatial(null_like(conditions), FULL, 4, 4)) == 0)
    # Of one example alone, and of one condition alone.
    one = dataclasses.replace(conditions, mask=conditions.mask.at[1].set(NULL))
    found = spatial(one, FULL, 4, 4)
    np.testing.assert_array_equal(found[0], channels[0])
    np.testing.assert_array_equal(found[1], channels[1].at[..., 2:4].set(0.0))
    assert spatial(Conditions(label=jnp.arange(2)), Vocabulary(3), 4, 4).shape == (2, 4, 4, 0)


def test_told_empty_differs_from_untold():
    lesion_free = jnp.zeros((1, 2, 4))
    black = jnp.full((1, 4, 4, 2), -1.0).at[..., 1].set(0.0)  # an image of -1 without a hole
    for leaf in (lesion_free, black, jnp.zeros((1, 4, 4, 1))):
        assert bool(is_given(leaf)[0]) and not bool(is_given(jnp.full_like(leaf, NULL))[0])


def test_absent_maps_have_no_gradient(getkey):
    weight = jax.random.normal(getkey(), (2, 4, 4, FULL.spatial_channels))
    names = ("boxes", "mask", "sketch", "inpaint")

    def gradient(conditions):
        def total(given):
            channels = spatial(dataclasses.replace(conditions, **given), FULL, 4, 4)
            return jnp.sum(weight * channels)

        return jit(jax.grad(total))({name: getattr(conditions, name) for name in names})

    told = gradient(batch(2))
    for name, leaf in gradient(null_like(batch(2))).items():
        assert np.all(np.asarray(leaf) == 0)
        if name != "boxes":  # a sharp map has no gradient to corners in either case
            assert np.all(np.asarray(told[name]) != 0)


def test_conditions_of_other_shapes_are_refused():
    with pytest.raises(ConditionError, match="'mask' is 4x4 pixels for images of 8x8"):
        spatial(batch(2), Vocabulary(3, mask=True), 8, 8)
    wrong = dataclasses.replace(batch(2), attributes=jnp.zeros((2, 3)))
    with pytest.raises(ConditionError, match=r"2 numbers .* 'attributes', got the shape \(2, 3\)"):
        FULL.check(wrong)
    with pytest.raises(ConditionError, match="takes the conditions label, got label, device"):
        Vocabulary(3).check(Conditions(label=jnp.arange(2), device=jnp.arange(2)))


def test_jitter_moves_boxes_by_their_size_and_keeps_them_boxes(getkey):
    n, noise = 4_000, 0.1
    boxes = jnp.broadcast_to(jnp.array([[0.4, 0.3, 0.5, 0.7], [0, 0, 0, 0]]), (n, 2, 4))
    boxes = boxes.at[-1].set(NULL)
    conditions = dataclasses.replace(batch(n, size=1), boxes=boxes)
    key = getkey()
    moved = np.asarray(jitter(conditions, key, noise).boxes)
    np.testing.assert_array_equal(moved[:, 1], boxes[:, 1])
    np.testing.assert_array_equal(moved[-1], boxes[-1])
    low, high = moved[:-1, 0, :2], moved[:-1, 0, 2:]
    size = np.array([0.1, 0.4])
    centre_moves = ((low + high) / 2 - np.array([0.45, 0.5])) / size
    growth = np.log((high - low) / size)
    for found in (*centre_moves.T, *growth.T):
        assert abs(found.mean()) < 5 * noise / np.sqrt(n)
        assert abs(found.std() - noise) < 5 * noise / np.sqrt(2 * n)
    rough = np.asarray(jitter(conditions, key, 1.0).boxes)[:-1, 0]
    assert np.all((rough >= 0) & (rough <= 1))
    assert np.all((rough[:, 0] < rough[:, 2]) & (rough[:, 1] < rough[:, 3]))
    untouched = jitter(conditions, key, 0.0)
    np.testing.assert_array_equal(untouched.boxes, boxes)


def test_jitter_moves_what_is_known_of_attributes_and_nothing_else(getkey):
    n, noise = 4_000, 0.3
    conditions = batch(n, size=1)
    attributes = conditions.attributes.at[::2, 1].set(jnp.nan)
    conditions = dataclasses.replace(conditions, attributes=attributes)
    moved = jitter(conditions, getkey(), noise)
    change = np.asarray(moved.attributes - attributes)
    np.testing.assert_array_equal(np.isnan(change), np.isnan(attributes))
    assert abs(np.nanstd(change) - noise) < 5 * noise / np.sqrt(2 * n)
    for name in ("label", "device", "mask", "sketch", "inpaint", "augmentation"):
        np.testing.assert_array_equal(getattr(moved, name), getattr(conditions, name))
    absent = null_like(conditions)
    jax.tree.map(np.testing.assert_array_equal, jitter(absent, getkey(), 1.0), absent)
