"""Strips end where DDIM ends, from the noise of the pool's candidates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import SynthesizeConfig
from lt_jax.data import augment
from lt_jax.diffusion import program, strips
from lt_jax.diffusion.program import Networks
from lt_jax.diffusion.requests import Requests
from lt_jax.runtime import keys
from tests.diffusion.lesion_set import EVERYTHING, MANIFEST
from tests.diffusion.test_program import EXTRACTOR, GENERATOR, IMAGES, KNOWN, disturbed

STEPS = 5
CONFIG = SynthesizeConfig(sampler="ddim", eta=0.0, steps=STEPS, given=EVERYTHING)
INDICES = np.array([2, 7, 3], np.int32)
KEY = keys.stream(keys.root(0), "synthesize")


@pytest.fixture(scope="module")
def made():
    requests = Requests(CONFIG, GENERATOR, KNOWN, MANIFEST, IMAGES)
    networks = Networks(GENERATOR, EXTRACTOR, requests.present)
    params = disturbed(GENERATOR.init(), 0)
    request, _ = requests(INDICES)
    given = (params, jnp.asarray(INDICES), request)
    held = jax.jit(lambda p, i, r: strips.estimates(CONFIG, networks, p, KEY, i, r))(*given)
    pool = jax.jit(lambda p, i, r: program.make_images(CONFIG, networks, p, KEY, i, r))(*given)
    return networks, params, request, held, pool


def test_a_strip_ends_with_the_image_that_ddim_makes_of_the_candidate_s_noise(made):
    _, _, _, (estimates, log_snr, last), pool = made
    assert estimates.shape == (STEPS, 3, *GENERATOR.image_shape) and log_snr.shape == (STEPS,)
    ended = np.asarray(augment.quantize(last)).astype(int)
    # Other programs round otherwise.
    assert np.abs(ended - np.asarray(pool).astype(int)).max() <= 1
    assert (np.diff(log_snr) > 0).all()


def test_estimates_are_in_range_and_differ_from_level_to_level(made):
    _, _, _, (estimates, _, _), _ = made
    assert np.abs(estimates).max() <= 1
    assert (np.abs(np.diff(estimates, axis=0)).max(axis=(1, 2, 3, 4)) > 0).all()


def test_the_program_shows_some_levels_as_stored_images(made):
    networks, params, request, (estimates, log_snr, _), _ = made
    shown, levels = strips.make_program(CONFIG, networks)(
        params, KEY, jnp.asarray(INDICES), request
    )
    assert shown.dtype == np.uint8 and len(shown) == STEPS  # fewer than LEVELS: all
    np.testing.assert_allclose(levels, log_snr)
    away = np.asarray(shown).astype(int) - np.asarray(augment.quantize(estimates[0])).astype(int)
    assert np.abs(away[0]).max() <= 1
    assert strips.passes(CONFIG, networks) == 2 * STEPS  # with guidance
    alone = dataclasses.replace(CONFIG, guidance_scale=1.0)
    assert strips.passes(alone, networks) == STEPS


def test_the_first_and_the_last_step_are_shown():
    assert strips.shown(20).tolist()[0] == 0 and strips.shown(20).tolist()[-1] == 19
    assert len(strips.shown(20)) == strips.LEVELS and strips.shown(1).tolist() == [0]
