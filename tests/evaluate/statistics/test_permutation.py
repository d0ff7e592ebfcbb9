"""The permutation test against explicit swaps, its size and its power."""

import numpy as np
import pytest
import scipy.stats

from lt_jax.evaluate import metrics
from lt_jax.evaluate.metrics import ranking
from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.evaluate.statistics import permutation


def pair_of_arms(rng, advantage, groups=40, a_group=2):
    labels = np.arange(groups * a_group) % 2
    codes = np.repeat(np.arange(groups), a_group)
    effect = rng.normal(size=(groups, 1))[codes]
    logits = [
        effect * (2 * np.eye(2)[labels] - 1)
        + rng.normal(size=(len(labels), 2))
        + gain * np.eye(2)[labels]
        for gain in (0.5 + advantage, 0.5)
    ]
    truth = Truth(labels, codes, {"head": [0], "medium": [], "tail": [1]}, 2)
    return [metrics.softmax(x) for x in logits], truth


def test_permutation_keeps_its_size_and_finds_a_real_difference():
    rng = np.random.default_rng(0)
    q = [metrics.METRICS.index(name) for name in ("balanced_accuracy", "auroc_macro", "ece")]
    null = []
    for s in range(200):
        (a, b), truth = pair_of_arms(rng, advantage=0.0)
        null.append(permutation.permutation([(a, b)], truth, 127, s)[q])
    rejected = (np.array(null) <= 0.05).mean(axis=0)
    # 200 simulations: 0.05 has a standard error of 0.0155; discreteness only lowers the size.
    assert (rejected <= 0.05 + 3 * 0.0155).all()
    assert (rejected[1:] >= 0.01).all()
    (a, b), truth = pair_of_arms(rng, advantage=2.0)
    assert (permutation.permutation([(a, b)], truth, 499, 0)[q[:2]] < 0.01).all()


def test_permutation_equals_metrics_of_explicitly_swapped_arms():
    (a, b), truth = pair_of_arms(np.random.default_rng(1), advantage=0.6, groups=20)
    truth = Truth(truth.labels, truth.groups, truth.class_groups, 2)
    swaps = np.random.default_rng([4, 2, 0]).integers(2, size=(truth.n_groups, 100), dtype=np.int8)

    def ranked(scores):
        auroc, auprc, _ = ranking.per_class(scores, truth.labels, truth.specificity)
        return {"auroc_macro": auroc.mean(), "auprc_macro": auprc.mean()}

    def evaluate(p):
        return metrics.evaluate(p, truth.labels, truth.class_groups)

    arms = {evaluate: (a, b), ranked: [scipy.stats.rankdata(p, axis=0) for p in (a, b)]}
    for name in ("accuracy", "macro_f1", "auroc_macro", "auprc_macro", "ece", "brier"):
        how = ranked if name.startswith("au") else evaluate
        first, second = arms[how]
        observed = abs(how(first)[name] - how(second)[name])
        exceed = 0
        for r in range(100):
            swap = swaps[truth.groups, r][:, None] == 1
            x, y = np.where(swap, second, first), np.where(swap, first, second)
            exceed += abs(how(x)[name] - how(y)[name]) >= observed - 1e-6
        got = permutation.permutation([(a, b)], truth, 100, 4)[metrics.METRICS.index(name)]
        # float32 sums may break a near tie of ECE otherwise than float64 ones.
        assert abs(got - (1 + exceed) / 101) < 1.5 / 101, name


def test_p_of_ranking_figures_does_not_depend_on_how_an_arm_s_scores_are_offset():
    """As another prior offsets them: scores that are swapped as they are make a difference less."""
    (a, b), truth = pair_of_arms(np.random.default_rng(3), advantage=0.8)
    offset = metrics.softmax(np.log(b) + np.array([[0.0, 6.0]]))
    own, other = (permutation.permutation([(a, p)], truth, 500, 0) for p in (b, offset))
    for name in ("auroc_macro", "auprc_macro"):
        at = metrics.METRICS.index(name)
        assert own[at] == other[at] < 0.05
    at = metrics.METRICS.index("accuracy")
    assert own[at] != other[at]


def test_permutation_of_equal_arms_is_one():
    (a, _), truth = pair_of_arms(np.random.default_rng(1), advantage=0.0)
    p = permutation.permutation([(a, a)], truth, 50, 0)
    np.testing.assert_array_equal(p[~np.isnan(p)], 1.0)
    assert np.isnan(p[metrics.METRICS.index("recall_medium")])


@pytest.mark.parametrize(("n", "k"), [(2000, 10), (20_000, 2)])
def test_equal_arms_on_many_images_differ_in_no_metric(n, k):
    generator, labels = np.random.default_rng(0), np.arange(n) % k
    p = metrics.softmax(generator.normal(size=(n, k)) + np.eye(k)[labels])
    groups = {"head": [0], "medium": list(range(1, k - 1)), "tail": [k - 1]}
    truth = Truth(labels, np.arange(n), groups, k)
    found = permutation.permutation([(p, p)], truth, 100, 0)
    np.testing.assert_array_equal(found[~np.isnan(found)], 1.0)
    assert np.isnan(found).sum() == (k == 2)  # of the recall of no class


def test_p_does_not_depend_on_the_order_of_the_arms_nor_on_how_many_pairs_are_alike():
    (a, b), truth = pair_of_arms(np.random.default_rng(2), advantage=0.4)
    one = permutation.permutation([(a, b)], truth, 200, 0)
    np.testing.assert_array_equal(one, permutation.permutation([(b, a)], truth, 200, 0))
    np.testing.assert_array_equal(one, permutation.permutation([(a, b)] * 3, truth, 200, 0))
