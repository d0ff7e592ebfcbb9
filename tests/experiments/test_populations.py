"""The populations experiment: unfolded convolutions are convolutions; every way is timed."""

import json

import jax
import numpy as np
import pytest

from experiments.throughput import populations
from lt_jax.config import ClassifierConfig, ResNetConfig


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (1, 2), (3, 2)])
def test_an_unfolded_convolution_is_a_convolution(getkey, size, stride):
    images = jax.random.normal(getkey(), (2, 7, 8, 3))
    kernel = jax.random.normal(getkey(), (size, size, 3, 5))
    names = ("NHWC", "HWIO", "NHWC")
    theirs = jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), "SAME", dimension_numbers=names
    )
    np.testing.assert_allclose(populations.convolve(images, kernel, stride), theirs, atol=1e-5)


def test_every_way_is_timed_and_unfolding_changes_no_figure_but_time(getkey):
    model = ClassifierConfig(kind="resnet", resnet=ResNetConfig(channels=(4,), blocks=(1,)))
    plain, unfolded = (
        populations.Problem("tiny", 4, network(model), 1)
        for network in (populations.Network, populations.Unfolded)
    )
    figures = populations.measure(unfolded, 1, (1, 2))
    ways = [(row["members"], row["row"]) for row in figures]
    loops = [(n, way) for n in (1, 2) for way in ("loop of rounds", "loop of steps")]
    assert ways == [*loops, (2, "map"), (2, "vmap")]
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    for row in figures:
        assert row["milliseconds"]["median"] > 0 and row["temporary_bytes"] > 0
        assert row["row"] != "loop of rounds" or row["over_loop"]["median"] == 1
        assert f"| {row['row']} |" in populations.line(row)
    env, other = plain.environment(), unfolded.environment()
    params, key = env.reset(getkey())[1].params, getkey()
    params["head"]["kernel"] = jax.random.normal(getkey(), params["head"]["kernel"].shape)  # not 0
    block = params["stage_0_0"]["norm_1"]
    block["scale"] = block["scale"] + 1.0
    rows = env.data.features[:5]
    ours, theirs = (each.trained.apply(params, rows, key) for each in (env, other))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.abs(ours).max() > 0.01
