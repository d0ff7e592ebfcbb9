"""Contests with peers, cost against size, overheads: what the tables say is what was timed."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from experiments.throughput import compare, contests, devices, overheads, sizes, timing, xla_flags
from experiments.throughput.cases import Case
from experiments.throughput.peers import load
from lt_jax import config as config_lib
from lt_jax.runtime import loop, mesh
from tests.shrink import shrink

PARTS = re.compile(r'--suite=gpu --only=("[^"]*"|\S+)')
LIMITS = devices.Limits({"float32": 1e9, "bfloat16": 1e9}, 1e9, "measured")


class Clock:
    """A case takes as long as it says: `time` of the timing, while `running`."""

    _now = 0.0

    def perf_counter(self):
        return self._now

    def sleep(self, seconds):
        self._now += seconds

    @contextlib.contextmanager
    def running(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(timing, "time", self)
            yield


CLOCK = Clock()


def sleeping(name, seconds, closed):
    return Case(name, lambda: CLOCK.sleep(seconds), 10, close=lambda: closed.append(name))


def failing(name):
    def call():
        raise RuntimeError("out of memory\nof many lines")

    return Case(name, call, 10)


def contest(closed):
    nap = lambda seconds: lambda mesh, folder: sleeping("nap", seconds, closed)
    return contests.Contest(
        "sleep", "naps/s",
        {"lt_jax": nap(0.02), "lt_jax, quick": nap(0.01)},
        {
            "slow": nap(0.08), "lt_jax, as published": nap(0.005), "even": nap(0.02),
            "absent": lambda mesh, folder: load("no_such_library"),
            "broken": lambda mesh, folder: 1 / 0,
            "late": lambda mesh, folder: failing("late"),
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def told():
    closed, one = [], mesh.make_mesh(1)
    with CLOCK.running():
        found = compare.measure(contest(closed), one, LIMITS, repetitions=3, seconds=0.0)
    return found, closed


def test_a_ratio_is_how_many_times_faster_each_of_ours_is(told):
    found, closed = told
    rows = {row["name"]: row for row in found["rows"]}
    plain, quick = rows["lt_jax"]["ours_over_it"]
    assert plain["min"] == plain["max"] == 1 and math.isclose(quick["median"], 2)
    plain, quick = rows["slow"]["ours_over_it"]
    assert math.isclose(plain["median"], 4) and math.isclose(quick["median"], 8)
    assert math.isclose(rows["even"]["ours_over_it"][0]["median"], 1)
    assert closed == ["nap"] * 5


def test_the_best_peer_is_of_another_library(told):
    rows = told[0]["rows"]
    assert compare.best(rows)["name"] == "even"
    assert compare.best([row for row in rows if row["name"].startswith("lt_jax")]) is None


def test_what_fails_is_named_and_leaves_the_other_rows(told):
    found, _ = told
    assert len(found["rows"]) == 5
    assert "pip install -r requirements-peers.txt" in found["failed"]["absent"]
    assert found["failed"]["broken"].startswith("failed: ZeroDivisionError")
    assert found["failed"]["late"] == "failed: RuntimeError: out of memory"
    result = {
        "device": {"count": 1, "kind": "cpu"}, "repetitions": 3, "contests": [found],
        "limits": {"source": "measured"},
    }  # fmt: skip
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    text = compare.table(result)
    assert all(reason in text for reason in found["failed"].values())
    assert "| slow | 10 |" in text and "n/a" in text


def test_without_ours_peers_are_still_timed():
    broken = dataclasses.replace(contest([]), ours={"lt_jax": lambda mesh, folder: 1 / 0})
    with CLOCK.running():
        found = compare.measure(broken, mesh.make_mesh(1), LIMITS, repetitions=1, seconds=0.0)
    assert "lt_jax" in found["failed"] and found["rows"][0]["ours_over_it"] == []
    assert "even" in compare._line(found)


def test_a_peer_of_our_network_has_our_arithmetic():
    ours = Case("lt_jax", list, 2, flops=4e12, dtype="bfloat16", devices=1)
    peer = Case("peer", list, 4, dtype="bfloat16", devices=1)
    other = dataclasses.replace(peer, name="other", flops=4e12)
    counted = lambda case, ours=ours: compare._row(
        case, {"lt_jax": [1.0], case.name: [98.9]}, {"lt_jax": ours}, "NVIDIA H200"
    )["utilisation"]
    assert math.isclose(counted(peer)["median"], 0.2)
    assert math.isclose(counted(other)["median"], 0.1)
    assert counted(peer, dataclasses.replace(ours, flops=0.0)) is None


def test_compilation_is_told_with_lowering():
    ours = Case("lt_jax", list, 1, lower_seconds=1.0, compile_seconds=2.0)
    row = compare._row(ours, {"lt_jax": [1.0]}, {"lt_jax": ours}, "cpu")
    assert row["compile_seconds"] == 3


def test_the_file_is_written_after_each_contest(tmp_path, monkeypatch):
    names = []

    def stopped(contest, *args, **kwargs):
        names.append(contest.stage)
        if len(names) == 2:
            raise KeyboardInterrupt
        return {"stage": contest.stage, "unit": "", "rows": [], "failed": {}}

    monkeypatch.setattr(compare, "measure", stopped)
    monkeypatch.setattr(devices, "limits", lambda device_mesh: LIMITS)
    with pytest.raises(KeyboardInterrupt):
        compare.run(
            "tiny", ["loader", "policy"], mesh.make_mesh(1), repetitions=1, seconds=0.0,
            out=str(tmp_path / "told.json"),
        )  # fmt: skip
    kept = json.loads((tmp_path / "told.json").read_text())
    assert [contest["stage"] for contest in kept["contests"]] == names[:1]
    assert names[0].startswith("loader")
    with pytest.raises(compare.NoContestError, match="policy, 2 episodes"):
        compare.run("tiny", ["polciy"], mesh.make_mesh(1), repetitions=1, seconds=0.0)


def test_every_suite_has_the_stages():
    stages = {"generator training", "sampling", "classifier training", "loader", "policy"}
    for name, make in contests.SUITES.items():
        found = make()
        assert {contest.stage.split(",")[0] for contest in found} == stages, name
    assert any("ViT-S/16, 224 px" in contest.stage for contest in contests.gpu())


def test_the_readme_s_commands_take_every_stage_of_a_gpu_once():
    readme = pathlib.Path(contests.__file__).with_name("README.md").read_text()
    parts = [part.strip('"').split(",") for part in PARTS.findall(readme)]
    for contest in contests.gpu():
        assert sum(any(name in contest.stage for name in part) for part in parts) == 1


@pytest.mark.slow
def test_the_tiny_suite_runs():
    result = compare.run("tiny", [], mesh.make_mesh(1), repetitions=1, seconds=0.0)
    assert len(result["contests"]) == len(contests.tiny())
    for contest in result["contests"]:
        assert contest["rows"][0]["rate"]["median"] > 0
    assert {"sampling, 8 px", "generator training, 8 px"} <= {
        contest["stage"] for contest in result["contests"] if contest["roofline"]
    }


def test_slopes_are_powers():
    fake = lambda size, device_mesh, folder: {
        "square": Case("", lambda: CLOCK.sleep(0.01 * (size / 10) ** 2), 1, memory=size)
    }
    sizes.AXES["fake"] = fake
    try:
        with CLOCK.running():
            rows = sizes.measure("fake", (10, 30), mesh.make_mesh(1), repetitions=3, seconds=0.0)
    finally:
        del sizes.AXES["fake"]
    assert rows[0]["slope"] is None and math.isclose(rows[1]["slope"], 2)
    assert math.isclose(rows[1]["memory_slope"], 1.0)
    assert "| square | 30 fake |" in sizes.table(rows)


def test_images_are_searched_and_loaded_at_each_size(tmp_path):
    rows = sizes.measure("images", (40, 80), mesh.make_mesh(1), repetitions=1, seconds=0.0)
    assert [row["size"] for row in rows] == [40] * 3 + [80] * 3
    sizes.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5_000
    assert np.isfinite([row["slope"] for row in rows[3:]]).all()


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
def test_flags_are_compared_and_what_ends_a_process_is_said():
    settings = {"none": ("", 1), "no such": ("--xla_no_such_flag=1", 1)}
    plain, unknown = xla_flags.measure("configs/digits.py", settings, 2)
    assert plain["times"]["median"] == 1 and plain["failed"] is None
    assert unknown["times"] is None and unknown["failed"].startswith("failed: ")
    assert "Unknown flag in XLA_FLAGS: --xla_no_such_flag" in xla_flags.table([plain, unknown])


@pytest.mark.parametrize("settings", [xla_flags.CPU, xla_flags.GPU])
def test_xla_knows_every_flag(settings):
    flags = " ".join(xla for xla, _ in settings.values())
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
