"""Replicates against explicit resamples, coverage and test size by simulation."""

import numpy as np
import pytest
import sklearn.metrics as sk

from lt_jax.evaluate import metrics
from lt_jax.evaluate.metrics import buffers, ranking, sums
from lt_jax.evaluate.metrics.grouping import Truth, group_classes, group_codes, groups_per_class
from lt_jax.evaluate.statistics import resampling

K = 4
CLASS_GROUPS = {"head": [0], "medium": [1, 2], "tail": [3]}


def draw(seed=0, n=160, images_a_group=2, decimals=2):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(K), rng.choice(K, n - K, p=[0.5, 0.25, 0.15, 0.1])])
    logits = rng.normal(size=(2, n, K)) + 1.2 * np.eye(K)[labels]
    probabilities = np.round(metrics.softmax(logits), decimals)  # with ties
    groups = rng.permutation(n) // images_a_group
    return probabilities, Truth(labels, groups, CLASS_GROUPS, K)


def at_specificity(positive, score, specificity, weight=None):
    """From scikit-learn's curve: the best point at that specificity or above."""
    false, true, _ = sk.roc_curve(positive, score, sample_weight=weight, drop_intermediate=False)
    return true[false <= 1 - specificity + 1e-6].max()


def sums_at(p, truth, weights):
    run = sums.run_sums(p, truth.labels, truth.groups, truth.n_groups, truth.bins)
    return sums.metric_rows(sums.parts_of(run.at(weights), run.starts, truth), truth)


def test_replicates_equal_scikit_learn_with_sample_weight():
    probabilities, truth = draw()
    classes = group_classes(truth)
    weights = resampling.group_weights(np.random.default_rng(1), classes, 5)
    assert (weights % 1 > 0).any()  # n / (n - 1): no whole numbers
    got = dict(zip(metrics.METRICS, sums_at(probabilities[0], truth, weights), strict=True))
    onehot, predicted = np.eye(K)[truth.labels], probabilities[0].argmax(axis=1)
    for r in range(5):
        w = weights[truth.groups, r].astype(float)
        recall = sk.recall_score(truth.labels, predicted, average=None, sample_weight=w)
        expected = {
            "accuracy": sk.accuracy_score(truth.labels, predicted, sample_weight=w),
            "balanced_accuracy": recall.mean(),
            "macro_f1": sk.f1_score(truth.labels, predicted, average="macro", sample_weight=w),
            "auroc_macro": sk.roc_auc_score(onehot, probabilities[0], sample_weight=w),
            "auprc_macro": sk.average_precision_score(onehot, probabilities[0], sample_weight=w),
            "recall_tail": recall[3],
            "log_loss": np.average(-np.log((probabilities[0] * onehot).sum(axis=1)), weights=w),
            "brier": np.average(((probabilities[0] - onehot) ** 2).sum(axis=1), weights=w),
            "sensitivity_at_specificity": np.mean(
                [at_specificity(onehot[:, c], probabilities[0][:, c], 0.9, w) for c in range(K)]
            ),
        }
        assert expected.keys() | {"ece", "recall_head", "recall_medium"} == got.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(got[name][r], value, rtol=1e-5, err_msg=name)


def test_replicates_equal_metrics_of_the_repeated_images():
    probabilities, truth = draw(decimals=6)
    weights = np.random.default_rng(1).integers(4, size=(truth.n_groups, 3)).astype(np.float32)
    got = sums_at(probabilities[0], truth, weights)
    for r in range(3):
        times = weights[truth.groups, r].astype(int)
        p, y = np.repeat(probabilities[0], times, axis=0), np.repeat(truth.labels, times)
        expected = metrics.evaluate(p, y, CLASS_GROUPS)
        for q, name in enumerate(metrics.METRICS):
            np.testing.assert_allclose(got[q, r], expected[name], rtol=1e-5, atol=1e-6)


def test_a_resample_without_a_class_leaves_it_out():
    probabilities, truth = draw(images_a_group=1)
    weights = np.ones((truth.n_groups, 1), np.float32)
    weights[truth.groups[truth.labels == 3]] = 0
    got = dict(zip(metrics.METRICS, sums_at(probabilities[0], truth, weights)[:, 0], strict=True))
    kept = truth.labels != 3
    expected = metrics.evaluate(probabilities[0][kept], truth.labels[kept], CLASS_GROUPS)
    assert np.isnan(got["recall_tail"])
    for name in ("balanced_accuracy", "macro_f1", "auroc_macro", "auprc_macro", "accuracy"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("sizes", [(1,), (15, 16, 17), (0, 40, 3)])
def test_cumulate_equals_cumsum_class_by_class(sizes):
    rng = np.random.default_rng(0)
    blocks = [max(1, -(-t // ranking.LENGTH)) for t in sizes]
    starts = np.concatenate([[0], np.cumsum(blocks)])
    x = np.zeros((ranking.LENGTH, starts[-1], 3), np.float32)
    expected = []
    for c, t in enumerate(sizes):
        rows = rng.integers(0, 9, (blocks[c] * ranking.LENGTH, 3)).astype(np.float32)
        rows[t:] = 0
        x[:, starts[c] : starts[c + 1]] = rows.reshape(blocks[c], -1, 3).swapaxes(0, 1)
        expected.append(np.cumsum(rows, axis=0))
    ranking.cumulate(x, starts)
    for c, rows in enumerate(expected):
        got = x[:, starts[c] : starts[c + 1]].swapaxes(0, 1).reshape(-1, 3)
        np.testing.assert_array_equal(got, rows)


def test_buffers_change_no_number_and_grow():
    probabilities, truth = draw()
    run = sums.run_sums(probabilities[0], truth.labels, truth.groups, truth.n_groups, 15)
    shared = buffers.Buffers()
    for r in (2, 5, 3):
        weights = np.random.default_rng(r).integers(3, size=(truth.n_groups, r)).astype(np.float32)
        fresh = sums.all_rows(sums.parts_of(run.at(weights), run.starts, truth), truth)
        mine = sums.parts_of(run.at(weights, shared), run.starts, truth, shared)
        np.testing.assert_array_equal(sums.all_rows(mine, truth), fresh)


def test_all_rows_are_the_metrics_then_every_class():
    probabilities, truth = draw()
    run = sums.run_sums(probabilities[0], truth.labels, truth.groups, truth.n_groups, 15)
    ones = np.ones((truth.n_groups, 1), np.float32)
    rows = sums.all_rows(sums.parts_of(run.at(ones), run.starts, truth), truth)[:, 0]
    names = resampling.names(truth)
    assert len(rows) == len(names) == len(metrics.METRICS) + 5 * K
    got = dict(zip(names, rows, strict=True))
    for c in range(K):
        mine, score = truth.labels == c, probabilities[0][:, c]
        np.testing.assert_allclose(got[f"auroc/{c}"], sk.roc_auc_score(mine, score), rtol=1e-6)
        np.testing.assert_allclose(
            got[f"auprc/{c}"], sk.average_precision_score(mine, score), rtol=1e-6
        )
        np.testing.assert_allclose(
            got[f"sensitivity_at_specificity/{c}"], at_specificity(mine, score, 0.9), rtol=1e-6
        )
        hit = probabilities[0].argmax(axis=1) == c
        np.testing.assert_allclose(got[f"sensitivity/{c}"], hit[mine].mean(), rtol=1e-6)


def test_draws_of_a_mean_are_the_weighted_draws_of_its_runs():
    probabilities, truth = draw()
    weights = resampling.seed_weights((0, 1), 150, 3)
    mean = resampling.bootstrap(list(probabilities), truth, 150, 3, weights)
    each = resampling.bootstrap(list(probabilities), truth, 150, 3)
    q = len(metrics.METRICS)
    np.testing.assert_allclose(mean[:q], np.einsum("mqr,mr->qr", each, weights), rtol=1e-5)


def test_jackknife_leaves_each_group_out_within_its_class():
    probabilities, truth = draw(n=40)
    classes = group_classes(truth)
    left_out = resampling.jackknife(list(probabilities), truth)
    assert left_out.shape == (len(resampling.names(truth)), truth.n_groups)
    for group in (0, 7):
        n = (classes == classes[group]).sum()
        weights = np.where(classes == classes[group], n / (n - 1), 1.0)
        weights[group] = 0
        expected = np.mean([sums_at(p, truth, weights[:, None]) for p in probabilities], axis=0)
        np.testing.assert_allclose(left_out[: len(expected), group], expected[:, 0], rtol=1e-4)
    # A mean of a class: influences are the deviations over n, and their squares its variance.
    hits = np.array([1.0, 0, 1, 1])[None]
    left = (hits.sum() - hits) / 3
    np.testing.assert_allclose(
        resampling.influence(left, np.zeros(4, int)), (hits - hits.mean()) / 4
    )


def test_a_class_of_one_group_is_not_left_out():
    labels = np.array([0, 0, 0, 1])
    p = np.eye(2)[[0, 1, 0, 1]]
    truth = Truth(labels, np.arange(4), {"head": [0], "medium": [], "tail": [1]}, 2)
    left_out = resampling.jackknife([p], truth)
    recall = resampling.names(truth).index("sensitivity/1")
    np.testing.assert_array_equal(left_out[recall], 1.0)
    assert not resampling.influence(left_out, group_classes(truth))[:, 3].any()


def test_group_weights_keep_every_class_and_the_variance_of_its_mean():
    classes = np.repeat([0, 1, 2, 3], [40, 3, 2, 1])
    weights = resampling.group_weights(np.random.default_rng(0), classes, 4000)
    for c, n in enumerate((40, 3, 2, 1)):
        mine = weights[classes == c]
        np.testing.assert_allclose(mine.sum(axis=0), n, rtol=1e-5)
        # The variance of a weighted mean is then s^2 / n, s^2 with n - 1 in the denominator. Four
        # standard errors of 4000 draws are under 0.09 for n > 2; for n = 2 a weight is 0 or 2.
        np.testing.assert_allclose(mine.mean(axis=1), 1.0, atol=0.07)
        assert abs(mine.var(axis=1).mean() - (n > 1)) < 0.09


def test_a_group_stands_with_the_rarest_of_its_labels():
    labels = np.array([0, 0, 1, 0, 1, 2, 0, 1, 1])
    groups = np.array([0, 1, 1, 2, 2, 2, 3, 4, 4])
    truth = Truth(labels, groups, {"head": [0], "medium": [1], "tail": [2]}, 3)
    np.testing.assert_array_equal(groups_per_class(truth), [4, 3, 1])
    np.testing.assert_array_equal(group_classes(truth), [0, 1, 2, 0, 1])


@pytest.mark.parametrize("rare", [1, 2, 3])
def test_resamples_of_a_class_with_few_groups_estimate_the_same_average(rare):
    # A class that is always wrong: a resample without it would have a higher macro average.
    labels = np.repeat([0, 1], [30, rare])
    p = np.where((labels == 0)[:, None], [0.9, 0.1], [0.8, 0.2])
    p[:6] = [0.3, 0.7]
    class_groups = {"head": [0], "medium": [], "tail": [1]}
    truth = Truth(labels, np.arange(len(labels)), class_groups, 2)
    draws = resampling.bootstrap([p], truth, 2000, 0)[0]
    for name in ("balanced_accuracy", "macro_f1", "auroc_macro", "recall_tail"):
        assert not np.isnan(draws[metrics.METRICS.index(name)]).any(), name
    balanced = draws[metrics.METRICS.index("balanced_accuracy")]
    np.testing.assert_allclose(balanced.mean(), 0.4, atol=0.005)  # 0.4 = (24 / 30 + 0) / 2


def test_intervals_cover_with_a_class_of_three_groups():
    # Recall varies from group to group; 0.74 is three standard errors (120 simulations) below the
    # 0.85 or so that an interval from three groups can hold. Drawn from all groups alike, a
    # twentieth of the draws would average two classes and not three.
    rng = np.random.default_rng(0)
    mean, sizes, a_group = np.array([0.9, 0.7, 0.3]), [40, 15, 3], 4
    classes = np.repeat(np.arange(3), sizes)
    codes = np.repeat(np.arange(len(classes)), a_group)
    labels = classes[codes]
    truth = Truth(labels, codes, {"head": [0], "medium": [1], "tail": [2]}, 3)
    covered, drift = 0, []
    for s in range(120):
        rate = rng.beta(4 * mean[classes], 4 * (1 - mean[classes]))
        hit = rng.uniform(size=len(labels)) < rate[codes]
        p = np.eye(3)[np.where(hit, labels, (labels + 1) % 3)]
        draws = resampling.bootstrap([p], truth, 128, seed=s)[0, 1]
        low, high = np.quantile(draws, [0.025, 0.975])
        covered += low <= mean.mean() <= high
        drift.append(draws.mean() - metrics.balanced_accuracy(p, labels))
    assert 0.74 <= covered / 120 <= 0.99
    assert abs(np.mean(drift)) < 0.003


def test_bootstrap_pairs_runs_and_depends_on_the_seed_alone():
    probabilities, truth = draw()
    both = resampling.bootstrap(list(probabilities), truth, 150, seed=3)
    second = resampling.bootstrap([probabilities[1]], truth, 150, seed=3)
    np.testing.assert_array_equal(both[1], second[0])
    assert not np.array_equal(both[0], resampling.bootstrap([probabilities[0]], truth, 150, 4)[0])
    # Equal runs differ by exactly nothing on every resample, so the draws are shared.
    same = resampling.bootstrap([probabilities[0]] * 2, truth, 150, seed=3)
    np.testing.assert_array_equal(same[0], same[1])


def test_whole_groups_are_resampled():
    # Two images a group, always right or wrong together: the variance is that of 40 draws, not 80.
    labels = np.zeros(80, int)
    labels[-2:] = 1
    hit = np.repeat(np.arange(40) % 2 == 0, 2)
    p = np.where(hit[:, None], np.eye(2)[labels], np.eye(2)[1 - labels])
    groups = {"head": [0], "medium": [], "tail": [1]}
    truth = Truth(labels, np.repeat(np.arange(40), 2), groups, 2)
    accuracy = resampling.bootstrap([p], truth, 4000, 0)[0, 0]
    np.testing.assert_allclose(accuracy.var(), 0.25 / 40, rtol=0.1)


def test_seed_weights_are_shared_by_equal_seeds_and_sum_to_one():
    one = resampling.seed_weights((0, 1, 2), 500, 0)
    np.testing.assert_array_equal(one, resampling.seed_weights((0, 1, 2), 500, 0))
    assert not np.array_equal(one, resampling.seed_weights((3, 4, 5), 500, 0))
    np.testing.assert_allclose(one.sum(axis=0), 1.0)
    np.testing.assert_array_equal(resampling.seed_weights((7,), 5, 0), 1.0)


def test_group_codes_take_names_and_numbers():
    np.testing.assert_array_equal(group_codes(["b", "a", "b"]), [1, 0, 1])
    np.testing.assert_array_equal(group_codes(np.array([9, 2, 9])), [1, 0, 1])


@pytest.mark.parametrize("seeds", [1, 4])
def test_intervals_cover_the_population_value(seeds):
    # Group effects, seed effects and noise on a binary task whose true accuracy is known: a hit is
    # a latent above 0. 300 simulations: the standard error of a coverage of 0.95 is 0.013.
    rng = np.random.default_rng(5)
    simulations, groups, a_group = 300, 60, 2
    noise, seed_sd = 0.8, 0.0 if seeds == 1 else 0.15
    scale = np.sqrt(1 + noise**2 + seed_sd**2)
    from scipy.stats import norm

    expected = norm.cdf(0.5 / scale)
    covered = 0
    codes = np.repeat(np.arange(groups), a_group)
    labels = np.arange(groups * a_group) % 2
    truth = Truth(labels, codes, {"head": [0], "medium": [], "tail": [1]}, 2)
    for s in range(simulations):
        effect = rng.normal(size=groups)[codes]
        run = 0.5 + seed_sd * rng.normal(size=(seeds, 1))
        hit = run + effect[None] + noise * rng.normal(size=(seeds, len(labels))) > 0
        p = np.where(hit[..., None], np.eye(2)[labels][None], np.eye(2)[1 - labels][None])
        replicates = resampling.bootstrap(list(p), truth, 256, seed=s)[:, 0]
        weights = resampling.seed_weights(tuple(range(seeds)), 256, seed=s)
        low, high = np.quantile((replicates * weights).sum(axis=0), [0.025, 0.975])
        covered += low <= expected <= high
    assert 0.90 <= covered / simulations <= 0.985
