"""Metrics against scikit-learn, ECE against its definition, and the conventions at the edges."""

import itertools

import numpy as np
import pytest
import sklearn.metrics as sk

from lt_jax.errors import UserError
from lt_jax.evaluate import metrics

K = 5
GROUPS = {"head": [0], "medium": [1, 2], "tail": [3, 4]}


def draw(seed=0, n=200, m=3, coarse=False):
    """Labels of all classes, and probabilities; `coarse` makes many ties."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(K), rng.choice(K, n - K, p=[0.5, 0.2, 0.15, 0.1, 0.05])])
    logits = rng.normal(size=(m, n, K)) + 1.2 * np.eye(K)[labels]
    if coarse:
        logits = np.round(logits)
    return metrics.softmax(logits), labels


def at_specificity(positive, score, specificity):
    """From scikit-learn's curve: the best point at that specificity or above."""
    false, true, _ = sk.roc_curve(positive, score, drop_intermediate=False)
    return true[false <= 1 - specificity + 1e-9].max()


@pytest.mark.parametrize("coarse", [False, True])
def test_metrics_equal_scikit_learn(coarse):
    probabilities, labels = draw(coarse=coarse)
    probabilities = np.round(probabilities, 6)  # ties must be ties for both
    got = metrics.evaluate(probabilities, labels, GROUPS)
    for i, p in enumerate(probabilities):
        predicted = p.argmax(axis=1)
        recall = sk.recall_score(labels, predicted, average=None)
        onehot = np.eye(K)[labels]
        expected = {
            "accuracy": sk.accuracy_score(labels, predicted),
            "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
            "macro_f1": sk.f1_score(labels, predicted, average="macro"),
            "auroc_macro": sk.roc_auc_score(onehot, p, average="macro"),
            "auprc_macro": sk.average_precision_score(onehot, p, average="macro"),
            "recall_head": recall[0],
            "recall_medium": recall[1:3].mean(),
            "recall_tail": recall[3:].mean(),
            "brier": ((p - onehot) ** 2).sum(axis=1).mean(),
            "log_loss": -np.log(np.maximum((p * onehot).sum(axis=1), 1e-12)).mean(),
            "sensitivity_at_specificity": np.mean(
                [at_specificity(onehot[:, c], p[:, c], 0.9) for c in range(K)]
            ),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(got[name][i], value, rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(metrics.recall_per_class(p, labels), recall)
    assert set(got) == set(metrics.METRICS)


def test_stacked_runs_equal_single_runs():
    probabilities, labels = draw()
    stacked = metrics.evaluate(probabilities, labels, GROUPS)
    for i, p in enumerate(probabilities):
        for name, value in metrics.evaluate(p, labels, GROUPS).items():
            np.testing.assert_allclose(stacked[name][i], value, rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(
            metrics.balanced_accuracy(p, labels), stacked["balanced_accuracy"][i], rtol=1e-12
        )


@pytest.mark.parametrize("bins", [4, 15])
def test_ece_equals_a_direct_loop_also_on_bin_edges(bins):
    probabilities, labels = draw(m=1)
    p = probabilities[0]
    p[:4] = [[0.25, 0.25, 0.2, 0.15, 0.15], [0.5, 0.5, 0, 0, 0], [1, 0, 0, 0, 0], [0.2] * 5]
    edges, expected = np.linspace(0, 1, bins + 1), 0.0
    confidence, hit = p.max(axis=1), p.argmax(axis=1) == labels
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = abs(hit[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    np.testing.assert_allclose(metrics.ece(p, labels, bins), expected, rtol=1e-12)


def test_a_class_never_predicted_counts_as_zero():
    probabilities, labels = draw(m=1)
    p = probabilities[0].copy()
    p[:, 4] = 0.0
    predicted = p.argmax(axis=1)
    assert metrics.recall_per_class(p, labels)[4] == 0.0
    expected = sk.f1_score(labels, predicted, average="macro", zero_division=0)
    np.testing.assert_allclose(metrics.evaluate(p, labels, GROUPS)["macro_f1"], expected)


def test_a_class_without_labels_is_left_out_and_named():
    probabilities, labels = draw()
    kept = labels != 3
    p, y = probabilities[:, kept], labels[kept]
    assert metrics.absent_classes(y, K) == [3]
    assert np.isnan(metrics.recall_per_class(p, y)[:, 3]).all()
    others = [0, 1, 2, 4]
    np.testing.assert_allclose(
        metrics.balanced_accuracy(p, y), metrics.recall_per_class(p, y)[:, others].mean(axis=1)
    )
    aurocs = [sk.roc_auc_score(y == c, p[0, :, c]) for c in others]
    got = metrics.evaluate(p[0], y, {"head": [0, 1], "medium": [2, 4], "tail": [3]})
    np.testing.assert_allclose(got["auroc_macro"], np.mean(aurocs))
    f1 = sk.f1_score(y, p[0].argmax(axis=1), labels=others, average="macro", zero_division=0)
    np.testing.assert_allclose(got["macro_f1"], f1)
    assert np.isnan(got["recall_tail"])


def test_one_class_alone_has_no_auroc():
    p = metrics.softmax(np.random.default_rng(0).normal(size=(6, K)))
    assert np.isnan(metrics.evaluate(p, np.zeros(6, int), GROUPS)["auroc_macro"])


def test_nan_logits_name_arm_and_row():
    logits = np.zeros((4, K))
    logits[2, 1] = np.nan
    with pytest.raises(UserError, match=r"arm 'ce', seed 1, row 2: .*finite"):
        metrics.softmax(logits, "arm 'ce', seed 1")
    with pytest.raises(UserError, match="run 1, row 2"):
        metrics.softmax(np.stack([np.zeros((4, K)), logits]))


def test_bad_labels_are_refused_with_their_row():
    p = np.full((3, K), 0.2)
    with pytest.raises(UserError, match=r"row 1: got 5; takes 0 to 4"):
        metrics.balanced_accuracy(p, np.array([0, 5, 1]))
    with pytest.raises(UserError, match="no labelled images"):
        metrics.balanced_accuracy(p[:0], np.zeros(0, int))


def test_logit_adjustment_moves_a_calibrated_model_to_the_balanced_posterior():
    # p(y|x) ~ pi_y p(x|y); taking log pi away leaves p(x|y), the posterior under equal priors.
    rng = np.random.default_rng(0)
    likelihood, prior = rng.uniform(size=(7, K)), np.array([0.6, 0.2, 0.1, 0.07, 0.03])
    logits = np.log(likelihood * prior)
    balanced = metrics.softmax(metrics.logit_adjust(logits, np.log(prior), 1.0))
    np.testing.assert_allclose(balanced, likelihood / likelihood.sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(metrics.logit_adjust(logits, np.log(prior), 0.0), logits)
    with pytest.raises(UserError, match=r"classes \[1\]"):
        metrics.logit_adjust(logits, np.array([0.0, -np.inf, 0, 0, 0]), 1.0)


def binary(positives, negatives):
    """Two classes; the scores are those of the second."""
    score = np.array([*positives, *negatives], float)
    labels = np.repeat([1, 0], [len(positives), len(negatives)])
    return np.stack([1 - score, score], axis=1), labels


@pytest.mark.parametrize(
    ("specificity", "expected"),
    [(0.0, 1.0), (0.5, 1.0), (0.74, 2 / 3), (0.75, 2 / 3), (0.76, 1 / 3), (1.0, 1 / 3)],
)
def test_sensitivity_takes_the_best_threshold_at_that_specificity(specificity, expected):
    p, labels = binary([0.9, 0.6, 0.3], [0.7, 0.4, 0.2, 0.1])
    found = metrics.per_class(metrics.parts(p, labels, 15, specificity))
    np.testing.assert_allclose(found["sensitivity_at_specificity"][1], expected)
    np.testing.assert_allclose(expected, at_specificity(labels, p[:, 1], specificity))


def test_ties_and_an_unreachable_specificity_cost_sensitivity():
    # The tied negative passes with the positive: specificity 3 / 4, and no threshold in between.
    p, labels = binary([0.9, 0.6], [0.9, 0.4, 0.2, 0.1])
    at = lambda s: metrics.per_class(metrics.parts(p, labels, 15, s))
    np.testing.assert_allclose(at(0.75)["sensitivity_at_specificity"][1], 1.0)
    np.testing.assert_allclose(at(0.8)["sensitivity_at_specificity"][1], 0.0)
    same, labels = binary([0.5] * 3, [0.5] * 5)
    found = metrics.per_class(metrics.parts(same, labels))
    np.testing.assert_allclose(found["sensitivity_at_specificity"], [0.0, 0.0])
    np.testing.assert_allclose(found["auroc"], [0.5, 0.5])
    np.testing.assert_allclose(found["auprc"], [5 / 8, 3 / 8])


def test_brier_equals_scikit_learn():
    probabilities, labels = draw()
    expected = [sk.brier_score_loss(labels, p, scale_by_half=False) for p in probabilities]
    np.testing.assert_allclose(metrics.brier(probabilities, labels), expected)


def test_log_loss_equals_scikit_learn_and_one_sure_mistake_is_finite():
    probabilities, labels = draw()
    expected = [sk.log_loss(labels, p) for p in probabilities]
    np.testing.assert_allclose(metrics.log_loss(probabilities, labels), expected)
    wrong = np.eye(2)[[1, 0]]
    assert metrics.log_loss(wrong, np.array([0, 1])) == -np.log(metrics.LEAST_PROBABILITY)


def test_logits_are_adjusted_by_one_prior_or_by_each_images_own():
    logits, priors = np.zeros((2, 3, 2)), np.log([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]])
    own = metrics.logit_adjust(logits, priors, 1.0)
    for i, prior in enumerate(priors):
        np.testing.assert_array_equal(own[:, i], metrics.logit_adjust(logits, prior, 1.0)[:, i])
    with pytest.raises(UserError, match=r"log_prior of classes \[1\] is not finite"):
        metrics.logit_adjust(logits, np.array([[0, -np.inf], [0, 0], [0, 0]]), 1.0)


def test_brier_of_the_extremes():
    right, labels = binary([1.0], [0.0])
    assert metrics.brier(right, labels) == 0 and metrics.brier(1 - right, labels) == 2
    np.testing.assert_allclose(metrics.brier(np.full((2, 2), 0.5), labels), 0.5)
