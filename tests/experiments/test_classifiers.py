"""The classifiers experiment: every way is timed against one classifier after the other."""

import dataclasses
import json

import pytest

from experiments.throughput import classifiers, contests
from lt_jax.config import ClassifierConfig, ViTConfig
from lt_jax.runtime import mesh


@pytest.mark.slow
def test_every_way_is_timed_against_one_after_the_other():
    config = contests.load("configs/digits.py")
    vit = ViTConfig(variant="custom", width=8, depth=1, heads=1, mlp=8, patch_size=4)
    part = dataclasses.replace(config.classify, model=ClassifierConfig(vit=vit))
    problem = classifiers.Problem("tiny", dataclasses.replace(config, classify=part), 8)
    rows = classifiers.measure(problem, (1, 4), mesh.make_mesh(2), 2, 0.0)
    reference = classifiers.REFERENCE
    assert [(row["members"], row["way"]) for row in rows] == [
        (1, reference),
        *[(4, way) for way in (reference, "vmap", "map", "devices", "chunks of 2")],
        *[(1, f"{what}, streamed") for what in ("batch", "update")],
        *[(1, f"{what}, resident") for what in ("batch", "update")],
    ]  # fmt: skip
    for row in rows:
        assert row["updates_per_second"]["min"] > 0 and row["times"]["n"] == 2
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    text = classifiers.table(rows)
    assert text.count("\n") == len(rows) + 1 and "| tiny, batch 8 | 4 | devices |" in text
