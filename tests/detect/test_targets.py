"""Assignment by hand, mirrored, and of lesions that lie between locations; losses of nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.config import AssignConfig, DetectorConfig
from lt_jax.detect import losses, targets
from lt_jax.models.detector import Grid, Outputs, make_grid

CONFIG = AssignConfig(radius=1.5, reach=2.0)
GRID = Grid(32, (8, 16))  # 4 x 4 locations at 4, 12, 20, 28 pixels; 2 x 2 at 8 and 24

assigned = jax.jit(
    lambda held, labels, grid: targets.assign(held, labels, grid, CONFIG), static_argnums=2
)


def assign(lists, grid=GRID, labels=None):
    held = np.zeros((len(lists), max(map(len, lists)), 4), np.float32)
    for row, own in enumerate(lists):
        held[row, : len(own)] = np.array(own).reshape(-1, 4) / 32
    labels = np.zeros(len(lists), np.int32) if labels is None else np.array(labels, np.int32)
    return jax.device_get(assigned(jnp.asarray(held), jnp.asarray(labels), grid))


def at(level, row, column):
    return (0, 16)[level] + row * (4, 2)[level] + column


def test_by_hand():
    # Middle (11, 13). The finest level regresses sides of up to 2 x 8 pixels, and its locations
    # within 12 pixels of the middle that lie in the box are at x 4, 12, 20 and y 12, 20.
    found = assign([[(2, 6, 22, 20.5)]], labels=[3])
    inside = {at(0, row, column) for row in (1, 2) for column in (0, 1, 2)}
    # From (4, 12) the right side is 18 pixels away, from (20, 12) the left one: too far for it.
    inside -= {at(0, row, column) for row in (1, 2) for column in (0, 2)}
    # The coarse level takes sides of more than 16 pixels: from (8, 8) the farthest is 14.
    assert set(np.flatnonzero(found.found[0]).tolist()) == inside
    np.testing.assert_allclose(found.boxes[0, at(0, 1, 1)] * 32, [2, 6, 22, 20.5], atol=1e-4)
    assert found.label[0, at(0, 1, 1)] == 3
    # Sides from (12, 12): left 10, upper 6, right 10, lower 8.5.
    np.testing.assert_allclose(found.middle[0, at(0, 1, 1)], np.sqrt(10 / 10 * 6 / 8.5), atol=1e-5)


def test_large_lesions_are_the_coarse_levels():
    found = assign([[(1, 1, 31, 31)]])
    assert set(np.flatnonzero(found.found[0]).tolist()) == {
        at(1, r, c) for r in (0, 1) for c in (0, 1)
    }


def test_the_smaller_lesion_is_taken():
    small, large = (9, 9, 15, 15), (5, 5, 20, 20)
    for lists in ([small, large], [large, small]):
        found = assign([lists])
        np.testing.assert_allclose(found.boxes[0, at(0, 1, 1)] * 32, small, atol=1e-4)


def test_no_lesion_goes_untaught():
    speck = (7, 15, 9, 17)  # between the locations at 4 and 12, 12 and 20
    found = assign([[speck], [speck, (20, 20, 31, 31)]])
    for row in range(2):
        own = [
            i
            for i in np.flatnonzero(found.found[row])
            if np.allclose(found.boxes[row, i] * 32, speck)
        ]
        assert len(own) == 1 and own[0] < 16 and found.middle[row, own[0]] == 1
    assert found.found[0].sum() == 1


def test_padding_and_background():
    found = assign([[], [(9, 9, 15, 15)], [(0, 0, 0, 0), (9, 9, 15, 15)]])
    assert not found.found[0].any()
    np.testing.assert_array_equal(found.found[1], found.found[2])
    at_lesion = found.found[1]
    np.testing.assert_array_equal(found.boxes[1][at_lesion], found.boxes[2][at_lesion])


def test_a_mirrored_image_has_mirrored_targets():
    grid = make_grid(DetectorConfig(), 32)
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 20, (40, 2, 2))
    held = np.concatenate([low, low + rng.uniform(2, 12, (40, 2, 2))], -1)
    mirrored = held[..., [2, 1, 0, 3]] * [-1, 1, -1, 1] + [32, 0, 32, 0]
    plain, other = assign(list(held), grid), assign(list(mirrored), grid)
    # Where the mirrored image of each location is.
    places = [tuple(place) for place in grid.locations.tolist()]
    keyed = {
        (level, *place): i
        for i, (level, place) in enumerate(zip(grid.level.tolist(), places, strict=True))
    }
    image = [
        keyed[level, 1 - x, y] for level, (x, y) in zip(grid.level.tolist(), places, strict=True)
    ]
    # A lesion exactly between two locations may go to either; these do not.
    np.testing.assert_array_equal(plain.found, other.found[:, image])
    at_lesion = plain.found
    np.testing.assert_allclose(
        plain.middle[at_lesion], other.middle[:, image][at_lesion], atol=1e-4
    )
    back = other.boxes[:, image][..., [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0]
    np.testing.assert_allclose(plain.boxes[at_lesion], back[at_lesion], atol=1e-5)


def outputs_of(key, grid, batch=2, classes=1):
    a, b, c = jax.random.split(key, 3)
    n = len(grid.locations)
    return Outputs(
        classes=jax.random.normal(a, (batch, n, classes)),
        middle=jax.random.normal(b, (batch, n)),
        sides=jax.nn.softplus(jax.random.normal(c, (batch, n, 4))),
    )


def test_background_alone_has_a_finite_loss_and_moves_no_box(getkey):
    outputs = outputs_of(getkey(), GRID)
    nothing = targets.assign(jnp.zeros((2, 1, 4)), jnp.zeros(2, jnp.int32), GRID, CONFIG)

    def loss(said):
        return losses.total(said, nothing, GRID, CONFIG)[0]

    value, slope = jax.value_and_grad(loss)(outputs)
    assert np.isfinite(float(value)) and float(value) > 0
    assert not np.asarray(slope.sides).any() and not np.asarray(slope.middle).any()
    assert (np.asarray(slope.classes) > 0).all(), "every location is to say that there is nothing"


def test_right_answers_cost_next_to_nothing():
    boxes = jnp.asarray(np.array([[[3, 5, 14, 17]], [[8, 2, 30, 30]]]) / 32, jnp.float32)
    asked = targets.assign(boxes, jnp.array([0, 1], jnp.int32), GRID, CONFIG)
    shown = jax.nn.one_hot(asked.label, 2) * asked.found[..., None]
    stride = jnp.asarray(GRID.stride)[None, :, None]
    places = jnp.asarray(GRID.locations)[None]
    sides = jnp.concatenate([places - asked.boxes[..., :2], asked.boxes[..., 2:] - places], -1)
    right = Outputs(
        classes=40.0 * (shown - 0.5),
        middle=jnp.log(asked.middle + 1e-6) - jnp.log1p(1e-6 - asked.middle),
        sides=jnp.maximum(sides, 0) / stride,
    )
    value, parts = losses.total(right, asked, GRID, CONFIG)
    assert float(parts["class_loss"]) < 1e-4 and float(parts["box_loss"]) < 1e-4
    worse = dataclasses.replace(right, sides=right.sides * 1.5)
    assert float(losses.total(worse, asked, GRID, CONFIG)[0]) > float(value) + 0.1
    wrong = dataclasses.replace(right, classes=right.classes[..., ::-1])
    assert float(losses.total(wrong, asked, GRID, CONFIG)[0]) > float(value) + 1
