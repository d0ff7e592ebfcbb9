"""Arms before they run: what their cache keys follow, and which of them are refused."""

import dataclasses
import json

import pytest

from lt_jax import pipeline, preflight
from lt_jax.config import ArmConfig, Config, ConfigError, FrozenDict


def config_with(arm, **classify):
    base = Config()
    arms = FrozenDict({"ce": ArmConfig(), "arm": arm})
    return dataclasses.replace(
        base, classify=dataclasses.replace(base.classify, arms=arms, seeds=(0,), **classify)
    )


def key(arm):
    specs = {spec.stage: spec for spec in pipeline.specs(config_with(arm))}
    return specs["classify/arm/seed0"].key


def schedule(path, shares=((0.0, 0.5), (0.5, 0.0))):
    path.write_text(json.dumps([{"share": share} for share in shares]))
    return ArmConfig(controller="schedule", schedule=str(path))


def test_a_key_follows_what_the_arm_s_rule_reads():
    filled = ArmConfig(controller="fill_to_head")
    unread = {"share": 0.1, "beta": 0.5, "levels": (0.0, 0.1), "schedule": "x", "of": "bandit"}
    assert key(dataclasses.replace(filled, **unread)) == key(filled)
    for fields in (
        {"controller": "fixed_share", "share": 0.1},
        {"controller": "accuracy_adaptive", "share": 0.1},
        {"controller": "effective_number", "beta": 0.5},
        {"controller": "bandit", "levels": (0.0, 0.1)},
        {"controller": "source_replay", "of": "bandit", "levels": (0.0, 0.1)},
    ):
        arm = ArmConfig(**fields)
        last = list(fields)[-1]
        default = dataclasses.replace(arm, **{last: getattr(ArmConfig(), last)})
        assert key(arm) != key(default)
    assert key(ArmConfig(controller="shuffled", of="bandit")) != key(ArmConfig(controller="bandit"))
    assert key(ArmConfig(controller="source_replay", of="inverse", dose=1.0)) != key(
        ArmConfig(controller="source_replay", dose=1.0)
    )


def test_a_key_follows_the_schedule_s_content_and_not_its_place(tmp_path):
    first = key(schedule(tmp_path / "a.json"))
    assert key(schedule(tmp_path / "b.json")) == first
    assert key(schedule(tmp_path / "a.json", [[0.0, 0.5], [0.5, 0.1]])) != first
    replay = ArmConfig(controller="source_replay", of="schedule", schedule=str(tmp_path / "b.json"))
    before = key(replay)
    schedule(tmp_path / "b.json", [[0.1, 0.1]])
    assert key(replay) != before
    with pytest.raises(ConfigError, match=r"arms\.arm\.schedule: got 'none\.json', which is no"):
        key(ArmConfig(controller="schedule", schedule="none.json"))


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (ArmConfig(controller="uniform"), r"arm\.dose: got 0\.0; `uniform` takes a dose above 0"),
        (ArmConfig(controller="shuffled", of="inverse"), r"arm\.dose: got 0\.0; `inverse`"),
        (ArmConfig(controller="fixed_share", share=0.0), r"arm\.share: got 0\.0"),
        (ArmConfig(controller="accuracy_adaptive", share=0.0), r"arm\.share: got 0\.0"),
        (ArmConfig(controller="bandit", levels=(0.0,)), r"arm\.levels: got \(0\.0,\); takes two"),
        (ArmConfig(controller="bandit", levels=(0.0, 0.0, 0.1)), r"arm\.levels: .* that differ"),
    ],
)
def test_an_arm_that_cannot_do_what_it_is_for_is_refused(arm, message):
    with pytest.raises(ConfigError, match=rf"config\.classify\.arms\.{message}"):
        pipeline.specs(config_with(arm))


@pytest.mark.parametrize("name", ["bandit", "accuracy_adaptive"])
def test_learning_without_a_split_to_learn_from_is_refused(name):
    for arm in (ArmConfig(controller=name), ArmConfig(controller="source_replay", of=name)):
        config = config_with(arm)
        pipeline.specs(config)
        split = dataclasses.replace(config.data.split, policy_val=0.0)
        data = dataclasses.replace(config.data, split=split)
        with pytest.raises(ConfigError, match=rf"{name}` learns from .* raise config\.data\.split"):
            pipeline.specs(dataclasses.replace(config, data=data))
    pipeline.specs(dataclasses.replace(config_with(ArmConfig()), data=data))
    with pytest.raises(ConfigError, match=r"classify\.rounds: got 5 in 4 steps"):
        pipeline.specs(config_with(ArmConfig(controller=name), rounds=5, steps=4))


def test_a_schedule_of_another_run_is_refused(tmp_path):
    arm = schedule(tmp_path / "a.json")
    preflight.check_schedules(config_with(arm, rounds=2), 2)
    for rounds, classes in ((3, 2), (2, 3)):
        with pytest.raises(ConfigError, match=rf"has 2 rounds of 2 classes, this run {rounds} of"):
            preflight.check_schedules(config_with(arm, rounds=rounds), classes)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"arms\.arm\.schedule: .*takes rounds"):
        preflight.check_schedules(config_with(arm), 2)
