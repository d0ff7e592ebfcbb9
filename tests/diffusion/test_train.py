"""Generator training: golden step, data parallelism, resume."""

import jax
import numpy as np
import pytest

from lt_jax.config import GeneratorConfig, OptimizerConfig, RuntimeConfig, UNetConfig
from lt_jax.diffusion import train
from lt_jax.runtime import keys, mesh, train_state
from tests import goldens

CONFIG = GeneratorConfig(
    model=UNetConfig(channels=(8, 16), blocks=1, attention_resolutions=(4,), embedding=16),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1, schedule="constant"),
    steps=6,
    batch_size=16,
)
SHAPE = (8, 8, 1)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (16, *SHAPE), dtype=np.uint8),
        "label": rng.integers(0, 3, 16).astype(np.int32),
        "synthetic": np.zeros(16, bool),
    }


def make_state(device_mesh):
    params = train.init(CONFIG, 3, 8, 1)
    optimizer = train_state.make_optimizer(CONFIG.optimizer, CONFIG.steps)
    return jax.device_put(train_state.create(params, optimizer), mesh.replicated(device_mesh))


def steps_on(device_mesh, batch, count=2):
    step = train.make_step(CONFIG, 3, 1, device_mesh)
    state = make_state(device_mesh)
    for n in range(count):
        key = jax.random.fold_in(keys.root(0), n)
        state, metrics = step(state, mesh.put(batch, device_mesh), key, ())
    return state, {name: float(value) for name, value in metrics.items()}


def test_golden_metrics(batch, update_goldens):
    _, metrics = steps_on(mesh.make_mesh(1), batch)
    goldens.check_numbers("generator_step", metrics, update_goldens)


def test_one_device_equals_eight(batch):
    one, one_metrics = steps_on(mesh.make_mesh(1), batch)
    eight, eight_metrics = steps_on(mesh.make_mesh(8), batch)
    assert one_metrics == pytest.approx(eight_metrics, rel=1e-4)
    # Two Adam steps of 1e-3: an error in a gradient's sign would show as 2e-3 or more.
    for left, right in zip(jax.tree.leaves(one.ema), jax.tree.leaves(eight.ema), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-4)


def test_training_learns_a_constant_image(tmp_path):
    """All images are one colour: the loss must fall far below its first value."""
    images = np.full((12, *SHAPE), 40, np.uint8)
    rows = [np.arange(4), np.arange(4, 8), np.arange(8, 12)]
    config = GeneratorConfig(
        model=CONFIG.model,
        steps=60,
        batch_size=16,
        optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=5),
    )
    _, ledger = train.train(
        config,
        images,
        rows,
        image_shape=SHAPE,
        folder=tmp_path,
        device_mesh=mesh.make_mesh(1),
        runtime=RuntimeConfig(log_every=10),
    )
    from lt_jax.runtime import metrics

    losses = [line["loss"] for line in metrics.read(tmp_path / "metrics.jsonl")]
    assert losses[-1] < 0.3 * losses[0]
    assert ledger.images == 60 * 16
    assert ledger.flops > 0
