"""Generator training: golden step, data parallelism, every option at once, adaptation."""

import dataclasses

import jax
import numpy as np
import pytest

from lt_jax.config import (
    AdaptConfig,
    AugmentConfig,
    ConditionsConfig,
    ConfigError,
    GeneratorConfig,
    OptimizerConfig,
    RuntimeConfig,
    SketchConfig,
    UNetConfig,
)
from lt_jax.diffusion import annotations, train, trained
from lt_jax.diffusion.generator import Generator
from lt_jax.models import module
from lt_jax.models.conditioning import Vocabulary
from lt_jax.runtime import keys, mesh, metrics, train_state
from lt_jax.runtime.job import Job
from tests import goldens
from tests.diffusion.lesion_set import ALL

CONFIG = GeneratorConfig(
    model=UNetConfig(channels=(8, 16), blocks=1, attention_resolutions=(4,), embedding=16),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1, schedule="constant"),
    steps=6,
    batch_size=16,
)
SHAPE = (8, 8, 1)
PLAIN = Generator(CONFIG, Vocabulary(3), SHAPE)
COUNTS = (4, 4, 4)
TOLD = dataclasses.replace(ALL, boxes="channel_and_corners", noise=0.1)
EVERYTHING = Generator(
    dataclasses.replace(
        CONFIG,
        conditions=TOLD,
        sketch=SketchConfig(weight=0.1, source="mask"),
        augment=AugmentConfig(horizontal_flip=True, shift=1, scale=0.1),
        cbdm_weight=1.0,
        ema="power",
        ema_snapshots=3,
    ),
    annotations.make_vocabulary(TOLD, 3, 2, 1),
    SHAPE,
)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (16, *SHAPE), dtype=np.uint8),
        "label": rng.integers(0, 3, 16).astype(np.int32),
        "synthetic": np.zeros(16, bool),
    }


@pytest.fixture
def annotated(batch):
    rng = np.random.default_rng(1)
    low = rng.uniform(0, 0.5, (16, 2, 2)).astype(np.float32)
    return {
        **batch,
        "device": rng.integers(-1, 2, 16).astype(np.int32),
        "attributes": rng.normal(size=(16, 1)).astype(np.float32),
        "boxes": np.concatenate([low, low + 0.4], axis=-1),
        "mask": 255 * rng.integers(0, 2, (16, 8, 8, 1), dtype=np.uint8),
        "mask_given": rng.integers(0, 2, 16).astype(bool),
    }


def steps_on(device_mesh, batch, generator=PLAIN, count=2):
    step = train.make_step(generator, COUNTS, device_mesh)
    optimizer = train_state.make_optimizer(generator.config.optimizer, generator.config.steps)
    state = train_state.create(generator.init(), optimizer, train.ema_rule(generator.config))
    state = mesh.distribute(state, device_mesh)
    for n in range(count):
        key = jax.random.fold_in(keys.root(0), n)
        state, metrics = step(state, mesh.put(batch, device_mesh), key, ())
    return state, {name: float(value) for name, value in metrics.items()}


def test_golden_metrics(batch, update_goldens):
    _, metrics = steps_on(mesh.make_mesh(1), batch)
    goldens.check_numbers("generator_step", metrics, update_goldens)


def test_one_device_equals_eight(batch):
    one, one_metrics = steps_on(mesh.make_mesh(1), batch)
    # Two Adam steps of 1e-3: an error in a gradient's sign would show as 2e-3 or more.
    for fsdp in (1, 4):
        eight, eight_metrics = steps_on(mesh.make_mesh(8, fsdp), batch)
        assert one_metrics == pytest.approx(eight_metrics, rel=1e-4)
        leaves = jax.tree.leaves(eight.ema)
        assert all(leaf.sharding.is_fully_replicated for leaf in leaves) == (fsdp == 1)
        for left, right in zip(jax.tree.leaves(one.ema), leaves, strict=True):
            np.testing.assert_allclose(left, right, atol=2e-4)


def test_every_option_at_once_on_one_device_and_eight(annotated):
    one, one_metrics = steps_on(mesh.make_mesh(1), annotated, EVERYTHING)
    eight, eight_metrics = steps_on(mesh.make_mesh(8), annotated, EVERYTHING)
    assert one_metrics.keys() >= {"loss", "cbdm", "sketch"}
    assert one_metrics == pytest.approx(eight_metrics, rel=1e-3)
    for left, right in zip(jax.tree.leaves(one.ema), jax.tree.leaves(eight.ema), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-4)


IMAGES = np.full((12, *SHAPE), 40, np.uint8)
ROWS = [np.arange(4), np.arange(4, 8), np.arange(8, 12)]


def run(generator, folder, images=IMAGES, **inputs):
    job = Job(folder, mesh.make_mesh(1), RuntimeConfig(log_every=10), {"stage": "generator"})
    return train.train(generator, images, ROWS, job, **inputs)


def test_training_learns_a_constant_image(tmp_path):
    """All images are one colour: the loss must fall far below its first value."""
    optimizer = OptimizerConfig(learning_rate=5e-3, warmup_steps=5)
    config = dataclasses.replace(CONFIG, steps=60, optimizer=optimizer)
    ledger = run(Generator(config, Vocabulary(3), SHAPE), tmp_path)
    losses = [line["loss"] for line in metrics.read(tmp_path / "metrics.jsonl")]
    assert losses[-1] < 0.3 * losses[0]
    assert ledger.images == 60 * 16
    assert ledger.flops > 0


def same(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_the_length_of_a_power_average_is_chosen_after_training(tmp_path):
    config = dataclasses.replace(CONFIG, ema="power", ema_lengths=(0.05, 0.2), ema_snapshots=3)
    generator = Generator(config, Vocabulary(3), SHAPE)
    images = np.random.default_rng(0).integers(0, 256, IMAGES.shape, dtype=np.uint8)
    run(generator, tmp_path, images)
    short, long = (trained.load(tmp_path, generator, length) for length in (0.05, 0.2))
    assert same(short, trained.load(tmp_path, generator)) and not same(short, long)
    between = trained.load(tmp_path, generator, 0.1)
    norm = lambda a, b: sum(
        float(np.sum(np.square(np.asarray(x) - y)))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    assert 0 < norm(between, short) < norm(long, short)
    with pytest.raises(ConfigError, match="ema_length"):
        trained.load(tmp_path, PLAIN, 0.1)


def known(classes=("a", "b", "c"), attributes=()):
    return {"classes": [*classes], "devices": [], "attributes": [list(a) for a in attributes]}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    images = np.random.default_rng(0).integers(0, 256, IMAGES.shape, dtype=np.uint8)
    run(PLAIN, folder, images)
    trained.describe(folder, PLAIN, known(), {"seen"})
    return folder


def adapted(base_folder, folder, method, classes=("a", "b", "c")):
    config = dataclasses.replace(CONFIG, adapt=AdaptConfig(base=str(base_folder), method=method))
    generator = Generator(config, Vocabulary(3), SHAPE)
    base, _ = trained.load_base(base_folder, known(classes))
    before = jax.tree.map(np.array, base)
    run(generator, folder, base=base)
    assert same(base, before)
    return base, trained.load(folder, generator)


@pytest.mark.parametrize("method", ["lora", "full", "none"])
def test_adaptation_trains_what_its_method_says(base_folder, tmp_path, method):
    base, params = adapted(base_folder, tmp_path, method)
    leaves = train.lora.flatten(params)
    moved = {path for path, leaf in leaves.items() if not np.array_equal(leaf, base[path])}
    kernels = {path for path in leaves if path.endswith("/kernel")}
    assert module.count(leaves) == module.count(base)
    # Biases of the loss's own making do not move under LoRA; kernels do, up to those without use.
    expected = {"lora": moved <= kernels and moved, "full": moved - kernels, "none": not moved}
    assert expected[method]


def test_classes_of_other_names_get_a_table_of_their_own(base_folder, tmp_path):
    base, params = adapted(base_folder, tmp_path, "none", classes=("x", "y", "z"))
    table = "backbone/embedding/label/embedding"
    assert table not in base
    leaves = train.lora.flatten(params)
    old = train.lora.flatten(trained.load(base_folder, PLAIN))
    assert [path for path in leaves if not np.array_equal(leaves[path], old[path])] == [table]


def test_attributes_of_other_names_get_weights_of_their_own(tmp_path):
    """So do those that are standardised otherwise."""
    config = dataclasses.replace(CONFIG, conditions=ConditionsConfig(attributes=("age",)))
    generator = Generator(config, Vocabulary(3, attributes=1), SHAPE)
    trained.save(tmp_path, generator.init())
    kernel = "backbone/embedding/attributes/kernel"
    age, months = ("age", 50.0, 10.0), ("age", 600.0, 120.0)
    trained.describe(tmp_path, generator, known(attributes=[age]), ())
    for attribute, kept in ((age, True), (months, False), (("size", 50.0, 10.0), False)):
        leaves, _ = trained.load_base(tmp_path, known(attributes=[attribute]))
        assert (kernel in leaves) == kept


def test_a_base_that_has_seen_held_out_images_is_refused(base_folder):
    assert trained.load_base(base_folder, known(), {"other"})[1] == ["seen"]
    with pytest.raises(ConfigError, match="1 images that this run holds out"):
        trained.load_base(base_folder, known(), {"seen", "other"})


def test_a_base_that_is_none_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"adapt\.base"):
        trained.load_base(tmp_path, known())
