"""Curves over numbers of images: what is trained for them, and what is read off."""

import numpy as np
import pytest

from experiments.scaling import curves, pictures
from lt_jax.config import ConfigError
from lt_jax.data import manifest as manifest_lib
from lt_jax.evaluate import metrics
from lt_jax.evaluate.statistics import tables
from lt_jax.pipeline import Pipeline
from lt_jax.specs import STAGES
from tests.test_pipeline import tiny

PLAN = curves.Plan((0.5, 1.0), (0.5, 1.0), 2, "balanced_softmax", "fill_to_head", 1.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Runs by fraction, and where they lie."""
    out = tmp_path_factory.mktemp("runs") / "scaling"
    runs = {}
    for fraction in PLAN.fractions:
        name = curves.name_of(fraction)
        config = curves.configure(tiny(), PLAN, fraction)
        with config.unlocked():
            config.synthesize.min_dose = 0.0
        runs[name] = Pipeline(config, out / name, out / "cache")
        runs[name].run([stage for stage in STAGES if stage != "report"])
    return runs, out


def test_smaller_sets_are_parts_of_larger_ones_with_networks_of_their_own(finished):
    contexts = [run.context() for run in finished[0].values()]
    half, whole = (manifest_lib.load(context.folder("prepare")) for context in contexts)
    train = [{made.ids[i] for i in made.rows("train")} for made in (half, whole)]
    assert train[0] < train[1]
    np.testing.assert_array_equal(
        half.counts(), np.maximum(np.round(whole.counts() * 0.5).astype(int), 1)
    )
    assert [half.ids[i] for i in half.rows("test")] == [whole.ids[i] for i in whole.rows("test")]
    for stage in ("generator", "extractor", "synthesize"):
        assert contexts[0].specs[stage].key != contexts[1].specs[stage].key
    assert set(contexts[0].config.classify.arms) == {"real", "synthetic"}
    assert set(contexts[1].config.classify.arms) == {"real", "synthetic", "dose_0_5", "dose_1"}


def test_curves_gains_and_crossings_are_of_what_was_trained(finished):
    runs, out = finished
    results = curves.collect(runs, PLAN, out)
    assert list(results["sizes"]) == ["fraction_0.5", "fraction_1"]
    assert results["sizes"]["fraction_0.5"] < results["sizes"]["fraction_1"]
    assert set(results["arms"]) == {
        "fraction_0.5/real", "fraction_0.5/synthetic", "fraction_1/real", "fraction_1/synthetic",
        "fraction_1/dose_0_5", "fraction_1/dose_1",
    }  # fmt: skip
    for arm in results["arms"].values():
        assert set(curves.METRICS) < set(metrics.METRICS) and arm["metrics"]["log_loss"]["n"] == 2
    (first, low), (second, _) = results["gains"]
    assert (first, second) == (0.5, 1.0) and np.shape(low) == (2, 10)
    names = [f"fraction_1/{arm}" for arm in ("dose_0_5", "real")]
    recalls = [np.mean(results["arms"][name]["recall_per_class"]["mean"]) for name in names]
    np.testing.assert_allclose(np.mean(low), recalls[0] - recalls[1], atol=1e-12)
    assert [worth["fraction"] for worth in results["worth"]] == [0.5, 1.0]
    shown = lambda: "\n".join(map(tables.to_markdown, curves.tables_of(results)))
    assert "| dose 0 |" in shown() and "dose 0.5" in shown() and "Equivalent" in shown()
    # Of every mean its n: three metrics of 4 + 3 arms, two comparisons, ten classes of two doses.
    assert shown().count("(n=2)") == 3 * 7 + 2 + 10 * 2 + 2
    pictures.draw(results, out / "figures")
    assert len(list((out / "figures").glob("*.png"))) == 3
    # A class without a test image: its recall is null in results.json.
    for _, values in results["gains"]:
        for row in values:
            row[3] = None
    assert shown().count("| no test image | no test image |") == 1
    pictures.draw(results, out / "again")


def test_a_number_of_images_beyond_the_curve_is_said_in_words():
    assert curves._told(np.inf) == "more than the largest"
    assert curves._told(0.0) == "less than the smallest"
    assert curves._told(123.4) == 123
    assert curves._told(np.nan) == "unknown"


@pytest.mark.parametrize("fractions", [(1.0,), (0.5, 0.9), (0.9, 0.5, 1.0)])
def test_fractions_that_make_no_curve_are_refused(fractions):
    with pytest.raises(ConfigError, match="--fractions: got"):
        curves.Plan(fractions, (), 2, "balanced_softmax", "fill_to_head", 1.0)


def test_doses_are_ascending():
    with pytest.raises(ConfigError, match="--doses: got"):
        curves.Plan((0.5, 1.0), (1.0, 0.5), 2, "balanced_softmax", "fill_to_head", 1.0)
