"""Grids: ends, order, and each formula against its own definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.diffusion.grids import levels
from lt_jax.diffusion.process import CosineSchedule, LinearSchedule

GRIDS = ["time", "log_snr", "karras"]
SCHEDULES = [CosineSchedule(), LinearSchedule()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["cosine", "linear"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [1, 20])
def test_levels_rise_from_the_start_to_the_clean_end(schedule, grid, steps):
    start = jnp.asarray([0.05, 0.5, 1.0])
    found = np.asarray(levels(schedule, steps, grid, start))
    assert found.shape == (steps + 1, 3)
    np.testing.assert_allclose(found[0], schedule.log_snr(start), atol=1e-5)
    np.testing.assert_allclose(found[-1], schedule.log_snr(jnp.zeros(3)), atol=1e-5)
    assert np.all(np.diff(found, axis=0) > 0)
    whole = np.asarray(levels(schedule, steps, grid))
    np.testing.assert_allclose(found[:, 2], whole, atol=2e-5)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["cosine", "linear"])
def test_even_grids_are_even_in_what_they_say(schedule):
    with jax.enable_x64(True):
        start = jnp.asarray([0.2, 0.8])
        times = schedule.inverse(levels(schedule, 8, "time", start))
        even = np.linspace(1, 0, 9)
        np.testing.assert_allclose(times, even[:, None] * np.asarray(start), atol=1e-9)
        steps = np.diff(levels(schedule, 8, "log_snr", start), axis=0)
        np.testing.assert_allclose(steps, steps[:1].repeat(8, axis=0), atol=1e-9)


def test_karras_grid_is_equation_five_of_the_paper():
    """With N = steps + 1 levels, and without the appended level of no noise."""
    with jax.enable_x64(True):
        schedule, count, rho = CosineSchedule(-8.0, 12.0), 19, 7
        found = np.exp(-levels(schedule, count - 1, "karras") / 2)
        sigma_max, sigma_min = np.exp(4.0), np.exp(-6.0)
        i = np.arange(count)
        expected = (
            sigma_max ** (1 / rho)
            + i / (count - 1) * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))
        ) ** rho
        np.testing.assert_allclose(found, expected, rtol=1e-9)
