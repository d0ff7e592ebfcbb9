"""Simple controllers: what their weights and shares add up to, and what they refuse."""

import json

import numpy as np
import pytest

from lt_jax.config import ArmConfig
from lt_jax.mixing import controllers
from lt_jax.mixing.adaptive import AccuracyAdaptive, Bandit
from lt_jax.mixing.controllers import (
    EffectiveNumber,
    Feedback,
    FillToHead,
    FixedShare,
    Inverse,
    Mixture,
    MixtureError,
    NoSynthesis,
    Round,
    Schedule,
    Shuffled,
    SourceReplay,
    Supply,
    Uniform,
    following,
    read_schedule,
    replay_rows,
)

COUNTS = (1000, 200, 40, 8)
PLENTY = (10_000,) * 4
SAMPLERS = ["instance", "balanced", "square_root"]


def supply(accepted=PLENTY, sampler="instance"):
    return Supply(COUNTS, accepted, sampler)


def blank(rounds):
    return [Feedback.unmeasured(4)] * rounds


def base_weights(totals, sampler):
    totals = np.asarray(totals, float)
    raw = {"instance": totals, "balanced": np.ones(4), "square_root": np.sqrt(totals)}[sampler]
    return raw / raw.sum()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_real_images_alone_follow_the_base_sampler(sampler):
    mixture = NoSynthesis(supply(sampler=sampler)).mixture(())
    np.testing.assert_allclose(mixture.class_weight, base_weights(COUNTS, sampler))
    assert not mixture.share.any()
    assert not mixture.in_use.any()
    assert not mixture.replay


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_tempered_sampler_flattens_by_its_temperature(temperature):
    mixture = controllers.real_only(np.asarray(COUNTS), "tempered", temperature).mixture(())
    weight = np.asarray(COUNTS) ** (1 / temperature)
    np.testing.assert_allclose(mixture.class_weight, weight / weight.sum())
    named = {1.0: "instance", 2.0: "square_root"}
    if temperature in named:
        same = controllers.real_only(np.asarray(COUNTS), named[temperature]).mixture(())
        np.testing.assert_array_equal(mixture.class_weight, same.class_weight)
    nearly_flat = controllers.real_only(np.asarray(COUNTS), "tempered", 1e6).mixture(())
    np.testing.assert_allclose(nearly_flat.class_weight, np.full(4, 0.25), rtol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rules_that_ask_for_nothing_are_real_images_alone(sampler):
    source = supply((0,) * 4, sampler)
    real = NoSynthesis(source).mixture(())
    for rule in (
        Uniform(source, 0.0),
        FillToHead(source, 1),
        SourceReplay(Uniform(source, 0.0), 0),
    ):
        mixture = rule.mixture(())
        np.testing.assert_array_equal(mixture.class_weight, real.class_weight)
        np.testing.assert_array_equal(mixture.share, real.share)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_uniform_keeps_class_proportions_and_one_dose(sampler):
    mixture = Uniform(supply(sampler=sampler), 1.5).mixture(())
    np.testing.assert_allclose(mixture.class_weight, base_weights(COUNTS, sampler))
    np.testing.assert_allclose(mixture.share, np.full(4, 0.6))
    np.testing.assert_array_equal(mixture.in_use, [1500, 300, 60, 12])
    # Doses that give no whole number are off by half an image at most.
    uneven = Uniform(Supply((7, 5), (50, 50)), 0.3).mixture(())
    assert uneven.in_use.tolist() == [2, 2]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_fill_to_head_equalises_classes(sampler):
    mixture = FillToHead(supply(sampler=sampler)).mixture(())
    np.testing.assert_allclose(mixture.class_weight, np.full(4, 0.25))
    np.testing.assert_allclose(mixture.share, 1 - np.asarray(COUNTS) / 1000)
    # The real images of a class are then seen as often as in proportion to their number.
    real_draws = mixture.class_weight * (1 - mixture.share)
    np.testing.assert_allclose(real_draws / real_draws[0], np.asarray(COUNTS) / 1000)


def test_fill_to_a_count_leaves_larger_classes_alone():
    mixture = FillToHead(supply(), 100).mixture(())
    assert mixture.in_use.tolist() == [0, 0, 60, 92]
    np.testing.assert_allclose(mixture.class_weight, np.asarray([1000, 200, 100, 100]) / 1400)


def test_a_short_pool_gives_what_it_has_and_tells_the_rest():
    mixture = FillToHead(supply(accepted=(5, 300, 0, 1000))).mixture(())
    assert mixture.in_use.tolist() == [0, 300, 0, 992]
    assert mixture.unmet.tolist() == [0, 500, 960, 0]
    np.testing.assert_allclose(mixture.share, [0.0, 0.6, 0.0, 0.992])
    np.testing.assert_allclose(mixture.class_weight, np.asarray([1000, 500, 40, 1000]) / 2540)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_replay_has_the_numbers_of_what_it_mirrors(sampler):
    rule = FillToHead(supply((1, 500, 500, 500), sampler))
    mirrored, replay = rule.mixture(blank(2)), SourceReplay(rule, 0).mixture(blank(2))
    for name in ("class_weight", "share", "in_use", "unmet"):
        np.testing.assert_array_equal(getattr(replay, name), getattr(mirrored, name))
    assert replay.replay
    assert not mirrored.replay


def test_replay_rows_repeat_each_class_s_images_evenly():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [10, 4, 1]))
    wanted = np.asarray([0, 10, 3])
    rows = replay_rows(labels, wanted, seed=5)
    np.testing.assert_array_equal(labels[rows], [1] * 10 + [2] * 3)
    repeats = np.bincount(rows[:10], minlength=15)[labels == 1]
    assert sorted(repeats.tolist()) == [2, 2, 3, 3]
    np.testing.assert_array_equal(rows, replay_rows(labels, wanted, seed=5))
    # A class's rows do not move when another class asks for more.
    np.testing.assert_array_equal(replay_rows(labels, np.asarray([6, 10, 3]), 5)[6:], rows)
    orders = {tuple(replay_rows(labels, wanted, seed)[:4]) for seed in range(8)}
    assert len(orders) > 1
    with pytest.raises(MixtureError, match=r"class 3 .* no train image"):
        replay_rows(labels, np.asarray([0, 0, 0, 1]), 5)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ArmConfig(), NoSynthesis(supply())),
        (ArmConfig(controller="uniform", dose=0.5), Uniform(supply(), 0.5)),
        (
            ArmConfig(controller="fill_to_head", fill_to=300, sampler="balanced"),
            FillToHead(supply(sampler="balanced"), 300),
        ),
        (
            ArmConfig(controller="source_replay", dose=2.0),
            SourceReplay(Uniform(supply(), 2.0), 7),
        ),
        (ArmConfig(controller="source_replay"), SourceReplay(FillToHead(supply()), 7)),
        (ArmConfig(controller="inverse", dose=0.5), Inverse(supply(), 0.5)),
        (ArmConfig(controller="effective_number", beta=0.9), EffectiveNumber(supply(), 0.9)),
        (ArmConfig(controller="fixed_share", share=0.3), FixedShare(supply(), 0.3)),
        (
            ArmConfig(controller="accuracy_adaptive", share=0.7),
            AccuracyAdaptive(supply(), 0.7),
        ),
        (
            ArmConfig(controller="bandit", levels=(0.0, 0.4)),
            Bandit(supply(), (0.0, 0.4), 7),
        ),
        (
            ArmConfig(controller="source_replay", of="inverse", dose=0.5),
            SourceReplay(Inverse(supply(), 0.5), 7),
        ),
        (
            ArmConfig(controller="shuffled", of="bandit", levels=(0.0, 0.4)),
            Shuffled(Bandit(supply(), (0.0, 0.4), 7), supply(), 7),
        ),
    ],
    ids=lambda value: f"{value.controller}_{value.of}" if isinstance(value, ArmConfig) else "",
)
def test_make_follows_the_config(config, expected):
    made = controllers.make(config, np.asarray(COUNTS), np.asarray(PLENTY), seed=7)
    assert made == expected
    assert isinstance(made, controllers.Controller)
    assert made.learns == controllers.learns(config)


def test_what_cannot_be_mixed_is_refused_before_training():
    empty = np.zeros(4, int)
    with pytest.raises(MixtureError, match=r"2752 synthetic images are asked for, .* pool has no"):
        controllers.make(ArmConfig(controller="fill_to_head"), np.asarray(COUNTS), empty, 0)
    with pytest.raises(MixtureError, match="the pool has no"):
        config = ArmConfig(controller="source_replay", dose=1.0)
        controllers.make(config, np.asarray(COUNTS), empty, 0)
    controllers.make(ArmConfig(), np.asarray(COUNTS), empty, 0)
    with pytest.raises(MixtureError, match="no train image of class 1"):
        Supply((5, 0), (5, 5))
    with pytest.raises(MixtureError, match="2 classes of train images, but 3"):
        Supply((5, 5), (5, 5, 5))
    with pytest.raises(MixtureError, match="sampler='even'"):
        Supply((5, 5), (5, 5), "even")


@pytest.mark.parametrize(
    ("weight", "share", "message"),
    [
        ([0.7, 0.7], [0.0, 0.0], "class_weight"),
        ([1.5, -0.5], [0.0, 0.0], "class_weight"),
        ([0.5, np.nan], [0.0, 0.0], "class_weight"),
        ([0.5, 0.5], [1.0, 0.0], "share"),
        ([0.5, 0.5], [-0.1, 0.0], "share"),
        ([0.5, 0.5], [0.0, 0.3], r"classes \[1\] have a share above 0"),
    ],
)
def test_a_mixture_that_no_loader_can_draw_is_refused(weight, share, message):
    """Whatever policy it comes from."""
    with pytest.raises(MixtureError, match=message):
        Mixture(np.asarray(weight), np.asarray(share), np.asarray([9, 0]), np.zeros(2, int))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_share_weighs_a_class_as_the_images_that_would_give_it(sampler):
    """Equation (3) is equation (2) at the share of equation (1)."""
    by_count = FillToHead(supply(sampler=sampler)).mixture(())
    by_share = supply(sampler=sampler).mix_shares(by_count.share)
    np.testing.assert_allclose(by_share.class_weight, by_count.class_weight, rtol=1e-12)
    assert by_share.in_use.tolist() == list(PLENTY)
    zero = supply(sampler=sampler).mix_shares(np.zeros(4))
    real = NoSynthesis(supply(sampler=sampler)).mixture(())
    np.testing.assert_array_equal(zero.class_weight, real.class_weight)


def test_fixed_share_is_of_classes_with_images_alone():
    mixture = FixedShare(supply((9, 0, 9, 9)), 0.75).mixture(blank(3))
    np.testing.assert_array_equal(mixture.share, [0.75, 0.0, 0.75, 0.75])
    total = np.asarray([4000, 200, 160, 32])
    np.testing.assert_allclose(mixture.class_weight, total / total.sum())
    assert mixture.in_use.tolist() == [9, 0, 9, 9]
    assert not mixture.unmet.any()


def test_inverse_costs_what_uniform_does_and_leaves_the_largest_class_alone():
    uniform, inverse = (rule(supply(), 0.25).mixture(()).in_use for rule in (Uniform, Inverse))
    assert abs(inverse.sum() - uniform.sum()) <= 2  # each class is rounded
    assert inverse[0] == 0
    dose = inverse / np.asarray(COUNTS)
    excess = 1 / np.asarray(COUNTS) - 1 / 1000
    np.testing.assert_allclose(dose / dose[-1], excess / excess[-1], rtol=0.01)


def test_effective_number_is_cui_s_and_goes_from_nothing_to_filling():
    beta = 0.99
    effective = (1 - beta ** np.asarray(COUNTS)) / (1 - beta)
    asked = np.asarray(COUNTS) * (effective[0] / effective - 1)
    np.testing.assert_allclose(EffectiveNumber(supply(), beta).mixture(()).in_use, asked, atol=0.5)
    assert not EffectiveNumber(supply(), 0.0).mixture(()).in_use.any()
    filled = FillToHead(supply()).mixture(()).in_use
    np.testing.assert_array_equal(EffectiveNumber(supply(), 0.9999999).mixture(()).in_use, filled)


@pytest.mark.parametrize("rule", [lambda s: Inverse(s, 1.0), lambda s: EffectiveNumber(s, 0.99)])
def test_classes_of_one_size_ask_for_nothing(rule):
    assert not rule(Supply((30, 30), (5, 5))).mixture(()).in_use.any()


@pytest.mark.parametrize("classes", [2, 100])
def test_rules_take_few_classes_and_many(classes):
    counts = np.geomspace(500, 5, classes).astype(int)
    for name in ("inverse", "effective_number", "fixed_share", "accuracy_adaptive", "bandit"):
        made = controllers.make(
            ArmConfig(controller=name, dose=1.0), counts, np.full(classes, 1000), 0
        )
        assert made.mixture(()).share.shape == (classes,)


def schedule_file(tmp_path, content):
    path = tmp_path / "schedule.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def rounds_of(*shares):
    return tuple(Round(tuple(share)) for share in shares)


def test_a_schedule_s_factors_multiply_the_draws_of_their_class(tmp_path):
    path = schedule_file(tmp_path, [{"share": [0.5, 0.0], "factor": [1, 3]}, {"share": [0.5, 0.5]}])
    made = Schedule(Supply((30, 10), (9, 9)), read_schedule(path))
    np.testing.assert_allclose(made.mixture(()).class_weight, [2 / 3, 1 / 3])
    np.testing.assert_allclose(made.mixture(blank(1)).class_weight, [3 / 4, 1 / 4])


def test_a_schedule_replays_its_rounds(tmp_path):
    rounds = [[0.0, 0.1, 0.2, 0.3], [0.1 + 0.2, 0.0, 0.5, 1 / 3]]
    path = schedule_file(tmp_path, [{"share": shares, "more": 1} for shares in rounds])
    config = ArmConfig(controller="schedule", schedule=str(path), sampler="square_root")
    made = controllers.make(config, np.asarray(COUNTS), np.asarray([9, 9, 0, 9]), 0)
    assert made == Schedule(supply((9, 9, 0, 9), "square_root"), rounds_of(*rounds))
    assert not made.learns
    np.testing.assert_array_equal(made.mixture(blank(1)).share, [0.1 + 0.2, 0.0, 0.0, 1 / 3])
    np.testing.assert_array_equal(
        made.mixture(()).class_weight, made.supply.mix_shares(np.asarray(rounds[0])).class_weight
    )
    with pytest.raises(MixtureError, match="has 2 rounds, but round 2 is to be trained"):
        made.mixture(blank(2))
    with pytest.raises(MixtureError, match="has 4 classes, the data set 2"):
        controllers.make(config, np.asarray([5, 5]), np.asarray([5, 5]), 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "cannot be read"),
        ([{"dose": [1.0]}], "cannot be read"),
        ([{"share": "ab"}], "cannot be read"),
        ([], "takes rounds"),
        ([{"share": [0.1]}, {"share": [0.1, 0.2]}], "the same number of classes"),
        ([{"share": [0.1]}, {"share": [1.0]}], r"shares of round 1 are \[1.0\]"),
        ('[{"share": [NaN]}]', "shares of round 0"),
        ([{"share": [0.1], "factor": [1.0, 2.0]}], "the same number of classes"),
        ([{"share": [0.1], "factor": [0.0]}], r"factors of round 0 are \[0.0\]"),
    ],
)
def test_a_schedule_that_is_none_is_refused(tmp_path, content, message):
    with pytest.raises(MixtureError, match=message):
        read_schedule(schedule_file(tmp_path, content))
    with pytest.raises(MixtureError, match="cannot be read"):
        read_schedule(tmp_path / "elsewhere.json")


def test_a_shuffle_passes_factors_on_with_their_shares():
    source, shares, factors = supply((9, 9, 0, 9)), (0.1, 0.2, 0.0, 0.4), (1.0, 2.0, 3.0, 4.0)
    schedule = Schedule(source, (controllers.Round(shares, factors),))
    mixture = Shuffled(schedule, source, 0).mixture(())
    givers = [shares.index(share) for share in mixture.share]
    assert givers[2] == 2 and sorted(givers) == [0, 1, 2, 3] and givers != [0, 1, 2, 3]
    np.testing.assert_array_equal(mixture.factor, np.asarray(factors)[givers])
    weight = source.mix_shares(mixture.share, mixture.factor).class_weight
    np.testing.assert_array_equal(mixture.class_weight, weight)


def test_a_shuffle_gives_every_class_another_one_s_share():
    source = supply((9, 9, 0, 9))
    rounds = ((0.1, 0.2, 0.0, 0.4), (0.4, 0.3, 0.0, 0.1))
    found = set()
    for seed in range(20):
        shuffled = Shuffled(Schedule(source, rounds_of(*rounds)), source, seed)
        first, second = shuffled.mixture(()), shuffled.mixture(blank(1))
        places = [rounds[0].index(share) for share in first.share]
        assert sorted(places) == [0, 1, 2, 3] and places[2] == 2  # of which there is no image
        assert all(place != label for label, place in enumerate(places) if label != 2)
        np.testing.assert_array_equal(second.share, np.asarray(rounds[1])[places])
        weight = source.mix_shares(second.share).class_weight
        np.testing.assert_array_equal(second.class_weight, weight)
        found.add(tuple(places))
    assert len(found) == 2  # the circles of three
    pair = Supply((50, 5), (9, 9))
    swapped = Shuffled(Schedule(pair, rounds_of((0.1, 0.6))), pair, 0).mixture(())
    np.testing.assert_array_equal(swapped.share, [0.6, 0.1])


def test_a_shuffle_of_a_rule_of_counts_uses_all_accepted_images():
    source = supply((5, 300, 600, 1000))
    shuffled = Shuffled(FillToHead(source), source, 1).mixture(())
    assert shuffled.in_use.tolist() == [5, 300, 600, 1000]
    np.testing.assert_array_equal(
        np.sort(shuffled.share), np.sort(FillToHead(source).mixture(()).share)
    )


def test_a_controller_that_changes_its_images_is_refused():
    class Growing:
        learns = False

        def mixture(self, history):
            return supply().mix(np.asarray([0, 0, 0, len(history)]))

    following(Growing(), ())
    with pytest.raises(MixtureError, match=r"mixture of round 2: in_use is \[0, 0, 0, 2\]"):
        following(Growing(), blank(2))


@pytest.mark.parametrize("name", ["fixed_share", "accuracy_adaptive", "bandit"])
def test_shares_of_an_empty_pool_are_refused_before_training(name):
    with pytest.raises(MixtureError, match="asked for by their share, but the pool has no"):
        controllers.make(ArmConfig(controller=name), np.asarray(COUNTS), np.zeros(4, int), 0)
