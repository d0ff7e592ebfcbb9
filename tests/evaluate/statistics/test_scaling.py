import numpy as np
import pytest

from lt_jax.evaluate.statistics import scaling

SIZES = np.array([100, 200, 400, 800])


def test_a_curve_crosses_itself_where_it_was_measured_and_between():
    real = np.array([0.5, 0.6, 0.65, 0.7])
    for size, value in zip(SIZES, real, strict=True):
        np.testing.assert_allclose(scaling.crossing(SIZES, real, np.asarray(value)), size)
    # Half way up is the geometric mean of the sizes.
    np.testing.assert_allclose(scaling.crossing(SIZES, real, np.array(0.55)), np.sqrt(20_000))


def test_a_power_law_is_solved_for_its_number_of_images():
    sizes = np.unique(np.geomspace(50, 5000, 40).astype(int))
    law = lambda n: 0.9 - 0.8 * n**-0.2
    for n in (60, 500, 4_000):
        np.testing.assert_allclose(
            scaling.crossing(sizes, law(sizes), np.array(law(n))), n, rtol=2e-3
        )


def test_beyond_the_sizes_nothing_is_claimed():
    real = np.array([0.5, 0.6, 0.65, 0.7])
    found = scaling.crossing(SIZES, real[:, None] * np.ones(3), np.array([0.71, 0.49, np.nan]))
    np.testing.assert_array_equal(found, [np.inf, 0.0, np.nan])


def test_a_dip_does_not_make_the_crossing_jump():
    dip = np.array([0.5, 0.6, 0.58, 0.7])
    flat = np.array([0.5, 0.6, 0.6, 0.7])
    levels = np.array([0.55, 0.59, 0.6, 0.62])
    both = [scaling.crossing(SIZES, curve[:, None] * np.ones(4), levels) for curve in (dip, flat)]
    np.testing.assert_array_equal(*both)
    np.testing.assert_allclose(both[0][2], 200)  # the first size that reaches it


def test_an_interval_keeps_what_is_unknown_apart():
    values = np.concatenate([np.full(10, np.inf), np.arange(90.0)])
    assert scaling.interval(values) == (2.0, np.inf)
    assert scaling.interval(np.concatenate([np.zeros(10), np.arange(100.0, 190)]))[0] == 0.0
    assert scaling.interval(np.concatenate([np.full(6, np.nan), np.arange(94.0)])) is None


@pytest.mark.parametrize("sizes", [[100], [100, 100], [200, 100], [0, 10]])
def test_sizes_that_are_no_curve_are_refused(sizes):
    with pytest.raises(ValueError, match="takes two or more, ascending"):
        scaling.crossing(np.array(sizes), np.zeros(len(sizes)), np.array(0.0))
