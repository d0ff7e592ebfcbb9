"""Decoupled training: what the second stage changes, what it chooses, costs and takes up again."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.classify import decoupled, history, predict, train
from lt_jax.classify.decoupled import SecondStage
from lt_jax.config import (
    ArmConfig,
    AugmentConfig,
    ClassifierConfig,
    OptimizerConfig,
    RuntimeConfig,
    ViTConfig,
)
from lt_jax.mixing import controllers
from lt_jax.runtime import mesh, metrics
from lt_jax.runtime.job import Job

FIRST, SECOND = 8, 10
RECIPE = train.Recipe(
    model=ClassifierConfig(
        vit=ViTConfig(variant="custom", width=16, depth=1, heads=2, mlp=16, patch_size=4)
    ),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2, weight_decay=0.01),
    augment=AugmentConfig(shift=1),
    loss="cross_entropy",
    tau=1.0,
    steps=FIRST,
    rounds=2,
    batch_size=16,
    seed=0,
)
RUNTIME = RuntimeConfig(log_every=4, checkpoint_every=4)
KINDS = {"crt": SecondStage("crt", SECOND, 1.0), "lws": SecondStage("lws", SECOND, 3.0)}
CONTROLLER = controllers.Uniform(controllers.Supply((37, 13, 5), (6, 6, 6)), 0.5)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [40, 16, 8])
    images = rng.integers(0, 200, (len(labels), 8, 8, 1)) + 20 * labels[:, None, None, None]
    rows = [np.flatnonzero(labels == k) for k in range(3)]
    return train.TrainData(
        real=images.astype(np.uint8),
        train_rows=[r[:-3] for r in rows],
        val_rows=np.concatenate([r[-3:] for r in rows]),
        val_labels=np.repeat([0, 1, 2], 3),
        image_shape=(8, 8, 1),
        extra=rng.integers(0, 256, (18, 8, 8, 1), dtype=np.uint8),
        extra_rows=np.split(np.arange(18), 3),
    )


def job_in(folder, **tags):
    return Job(folder, mesh.make_mesh(1), RUNTIME, tags)


def fit(second, data, folder, recipe=RECIPE):
    """Both stages, as an arm runs them: first stage's parameters, result, and its own cost."""
    job = job_in(folder, stage="classify", arm="a", seed=recipe.seed)
    params, before = train.train(recipe, data, CONTROLLER, job)
    last = history.mixtures(folder, CONTROLLER, data, recipe.rounds)[-1]
    found, costs = decoupled.finish(second, recipe, data, last, params, job)
    return jax.device_get(params), jax.device_get(found), before, costs


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Finished trainings by kind: their folder and what `fit` gives."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    return {kind: (folders[kind], *fit(KINDS[kind], data, folders[kind])) for kind in KINDS}


def equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def trunk(params):
    return {name: leaf for name, leaf in params.items() if name != "head"}


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_head_is_trained_and_the_network_stays_one(whole, data, kind):
    _, params, found, *_ = whole[kind]
    equal(trunk(params), trunk(found))
    assert jax.tree.structure(params) == jax.tree.structure(found)
    old, new = params["head"], found["head"]
    assert np.abs(old["kernel"] - new["kernel"]).max() > 1e-3
    scale = new["kernel"] / old["kernel"]
    if kind == "lws":  # one factor a class, of weights and bias
        np.testing.assert_allclose(scale, scale[:1].repeat(16, axis=0), rtol=1e-4)
        np.testing.assert_allclose(new["bias"], old["bias"] * scale[0], rtol=1e-4)
        assert np.ptp(scale[0]) > 1e-3
    else:
        assert np.ptp(scale, axis=0).min() > 1e-2
    # The network of the new parameters gives the logits that the second stage trained.
    forward = predict.make_forward(RECIPE.model, 3, mesh.make_mesh(1))
    logits, features = predict.predict(forward, found, data.real, data.val_rows, 16)
    own = new if kind == "crt" else {"scale": scale[0]}
    expected = decoupled.logits_of(
        kind, jax.tree.map(jnp.asarray, own), jax.tree.map(jnp.asarray, old), jnp.asarray(features)
    )
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_head_is_that_of_the_paper(whole, kind):
    _, params, *_ = whole[kind]
    fresh = decoupled.start_of(kind, params["head"])
    features = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16)), jnp.float32)
    logits = decoupled.logits_of(kind, fresh, params["head"], features)
    head = params["head"]
    first = features @ head["kernel"] + head["bias"][None]
    np.testing.assert_allclose(logits, 0 * first if kind == "crt" else first, atol=1e-6)
    equal(decoupled.attach("lws", params, {"scale": np.ones(3, np.float32)}), params)


def test_classes_are_drawn_alike_at_the_shares_of_the_last_round(
    whole, data, tmp_path, monkeypatch
):
    seen = []
    original = train.MixedStream.__next__

    def watched(stream):
        batch = original(stream)
        seen.append((batch["label"], batch["synthetic"]))
        return batch

    monkeypatch.setattr(train.MixedStream, "__next__", watched)
    folder, params, *_ = whole["crt"]
    last = history.mixtures(folder, CONTROLLER, data, RECIPE.rounds)[-1]
    stage = dataclasses.replace(KINDS["crt"], steps=60)
    decoupled.finish(stage, RECIPE, data, last, params, job_in(tmp_path))
    labels, synthetic = (np.concatenate(part) for part in zip(*seen, strict=True))
    np.testing.assert_allclose(np.bincount(labels) / len(labels), 1 / 3, atol=0.01)
    for k in range(3):
        assert synthetic[labels == k].mean() == pytest.approx(last.share[k], abs=0.02)


def test_the_second_stage_counts_in_the_ledger_and_the_curves(whole):
    folder, _, _, before, costs = whole["crt"]
    assert (before.images, costs.images) == (FIRST * 16, SECOND * 16)
    # Without the trunk's gradients a step is a third of one with them, and the head's.
    assert 0.2 * before.flops / FIRST < costs.flops / SECOND < 0.6 * before.flops / FIRST
    lines = decoupled.curves(folder, FIRST)
    assert [line["step"] for line in lines if "loss" in line] == [FIRST + 4, FIRST + 8, FIRST + 10]
    assert [line["step"] for line in lines if "val_loss" in line] == [FIRST + SECOND]
    assert {line["second_stage"] for line in lines} == {"crt"}
    first = metrics.read(folder / "metrics.jsonl")
    assert max(line["step"] for line in first) == FIRST


@pytest.mark.parametrize("stop", [FIRST - 1, FIRST, FIRST + 1, FIRST + 6])
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_killed_in_or_between_its_stages_ends_as_an_unbroken_one(
    whole, data, tmp_path, monkeypatch, kind, stop
):
    original, calls = train.MixedStream.__next__, []

    def cut(stream):
        calls.append(None)
        if len(calls) > stop:
            raise KeyboardInterrupt
        return original(stream)

    with monkeypatch.context() as patch:
        patch.setattr(train.MixedStream, "__next__", cut)
        with pytest.raises(KeyboardInterrupt):
            fit(KINDS[kind], data, tmp_path)
    params, found, before, costs = fit(KINDS[kind], data, tmp_path)
    folder, expected_params, expected, *ledgers = whole[kind]
    equal(params, expected_params)
    equal(found, expected)
    assert [part.images for part in (before, costs)] == [part.images for part in ledgers]
    lines = [
        [
            {k: v for k, v in line.items() if k != "data_wait_fraction"}
            for line in decoupled.curves(where, FIRST)
        ]
        for where in (tmp_path, folder)
    ]
    assert lines[0] == lines[1]


def test_a_finished_training_is_taken_as_it_is(whole, data):
    folder, _, found, *_ = whole["lws"]
    again = fit(KINDS["lws"], data, folder)
    equal(again[1], found)
    assert again[3].images == SECOND * 16


def test_seeds_differ(whole, data, tmp_path):
    other = fit(KINDS["crt"], data, tmp_path, dataclasses.replace(RECIPE, seed=1))[1]
    assert np.abs(other["head"]["kernel"] - whole["crt"][2]["head"]["kernel"]).max() > 1e-3


def test_normalised_weights_have_norms_to_the_power_of_one_minus_tau():
    rng = np.random.default_rng(0)
    head = {"kernel": rng.normal(size=(16, 4)).astype("f4"), "bias": np.ones(4, "f4")}
    head["kernel"][:, 3] = 0  # of a class that was never drawn
    norm = np.linalg.norm(head["kernel"], axis=0)
    for tau in (0.0, 0.5, 1.0):
        own = decoupled.normalised(head, tau)
        found = np.linalg.norm(own["kernel"], axis=0)
        np.testing.assert_allclose(found[:3], norm[:3] ** (1 - tau), rtol=1e-5)
        assert found[3] == 0 and not own["bias"].any()
    np.testing.assert_array_equal(decoupled.normalised(head, 0.0)["kernel"], head["kernel"])


def test_tau_is_the_best_on_val_and_the_smallest_of_equals():
    """Two classes whose weights point apart; the first one's are ten times as long."""
    head = {"kernel": np.array([[10.0, 0.1], [0.0, 1.0]], "f4"), "bias": np.zeros(2, "f4")}
    features = np.array([[1.0, 0.0], [0.9, 0.1], [0.5, 1.0], [0.3, 1.0]])
    labels = np.array([0, 0, 1, 1])
    tau, found = decoupled.choose_tau(features, labels, head)
    by_hand = []
    for value in decoupled.TAUS:
        kernel = head["kernel"] / np.linalg.norm(head["kernel"], axis=0) ** value
        right = (features @ kernel).argmax(1) == labels
        by_hand.append((right[:2].mean() + right[2:].mean()) / 2)
    assert found == by_hand
    assert found[0] < 1 and tau == decoupled.TAUS[found.index(1.0)] and 0 < tau < 1
    alone, _ = decoupled.choose_tau(features[:2], labels[:2], head)  # class 1 has no image
    assert alone == 0.0


def test_tau_norm_reads_val_alone_and_keeps_its_choice(whole, data, tmp_path, monkeypatch):
    asked = []
    original = predict.predict

    def watched(forward, params, images, rows, batch_size):
        asked.append(rows.tolist())
        return original(forward, params, images, rows, batch_size)

    monkeypatch.setattr(decoupled.predict, "predict", watched)
    _, params, *_ = whole["crt"]
    stage = SecondStage("tau_norm", 0, 1.0)
    job = job_in(tmp_path)
    drawn = CONTROLLER.mixture(())
    found, costs = decoupled.finish(stage, RECIPE, data, drawn, params, job)
    assert asked == [data.val_rows.tolist()]
    choice = json.loads((tmp_path / "second_stage.json").read_text())
    assert choice["tau"] in choice["taus"] == list(decoupled.TAUS) and choice["n"] == 9
    equal(trunk(found), trunk(params))
    np.testing.assert_array_equal(
        found["head"]["kernel"], decoupled.normalised(params["head"], choice["tau"])["kernel"]
    )
    assert costs.images == 0 and costs.seconds > 0
    none = dataclasses.replace(data, val_rows=data.val_rows[:0], val_labels=data.val_labels[:0])
    with pytest.raises(decoupled.DecoupledError, match=r"val, which is empty; raise config\.data"):
        decoupled.finish(stage, RECIPE, none, drawn, params, job)


def test_both_stages_take_as_many_steps_as_another_arm_s_one():
    arm = ArmConfig(second_stage="lws", second_stage_steps=0.25, second_stage_rate=5.0)
    assert decoupled.of(arm, 300) == SecondStage("lws", 75, 5.0)
    assert decoupled.of(ArmConfig(), 300) is None
    assert decoupled.of(ArmConfig(second_stage="tau_norm"), 300).steps == 0
