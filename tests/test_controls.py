"""Arms with controls, second stages and ensembles through the pipeline, from pool to report."""

import importlib
import json

import numpy as np
import pytest

from configs import controls
from lt_jax import config as config_lib
from lt_jax import pipeline, preflight, specs
from lt_jax.runtime import metrics
from tests.test_pipeline import tiny

ARMS = ("ce", "shuffled_labels", "crt", "tau_norm", "synthetic_balpoe")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of a few arms of the config `controls`, cut down."""
    config = tiny("controls")
    workdir = tmp_path_factory.mktemp("runs") / "controls"
    arms = controls.get_config().classify.arms.to_dict()
    with config.unlocked():
        config.classify.arms = {name: arms[name] for name in ARMS}
        config.classify.arms.crt.second_stage_steps = 0.5
        config.classify.arms.shuffled_labels.strong_augment = "randaugment_mixup_cutmix"
    run = pipeline.Pipeline(config, workdir)
    run.run()
    return run


def report_of(run):
    report = json.loads((run.workdir / "report.json").read_text())
    return {arm["name"]: arm for arm in report["arms"]}


def test_every_kind_of_arm_reaches_the_report(finished):
    arms = report_of(finished)
    assert set(arms) == set(ARMS)
    assert arms["synthetic_balpoe"]["loss"] == "balpoe"
    for arm in arms.values():
        assert np.isfinite(arm["metrics"]["balanced_accuracy"]["mean"])
    # What has corrected for the prior by itself is not corrected again.
    for name in ("crt", "tau_norm", "synthetic_balpoe"):
        adjusted = arms[name]["metrics_logit_adjusted"]["balanced_accuracy"]
        assert adjusted["values"] == arms[name]["metrics"]["balanced_accuracy"]["values"]


def test_the_ledger_says_who_has_seen_and_computed_how_much(finished):
    arms = report_of(finished)
    images = {name: arm["ledger"]["images"] for name, arm in arms.items()}
    assert set(images.values()) == {images["ce"]}  # two stages or one, as many images
    flops = {
        name: arm["ledger"]["flops"] / arms["ce"]["ledger"]["flops"] for name, arm in arms.items()
    }
    assert flops["crt"] < 1  # half of its steps leave the trunk alone
    assert flops["tau_norm"] == 1 and flops["shuffled_labels"] > 1  # of strong augmentation
    assert 1.5 < flops["synthetic_balpoe"] < 3


def test_both_stages_are_in_the_metrics(finished):
    lines = [
        line
        for line in metrics.read(finished.workdir / "metrics.jsonl")
        if line.get("arm") == "crt" and "loss" in line
    ]
    assert [line.get("second_stage") for line in lines] == [None, "crt"]


def test_a_finished_arm_of_experts_is_read_as_any_other(finished):
    arm = finished.config.classify.arms["synthetic_balpoe"]
    model = preflight.classifier_of(finished.config.classify.model, arm)
    stage = "classify/synthetic_balpoe/seed0"
    params = finished.context().classifier_params(stage, model)
    assert {"expert_0_head", "expert_1_head", "expert_2_head"} < set(params)


@pytest.mark.parametrize("of", ["phantom", "ham10000", "busi"])
def test_controls_of_another_data_set_are_its_config_with_all_arms(of):
    config = controls.get_config(of)
    own = importlib.import_module(f"configs.{of}").get_config()
    assert config.classify.arms.to_dict() == controls.get_config().classify.arms.to_dict()
    assert (config.data, config.generator, config.synthesize) == (
        own.data,
        own.generator,
        own.synthesize,
    )
    assert specs.of(config_lib.build(config_lib.Config, config))


def test_controls_of_no_config_are_refused():
    with pytest.raises(config_lib.ConfigError, match="takes the name of a file of configs/"):
        controls.get_config("nope")
