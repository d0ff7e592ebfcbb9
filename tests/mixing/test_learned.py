"""A learned policy as a controller: it sees what the environment shows, and forgets nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import MixingConfig, PolicyConfig
from lt_jax.mixing import learned, networks, observations
from lt_jax.mixing.environment import heads
from lt_jax.mixing.mixture import Feedback, MixtureError, Supply

LEVELS = (0.0, 0.3, 0.6)
CONFIG = MixingConfig(levels=LEVELS, rounds=4, policy=PolicyConfig(width=8))
SUPPLY = Supply((50, 20, 5), (9, 9, 9))
STANDING = learned.Standing(
    np.array([0.5, -1.0, 0.5], np.float32),
    np.array([0.9, 0.4, 0.6], np.float32),
    np.array([8.0, 4.0, 4.0], np.float32),
)


def loud_policy(config, key, classes=3):
    """One whose choices depend on all that it sees."""
    actor = networks.make(config.policy, heads(config.levels, config.weights)).actor
    policy = networks.init_policy(actor, key, classes, len(observations.NAMES))
    louder = lambda leaf: leaf + jax.random.normal(jax.random.fold_in(key, leaf.size), leaf.shape)
    return policy.replace(params=jax.tree.map(louder, policy.params))


def controller_of(config=CONFIG, supply=SUPPLY, standing=STANDING, seed=0):
    policy = loud_policy(config, jax.random.key(seed))
    return learned.Learned(supply, config, policy, standing)


def feedback(seed):
    rng = np.random.default_rng(seed)
    return Feedback(*rng.uniform(0.05, 0.95, (6, 3)))


def seen(controller, history):
    return dict(zip(observations.NAMES, np.asarray(controller.observation(history)).T, strict=True))


def test_before_the_first_round_it_sees_equal_probabilities():
    found = seen(controller_of(), ())
    np.testing.assert_allclose(found["log_count"], np.log1p([50, 20, 5]) / 10, rtol=1e-6)
    np.testing.assert_allclose(found["recall"], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(found["precision"], [0.5, 0.25, 0.25], rtol=1e-6)
    np.testing.assert_allclose(found["real_loss"], np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(found["fidelity"], STANDING.fidelity)
    np.testing.assert_array_equal(found["ood"], STANDING.ood)
    for name in ("share", "dose", "margin", "recall_change", "margin_change", "progress"):
        np.testing.assert_array_equal(found[name], 0)
    assert found["pool"].tolist() == [1, 1, 1]


def test_after_a_round_it_sees_what_was_given_and_what_came_of_it():
    history = [feedback(0), feedback(1)]
    controller = controller_of()
    first, second = controller.mixture(()), controller.mixture(history[:1])
    found = seen(controller, history)
    np.testing.assert_allclose(found["share"], second.share, rtol=1e-6)
    real = first.class_weight * (1 - first.share) + second.class_weight * (1 - second.share)
    synthetic = first.class_weight * first.share + second.class_weight * second.share
    np.testing.assert_allclose(found["dose"], np.log1p(synthetic / real), rtol=1e-5)
    np.testing.assert_allclose(found["recall"], history[1].recall, rtol=1e-6)
    change = np.tanh(10 * (history[1].precision - history[0].precision))
    np.testing.assert_allclose(found["precision_change"], change, rtol=1e-4)
    np.testing.assert_allclose(
        found["real_loss"], np.log1p(history[1].real_loss / np.log(3)), rtol=1e-5
    )
    np.testing.assert_allclose(found["progress"], 0.5)
    for label in range(3):  # a loss is seen of what was drawn, and carried on where nothing was
        drawn = [m.share[label] > 0 for m in (first, second)]
        last = [h.synthetic_loss[label] for h, d in zip(history, drawn, strict=True) if d]
        expected = np.log1p(last[-1] / np.log(3)) if last else np.log(2)
        np.testing.assert_allclose(found["synthetic_loss"][label], expected, rtol=1e-5)


def test_it_acts_on_what_it_sees():
    """Some other feedback leads to other choices, and to none does the same."""
    controller = controller_of()
    chosen = {tuple(controller.mixture([feedback(n)]).share) for n in range(20)}
    assert len(chosen) > 1
    again = controller.mixture([feedback(3), feedback(4)]).share
    np.testing.assert_array_equal(again, controller.mixture([feedback(3), feedback(4)]).share)
    assert set(again) <= set(LEVELS)


def test_permuting_classes_permutes_choices():
    order = np.array([2, 0, 1])
    permuted = controller_of(
        supply=Supply(tuple(np.array(SUPPLY.counts)[order].tolist()), SUPPLY.accepted),
        standing=jax.tree.map(lambda leaf: leaf[order], STANDING),
    )
    history = [feedback(5), feedback(6)]
    other = [
        Feedback(**{name: value[order] for name, value in vars(held).items()}) for held in history
    ]
    found = set()
    for n in range(7, 20):
        mixture = controller_of().mixture([*history, feedback(n)])
        found.add(tuple(mixture.share))
        last = {name: value[order] for name, value in vars(feedback(n)).items()}
        again = permuted.mixture([*other, Feedback(**last)]).share
        np.testing.assert_array_equal(again, mixture.share[order])
    assert any(len(set(share)) > 1 for share in found)


def test_a_class_without_accepted_images_gets_no_share():
    supply = Supply((50, 20, 5), (9, 0, 9))
    for n in range(10):
        assert controller_of(supply=supply, seed=n).mixture([feedback(n)]).share[1] == 0


def test_weights_multiply_the_draws_of_their_class():
    config = dataclasses.replace(CONFIG, weights=(0.5, 1.0, 2.0))
    found = [controller_of(config, seed=n).mixture([feedback(n)]) for n in range(5)]
    assert len({tuple(mixture.factor) for mixture in found}) > 1
    for mixture in found:
        expected = mixture.factor * np.array(SUPPLY.counts) / (1 - mixture.share)
        np.testing.assert_allclose(mixture.class_weight, expected / expected.sum())


def test_more_rounds_than_were_learned_are_refused():
    with pytest.raises(MixtureError, match="learned for 4 rounds, but round 4"):
        controller_of().mixture([feedback(n) for n in range(4)])


@pytest.mark.parametrize(
    ("seeds", "policies", "turns"),
    [
        (range(5), range(3), [0, 1, 2, 0, 1]),  # as by the seed itself
        ((7, 3, 5), (0, 1, 2), [2, 0, 1]),  # by places: 3 comes first
        ((3, 6, 9), (0, 1, 2), [0, 1, 2]),  # not all the same, though 3 divides all
        ((10, 11, 12), (12, 10), [1, 1, 0]),  # their own, and 11 the second's
    ],
)
def test_a_classifier_takes_the_policy_of_its_seed_or_in_turn(seeds, policies, turns):
    assert [learned.turn(seed, seeds, policies) for seed in seeds] == turns


@pytest.mark.parametrize("classes", [2, 100])
def test_any_number_of_classes(classes):
    supply = Supply((10,) * classes, (3,) * classes)
    column = np.ones(classes, np.float32)
    standing = learned.Standing(0 * column, column, column)
    policy = loud_policy(CONFIG, jax.random.key(0), classes)
    controller = learned.Learned(supply, CONFIG, policy, standing)
    assert controller.mixture(()).share.shape == (classes,)
    assert jnp.isfinite(controller.observation(())).all()
