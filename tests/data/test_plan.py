"""What each batch of a plan holds: counts against what was asked, and every image in its turn."""

import numpy as np
import pytest

from lt_jax.data.plan import Plan

WEIGHT, SHARE = np.array([0.6, 0.3, 0.1]), np.array([0.0, 0.25, 0.7])
SIZES = (50, 20, 7, 5, 9, 11)  # real images of the three classes, then synthetic ones


def counts_of(plan: Plan, batches) -> np.ndarray:
    """Realised counts [n, 2 k] of the cells, from the draws themselves."""
    return np.stack([np.bincount(plan.draws(i)[0], minlength=len(plan.sizes)) for i in batches])


@pytest.mark.parametrize("batch_size", [1, 16, 37])
def test_each_batch_holds_the_floor_or_ceiling_of_what_was_asked(batch_size):
    plan = Plan(0, batch_size, SIZES).extended(0, WEIGHT, SHARE)
    asked = batch_size * np.concatenate([WEIGHT * (1 - SHARE), WEIGHT * SHARE])
    counts = counts_of(plan, range(300))
    assert (counts.sum(axis=1) == batch_size).all()
    assert (counts >= np.floor(asked - 1e-9)).all()
    assert (counts <= np.ceil(asked + 1e-9)).all()


def test_counts_over_many_batches_stay_within_a_constant_of_the_expectation():
    plan = Plan(0, 16, SIZES).extended(0, WEIGHT, SHARE)
    asked = 16 * np.concatenate([WEIGHT * (1 - SHARE), WEIGHT * SHARE])
    realised = np.cumsum(counts_of(plan, range(2000)), axis=0)
    expected = asked * np.arange(1, 2001)[:, None]
    # Independent draws would be off by sqrt(2000 * 16 * p (1 - p)), about 90 for the first cell.
    assert np.abs(realised - expected).max() < 4


def test_a_class_too_rare_for_every_batch_comes_up_at_its_rate():
    weight = np.array([0.999, 0.001])
    plan = Plan(0, 16, (50, 3, 0, 0)).extended(0, weight, np.zeros(2))
    counts = counts_of(plan, range(3000))[:, 1]
    assert counts.max() == 1
    assert abs(counts.sum() - 16 * 3000 * 0.001) <= 2


def test_rates_hold_over_rounds_of_a_few_batches():
    """The sequence of offsets goes on across segments: begun anew in each, class 1 never came."""
    weights = [np.array([0.98, 0.02]), np.array([0.99, 0.01])]
    plan = Plan(0, 16, (50, 9, 0, 0))
    for start in range(400):
        plan = plan.extended(start, weights[start % 2], np.zeros(2))
    realised = counts_of(plan, range(400))[:, 1].sum()
    assert abs(realised - 400 * 16 * 0.015) <= 4


def test_cells_of_no_weight_are_never_drawn():
    # Sums such as 0.1 + 0.2 + 0.7 fall short of 1 or pass it by a rounding.
    weight, share = np.array([0.1, 0.2, 0.7, 0.0]), np.array([0.3, 0.0, 0.0, 0.0])
    plan = Plan(0, 128, (9, 9, 9, 0, 4, 0, 0, 0)).extended(0, weight, share)
    counts = counts_of(plan, range(500))
    assert not counts[:, [3, 5, 6, 7]].any()


def test_no_image_comes_twice_before_all_came_once():
    plan = Plan(1, 16, SIZES).extended(0, WEIGHT, SHARE)
    plan = plan.extended(11, WEIGHT[::-1], np.zeros(3)).extended(23, WEIGHT, SHARE)
    drawn = [plan.draws(i) for i in range(60)]
    for cell, size in enumerate(SIZES):
        # Within a batch the order is shuffled, so epochs are told apart by how often each came.
        seen = np.zeros(size, int)
        for cells, positions in drawn:
            np.add.at(seen, positions[cells == cell], 1)
            assert seen.max() - seen.min() <= 1, f"cell {cell}: {seen}"


def test_each_epoch_of_a_cell_has_another_order_and_seeds_differ():
    plan = Plan(1, 4, (4, 0)).extended(0, np.ones(1), np.zeros(1))
    orders = [tuple(plan.draws(i)[1]) for i in range(20)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len(set(orders)) > 10
    other = Plan(2, 4, (4, 0)).extended(0, np.ones(1), np.zeros(1))
    assert orders != [tuple(other.draws(i)[1]) for i in range(20)]


def test_far_batches_count_their_blocks_like_the_sum_of_single_batches():
    plan = Plan(0, 8, SIZES).extended(0, WEIGHT, SHARE)
    later = plan.extended(2500, WEIGHT[::-1], np.zeros(3))
    np.testing.assert_array_equal(later.segments[1].drawn, counts_of(plan, range(2500)).sum(axis=0))


@pytest.mark.parametrize(
    ("weight", "share", "message"),
    [
        ([0.5, 0.4], [0.0, 0.0], "sum to 1"),
        ([1.5, -0.5], [0.0, 0.0], "sum to 1"),
        ([np.nan, 1.0], [0.0, 0.0], "sum to 1"),
        ([0.5, 0.5], [1.0, 0.0], r"shares must lie in \[0, 1\)"),
        ([0.5, 0.5], [-0.1, 0.0], r"shares must lie in \[0, 1\)"),
        ([0.5, 0.5], [np.nan, 0.0], r"shares must lie in \[0, 1\)"),
        ([0.5, 0.5], [0.0, 0.2], "class 1 has no synthetic images"),
        ([1.0], [0.0], "2 classes takes 2 weights"),
    ],
)
def test_mixtures_that_cannot_be_drawn_are_refused(weight, share, message):
    plan = Plan(0, 8, (4, 4, 4, 0))
    with pytest.raises(ValueError, match=message):
        plan.extended(0, np.array(weight), np.array(share))


def test_a_class_without_real_images_is_refused_by_name():
    with pytest.raises(ValueError, match="class 1 has no real images"):
        Plan(0, 8, (4, 0, 0, 4)).extended(0, np.array([0.5, 0.5]), np.array([0.0, 0.5]))


def test_a_plan_is_only_appended_to():
    plan = Plan(0, 8, SIZES).extended(5, WEIGHT, SHARE)
    with pytest.raises(ValueError, match="before the last segment"):
        plan.extended(4, WEIGHT[::-1], SHARE)
    with pytest.raises(ValueError, match="batch 5 has a mixture already"):
        plan.extended(5, WEIGHT[::-1], SHARE)
    with pytest.raises(ValueError, match="batch 4 lies before the first mixture"):
        plan.draws(4)
