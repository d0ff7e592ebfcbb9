"""Classifier training: golden step, shares of zero, rounds, resume."""

import dataclasses

import jax
import numpy as np
import pytest

from lt_jax.classify import train
from lt_jax.config import (
    AugmentConfig,
    ClassifierConfig,
    OptimizerConfig,
    RuntimeConfig,
    ViTConfig,
)
from lt_jax.mixing import controllers
from lt_jax.runtime import keys, mesh, metrics, train_state
from tests import goldens

RECIPE = train.Recipe(
    model=ClassifierConfig(
        vit=ViTConfig(variant="custom", width=16, depth=1, heads=2, mlp=16, patch_size=4)
    ),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2, weight_decay=0.01),
    augment=AugmentConfig(shift=1),
    loss="cross_entropy",
    tau=1.0,
    steps=24,
    rounds=3,
    batch_size=16,
    seed=0,
)
RUNTIME = RuntimeConfig(log_every=4, checkpoint_every=5)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [40, 16, 8])
    images = rng.integers(0, 60, (len(labels), 8, 8, 1))
    images += 90 * labels[:, None, None, None]
    rows = [np.flatnonzero(labels == k) for k in range(3)]
    return train.TrainData(
        real=images.astype(np.uint8),
        train_rows=[r[:-3] for r in rows],
        val_rows=np.concatenate([r[-3:] for r in rows]),
        val_labels=np.repeat([0, 1, 2], 3),
        image_shape=(8, 8, 1),
    )


def fit(data, folder, controller=None, recipe=RECIPE, runtime=RUNTIME):
    controller = controller or controllers.real_only(data.counts, "instance")
    return train.train(
        recipe,
        data,
        controller,
        folder=folder,
        device_mesh=mesh.make_mesh(1),
        runtime=runtime,
        tags={"stage": "classify", "arm": "a", "seed": 0},
    )


def assert_equal_trees(left, right):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(left), jax.device_get(right))


def test_golden_metrics(data, update_goldens):
    device_mesh = mesh.make_mesh(1)
    step = train.make_step(RECIPE, 3, device_mesh)
    params = train.init(RECIPE, 3, data.image_shape)
    optimizer = train_state.make_optimizer(RECIPE.optimizer, RECIPE.steps)
    state = train_state.create(params, optimizer, ema=False)
    batch = {
        "image": data.real[:64:4],
        "label": np.repeat([0, 1, 2], [10, 4, 2]).astype(np.int32),
        "synthetic": np.zeros(16, bool),
    }
    for n in range(3):
        key = jax.random.fold_in(keys.root(0), n)
        state, values = step(state, batch, key, data.counts.astype(np.float32))
    values = {name: float(value) for name, value in values.items()}
    goldens.check_numbers("classifier_step", values, update_goldens)


def test_it_learns_and_logs_every_round(data, tmp_path):
    _, ledger = fit(data, tmp_path)
    lines = metrics.read(tmp_path / "metrics.jsonl")
    curve = [line for line in lines if "val_balanced_accuracy" in line]
    assert [line["step"] for line in curve] == [8, 16, 24]
    assert curve[-1]["val_balanced_accuracy"] > 0.6
    assert ledger.images == RECIPE.steps * RECIPE.batch_size


@pytest.mark.parametrize("stop", [3, 7, 8, 13])
def test_resumed_equals_unbroken_bit_for_bit(data, tmp_path, stop, monkeypatch):
    whole, _ = fit(data, tmp_path / "whole")
    original = train.MixedStream.__next__

    def cut(stream):
        if stream._next == stop:
            raise KeyboardInterrupt
        return original(stream)

    with monkeypatch.context() as patch:
        patch.setattr(train.MixedStream, "__next__", cut)
        with pytest.raises(KeyboardInterrupt):
            fit(data, tmp_path / "cut")
    resumed, _ = fit(data, tmp_path / "cut")
    assert_equal_trees(whole, resumed)
    numbers = [
        [
            {k: v for k, v in line.items() if k != "data_wait_fraction"}
            for line in metrics.read(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "cut")
    ]
    assert numbers[0] == numbers[1]


def test_shares_of_zero_reproduce_the_real_only_run(data, tmp_path):
    class Zero:
        def mixture(self, round, feedback):
            return controllers.real_only(data.counts, "instance").mixture(round, feedback)

    pool = np.full((9, 8, 8, 1), 255, np.uint8)
    with_pool = dataclasses.replace(data, extra=pool, extra_rows=np.split(np.arange(9), 3))
    alone, _ = fit(data, tmp_path / "alone")
    offered, _ = fit(with_pool, tmp_path / "offered", Zero())
    assert_equal_trees(alone, offered)


def test_effective_counts_are_real_plus_synthetic_under_instance_sampling():
    supply = controllers.Supply((40, 8, 2), (100, 100, 3))
    mixture = controllers.FillToHead(supply).mixture(0, None)
    counts = train.effective_counts(np.array([40, 8, 2]), mixture.class_weight, mixture.share)
    np.testing.assert_allclose(counts, [40, 40, 5])
