"""Arms before they run: what their cache keys follow, and which of them are refused."""

import dataclasses
import json

import numpy as np
import pytest

from lt_jax import classification, preflight, preflight_arms
from lt_jax import specs as specs_lib
from lt_jax.config import ArmConfig, Config, ConfigError, FrozenDict


def config_with(arm, **classify):
    base = Config()
    arms = FrozenDict({"ce": ArmConfig(), "arm": arm})
    return dataclasses.replace(
        base, classify=dataclasses.replace(base.classify, arms=arms, seeds=(0,), **classify)
    )


def key(arm):
    specs = {spec.stage: spec for spec in specs_lib.of(config_with(arm))}
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


@pytest.mark.parametrize("environment", ["features", "images"])
def test_the_policies_key_follows_the_network_that_they_train(environment):
    """In pixels it is that of `classify`; on features nothing of it is read."""

    def learnt(**recipe):
        run = config_with(ArmConfig(controller="policy"), rounds=8)
        recipe = dataclasses.replace(run.classify, **recipe)
        mixing = dataclasses.replace(run.mixing, environment=environment)
        run = dataclasses.replace(run, classify=recipe, mixing=mixing)
        return {spec.stage: spec.key for spec in specs_lib.of(run)}["mixing"]

    base = Config().classify
    wide = dataclasses.replace(base.model.vit, variant="custom", width=2 * base.model.vit.width)
    for change in (
        {"model": dataclasses.replace(base.model, vit=wide)},
        {"model": dataclasses.replace(base.model, kind="resnet")},
        {"optimizer": dataclasses.replace(base.optimizer, learning_rate=0.123)},
        {"augment": dataclasses.replace(base.augment, shift=base.augment.shift + 1)},
    ):
        assert (learnt(**change) != learnt()) == (environment == "images")
    assert learnt(steps=base.steps + 1) == learnt()  # of the arms alone


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
        specs_lib.of(config_with(arm))


@pytest.mark.parametrize("name", ["bandit", "accuracy_adaptive"])
def test_learning_without_a_split_to_learn_from_is_refused(name):
    for arm in (ArmConfig(controller=name), ArmConfig(controller="source_replay", of=name)):
        config = config_with(arm)
        specs_lib.of(config)
        split = dataclasses.replace(config.data.split, policy_val=0.0)
        data = dataclasses.replace(config.data, split=split)
        with pytest.raises(ConfigError, match=rf"{name}` learns from .* raise config\.data\.split"):
            specs_lib.of(dataclasses.replace(config, data=data))
    specs_lib.of(dataclasses.replace(config_with(ArmConfig()), data=data))
    with pytest.raises(ConfigError, match=r"classify\.rounds: got 5 in 4 steps"):
        specs_lib.of(config_with(ArmConfig(controller=name), rounds=5, steps=4))


def test_a_shuffled_policy_with_weights_has_a_key_of_its_own():
    """It once dealt shares without the weights that belong to them."""

    def fields(**mixing):
        config = config_with(ArmConfig(controller="shuffled", of="policy"), rounds=8)
        found = specs_lib.of(
            dataclasses.replace(config, mixing=dataclasses.replace(config.mixing, **mixing))
        )
        return next(spec.config for spec in found if spec.stage == "classify/arm/seed0")

    assert fields(weights=(0.5, 1.0, 2.0))["dealt"] and "dealt" not in fields()


def test_policies_with_weights_have_keys_of_their_own_where_reward_or_price_reads_these():
    """Once shares were priced, whatever the weights, and compared with none at the same weight."""

    def fields(weights, **reward):
        config = config_with(ArmConfig(controller="policy"), rounds=8)
        reward = dataclasses.replace(config.mixing.reward, **reward)
        mixing = dataclasses.replace(config.mixing, weights=weights, reward=reward)
        found = specs_lib.of(dataclasses.replace(config, mixing=mixing))
        return set(next(spec.config for spec in found if spec.stage == "mixing"))

    both = {"price": 0.1, "difference": True}
    assert fields((), price=0.1) == fields((0.5, 1.0)) == fields(())
    assert fields((), **both) - fields(()) == {"searched"}  # with fewer schedules, once
    assert fields((0.5, 1.0), price=0.1) - fields(()) == {"priced"}
    assert fields((0.5, 1.0), difference=True) - fields(()) == {"default", "searched"}


def test_a_key_says_whose_policy_an_arm_takes_where_its_seed_does_not():
    """Which depends on the other classifiers' seeds."""

    def policies(seeds, arm):
        config = config_with(arm, rounds=8)
        recipe = dataclasses.replace(config.classify, seeds=seeds)
        found = specs_lib.of(dataclasses.replace(config, classify=recipe))
        return [
            spec.config.get("policy") for spec in found if spec.stage.startswith("classify/arm")
        ]

    learnt = ArmConfig(controller="shuffled", of="policy_schedule")
    assert policies(tuple(range(7)), learnt) == [None] * 7  # in turn, as 0, 1, 2
    assert policies((3, 6, 9), learnt) == [None, 1, 2] and policies((6,), learnt) == [None]
    assert policies((3, 6, 9), ArmConfig(controller="bandit")) == [None] * 3


def test_a_schedule_of_another_run_is_refused(tmp_path):
    arm = schedule(tmp_path / "a.json")
    preflight_arms.check_schedules(config_with(arm, rounds=2), 2)
    for rounds, classes in ((3, 2), (2, 3)):
        with pytest.raises(ConfigError, match=rf"has 2 rounds of 2 classes, this run {rounds} of"):
            preflight_arms.check_schedules(config_with(arm, rounds=rounds), classes)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"arms\.arm\.schedule: .*takes rounds"):
        preflight_arms.check_schedules(config_with(arm), 2)


# What an arm of the first release was keyed by; runs kept in caches are found by it.
BEFORE = {"loss", "sampler", "controller", "dose", "fill_to", "network"}


def test_fields_that_an_arm_does_not_use_stay_out_of_its_key():
    unread = {
        "randaugment_ops": 3,
        "randaugment_magnitude": 1.0,
        "mix_alpha": 0.2,
        "mix_probability": 0.5,
        "second_stage_steps": 0.5,
        "second_stage_rate": 2.0,
    }
    assert set(specs_lib._arm_fields("arm", ArmConfig(**unread))) == BEFORE
    for fields, read in (
        ({"strong_augment": "randaugment"}, ("randaugment_ops", "randaugment_magnitude")),
        ({"strong_augment": "cutmix"}, ("mix_alpha", "mix_probability")),
        ({"strong_augment": "randaugment_mixup"}, ("randaugment_ops", "mix_alpha")),
        ({"second_stage": "crt"}, ("second_stage_steps", "second_stage_rate")),
        ({"second_stage": "lws"}, ("second_stage_steps", "second_stage_rate")),
        ({"second_stage": "tau_norm"}, ()),
        ({"experts": 2}, ()),
        ({"controller": "fill_to_head", "pool_labels": "shuffled"}, ()),
    ):
        arm = ArmConfig(**fields)
        changed = {"controller": arm.controller}
        assert key(arm) != key(ArmConfig(**changed))
        for name, value in unread.items():
            moved = key(dataclasses.replace(arm, **{name: value})) != key(arm)
            if name in read:
                assert moved
            elif not (name.startswith("mix") and "mix_alpha" in read) and not (
                name.startswith("rand") and "randaugment_ops" in read
            ):
                assert not moved


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (ArmConfig(pool_labels="shuffled"), r"pool_labels: got shuffled, but the arm uses no"),
        (
            ArmConfig(pool_labels="shuffled", controller="source_replay"),
            r"pool_labels: got shuffled, but the arm uses no synthetic image",
        ),
        (ArmConfig(expert_loss="ncl"), r"experts: got 1; `ncl` is for two or more"),
        (
            ArmConfig(expert_loss="balpoe", experts=3, loss="focal"),
            r"loss: got focal, but `balpoe` is a loss of its own; leave it at cross_entropy",
        ),
        (
            ArmConfig(second_stage="lws", experts=2),
            r"second_stage: got lws with 2 experts; takes one network",
        ),
        (
            ArmConfig(second_stage="crt", second_stage_steps=0.001),
            r"second_stage_steps: got 0\.001, which is 0 of 400 steps",
        ),
    ],
)
def test_a_control_that_an_arm_cannot_have_is_refused(arm, message):
    with pytest.raises(ConfigError, match=rf"config\.classify\.arms\.arm\.{message}"):
        specs_lib.of(config_with(arm))


def test_tau_is_not_chosen_without_a_validation_split():
    config = config_with(ArmConfig(second_stage="tau_norm"))
    specs_lib.of(config)
    split = dataclasses.replace(config.data.split, val=0.0)
    data = dataclasses.replace(config.data, split=split)
    with pytest.raises(ConfigError, match=r"second_stage: tau_norm chooses tau on the split val"):
        specs_lib.of(dataclasses.replace(config, data=data))


def test_rounds_must_fit_into_the_first_stage():
    arm = ArmConfig(controller="bandit", second_stage="crt", second_stage_steps=0.5)
    specs_lib.of(config_with(arm, rounds=4, steps=8))
    with pytest.raises(ConfigError, match=r"classify\.rounds: got 5 in 4 steps"):
        specs_lib.of(config_with(arm, rounds=5, steps=8))


def test_an_arm_s_network_has_its_experts_and_a_dry_run_counts_them():
    config = config_with(ArmConfig(experts=3, network="resnet"))
    model = config.classify.model
    assert preflight.classifier_of(model, ArmConfig()) == model
    found = preflight.classifier_of(model, config.classify.arms["arm"])
    assert (found.kind, found.experts, found.resnet) == ("resnet", 3, model.resnet)
    known = preflight.vocabulary(config)
    networks = preflight.networks(config, ("classify",), known)
    assert set(networks) == {"classify default x1", "classify resnet x1, 3 experts"}


def test_shuffled_rows_are_the_same_images_in_as_many_slots():
    rows = np.split(np.arange(100, 160), [30, 40])
    first, again, other = (classification.shuffled(rows, seed) for seed in (0, 0, 1))
    assert [len(own) for own in first] == [30, 10, 20]
    np.testing.assert_array_equal(np.sort(np.concatenate(first)), np.arange(100, 160))
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(again))
    assert (np.concatenate(first) != np.concatenate(other)).any()
    kept = np.isin(first[0], rows[0]).mean()
    assert 0.2 < kept < 0.8  # about its part of all, 1/2
