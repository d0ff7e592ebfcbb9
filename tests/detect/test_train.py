"""Training: a tiny detector learns eight phantoms by heart; resumed equals unbroken; mixtures."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import (
    AssignConfig,
    AugmentConfig,
    ConfigError,
    DecodeConfig,
    DetectorConfig,
    OptimizerConfig,
    ResNetConfig,
    RuntimeConfig,
)
from lt_jax.data import augment, phantom
from lt_jax.detect import boxes, predict, targets, train
from lt_jax.evaluate.metrics import average_precision
from lt_jax.runtime import keys, mesh, metrics, train_state
from lt_jax.runtime.job import Job

SIZE = 32
RECIPE = train.Recipe(
    model=DetectorConfig(
        resnet=ResNetConfig(channels=(8, 16, 16), blocks=(1, 1, 1)), width=16, head_blocks=1
    ),
    assign=AssignConfig(),
    decode=DecodeConfig(most=6, candidates=30),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=10),
    augment=AugmentConfig(),
    classes=1,
    steps=120,
    looks=2,
    batch_size=8,
    seed=0,
)
RUNTIME = RuntimeConfig(log_every=20, checkpoint_every=7)


@functools.cache
def phantoms():
    """Eight images with a lesion each, and two of none: uint8 [10 h w 1] and boxes [10 1 4]."""
    labels = jnp.arange(8, dtype=jnp.int32) % 2
    made = phantom.simulate_batch(
        phantom.image_keys(0, jnp.arange(8)), labels, jnp.zeros(8, jnp.int32), size=SIZE
    )
    images = np.rint(255 * np.asarray(made.image)).astype(np.uint8)
    held = np.zeros((10, 1, 4), np.float32)
    for row, mask in enumerate(np.asarray(made.mask)[..., 0] > 0):
        y, x = np.nonzero(mask)
        held[row, 0] = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / SIZE
    empty = np.random.default_rng(0).integers(0, 255, (2, SIZE, SIZE, 1), dtype=np.uint8)
    return np.concatenate([images, empty]), held


def data_of(second=None, share=0.0):
    images, held = phantoms()
    rows = [np.array([0, 2, 4, 6, 8]), np.array([1, 3, 5, 7, 9])]
    lists = [tuple(map(tuple, own[boxes.given(jnp.asarray(own))].tolist())) for own in held]
    lesions = average_precision.Lesions(lists, np.zeros(10, np.int32), 1, 0.05)

    def look(found):
        values = average_precision.match(average_precision.Found(**vars(found)), lesions)[1]
        return {"val_ap50": values["ap50"]}

    return train.TrainData(
        first=train.Store(images, held, rows),
        second=second,
        class_weight=np.full(2, 0.5),
        share=np.full(2, share),
        image_shape=(SIZE, SIZE, 1),
        val_images=images,
        val_rows=np.arange(10),
        look=look,
    )


def fit(folder, data=None, recipe=RECIPE, runtime=RUNTIME):
    tags = {"stage": "detect", "arm": "a", "seed": 0}
    job = Job(folder, mesh.make_mesh(1), runtime, tags)
    return train.train(recipe, data or data_of(), job)


def assert_equal_trees(left, right):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(left), jax.device_get(right))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, *fit(folder, runtime=dataclasses.replace(RUNTIME, checkpoint_every=1000))


def test_it_learns_eight_lesions_by_heart(whole):
    folder, params, ledger = whole
    curve = [
        line["val_ap50"] for line in metrics.read(folder / "metrics.jsonl") if "val_ap50" in line
    ]
    assert len(curve) == 2 and curve[-1] > 0.9
    assert ledger.images == RECIPE.steps * RECIPE.batch_size and ledger.flops > 0
    images, _ = phantoms()
    forward = train.forward_of(RECIPE, SIZE, mesh.make_mesh(1))
    found = predict.predict(forward, params, images, np.arange(10), 8)
    assert found.scores[:8, 0].min() > found.scores[8:, 0].max(), "noise is background"
    alone = predict.predict(forward, params, images, np.array([7, 3, 9]), 8)
    np.testing.assert_allclose(alone.boxes, found.boxes[[7, 3, 9]], atol=1e-5)


@pytest.mark.parametrize("stop", [16, 61], ids=["between_checkpoints", "after_a_look"])
def test_resumed_equals_unbroken_bit_for_bit(whole, tmp_path, stop, monkeypatch):
    original = train.MixedStream.__next__

    def cut(stream):
        if stream._next == stop:
            raise KeyboardInterrupt
        return original(stream)

    with monkeypatch.context() as patch:
        patch.setattr(train.MixedStream, "__next__", cut)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path)
    resumed, ledger = fit(tmp_path, runtime=dataclasses.replace(RUNTIME, checkpoint_every=1000))
    assert_equal_trees(whole[1], resumed)
    assert (ledger.images, ledger.flops) == (whole[2].images, whole[2].flops)
    kept = lambda folder: [
        {k: v for k, v in line.items() if k != "data_wait_fraction"}
        for line in metrics.read(folder / "metrics.jsonl")
    ]
    assert kept(whole[0]) == kept(tmp_path)


def test_synthetic_boxes_go_with_synthetic_images():
    """A store with more boxes an image: batches hold each image's own, zeros behind."""
    images, held = phantoms()
    other = np.full((4, SIZE, SIZE, 1), 77, np.uint8)
    told = np.tile(np.float32([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.9, 0.8]]), (4, 1, 1))
    second = train.Store(other, told, [np.arange(2), np.arange(2, 4)])
    stream = train._stream(RECIPE, data_of(second, 0.5), RUNTIME)
    stream.set_mixture(np.full(2, 0.5), np.full(2, 0.5))
    batch = next(stream)
    stream.close()
    synthetic = batch["synthetic"]
    assert synthetic.sum() == 4 and batch["boxes"].shape == (8, 2, 4)
    for row in range(8):
        if synthetic[row]:
            assert (batch["image"][row] == 77).all()
            np.testing.assert_array_equal(batch["boxes"][row], told[0])
        else:
            at = np.flatnonzero((images == batch["image"][row]).all(axis=(1, 2, 3)))
            np.testing.assert_array_equal(batch["boxes"][row, 0], held[at[0], 0])
            assert not batch["boxes"][row, 1].any()


def test_a_flipped_batch_is_taught_flipped_targets():
    """The augmentation moves boxes with their images, so that targets follow."""
    images, held = phantoms()
    key = keys.root(3)
    config = AugmentConfig(horizontal_flip=True, vertical_flip=True)
    nothing = jnp.zeros((8, SIZE, SIZE, 0))
    moved, _, placed, told = augment.augment_annotated(
        jnp.asarray(images[:8]), nothing, jnp.asarray(held[:8]), key, config
    )
    flips = np.asarray(told[:, :2]) > 0.5
    assert 0 < flips[:, 0].sum() < 8 and 0 < flips[:, 1].sum() < 8
    grid = train.network_of(RECIPE, SIZE).grid
    labels = jnp.zeros(8, jnp.int32)
    plain = targets.assign(jnp.asarray(held[:8]), labels, grid, RECIPE.assign)
    after = targets.assign(placed, labels, grid, RECIPE.assign)
    side = grid.counts[0]
    for row in range(8):
        ways = tuple(slice(None, None, -1 if flip else 1) for flip in flips[row][::-1])
        expected = np.asarray(augment.normalize(images[row : row + 1]))[0][ways]
        np.testing.assert_array_equal(moved[row], expected)
        maps = [np.asarray(t.found[row, : side**2]).reshape(side, side) for t in (plain, after)]
        np.testing.assert_array_equal(maps[0][ways], maps[1])


def test_sharded_over_devices_it_is_the_same_step(monkeypatch):
    monkeypatch.setattr(mesh, "SMALL", 64)  # as are the leaves of a network of these tests
    images, held = phantoms()
    batch = {
        "image": images[:8],
        "boxes": held[:8],
        "label": np.zeros(8, np.int32),
        "synthetic": np.zeros(8, bool),
    }
    optimizer = train_state.make_optimizer(RECIPE.optimizer, RECIPE.steps)
    losses = []
    for devices, fsdp in ((1, 1), (4, 1), (8, 4)):
        device_mesh = mesh.make_mesh(devices, fsdp)
        step = train.make_step(
            dataclasses.replace(RECIPE, augment=AugmentConfig(shift=2)), SIZE, device_mesh
        )
        state = train_state.create(train.init(RECIPE, (SIZE, SIZE, 1)), optimizer, ema=False)
        state = mesh.distribute(state, device_mesh)
        after, values = step(state, mesh.put(batch, device_mesh), keys.root(1), ())
        whole = [leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(after.params)]
        assert all(whole) == (fsdp == 1)
        losses.append([float(values[name]) for name in ("loss", "box_loss", "gradient_norm")])
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-4)


def test_a_batch_that_devices_cannot_share_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.detect\.batch_size"):
        train.train(
            dataclasses.replace(RECIPE, batch_size=6),
            data_of(),
            Job(tmp_path, mesh.make_mesh(4), RUNTIME, {"stage": "detect"}),
        )
