"""Classifier training: golden step, shares of zero, rounds, soft labels, resume."""

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
from lt_jax.runtime.job import Job
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
        policy_rows=np.concatenate([r[-5:] for r in rows]),
        policy_labels=np.repeat([0, 1, 2], 5),
    )


def fit(data, folder, controller=None, recipe=RECIPE, runtime=RUNTIME):
    controller = controller or controllers.real_only(data.counts, "instance")
    tags = {"stage": "classify", "arm": "a", "seed": 0}
    job = Job(folder, mesh.make_mesh(1), runtime, tags)
    return train.train(recipe, data, controller, job)


def assert_equal_trees(left, right):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(left), jax.device_get(right))


def steps_on(device_mesh, data):
    step = train.make_step(RECIPE, 3, device_mesh)
    params = train.init(RECIPE, 3, data.image_shape)
    optimizer = train_state.make_optimizer(RECIPE.optimizer, RECIPE.steps)
    state = mesh.distribute(train_state.create(params, optimizer, ema=False), device_mesh)
    batch = {
        "image": data.real[:64:4],
        "label": np.repeat([0, 1, 2], [10, 4, 2]).astype(np.int32),
        "synthetic": np.zeros(16, bool),
    }
    counts = data.counts.astype(np.float32)
    for n in range(3):
        key = jax.random.fold_in(keys.root(0), n)
        state, values = step(state, mesh.put(batch, device_mesh), key, counts)
    return state, {name: float(value) for name, value in values.items()}


def test_golden_metrics(data, update_goldens):
    _, values = steps_on(mesh.make_mesh(1), data)
    goldens.check_numbers("classifier_step", values, update_goldens)


def test_one_device_equals_eight(data, monkeypatch):
    monkeypatch.setattr(mesh, "SMALL", 64)  # as are the leaves of a network of these tests
    one, values = steps_on(mesh.make_mesh(1), data)
    for fsdp in (1, 4):
        eight, others = steps_on(mesh.make_mesh(8, fsdp), data)
        assert values == pytest.approx(others, rel=1e-4)
        leaves = jax.tree.leaves(eight.params)
        assert all(leaf.sharding.is_fully_replicated for leaf in leaves) == (fsdp == 1)
        # Three Adam steps of at most 3e-3: a gradient of another sign would show as 3e-3 or more.
        for left, right in zip(jax.tree.leaves(one.params), leaves, strict=True):
            np.testing.assert_allclose(left, right, atol=3e-4)


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
        learns = False

        def mixture(self, history):
            return controllers.real_only(data.counts, "instance").mixture(history)

    pool = np.full((9, 8, 8, 1), 255, np.uint8)
    with_pool = dataclasses.replace(data, extra=pool, extra_rows=np.split(np.arange(9), 3))
    alone, _ = fit(data, tmp_path / "alone")
    offered, _ = fit(with_pool, tmp_path / "offered", Zero())
    assert_equal_trees(alone, offered)


def extra_of(data, weight):
    """Synthetic images of every class whose labels are of class k + 1 for the rest."""
    labels = np.repeat([0, 1, 2], 6)
    pool = np.random.default_rng(1).integers(0, 256, (18, 8, 8, 1), dtype=np.uint8)
    whole = np.zeros(len(data.real), int)  # labels of the real store, as far as they are drawn
    for label, rows in enumerate(data.train_rows):
        whole[rows] = label
    soft = train.SoftLabels(whole, (labels + 1) % 3, np.full(18, weight))
    rows = np.split(np.arange(18), 3)
    return dataclasses.replace(data, extra=pool, extra_rows=rows, soft=soft)


def test_labels_of_weight_one_change_no_bit(data, tmp_path):
    mixed = controllers.Uniform(controllers.Supply((37, 13, 5), (6, 6, 6)), 0.5)
    soft = extra_of(data, 1.0)
    hard, _ = fit(dataclasses.replace(soft, soft=None), tmp_path / "hard", mixed)
    weighted, _ = fit(soft, tmp_path / "soft", mixed)
    assert_equal_trees(hard, weighted)
    losses = [
        [line["loss"] for line in metrics.read(tmp_path / name / "metrics.jsonl") if "loss" in line]
        for name in ("hard", "soft")
    ]
    assert losses[0] and losses[0] == losses[1]
    halves, _ = fit(extra_of(data, 0.5), tmp_path / "half", mixed)
    leaves = zip(jax.tree.leaves(hard), jax.tree.leaves(halves), strict=True)
    assert any((left != right).any() for left, right in leaves)


def test_a_soft_label_is_its_share_of_both_labels_losses(data):
    step = train.make_step(RECIPE, 3, mesh.make_mesh(1))
    rng = np.random.default_rng(2)
    labels, others = (rng.integers(0, 3, 16).astype(np.int32) for _ in range(2))
    params = jax.tree.map(  # the last layer begins with zeros, for which all labels are alike
        lambda leaf: np.asarray(leaf) + 0.3 * rng.standard_normal(leaf.shape, np.float32),
        train.init(RECIPE, 3, data.image_shape),
    )
    optimizer = train_state.make_optimizer(RECIPE.optimizer, RECIPE.steps)

    def loss(first, **soft):
        state = train_state.create(params, optimizer, ema=False)
        batch = {"image": data.real[:64:4], "label": first, "synthetic": np.ones(16, bool), **soft}
        values = step(state, batch, keys.root(0), data.counts.astype(np.float32))[1]
        return float(values["loss"]), float(values["gradient_norm"])

    def soft(first, second, weight):
        weight = np.broadcast_to(np.float32(weight), 16)
        return loss(first, other_label=second, label_weight=weight)

    assert soft(labels, others, 1.0) == loss(labels)
    (first, _), (second, _) = loss(labels), loss(others)
    assert abs(first - second) > 0.01
    mixed, _ = soft(labels, others, 0.3)
    assert mixed == pytest.approx(0.3 * first + 0.7 * second, rel=1e-5)
    # Weights of 0 and 1 choose one of an image's own labels.
    chosen = rng.random(16) < 0.5
    picked = loss(np.where(chosen, labels, others))
    assert soft(labels, others, chosen) == pytest.approx(picked, rel=1e-5)


def test_effective_counts_are_real_plus_synthetic_under_instance_sampling():
    supply = controllers.Supply((40, 8, 2), (100, 100, 3))
    mixture = controllers.FillToHead(supply).mixture(())
    counts = train.effective_counts(np.array([40, 8, 2]), mixture.class_weight, mixture.share)
    np.testing.assert_allclose(counts, [40, 40, 5])


@pytest.fixture(scope="module")
def mixed(data):
    pool = np.random.default_rng(1).integers(0, 256, (18, 8, 8, 1), dtype=np.uint8)
    return dataclasses.replace(data, extra=pool, extra_rows=np.split(np.arange(18), 3))


SUPPLY = controllers.Supply((37, 13, 5), (6, 6, 6))
