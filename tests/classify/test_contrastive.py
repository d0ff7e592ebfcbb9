"""Contrastive training: the loss against its definition, no label anywhere, resume, devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lt_jax.classify import contrastive, predict, probe
from lt_jax.classify import train as supervised
from lt_jax.config import (
    AugmentConfig,
    ClassifierConfig,
    ContrastiveConfig,
    ExtractorConfig,
    OptimizerConfig,
    ResNetConfig,
    RuntimeConfig,
    ViTConfig,
)
from lt_jax.data import augment
from lt_jax.mixing.controllers import MixtureError
from lt_jax.runtime import keys, ledger, mesh, metrics, train_state
from lt_jax.runtime.job import Job

VIT = ViTConfig(variant="custom", width=16, depth=1, heads=2, mlp=16, patch_size=4)
CONFIG = ExtractorConfig(
    objective="contrastive",
    contrastive=ContrastiveConfig(temperature=0.3, projection=8),
    model=ClassifierConfig(vit=VIT),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2, weight_decay=0.01),
    augment=AugmentConfig(shift=1, brightness=0.3),
    steps=12,
    batch_size=16,
)
RUNTIME = RuntimeConfig(log_every=4, checkpoint_every=5)
SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (64, *SHAPE), dtype=np.uint8)


ROWS = np.split(np.arange(5, 59), [30, 46])  # of classes of 30, 16 and 8


def learn(images, folder, rows=ROWS, config=CONFIG):
    job = Job(folder, mesh.make_mesh(1), RUNTIME, {"stage": "extractor"})
    return contrastive.learn(config, images, rows, SHAPE, job)


def assert_equal_trees(left, right):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(left), jax.device_get(right))


def embeddings_of(count, width=5, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def loss_of(embeddings, ids, temperature=0.3):
    cosine = contrastive.cosines(jnp.asarray(embeddings))
    return contrastive.nt_xent(cosine, jnp.asarray(ids), temperature)


def direct_loss(embeddings, ids, temperature):
    """Equation (2), view by view, in float64."""
    z = embeddings.astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    losses = []
    for v in range(len(z)):
        other = v + 1 if v % 2 == 0 else v - 1
        against = [other, *(u for u in range(len(z)) if ids[u] != ids[v])]
        parts = np.exp([z[v] @ z[u] / temperature for u in against])
        losses.append(-np.log(parts[0] / parts.sum()))
    return np.array(losses)


@pytest.mark.parametrize("shown", [[0, 1, 2, 3, 4, 5], [7, 3, 7, 5, 3, 7]])
def test_loss_is_its_definition(shown):
    ids = np.repeat(shown, 2)
    z = embeddings_of(12)
    expected = direct_loss(z, ids, 0.3)
    np.testing.assert_allclose(loss_of(z, ids), expected, rtol=1e-5)


def test_loss_of_distinct_images_is_optax_s():
    z, ids = embeddings_of(12), np.repeat(np.arange(6), 2)
    np.testing.assert_allclose(loss_of(z, ids).mean(), optax.losses.ntxent(z, ids, 0.3), rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_identical_views_and_orthogonal_images_have_the_closed_form(temperature):
    z = np.repeat(3 * np.eye(6, dtype=np.float32), 2, axis=0)
    ids = np.repeat(np.arange(6), 2)
    expected = np.log1p(10 * np.exp(-1 / temperature))
    np.testing.assert_allclose(loss_of(z, ids, temperature), expected, rtol=1e-4, atol=1e-6)
    same = np.ones((12, 4), np.float32)  # nothing can be told apart: one of eleven, by chance
    np.testing.assert_allclose(loss_of(same, ids, temperature), np.log(11), rtol=1e-5)


def test_an_image_drawn_twice_is_not_pushed_from_itself():
    z, ids = jnp.asarray(embeddings_of(8)), jnp.array([4, 4, 9, 9, 4, 4, 2, 2])
    slopes = jax.jacobian(loss_of)(z, ids)  # [view, view, dimension]
    moved = np.abs(slopes).max(axis=2) > 0
    expected = (ids[:, None] != ids[None, :]) | (np.arange(8)[:, None] // 2 == np.arange(8) // 2)
    np.testing.assert_array_equal(moved, expected)


def test_cosines_see_directions_alone_and_stand_zeros():
    z = embeddings_of(8)
    lengths = np.geomspace(1e-3, 1e3, 8).astype(np.float32)[:, None]
    scaled = contrastive.cosines(jnp.asarray(z * lengths))
    np.testing.assert_allclose(scaled, contrastive.cosines(jnp.asarray(z)), atol=1e-6)
    np.testing.assert_allclose(np.diag(scaled), 1, atol=1e-6)
    slope = jax.grad(lambda z: loss_of(z, jnp.arange(8) // 2).sum())(jnp.zeros((8, 3)))
    assert np.isfinite(slope).all()


def test_alignment_and_uniformity_are_their_definitions():
    z, ids = embeddings_of(10), np.repeat([3, 1, 3, 0, 5], 2)
    found = contrastive.spread(contrastive.cosines(jnp.asarray(z)), jnp.asarray(ids))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    squared = np.square(unit[:, None] - unit[None]).sum(-1)
    others = ids[:, None] != ids[None]
    np.testing.assert_allclose(found["alignment"], squared[::2, 1::2].diagonal().mean(), rtol=1e-5)
    expected = np.log(np.exp(-2 * squared)[others].mean())
    np.testing.assert_allclose(found["uniformity"], expected, rtol=1e-5)
    alone = contrastive.spread(contrastive.cosines(jnp.ones((4, 2))), jnp.zeros(4, int))
    assert {name: float(value) for name, value in alone.items()} == {
        "alignment": pytest.approx(0, abs=1e-6),
        "uniformity": 0.0,
    }


def test_views_differ_and_follow_their_image_whatever_the_batch(images, getkey):
    key = getkey()
    views = contrastive.two_views(images[:8], key, CONFIG)
    assert views.shape == (16, *SHAPE)
    assert (np.abs(views[::2] - views[1::2]).max(axis=(1, 2, 3)) > 0).all()
    few = contrastive.two_views(images[:3], key, CONFIG)
    np.testing.assert_array_equal(few, views[:6])
    still = dataclasses.replace(CONFIG, augment=AugmentConfig())
    plain = contrastive.two_views(images[:2], key, still)
    np.testing.assert_array_equal(plain[0], plain[1])
    np.testing.assert_array_equal(plain[2], augment.normalize(images[1:2])[0])


@functools.cache
def started(devices, config=CONFIG, fsdp=1):
    """A fresh state, on so many devices, and its step."""
    device_mesh = mesh.make_mesh(devices, fsdp)
    optimizer = train_state.make_optimizer(config.optimizer, config.steps)
    params = contrastive.init(config, 3, SHAPE)
    state = train_state.create(params, optimizer, ema=False)
    return contrastive.make_step(config, 3, device_mesh), state, device_mesh


def batch_of(images, rows, label=0):
    rows = np.asarray(rows, np.int32)
    return {
        "image": images[rows],
        "row": rows,
        "label": np.full(len(rows), label, np.int32),
        "synthetic": np.zeros(len(rows), bool),
    }


def one_step(images, devices, rows, label=0, fsdp=1):
    step, state, device_mesh = started(devices, fsdp=fsdp)
    where = mesh.shardings(state, device_mesh)
    state = jax.device_put(state, where, may_alias=False)
    batch = mesh.put(batch_of(images, rows, label), device_mesh)
    return step(state, batch, keys.root(3), ())


def test_a_step_reads_no_label(images):
    left, right = (one_step(images, 1, np.arange(16), label) for label in (0, 2))
    assert_equal_trees(left, right)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_one_device_equals_eight(images, fsdp, monkeypatch):
    monkeypatch.setattr(mesh, "SMALL", 64)  # as are the leaves of a network of these tests
    # Of a whole global batch: were each device's two images compared among themselves alone, the
    # loss would be log(3) and not log(31) where nothing is told apart.
    rows = [*range(14), 3, 3]
    (one, lone), (eight, shared) = one_step(images, 1, rows), one_step(images, 8, rows, fsdp=fsdp)
    leaves = jax.tree.leaves(eight.params)
    assert all(leaf.sharding.is_fully_replicated for leaf in leaves) == (fsdp == 1)
    for name in ("loss", "alignment", "uniformity", "gradient_norm"):
        np.testing.assert_allclose(lone[name], shared[name], rtol=1e-4, atol=1e-6)
    assert float(lone["loss"]) > 2.0
    for a, b in zip(jax.tree.leaves(one.opt_state), jax.tree.leaves(eight.opt_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def unbroken(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return *learn(images, folder), folder


def lines(folder):
    read = metrics.read(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "data_wait_fraction"} for line in read]


def test_labels_permuted_change_no_bit(images, unbroken, tmp_path):
    shuffled = np.random.default_rng(1).permutation(np.concatenate(ROWS))
    params, _ = learn(images, tmp_path, np.split(shuffled, [8, 14]))  # of other counts, too
    assert_equal_trees(params, unbroken[0])


def test_samplers_draw_by_label_only_where_they_balance(images):
    other = np.split(np.random.default_rng(1).permutation(np.concatenate(ROWS)), [8, 14])
    drawn = {}
    for sampler in ("instance", "balanced"):
        config = dataclasses.replace(CONFIG, sampler=sampler, batch_size=30)
        for name, rows in (("own", ROWS), ("other", other)):
            stream = contrastive.make_stream(config, images, rows)
            batch = next(stream)
            stream.close()
            np.testing.assert_array_equal(batch["image"], images[batch["row"]])
            drawn[sampler, name] = batch["row"]
    np.testing.assert_array_equal(drawn["instance", "own"], drawn["instance", "other"])
    counts = [np.isin(drawn["balanced", "own"], rows).sum() for rows in ROWS]
    assert counts == [10, 10, 10]
    with pytest.raises(MixtureError, match="no train image of class 1"):
        contrastive.make_stream(CONFIG, images, [ROWS[0], ROWS[1][:0], ROWS[2]])


@pytest.mark.parametrize("stop", [3, 5, 8, 11])
def test_resumed_equals_unbroken_bit_for_bit(images, unbroken, tmp_path, stop, monkeypatch):
    original = contrastive.MixedStream.__next__

    def cut(stream):
        if stream._next == stop:
            raise KeyboardInterrupt
        return original(stream)

    with monkeypatch.context() as patch:
        patch.setattr(contrastive.MixedStream, "__next__", cut)
        with pytest.raises(KeyboardInterrupt):
            learn(images, tmp_path)
    params, costs = learn(images, tmp_path)
    whole, whole_costs, folder = unbroken
    assert_equal_trees(params, whole)
    assert lines(tmp_path) == lines(folder)
    assert (costs.images, costs.flops) == (whole_costs.images, whole_costs.flops)
    again, _ = learn(images, tmp_path)  # finished: nothing is done
    assert_equal_trees(again, whole)


def test_it_logs_what_is_learned_and_counts_both_views(images, unbroken):
    params, costs, folder = unbroken
    written = lines(folder)
    assert [line["step"] for line in written] == [4, 8, 12]
    assert {"loss", "alignment", "uniformity", "gradient_norm"} <= set(written[0])
    assert costs.images == 2 * CONFIG.steps * CONFIG.batch_size
    assert not np.any(params["head"]["kernel"]) and not np.any(params["head"]["bias"])
    recipe = supervised.Recipe(
        CONFIG.model, CONFIG.optimizer, CONFIG.augment, "cross_entropy", 1.0, 12, 1, 16, 0
    )
    step = supervised.make_step(recipe, 3, mesh.make_mesh(1))
    optimizer = train_state.make_optimizer(CONFIG.optimizer, CONFIG.steps)
    fresh = supervised.init(recipe, 3, SHAPE)
    state = train_state.create(fresh, optimizer, ema=False)
    counts = np.ones(3, np.float32)
    single = ledger.flops(step, state, batch_of(images, range(16)), keys.root(0), counts)
    assert 1.9 < costs.flops / CONFIG.steps / single < 2.6
    # Both objectives start from the same network.
    assert_equal_trees(contrastive.init(CONFIG, 3, SHAPE)["network"], fresh)


def test_any_classifier_is_trained(getkey):
    resnet = ClassifierConfig(kind="resnet", resnet=ResNetConfig(channels=(8, 12), blocks=(1, 1)))
    params = contrastive.init(dataclasses.replace(CONFIG, model=resnet), 3, SHAPE)
    features = jax.random.normal(getkey(), (4, 12))
    assert contrastive.project(params["projection"], features).shape == (4, 8)


def test_features_tell_digits_apart_better_than_an_untrained_network_s(tmp_path):
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    labels = labels[order]
    digits = (pixels[order].reshape(-1, *SHAPE) * 15.9).astype(np.uint8)
    rows = [np.flatnonzero(labels[:400] == k) for k in range(10)]
    held_out = np.arange(400, 1400)
    config = dataclasses.replace(
        CONFIG,
        contrastive=ContrastiveConfig(temperature=0.2, projection=16),
        model=ClassifierConfig(vit=dataclasses.replace(VIT, depth=2, mlp=32)),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=10),
        augment=AugmentConfig(shift=1, scale=0.2, rotate=15.0, contrast=0.3, brightness=0.2),
        steps=200,
        batch_size=64,
    )
    data = supervised.TrainData(
        real=digits,
        train_rows=rows,
        val_rows=held_out,
        val_labels=labels[held_out],
        image_shape=SHAPE,
    )
    device_mesh = mesh.make_mesh(1)
    forward = predict.make_forward(config.model, 10, device_mesh)
    seen = lambda params, rows: predict.predict(forward, params, digits, rows, 200)

    def accuracy(params):
        return (seen(params, held_out)[0].argmax(1) == labels[held_out]).mean()

    fresh = contrastive.init(config, 10, SHAPE)["network"]
    train_rows = np.concatenate(rows)
    head = probe.fit(seen(fresh, train_rows)[1], labels[train_rows], 10, 300)
    runtime = RuntimeConfig(log_every=100, checkpoint_every=1000)
    job = Job(tmp_path, device_mesh, runtime, {"stage": "extractor"})
    params, costs = contrastive.train(config, data, job)
    assert jax.tree.structure(params) == jax.tree.structure(fresh)
    assert costs.images == 2 * 200 * 64
    untrained = accuracy(probe.attach(fresh, head))
    assert untrained > 0.5  # of what is merely random, a good probe
    assert accuracy(params) > untrained + 0.05
