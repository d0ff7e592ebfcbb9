"""Simple controllers: what their weights and shares add up to, and what they refuse."""

import numpy as np
import pytest

from lt_jax.config import ArmConfig
from lt_jax.mixing import controllers
from lt_jax.mixing.controllers import (
    FillToHead,
    Mixture,
    MixtureError,
    NoSynthesis,
    SourceReplay,
    Supply,
    Uniform,
    replay_rows,
)

COUNTS = (1000, 200, 40, 8)
PLENTY = (10_000,) * 4
SAMPLERS = ["instance", "balanced", "square_root"]


def supply(accepted=PLENTY, sampler="instance"):
    return Supply(COUNTS, accepted, sampler)


def base_weights(totals, sampler):
    totals = np.asarray(totals, float)
    raw = {"instance": totals, "balanced": np.ones(4), "square_root": np.sqrt(totals)}[sampler]
    return raw / raw.sum()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_real_images_alone_follow_the_base_sampler(sampler):
    mixture = NoSynthesis(supply(sampler=sampler)).mixture(0, None)
    np.testing.assert_allclose(mixture.class_weight, base_weights(COUNTS, sampler))
    assert not mixture.share.any()
    assert not mixture.in_use.any()
    assert not mixture.replay


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_tempered_sampler_flattens_by_its_temperature(temperature):
    mixture = controllers.real_only(np.asarray(COUNTS), "tempered", temperature).mixture(0, None)
    weight = np.asarray(COUNTS) ** (1 / temperature)
    np.testing.assert_allclose(mixture.class_weight, weight / weight.sum())
    named = {1.0: "instance", 2.0: "square_root"}
    if temperature in named:
        same = controllers.real_only(np.asarray(COUNTS), named[temperature]).mixture(0, None)
        np.testing.assert_array_equal(mixture.class_weight, same.class_weight)
    nearly_flat = controllers.real_only(np.asarray(COUNTS), "tempered", 1e6).mixture(0, None)
    np.testing.assert_allclose(nearly_flat.class_weight, np.full(4, 0.25), rtol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rules_that_ask_for_nothing_are_real_images_alone(sampler):
    source = supply((0,) * 4, sampler)
    real = NoSynthesis(source).mixture(0, None)
    for rule in (
        Uniform(source, 0.0),
        FillToHead(source, 1),
        SourceReplay(Uniform(source, 0.0), 0),
    ):
        mixture = rule.mixture(0, None)
        np.testing.assert_array_equal(mixture.class_weight, real.class_weight)
        np.testing.assert_array_equal(mixture.share, real.share)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_uniform_keeps_class_proportions_and_one_dose(sampler):
    mixture = Uniform(supply(sampler=sampler), 1.5).mixture(0, None)
    np.testing.assert_allclose(mixture.class_weight, base_weights(COUNTS, sampler))
    np.testing.assert_allclose(mixture.realised_dose, np.full(4, 1.5))
    np.testing.assert_allclose(mixture.share, np.full(4, 0.6))
    np.testing.assert_array_equal(mixture.in_use, [1500, 300, 60, 12])
    # Doses that give no whole number are off by half an image at most.
    uneven = Uniform(Supply((7, 5), (50, 50)), 0.3).mixture(0, None)
    assert uneven.in_use.tolist() == [2, 2]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_fill_to_head_equalises_classes(sampler):
    mixture = FillToHead(supply(sampler=sampler)).mixture(0, None)
    np.testing.assert_allclose(mixture.class_weight, np.full(4, 0.25))
    np.testing.assert_allclose(mixture.share, 1 - np.asarray(COUNTS) / 1000)
    # The real images of a class are then seen as often as in proportion to their number.
    real_draws = mixture.class_weight * (1 - mixture.share)
    np.testing.assert_allclose(real_draws / real_draws[0], np.asarray(COUNTS) / 1000)


def test_fill_to_a_count_leaves_larger_classes_alone():
    mixture = FillToHead(supply(), 100).mixture(0, None)
    assert mixture.in_use.tolist() == [0, 0, 60, 92]
    np.testing.assert_allclose(mixture.class_weight, np.asarray([1000, 200, 100, 100]) / 1400)


def test_a_short_pool_gives_what_it_has_and_tells_the_rest():
    mixture = FillToHead(supply(accepted=(5, 300, 0, 1000))).mixture(0, None)
    assert mixture.in_use.tolist() == [0, 300, 0, 992]
    assert mixture.unmet.tolist() == [0, 500, 960, 0]
    np.testing.assert_allclose(mixture.share, [0.0, 0.6, 0.0, 0.992])
    np.testing.assert_allclose(mixture.realised_dose, [0.0, 1.5, 0.0, 124.0])
    np.testing.assert_allclose(mixture.class_weight, np.asarray([1000, 500, 40, 1000]) / 2540)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_replay_has_the_numbers_of_what_it_mirrors(sampler):
    rule = FillToHead(supply((1, 500, 500, 500), sampler))
    mirrored, replay = rule.mixture(2, None), SourceReplay(rule, 0).mixture(2, None)
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
    ],
    ids=["none", "uniform", "fill_to_head", "replay_uniform", "replay_fill"],
)
def test_make_follows_the_config(config, expected):
    made = controllers.make(config, np.asarray(COUNTS), np.asarray(PLENTY), seed=7)
    assert made == expected
    assert isinstance(made, controllers.Controller)


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
