"""How long the statistics of a large experiment take."""

import time

import numpy as np
import pytest

from lt_jax.evaluate import metrics, statistics
from lt_jax.evaluate.metrics.grouping import Truth


def large(arms=10, seeds=5, n=2000, k=7):
    """Arms on one test set of a long tail, every image a group."""
    rng = np.random.default_rng(0)
    share = [0.5, 0.2, 0.12, 0.08, 0.05, 0.03, 0.02]
    labels = np.concatenate([np.repeat(np.arange(k), 2), rng.choice(k, n - 2 * k, p=share)])
    groups = {"head": [0, 1], "medium": [2, 3, 4], "tail": [5, 6]}
    strength = 1.5 * np.eye(k)[labels]
    runs = [metrics.softmax(rng.normal(size=(seeds, n, k)) + strength) for _ in range(arms)]
    predictions = [
        statistics.ArmPredictions(f"arm{i}", tuple(range(seeds)), p) for i, p in enumerate(runs)
    ]
    return predictions, Truth(labels, np.arange(n), groups, k)


@pytest.mark.slow
def test_ten_arms_with_ten_thousand_resamples_and_permutations_take_under_a_minute():
    arms, truth = large()
    start = time.process_time()
    found = statistics.analyse(
        arms,
        truth,
        "arm0",
        rival="arm1",
        challengers=["arm6", "arm7", "arm8", "arm9"],
        resamples=10_000,
        permutations=10_000,
    )
    statistics.analyse(arms, truth, "arm0", resamples=10_000, permutations=0)  # adjusted logits
    assert len(found) == 10
    # Of two cores' time: what else runs on the machine does not count.
    assert time.process_time() - start < 120


def test_time_grows_with_resamples_and_not_faster():
    # A tenth of a tenth: 2 arms of 5 seeds, 1,280 resamples; seconds on an idle core, well under 5.
    arms, truth = large(arms=2)
    start = time.process_time()
    statistics.analyse(arms, truth, "arm0", resamples=1280, permutations=256)
    assert time.process_time() - start < 5
