"""The audit counts and describes what the pool's columns and the val images say."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import MemorizationConfig
from lt_jax.selection import memorization
from lt_jax.selection.audit import BINS, CLOSEST, audit, closest
from lt_jax.selection.memorization import Bank, Nearest

CLASSES = ("first", "second", "none of it")
NAN = np.float32(np.nan)


def bank(val=200):
    rng = np.random.default_rng(0)
    likeness = rng.uniform(0.5, 0.9, (2, val)).astype(np.float32)
    rows = np.zeros(val, np.int32)
    return Bank(
        symmetries=("none",),
        shift=0,
        images=None,
        thumbnails=None,
        spreads=None,
        features=None,
        groups=None,
        cosine_limits=np.array([0.9, 0.8, 0.85], np.float32),
        ms_ssim_limits=np.array([0.95, 0.85, 0.9], np.float32),
        val=Nearest(likeness[0], rows, likeness[1], rows),
        val_labels=np.arange(val) % 2,
    )


def columns():
    """Forty candidates: 8 copies, 4 of which other gates stop first, 2 not measured, 1 surplus."""
    failed = np.array(["memorised"] * 4 + ["ood,memorised"] * 4 + ["label"] * 2 + [""] * 30)
    verdict = np.array(["memorised"] * 4 + ["ood"] * 4 + ["label"] * 2 + ["accepted"] * 30)
    verdict[39] = "surplus"
    ms_ssim = np.linspace(0.99, 0.4, 40).astype(np.float32)
    ms_ssim[8:10] = NAN
    return {
        "index": np.arange(40) * 3,
        "label": (np.arange(40) % 2).astype(np.int32),
        "cosine": np.where(np.isnan(ms_ssim), NAN, ms_ssim - np.float32(0.1)),
        "ms_ssim": ms_ssim,
        "nearest": np.array([f"train {i}" for i in range(40)]),
        "failed": failed,
        "verdict": verdict,
    }


@pytest.fixture(scope="module")
def found():
    return audit(MemorizationConfig(), bank(), columns(), CLASSES, {1: 0.25, 10: 0.5})


def test_counts_are_those_of_the_columns(found):
    first, second, none = found["classes"]
    for entry in (first, second):
        assert (entry["candidates"], entry["measured"], entry["copies"]) == (20, 19, 4)
        assert entry["val"] == 100
    assert (first["accepted"], second["accepted"]) == (15, 14)  # the surplus one is neither
    assert (none["candidates"], none["copies"], none["val"]) == (0, 0, 0)
    assert first["limits"] == pytest.approx({"cosine": 0.9, "ms_ssim": 0.95})
    whole = found["overall"]
    for name in ("candidates", "measured", "copies", "accepted", "val"):
        assert whole[name] == sum(entry[name] for entry in found["classes"])


def test_distributions_hold_every_measured_image_once(found):
    told = columns()
    for entry, own in zip(found["classes"], (told["label"] == 0, told["label"] == 1), strict=False):
        for measure in ("cosine", "ms_ssim"):
            values = told[measure][own & ~np.isnan(told["ms_ssim"])]
            shown = entry[measure]["candidates"]
            assert shown["n"] == sum(shown["histogram"]) == len(values)
            assert shown["median"] == pytest.approx(np.median(values))
            assert shown["max"] == pytest.approx(values.max())
            assert entry[measure]["accepted"]["n"] == entry["accepted"]
            assert sum(entry[measure]["val"]["histogram"]) == entry["val"]
    for edges in found["edges"].values():
        assert len(edges) == BINS + 1 and edges[-1] == 1 and np.all(np.diff(edges) > 0)
    empty = found["classes"][2]["cosine"]["accepted"]
    assert empty["n"] == 0 and empty["median"] is None and sum(empty["histogram"]) == 0
    json.dumps(found, allow_nan=False)


def test_the_closest_pairs_are_named_most_alike_first(found):
    told = columns()
    copies, accepted = found["closest"]["copies"], found["closest"]["accepted"]
    assert [pair["index"] for pair in copies] == [3 * i for i in range(8)]
    assert [pair["index"] for pair in accepted] == [3 * i for i in range(10, 10 + CLOSEST)]
    assert copies[1] == {
        "index": 3,
        "class": "second",
        "nearest": "train 1",
        "cosine": 0.25,  # of the two, not the column's: the highest of any train image
        "ms_ssim": pytest.approx(told["ms_ssim"][1]),
    }
    assert copies[0]["cosine"] is None and accepted[0]["cosine"] == 0.5
    rows = closest(told)
    assert rows["copies"].tolist() == list(range(8))
    assert rows["accepted"].tolist() == list(range(10, 10 + CLOSEST))


@pytest.mark.parametrize(
    ("similarity", "limits"),
    [
        ("both", {"cosine": 0.8, "ms_ssim": 0.85}),
        ("cosine", {"cosine": 0.8, "ms_ssim": 0.99}),  # whatever val holds, this much is a copy
        ("ms_ssim", {"ms_ssim": 0.85}),
    ],
)
def test_a_limit_that_the_gate_does_not_go_by_is_not_told(similarity, limits):
    config = MemorizationConfig(similarity=similarity)
    told = audit(config, bank(), columns(), CLASSES, {})
    assert told["classes"][1]["limits"] == pytest.approx(limits)


@pytest.mark.parametrize("similarity", ["both", "cosine", "ms_ssim"])
def test_the_limits_that_are_told_are_those_that_stop(similarity):
    config = MemorizationConfig(similarity=similarity)
    grid = np.linspace(0.7, 1.0, 61, dtype=np.float32)
    cosine, ms_ssim = (axis.ravel() for axis in np.meshgrid(grid, grid))
    labels = np.arange(len(cosine)) % 3
    found = Nearest(*map(jnp.asarray, (cosine, labels, ms_ssim, labels)))
    stopped = np.asarray(memorization.is_copy(config, bank(), found, jnp.asarray(labels)))
    told = np.zeros(len(cosine), bool)
    for measure, limits in memorization.limits(config, bank()).items():
        told |= np.asarray(getattr(found, measure)) > limits.astype(np.float32)[labels]
    np.testing.assert_array_equal(told, stopped)
    assert 0.1 < stopped.mean() < 0.9


@pytest.mark.parametrize(
    ("similarity", "false_alarm", "least"),
    [("both", 0.01, 199), ("cosine", 0.01, 99), ("ms_ssim", 0.1, 9), ("both", 0.0, None)],
)
def test_how_many_val_images_can_vouch_for_the_share(similarity, false_alarm, least):
    """With one image less, the conformal rank lies beyond the highest."""
    config = MemorizationConfig(similarity=similarity, false_alarm=false_alarm)
    assert audit(config, bank(2), columns(), CLASSES, {})["least_val"] == least
    if least is not None:
        share = false_alarm / (2 if similarity == "both" else 1)
        rank = lambda m: np.ceil((m + 1) * (1 - share) - 1e-9)
        assert rank(least) <= least and rank(least - 1) > least - 1


def test_a_pool_without_candidates_is_audited_too():
    empty = {name: column[:0] for name, column in columns().items()}
    found = audit(MemorizationConfig(), bank(), empty, CLASSES, {})
    assert found["overall"]["candidates"] == 0 and found["overall"]["val"] == 200
    assert found["closest"] == {"accepted": [], "copies": []}
    json.dumps(found, allow_nan=False)
