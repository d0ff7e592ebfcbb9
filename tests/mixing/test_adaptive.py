"""Rules that learn: what they make of feedback, and that they are functions of it alone."""

import numpy as np
import pytest

from lt_jax.mixing.adaptive import AccuracyAdaptive, Bandit
from lt_jax.mixing.mixture import Controller, Feedback, MixtureError, Supply, following

SUPPLY = Supply((1000, 200, 40, 8), (50, 50, 0, 50))
LEVELS = (0.0, 0.3, 0.6)
PAY = [[0.03, 0.0, 0.0], [0.0, 0.03, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.03]]


def told(recall):
    recall = np.asarray(recall, float)
    return Feedback(recall, recall, 2 * recall - 1, *[1 - recall] * 3)


def played(bandit, pay, rounds):
    """History of a bandit whose class k gains pay[k][level] in a round."""
    recall = np.full(len(pay), 0.5)
    history = []
    for r in range(rounds):
        chosen = bandit.choices(history)[r]
        recall = recall + [gains[level] for gains, level in zip(pay, chosen, strict=True)]
        history.append(told(recall))
    return history


def test_share_follows_the_errors_of_the_last_round():
    rule = AccuracyAdaptive(SUPPLY, 0.8)
    assert isinstance(rule, Controller) and rule.learns
    np.testing.assert_array_equal(rule.mixture(()).share, [0.8, 0.8, 0.0, 0.8])
    history = [told([0.1, 0.1, 0.1, 0.1]), told([0.9, 0.8, 0.0, 0.6])]
    mixture = rule.mixture(history)
    # The class without images does not count as the worst one.
    np.testing.assert_allclose(mixture.share, [0.2, 0.4, 0.0, 0.8])
    assert mixture.in_use.tolist() == [50, 50, 0, 50]
    assert not rule.mixture([told(np.ones(4))]).share.any()
    with pytest.raises(MixtureError, match="nan nan"):
        rule.mixture([Feedback.unmeasured(4)])


def test_a_bandit_is_a_function_of_its_history_and_seed():
    bandit = Bandit(SUPPLY, LEVELS, 3)
    assert isinstance(bandit, Controller) and bandit.learns
    history = played(bandit, [[0.0, 0.1, -0.1]] * 4, 12)
    before = [bandit.choices(history[:r]) for r in range(13)]
    for r, chosen in enumerate(before):  # what was chosen does not change by what comes after
        np.testing.assert_array_equal(chosen, before[-1][: r + 1])
        mixture = Bandit(SUPPLY, LEVELS, 3).mixture(history[:r])
        expected = np.asarray(LEVELS)[chosen[-1]]
        np.testing.assert_array_equal(mixture.share, np.where([1, 1, 0, 1], expected, 0.0))
        np.testing.assert_array_equal(mixture.in_use, [50, 50, 0, 50])
    others = {Bandit(SUPPLY, LEVELS, seed).choices(())[0].tobytes() for seed in range(10)}
    assert len(others) > 1


def test_a_bandit_finds_each_class_s_best_level():
    bandit = Bandit(SUPPLY, LEVELS, 0)
    late = bandit.choices(played(bandit, PAY, 80))[-40:]
    for label, best in ((0, 0), (1, 1), (3, 2)):
        assert np.mean(late[:, label] == best) > 0.8


def test_a_bandit_s_choices_are_free_of_the_unit_of_payment():
    bandit = Bandit(SUPPLY, LEVELS, 1)
    gains = np.random.default_rng(0).normal(size=(20, 4))
    large, small = ([told(row) for row in 2.0**p * gains.cumsum(0)] for p in (0, -10))
    np.testing.assert_array_equal(bandit.choices(large), bandit.choices(small))


def test_a_bandit_is_not_paid_for_the_first_round():
    bandit = Bandit(SUPPLY, LEVELS, 2)
    changes = np.random.default_rng(1).normal(size=(6, 4)).cumsum(0)
    low, high = ([told(row + offset) for row in changes] for offset in (0.0, 64.0))
    np.testing.assert_array_equal(bandit.choices(low), bandit.choices(high))


def test_thompson_sampling_is_its_definition():
    """Equation (2), class by class, from the sums up."""
    bandit = Bandit(SUPPLY, LEVELS, 5)
    history = played(bandit, [[0.1, -0.1, 0.05]] * 4, 9)
    recalls = np.asarray([feedback.recall for feedback in history])
    chosen = bandit.choices(history)
    changes = np.diff(recalls, axis=0)
    sigma = np.sqrt(np.mean(changes[:, [0, 1, 3]] ** 2))
    noise = np.random.default_rng((5, 2, 9)).standard_normal((4, 3))
    for label in range(4):
        theta = []
        for level in range(3):
            paid = changes[chosen[1:9, label] == level, label]
            spread = sigma * noise[label, level] / np.sqrt(len(paid) + 1)
            theta.append(paid.sum() / (len(paid) + 1) + spread)
        assert chosen[9, label] == np.argmax(theta)


def test_a_bandit_that_is_never_paid_goes_on_trying():
    bandit = Bandit(SUPPLY, LEVELS, 0)
    chosen = bandit.choices([told(np.full(4, 0.5))] * 30)
    assert all(len(set(chosen[10:, label])) > 1 for label in range(4))


def test_where_a_last_bit_turns_a_choice_all_processes_go_by_the_first(in_turn):
    bandit, history = Bandit(SUPPLY, LEVELS, 3), played(Bandit(SUPPLY, LEVELS, 3), PAY, 4)
    other = [*history[:-1], told(1 - history[-1].recall)]
    alone = [bandit.mixture(held) for held in (history, other)]
    assert (alone[0].share != alone[1].share).any()
    mixtures = in_turn(lambda process: following(bandit, other if process else history))
    for name, values in vars(alone[0]).items():
        for mixture in mixtures:
            np.testing.assert_array_equal(getattr(mixture, name), values, strict=True)
