"""Soft metrics and the head penalty, against definitions written out in NumPy."""

import jax
import numpy as np
import pytest

from lt_jax.config.mixing import RewardConfig
from lt_jax.evaluate import metrics
from lt_jax.mixing import rewards

LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 0])


@pytest.fixture
def probabilities():
    drawn = np.random.default_rng(0).dirichlet(np.ones(3), len(LABELS))
    return drawn.astype(np.float32)


def test_soft_metrics_are_their_definitions(probabilities):
    measured = rewards.measure(jax.numpy.asarray(probabilities), jax.numpy.asarray(LABELS))
    for k in range(3):
        own = [p for p, label in zip(probabilities, LABELS, strict=True) if label == k]
        hits, predicted = sum(p[k] for p in own), sum(p[k] for p in probabilities)
        margins = [p[k] - max(np.delete(p, k)) for p in own]
        np.testing.assert_allclose(measured.recall[k], hits / len(own), rtol=1e-5)
        np.testing.assert_allclose(measured.precision[k], hits / predicted, rtol=1e-5)
        np.testing.assert_allclose(measured.f1[k], 2 * hits / (len(own) + predicted), rtol=1e-5)
        np.testing.assert_allclose(measured.margin[k], np.mean(margins), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["balanced_accuracy", "macro_f1"])
def test_certain_predictions_give_the_metric_of_the_report(name, probabilities):
    certain = np.eye(3, dtype=np.float32)[probabilities.argmax(-1)]
    measured = rewards.measure(jax.numpy.asarray(certain), jax.numpy.asarray(LABELS))
    counted = metrics.count(certain, LABELS)
    recall = metrics.recall_of(counted)
    hard = metrics.mean_defined(metrics.f1_of(counted) if name == "macro_f1" else recall)
    np.testing.assert_allclose(rewards.metric(RewardConfig(metric=name), measured), hard, rtol=1e-6)


def test_each_head_class_pays_for_its_own_fall_alone():
    reference, recall = jax.numpy.array([0.9, 0.8, 0.7]), jax.numpy.array([0.8, 1.0, 0.1])
    head = jax.numpy.array([True, True, False])
    fall = rewards.head_fall(recall, reference, head, 0.02)
    np.testing.assert_allclose(fall, (0.1 - 0.02) / 2, rtol=1e-5)  # class 1 rose: pays nothing back
    assert rewards.head_fall(recall, reference, head, 0.11) == 0
    assert rewards.head_fall(recall, reference, ~head & head, 0.0) == 0


def test_the_potential_is_metric_less_priced_fall(probabilities):
    measured = rewards.measure(jax.numpy.asarray(probabilities), jax.numpy.asarray(LABELS))
    config = RewardConfig(head_penalty=3.0, head_tolerance=0.0)
    reference = measured.recall + jax.numpy.array([0.2, 0.1, 0.4])
    head = jax.numpy.array([True, True, False])
    value = rewards.potential(config, measured, reference, head)
    np.testing.assert_allclose(value, measured.recall.mean() - 3.0 * 0.15, rtol=1e-5)
