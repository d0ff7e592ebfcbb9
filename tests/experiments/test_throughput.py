"""The throughput experiment: every part is timed, and the arithmetic of its figures."""

import dataclasses
import functools
import gzip
import json
import math
import pathlib
import time
import types

import numpy as np
import pytest

from experiments.throughput import (
    cases,
    devices,
    roofline,
    sampling,
    throughput,
    timing,
)
from lt_jax import config as config_lib
from lt_jax.data.pool import open_pool
from lt_jax.runtime import mesh
from tests.data.pool.making import write
from tests.shrink import shrink
from tests.test_golden_configs import load

ROOT = pathlib.Path(__file__).parents[2]
CLASSES = 10


@pytest.fixture(scope="module")
def config():
    values = shrink(load(ROOT / "configs/digits.py"))
    with values.unlocked():  # compilation is what these tests wait for
        values.generator.model.update(channels=(8,), attention_resolutions=())
    return config_lib.build(config_lib.Config, values)


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    return tmp_path_factory.mktemp("profile")


@pytest.fixture(scope="module")
def result(config, profile):
    return throughput.measure(
        config, CLASSES, mesh.make_mesh(1), repetitions=3, seconds=0.01, compare=False,
        profile=profile,
    )  # fmt: skip


def test_a_trace_names_every_program(result, profile):
    (path,) = profile.rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = {event.get("name") for event in events}
    on_device = {row["name"] for row in result["rows"] if row["devices"]}
    assert on_device <= names and len(events) > len(on_device)
    assert next(profile.rglob("*.xplane.pb")).stat().st_size > 1000  # TensorBoard's


def test_the_roofline_has_every_program_whose_arithmetic_is_known(result):
    assert {entry["name"] for entry in result["roofline"]} == {
        row["name"] for row in result["rows"] if row["flops_per_image"]
    }
    assert result["limits"]["source"] == "measured"
    for entry in result["roofline"]:
        assert entry["fraction"] > 0 and entry["intensity"] == entry["flops"] / entry["bytes"]


def test_a_program_is_bound_by_what_it_has_too_little_of():
    place = functools.partial(roofline.Place, "x", seconds=1.0, dtype="float32", peak=100.0)
    low = place(flops=20.0, bytes=10.0, bandwidth=20.0)  # 2 FLOPs a byte, 5 fill the device
    assert low.bound == "memory" and low.fraction == 0.5  # 40 FLOP/s could be had
    high = place(flops=80.0, bytes=10.0, bandwidth=20.0)
    assert high.bound == "compute" and high.fraction == 0.8


@pytest.mark.parametrize("probe", [devices.Probe(64, 1, 1), devices.Probe(64, 1, 3)])
def test_devices_of_no_data_sheet_are_measured(probe):
    found = devices.limits(mesh.make_mesh(2), probe)
    assert found.source == "measured" and found.bytes > 0 < found.flops["float32"]


def test_calls_under_way_at_once_are_shared_out():
    assert 0.01 <= devices._best(time.sleep, 0.01, calls=3) < 0.02


def test_every_part_is_timed(result):
    assert [row["name"] for row in result["rows"]] == [
        "generator training", "extractor training", "classifier training", "prediction",
        "sampling", "sampling, no selection", "sampling, network alone",
        "sampling, separate calls",
        "loader, memory", "loader, JPEG files", "loader, pool",
    ]  # fmt: skip
    for row in result["rows"]:
        rate = row["images_per_second"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"] and rate["n"] == 3
        apart = row["name"].startswith(("loader", "sampling, network", "sampling, separate"))
        assert (row["compile_seconds"] is None) == apart
        on_device = not row["name"].startswith(("loader", "sampling,"))
        assert (row["gflops_per_second"] is not None) == on_device
    assert {r["name"] for r in result["ratios"]} == {
        *(f"loader, {source} / classifier training" for source in ("memory", "JPEG files", "pool")),
        "sampling: fused / no selection",
        "sampling: fused / separate calls",
        "sampling: the network's part of the time",
    }


def test_result_is_strict_json_and_a_table(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    text = throughput.table(result)
    for row in result["rows"]:
        assert row["name"] in text
    assert result["peak_memory"]["bytes"] > 2**20


def test_an_image_costs_two_evaluations_a_step_under_guidance(config, result):
    assert config.synthesize.guidance_scale not in (0.0, 1.0)
    (row,) = [row for row in result["rows"] if row["name"] == "sampling"]
    per_image = row["image_evaluations_per_second"]["min"] / row["images_per_second"]["min"]
    assert math.isclose(per_image, 2 * config.synthesize.steps)


def test_no_utilisation_is_claimed_where_the_peak_is_not_known(result):
    assert all(row["flops_utilisation"] is None for row in result["rows"])


def test_utilisation_is_achieved_over_peak_of_all_devices():
    case = cases.Case("x", lambda: None, 4, flops=8e12, dtype="bfloat16", devices=2)
    row = throughput.row(case, [494.5, 494.5], "NVIDIA H200")  # 2 TFLOP an image: 989 TFLOP/s
    assert math.isclose(row["gflops_per_second"]["median"], 989e3)
    assert math.isclose(row["flops_utilisation"]["median"], 0.5)


@pytest.mark.parametrize(
    ("kind", "dtype", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA H100 80GB HBM3", "float32", 494e12),
        ("NVIDIA H200", "bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),  # not the faster card's, whose name begins alike
        ("NVIDIA H200 NVL", "bfloat16", 835e12),
        ("NVIDIA H200 MIG 1g.18gb", "bfloat16", None),  # a seventh of the card
        ("TPU v5 lite", "bfloat16", 197e12),
        ("TPU v5", "bfloat16", 459e12),
        ("cpu", "float32", None),
        ("NVIDIA H100 80GB HBM3", "", None),
    ],
)
def test_peaks(kind, dtype, peak):
    assert devices.peak_flops(kind, dtype) == peak


@pytest.mark.parametrize(
    ("kind", "bandwidth"),
    [
        ("NVIDIA A100-SXM4-80GB", 2.04e12),
        ("NVIDIA A100-SXM4-40GB", 1.56e12),
        ("NVIDIA A100 80GB PCIe", 1.94e12),
        ("NVIDIA H100 NVL", 3.9e12),
        ("NVIDIA H200", 4.8e12),
    ],
)
def test_published_limits_are_of_all_devices(kind, bandwidth):
    device = types.SimpleNamespace(device_kind=kind, platform="gpu")
    two = types.SimpleNamespace(devices=np.array([device, device]), size=2)
    found = devices.limits(two)
    assert found.source == "data sheet" and found.bytes == 2 * bandwidth
    assert found.flops["bfloat16"] == 2 * devices.peak_flops(kind, "bfloat16")


def test_rates_are_images_over_seconds():
    case = cases.Case("sleep", lambda: time.sleep(0.01), 5)
    (rates,) = timing.time_all([case], 2, 0.05)
    assert len(rates) == 2
    assert all(0 < rate <= 500 for rate in rates)  # 5 images in a hundredth of a second, or more


def test_what_was_prepared_meanwhile_is_not_counted():
    ready = [2]

    def buffered():
        if ready[0]:
            ready[0] -= 1
        else:
            time.sleep(0.01)

    def other():
        ready[0] = 2

    loader = cases.Case("loader", buffered, 5, drain=2)
    rates, _ = timing.time_all([loader, cases.Case("step", other, 1)], 3, 0.0)
    assert all(rate <= 500 for rate in rates)


def test_spread_and_ratio():
    assert timing.Spread.of([3.0, 1.0, 2.0]) == timing.Spread(2.0, 1.0, 3.0, 3)
    assert timing.Spread.of([4.0, 1.0]) == timing.Spread(2.5, 1.0, 4.0, 2)
    # Within repetitions: a slow second repetition moves no ratio.
    entry = timing.ratio("twice", [2.0, 0.2], [1.0, 0.1])
    assert (entry["min"], entry["max"]) == (2.0, 2.0)


def test_comparisons_of_whichever_precision_the_config_has():
    names = [entry["name"] for entry in throughput.ratios({"generator training": [1.0]})]
    assert names == []
    for other, expected in (("bfloat16", 3.0), ("float32", 1 / 3.0)):
        rates = {"generator training": [1.0], f"generator training, {other}": [3.0]}
        (entry,) = throughput.ratios(rates)
        assert entry["name"] == "generator training: bfloat16 / float32"
        assert math.isclose(entry["median"], expected)


def test_with_dtype_moves_every_network(config):
    low = cases.with_dtype(config, "bfloat16")
    assert low.generator.model.dtype == "bfloat16"
    assert cases.dtype_of(low.extractor.model) == cases.dtype_of(low.classify.model) == "bfloat16"
    assert cases.with_dtype(low, "float32") == config


def test_training_case_trains(config):
    case = cases.classifier_training(config, CLASSES, mesh.make_mesh(2))
    losses = [float(case.call()["loss"]) for _ in range(30)]
    assert losses[-1] < losses[0]  # the state goes round; one batch is learnt by heart
    assert case.devices == 2 and case.images == config.classify.batch_size


def test_accepted_images_a_second_are_the_rate_times_a_class_s_share(tmp_path):
    write(tmp_path, [range(8)], wanted=(2, 8))  # of class 0 four of five pass, two are needed
    pool = open_pool(tmp_path)
    assert sampling.acceptance(pool) == {"first": 0.8, "second": 1.0, "all": 7 / 8}
    first, second, whole = throughput.accepted([10.0, 20.0, 30.0], pool)
    assert (first["name"], first["median"], first["max"]) == ("first", 16.0, 24.0)
    assert second["median"] == 20.0 and math.isclose(whole["min"], 8.75)


def test_separate_calls_give_the_images_and_verdicts_of_the_fused_program(config):
    """Denoising errors too: the same network on the same noise."""
    selection = dataclasses.replace(
        config.synthesize.selection, scores=("mahalanobis", "denoising")
    )
    part = dataclasses.replace(config.synthesize, selection=selection)
    config = dataclasses.replace(config, synthesize=part)
    setup = sampling._Setup(config, CLASSES, mesh.make_mesh(1), 40)
    together = sampling._fused(setup).call()
    images, verdict = sampling._separate(setup).call()
    np.testing.assert_array_equal(together.images, images)
    np.testing.assert_allclose(together.verdict.scores, verdict.scores, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(together.verdict.ms_ssim, verdict.ms_ssim)


def test_the_network_takes_a_part_of_the_time(result):
    (part,) = [r for r in result["ratios"] if r["name"].endswith("network's part of the time")]
    rates = {r["name"]: r["images_per_second"] for r in result["rows"]}
    fused, alone = rates["sampling"], rates["sampling, network alone"]
    assert fused["min"] / alone["max"] <= part["median"] <= fused["max"] / alone["min"]
