"""How long the statistics of a large experiment take, and its whole report."""

import dataclasses
import time

import numpy as np
import pytest

from lt_jax.config import EvaluateConfig
from lt_jax.evaluate import metrics, report, statistics
from lt_jax.evaluate.metrics.grouping import Truth
from tests.evaluate.conftest import make_inputs


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


def large_report():
    """The same arms as a run hands them to its report, four with a pool, every run with its curves
    and logits of 700 images of val and of policy_val."""
    arms, truth = large()
    rng = np.random.default_rng(1)
    names = tuple(f"class {k}" for k in range(truth.k))
    held = np.tile(np.arange(truth.k), 100)
    others = lambda: rng.normal(size=(len(held), truth.k)) + 1.5 * np.eye(truth.k)[held]
    prior = np.log(np.bincount(truth.labels) / len(truth.labels))
    curves = [{"step": s, "loss": 1 / (1 + s), "val_balanced_accuracy": 0.5} for s in range(100)]
    made = [
        report.Arm(
            arm.name,
            "uniform" if i > 5 else "none",
            "cross_entropy",
            tuple(
                report.Run(
                    seed, np.log(p), prior, others(), curves, 10.0, 1000, 1e9, 0.4, others(),
                    rng.random((4, truth.k)) if i > 5 else None,
                )
                for seed, p in zip(arm.seeds, arm.probabilities, strict=True)
            ),
            doses=[0.5] * truth.k if i > 5 else None,
            uses_pool=i > 5,
        )
        for i, arm in enumerate(arms)
    ]  # fmt: skip
    small = make_inputs()
    return dataclasses.replace(
        small,
        dataset=dataclasses.replace(
            small.dataset,
            classes=names,
            train_counts=np.bincount(truth.labels).tolist(),
            groups=truth.class_groups,
            test_labels=truth.labels,
            test_groups=truth.groups,
            val_labels=held,
            policy_val_labels=held,
        ),
        arms=tuple(made),
        evaluate=EvaluateConfig(baseline="arm0", resamples=10_000, permutations=10_000),
        pool=None,
        gallery=None,
    )


@pytest.mark.slow
def test_the_whole_report_of_such_an_experiment_takes_under_a_minute_of_two_cores(tmp_path):
    inputs = large_report()
    start = time.process_time()
    returned = report.write(inputs, tmp_path)
    # Of two cores' time: what else runs on the machine does not count.
    assert time.process_time() - start < 120
    html = (tmp_path / "report.html").read_text()
    assert len(returned["arms"]) == 10 and all(f"curves_{k:03d}" in html for k in range(7))


def test_time_grows_with_resamples_and_not_faster():
    # A tenth of a tenth: 2 arms of 5 seeds, 1,280 resamples; seconds on an idle core, well under 5.
    arms, truth = large(arms=2)
    start = time.process_time()
    statistics.analyse(arms, truth, "arm0", resamples=1280, permutations=256)
    assert time.process_time() - start < 5
