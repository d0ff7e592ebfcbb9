"""Contests with peers, cost against size, overheads: what the tables say is what was timed."""

import dataclasses
import json
import math
import time

import numpy as np
import pytest

from experiments.throughput import compare, contests, devices, overheads, sizes, xla_flags
from experiments.throughput.cases import Case
from experiments.throughput.peers import load
from lt_jax import config as config_lib
from lt_jax.runtime import loop, mesh
from tests.shrink import shrink

LIMITS = devices.Limits({"float32": 1e9, "bfloat16": 1e9}, 1e9, "measured")


def sleeping(name, seconds, closed):
    return Case(name, lambda: time.sleep(seconds), 10, close=lambda: closed.append(name))


@pytest.fixture(scope="module")
def told():
    closed = []
    contest = contests.Contest(
        "sleep", "naps/s",
        lambda mesh, folder: [sleeping("ours", 0.02, closed)],
        (
            lambda mesh, folder: [sleeping("slow", 0.08, closed), sleeping("even", 0.02, closed)],
            lambda mesh, folder: load("no_such_library"),
        ),
    )  # fmt: skip
    found = compare.measure(contest, mesh.make_mesh(1), LIMITS, repetitions=3, seconds=0.0)
    return found, closed


def test_a_ratio_is_how_many_times_faster_ours_is(told):
    found, closed = told
    ours, slow, even = found["rows"]
    assert ours["ours_over_it"]["min"] == ours["ours_over_it"]["max"] == 1
    assert 2 < slow["ours_over_it"]["median"] < 6 and 0.5 < even["ours_over_it"]["median"] < 2
    assert compare.best(found["rows"])["name"] == "even" and compare.best([ours]) is None
    assert sorted(closed) == ["even", "ours", "slow"]


def test_a_missing_peer_is_left_out_and_the_command_told(told):
    (reason,) = told[0]["missing"]
    assert "pip install -r requirements-peers.txt" in reason
    result = {
        "device": {"count": 1, "kind": "cpu"}, "repetitions": 3, "contests": [told[0]],
        "limits": {"source": "measured"},
    }  # fmt: skip
    assert json.loads(json.dumps(told[0], allow_nan=False)) == told[0]
    text = compare.table(result)
    assert reason in text and "| slow | 10 |" in text and "n/a" in text


def test_every_suite_has_the_stages():
    stages = {"generator training", "sampling", "classifier training", "loader", "policy"}
    for name, make in contests.SUITES.items():
        found = make()
        assert {contest.stage.split(",")[0] for contest in found} == stages, name
    assert any("ViT-S/16, 224 px" in contest.stage for contest in contests.gpu())


@pytest.mark.slow
def test_the_tiny_suite_runs():
    result = compare.run("tiny", "", mesh.make_mesh(1), repetitions=1, seconds=0.0)
    assert len(result["contests"]) == len(contests.tiny())
    for contest in result["contests"]:
        assert contest["rows"][0]["rate"]["median"] > 0
    assert {"sampling, 8 px", "generator training, 8 px"} <= {
        contest["stage"] for contest in result["contests"] if contest["roofline"]
    }


def test_slopes_are_powers():
    fake = lambda size, device_mesh, folder: {
        "square": Case("", lambda: time.sleep(0.01 * (size / 10) ** 2), 1, memory=size)
    }
    sizes.AXES["fake"] = fake
    try:
        rows = sizes.measure("fake", (10, 30), mesh.make_mesh(1), repetitions=3, seconds=0.0)
    finally:
        del sizes.AXES["fake"]
    assert rows[0]["slope"] is None and abs(rows[1]["slope"] - 2) < 0.3
    assert math.isclose(rows[1]["memory_slope"], 1.0)
    assert "| square | 30 fake |" in sizes.table(rows)


def test_images_are_searched_and_loaded_at_each_size(tmp_path):
    rows = sizes.measure("images", (40, 80), mesh.make_mesh(1), repetitions=1, seconds=0.0)
    assert [row["size"] for row in rows] == [40, 40, 80, 80]
    sizes.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5_000
    assert np.isfinite([row["slope"] for row in rows[2:]]).all()


def test_overheads_are_shares_of_the_loop_at_the_config_s_intervals():
    config = contests.load("configs/digits.py")
    generator = dataclasses.replace(config.generator, steps=100)
    config = dataclasses.replace(config, generator=generator)  # saves every 100, logs every 50
    told = {"checkpoint": [0.4, 0.6], "logging": [0.05, 0.05] * 2, "seconds": 11.2,
            "data_wait": 0.56}  # fmt: skip
    found = overheads.shares(config, told)
    assert math.isclose(found["step_milliseconds"], 100.0)
    assert math.isclose(found["checkpoint"], 0.05) and math.isclose(found["logging"], 0.02)
    assert math.isclose(found["loader"], 0.05)


def test_the_loop_is_booked_where_it_blocks_and_left_as_it_was():
    save = loop.Loop.save
    values = shrink(config_lib.defaults())
    with values.unlocked():
        values.generator.model.update(channels=(8,), attention_resolutions=())
    config = config_lib.build(config_lib.Config, values)
    told = overheads.measure(config, 20, 2, mesh.make_mesh(1), turns=1)
    assert loop.Loop.save is save
    assert all(told[kind]["median"] > 0 for kind in ("checkpoint", "logging", "step_milliseconds"))
    text = overheads.table({"small": told})
    assert "| small |" in text and "under 5%" in text


@pytest.mark.slow
def test_flags_are_compared_and_unknown_ones_said_so():
    settings = {"none": ("", 1), "no such": ("--xla_no_such_flag=1", 1)}
    plain, unknown = xla_flags.measure("configs/digits.py", settings, 2)
    assert plain["times"]["median"] == 1 and unknown["times"] is None
    assert "does not know" in xla_flags.table([plain, unknown])
