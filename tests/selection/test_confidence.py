"""Energy, largest logit, softmax: the published numbers, order and limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.selection.confidence import Energy, MaxLogit, MaxSoftmax
from tests.selection.gaussians import per_class, score

KINDS = (Energy, MaxLogit, MaxSoftmax)


def drawn(seed, counts):
    """Logits of images of which the extractor is the surer the more their class has."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    sure = np.linspace(9.0, 1.0, len(counts))[labels]
    logits = rng.normal(size=(len(labels), len(counts)))
    logits[np.arange(len(labels)), labels] += sure
    features = np.zeros((len(labels), 2), np.float32)
    return features, logits.astype(np.float32), labels.astype(np.int32)


def test_published_numbers_of_a_few_logits():
    logits = jnp.asarray([[0.0, 0.0, 0.0], [2.0, -1.0, 0.5], [60.0, 60.0, -60.0]])
    exponents = np.exp(np.asarray(logits, np.float64))
    np.testing.assert_allclose(Energy.raw(logits), -np.log(exponents.sum(axis=1)), rtol=1e-6)
    np.testing.assert_allclose(MaxLogit.raw(logits), [0.0, -2.0, -60.0])
    probability = exponents.max(axis=1) / exponents.sum(axis=1)
    odds = np.log((1 - probability) / probability)
    np.testing.assert_allclose(MaxSoftmax.raw(logits), odds, rtol=1e-5, atol=1e-6)


def test_softmax_tells_apart_what_is_sure_to_the_last_bit():
    logits = jnp.asarray([[20.0, 0.0, 0.0], [30.0, 0.0, 0.0], [1000.0, 0.0, 0.0]])
    assert np.ptp(jax.nn.softmax(logits).max(axis=1)[1:]) == 0
    np.testing.assert_allclose(MaxSoftmax.raw(logits), np.log(2) - logits[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(MaxSoftmax.raw(logits[:, :1]), np.zeros(3))


def test_a_constant_added_to_logits_moves_all_but_the_softmax():
    logits = jnp.asarray(drawn(0, [5, 5])[1])
    for kind, moved in ((Energy, -7.0), (MaxLogit, -7.0), (MaxSoftmax, 0.0)):
        np.testing.assert_allclose(kind.raw(logits + 7), kind.raw(logits) + moved, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_published_order_within_a_class_and_alike_across_classes(kind):
    counts = [300, 40, 4]
    scorer = kind(3)
    state = scorer.fit(*drawn(0, counts))
    fresh = drawn(1, [30, 30, 30])
    found = score(scorer, state, *fresh).reshape(3, 30)
    plain = np.asarray(kind.raw(jnp.asarray(fresh[1]))).reshape(3, 30)
    for own, raw in zip(found, plain, strict=True):
        np.testing.assert_array_equal(np.argsort(own), np.argsort(raw))

    def of(seed):
        return score(scorer, scorer.fit(*drawn(seed, counts)), *drawn(500 + seed, [10] * 3))

    means, _ = per_class(of, 3, 10, 40)
    np.testing.assert_allclose(means, np.zeros(3), atol=0.3)
    assert np.ptp(plain.mean(axis=1)) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_unsure_logits_are_further_out(kind):
    scorer = kind(3)
    state = scorer.fit(*drawn(0, [50, 50, 50]))
    logits = np.zeros((4, 3), np.float32)
    logits[:, 0] = [9.0, 5.0, 2.0, 0.0]
    scores = score(scorer, state, np.zeros((4, 2), np.float32), logits, np.zeros(4, np.int32))
    assert np.all(np.diff(scores) > 0)
    assert scores[3] > 3 > scores[0]


def test_scorers_of_one_size_are_not_one():
    assert len({kind(3) for kind in KINDS}) == 3


def test_against_pytorch_ood(pytorch_ood):
    import torch

    logits = drawn(0, [20, 20, 20])[1]
    given = torch.tensor(logits)
    found = [np.asarray(kind.raw(jnp.asarray(logits))) for kind in KINDS]
    expected = [
        detector(None).predict_logits(given).numpy()
        for detector in (pytorch_ood.EnergyBased, pytorch_ood.MaxLogit, pytorch_ood.MaxSoftmax)
    ]
    found[2] = -1 / (1 + np.exp(found[2]))  # from log odds to the probability that they are of
    np.testing.assert_allclose(found, expected, rtol=1e-4)
