"""Suppression against a naive loop, and what comes out of the head's own targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import DecodeConfig
from lt_jax.detect import boxes, decode
from lt_jax.models.detector import Grid, Outputs

GRID = Grid(32, (8, 16))
suppress = jax.jit(decode.suppress, static_argnums=3)


def naive(held, labels, usable, overlap):
    kept = []
    for i in range(len(held)):
        rivals = [j for j in kept if labels[j] == labels[i]]
        if usable[i] and all(
            float(boxes.iou(jnp.asarray(held[i]), jnp.asarray(held[j]))) <= overlap for j in rivals
        ):
            kept.append(i)
    return kept


@pytest.mark.parametrize("seed", range(3))
def test_suppression_is_the_naive_loop(seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.5, (24, 2))
    held = np.concatenate([low, low + rng.uniform(0.2, 0.5, (24, 2))], -1).astype(np.float32)
    labels, usable = rng.integers(0, 2, 24).astype(np.int32), rng.random(24) < 0.8
    kept = suppress(jnp.asarray(held), jnp.asarray(labels), jnp.asarray(usable), 0.4)
    expected = naive(held, labels, usable, 0.4)
    assert np.flatnonzero(np.asarray(kept)).tolist() == expected
    assert 1 < len(expected) < usable.sum()


def test_what_is_suppressed_suppresses_nothing():
    chain = jnp.array([[0, 0, 0.4, 1], [0.15, 0, 0.55, 1], [0.3, 0, 0.7, 1]])  # IoU 0.45, 0.14
    labels, usable = jnp.zeros(3, jnp.int32), jnp.ones(3, bool)
    assert suppress(chain, labels, usable, 0.4).tolist() == [True, False, True]


def test_the_best_locations_come_out():
    n = len(GRID.locations)
    logits, sides = np.full((2, n, 2), -9.0), np.ones((2, n, 4))
    logits[0, 5, 1], logits[0, 6, 1], logits[0, 16, 0] = 4.0, 3.0, 2.0
    sides[0, 6] = [2.0, 1.0, 0.0, 1.0]  # from the next location: the same box
    outputs = Outputs(jnp.asarray(logits), jnp.full((2, n), 2.0), jnp.asarray(sides))
    config = DecodeConfig(candidates=7, most=9, score=0.3, overlap=0.5)
    found = jax.device_get(decode.decode(outputs, GRID, config))
    assert found.boxes.shape == (2, 9, 4) and found.scores.shape == (2, 9)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    scores = np.sqrt(sigmoid(np.array([4.0, 2.0])) * sigmoid(2.0))
    np.testing.assert_allclose(found.scores[0], [*scores, *[0] * 7], atol=1e-5)
    assert found.labels[0, :2].tolist() == [1, 0]
    np.testing.assert_allclose(found.boxes[0, 0] * 32, [4, 4, 20, 20], atol=1e-4)
    # The coarse level's location (8, 8) of stride 16, cut off at the border.
    x, y = GRID.locations[16] * 32
    expected = np.clip([x - 16, y - 16, x + 16, y + 16], 0, 32)
    np.testing.assert_allclose(found.boxes[0, 1] * 32, expected, atol=1e-4)
    assert not found.scores[1].any() and not found.boxes[1].any()
