"""Classifier training: golden step, shares of zero, rounds, feedback, resume."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from lt_jax.classify import history, train
from lt_jax.config import (
    AugmentConfig,
    ClassifierConfig,
    OptimizerConfig,
    RuntimeConfig,
    ViTConfig,
)
from lt_jax.config.mixing import MixingConfig, PolicyConfig
from lt_jax.mixing import adaptive, controllers, learned
from lt_jax.runtime import keys, mesh, metrics, train_state
from lt_jax.runtime.job import Job
from tests import goldens
from tests.mixing.test_learned import loud_policy

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
BANDIT = adaptive.Bandit(SUPPLY, (0.0, 0.4, 0.8), seed=1)


@functools.cache
def policy(weights=()):
    """A learned policy that acts live, whose choices depend on all that it sees."""
    levels, config = BANDIT.levels, PolicyConfig(width=8)
    mixing = MixingConfig(levels=levels, weights=weights, rounds=RECIPE.rounds, policy=config)
    standing = learned.Standing(*np.array([[0, 1, -1], [0.5, 0.7, 0.9], [5, 5, 5]], np.float32))
    return learned.Learned(SUPPLY, mixing, loud_policy(mixing, jax.random.key(2)), standing)


RULES = {
    "bandit": lambda: BANDIT,
    "policy": policy,
    "weights": lambda: policy((0.5, 1.0, 2.0)),
}


@pytest.fixture(scope="module")
def lives(mixed, tmp_path_factory):
    """Finished trainings under controllers that learn, by rule: folder and parameters."""

    @functools.cache
    def lived(rule):
        folder = tmp_path_factory.mktemp(rule)
        return folder, fit(mixed, folder, RULES[rule]())[0]

    return lived


@pytest.fixture(scope="module")
def live(lives):
    """That of a bandit."""
    return lives("bandit")


def test_feedback_is_of_policy_val_alone(mixed, live):
    folder, params = live
    forward = train.predict.make_forward(RECIPE.model, 3, mesh.make_mesh(1))
    told = history.measure(forward, params, mixed, RECIPE.batch_size)
    logits, _ = train.predict.predict(forward, params, mixed.real, mixed.policy_rows, 16)
    p = np.exp(logits.astype(float))
    p /= p.sum(axis=1)[:, None]
    for label in range(3):
        own, others = p[5 * label : 5 * label + 5], np.delete(p, label, axis=1)
        rival = others[5 * label : 5 * label + 5].max(axis=1)
        mine = own[:, label]
        expected = [mine.mean(), mine.sum() / p[:, label].sum(), (mine - rival).mean()]
        expected += [-np.log(mine).mean()]
        found = [getattr(told, n)[label] for n in ("recall", "precision", "margin", "loss")]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    last = json.loads((folder / "history.json").read_text())[-1]
    assert last == {name: array.tolist() for name, array in vars(told).items()}
    val = dataclasses.replace(mixed, val_rows=mixed.val_rows[:0], val_labels=mixed.val_labels[:0])
    again = history.measure(forward, params, val, RECIPE.batch_size)
    assert again.recall.tolist() == told.recall.tolist()


def test_a_controller_is_told_the_losses_of_some_train_images(mixed, live, monkeypatch):
    monkeypatch.setattr(history, "LOOKED_AT", 4)
    forward = train.predict.make_forward(RECIPE.model, 3, mesh.make_mesh(1))
    some = dataclasses.replace(mixed, extra_rows=[*mixed.extra_rows[:2], np.zeros(0, int)])
    told = history.measure(forward, live[1], some, RECIPE.batch_size)

    def mean_loss(images, rows, label):
        logits, _ = train.predict.predict(forward, live[1], images, rows, 16)
        return -np.mean(jax.nn.log_softmax(logits)[:, label])

    for label in range(3):
        expected = mean_loss(some.real, some.train_rows[label][:4], label)
        np.testing.assert_allclose(told.real_loss[label], expected, rtol=1e-5)
    for label in range(2):
        expected = mean_loss(some.extra, some.extra_rows[label][:4], label)
        np.testing.assert_allclose(told.synthetic_loss[label], expected, rtol=1e-5)
    assert np.isnan(told.synthetic_loss[2])
    alone = dataclasses.replace(mixed, extra=None, extra_rows=None)
    told = history.measure(forward, live[1], alone, RECIPE.batch_size)
    assert np.isnan(told.synthetic_loss).all() and np.isfinite(told.real_loss).all()


def test_shares_of_zero_in_use_reproduce_the_real_only_run(data, mixed, tmp_path):
    """With a pool at hand, all of whose images are in use, and feedback after each round."""
    alone, _ = fit(data, tmp_path / "alone")
    zero = adaptive.Bandit(SUPPLY, (0.0, 0.0), seed=0)
    offered, _ = fit(mixed, tmp_path / "offered", zero)
    assert_equal_trees(alone, offered)
    assert len(json.loads((tmp_path / "offered/history.json").read_text())) == RECIPE.rounds
    assert not (tmp_path / "alone/history.json").exists()


@pytest.mark.parametrize("rule", RULES)
def test_a_replayed_schedule_equals_the_live_run(mixed, lives, tmp_path, rule):
    folder, params = lives(rule)
    entries = []
    for mixture in history.mixtures(folder, RULES[rule](), mixed, RECIPE.rounds):
        entries.append({"share": mixture.share.tolist()})
        if rule == "weights":
            entries[-1]["factor"] = mixture.factor.tolist()
    for choices in zip(*(entry.values() for entry in entries), strict=True):
        assert len(set(map(tuple, choices))) > 1, "nothing was learned that could be replayed"
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(entries))
    replayed = controllers.Schedule(SUPPLY, controllers.read_schedule(path))
    again, _ = fit(mixed, tmp_path / "replayed", replayed)
    assert_equal_trees(params, again)
    assert not (tmp_path / "replayed/history.json").exists()


def interrupt(monkeypatch, where, when):
    """Raises KeyboardInterrupt at the `when`-th call of a module's or class's attribute."""
    owner, name = where
    original, calls = getattr(owner, name), []

    def cut(*args, **kwargs):
        calls.append(None)
        if len(calls) == when:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, cut)


CUTS = {
    "early": ((train.MixedStream, "__next__"), 4),  # in the first round, before any feedback
    "mid_round": ((train.MixedStream, "__next__"), 12),  # after a checkpoint there
    "before_feedback": ((history, "measure"), 2),  # at a round's end, before it is told
    "before_history": ((history, "keep"), 2),  # told, not yet written
    # Written, but the checkpoint at the round's end is not: steps 5, 8, 10, 15, then 16.
    "before_checkpoint": ((train.loop.Loop, "save"), 5),
}


@pytest.mark.parametrize(
    ("rule", "cut"),
    [
        *(("bandit", cut) for cut in CUTS),
        ("policy", "mid_round"),
        ("weights", "mid_round"),
        ("weights", "before_checkpoint"),
    ],
)
def test_a_learning_run_that_is_killed_ends_as_an_unbroken_one(
    mixed, lives, tmp_path, monkeypatch, rule, cut
):
    folder, params = lives(rule)
    controller = RULES[rule]()
    with monkeypatch.context() as patch:
        interrupt(patch, *CUTS[cut])
        with pytest.raises(KeyboardInterrupt):
            fit(mixed, tmp_path, controller)
    resumed, _ = fit(mixed, tmp_path, controller)
    assert_equal_trees(params, resumed)
    assert (tmp_path / "history.json").read_text() == (folder / "history.json").read_text()


def test_a_history_without_its_last_round_is_mended_by_the_parameters(
    mixed, live, tmp_path, monkeypatch
):
    folder, params = live
    with monkeypatch.context() as patch:
        interrupt(patch, (train.MixedStream, "__next__"), 17)  # the newest checkpoint is step 16
        with pytest.raises(KeyboardInterrupt):
            fit(mixed, tmp_path, BANDIT)
    path = tmp_path / "history.json"
    held = json.loads(path.read_text())
    assert len(held) == 2
    path.write_text("[]")
    with pytest.raises(controllers.MixtureError, match=r"holds 0 of the 2 rounds .* delete the"):
        fit(mixed, tmp_path, BANDIT)
    path.write_text(json.dumps(held[:1]))
    resumed, _ = fit(mixed, tmp_path, BANDIT)
    assert_equal_trees(params, resumed)
    whole = path.read_text()
    assert whole == (folder / "history.json").read_text()
    path.write_text(json.dumps(json.loads(whole)[:-1]))  # of a training that is through
    fit(mixed, tmp_path, BANDIT)
    assert path.read_text() == whole


def test_only_a_controller_that_learns_asks_for_feedback(mixed, tmp_path, monkeypatch):
    short = dataclasses.replace(RECIPE, steps=4, rounds=2)
    asked = []
    original = train.predict.predict

    def watched(forward, params, images, rows, batch_size):
        asked.append(rows.tolist())
        return original(forward, params, images, rows, batch_size)

    monkeypatch.setattr(train.predict, "predict", watched)
    rules = {
        "fixed": (controllers.FixedShare(SUPPLY, 0.5), 0),
        "replay": (controllers.SourceReplay(controllers.FixedShare(SUPPLY, 0.5), 0), 0),
        "bandit": (BANDIT, 2),
        "learning_replay": (controllers.SourceReplay(BANDIT, 0), 2),
    }
    for name, (controller, times) in rules.items():
        asked.clear()
        fit(mixed, tmp_path / name, controller, short)
        assert asked.count(mixed.policy_rows.tolist()) == times
        assert asked.count(mixed.val_rows.tolist()) == 2
        assert (tmp_path / name / "history.json").exists() == bool(times)


def test_a_controller_that_learns_needs_every_class_in_policy_val(mixed, tmp_path):
    lacking = dataclasses.replace(
        mixed, policy_rows=mixed.policy_rows[:10], policy_labels=mixed.policy_labels[:10]
    )
    with pytest.raises(controllers.MixtureError, match=r"class 2 .*raise config\.data\.split\.pol"):
        fit(lacking, tmp_path, BANDIT)
    many = dataclasses.replace(RECIPE, rounds=25)
    with pytest.raises(controllers.MixtureError, match="25 rounds in 24 steps"):
        fit(mixed, tmp_path, BANDIT, many)
    assert not list(tmp_path.iterdir())
