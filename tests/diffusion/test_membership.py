"""The attack's losses: a generator that memorised betrays its images, another one does not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lt_jax.config import GeneratorConfig, OptimizerConfig, UNetConfig
from lt_jax.data import augment
from lt_jax.diffusion import denoising_error, membership
from lt_jax.diffusion.generator import Generator
from lt_jax.diffusion.process import CosineSchedule, VPProcess
from lt_jax.evaluate.images import privacy
from lt_jax.models import module
from lt_jax.models.conditioning import Vocabulary
from lt_jax.runtime import keys, mesh, train_state

TIMES = (0.1, 0.3, 0.6)
SIDE, N = 4, 16  # images a side
PROCESS = VPProcess(CosineSchedule(), "v")
MODEL = UNetConfig(channels=(8,), blocks=1, attention_resolutions=(), embedding=8, groups=4)
GENERATOR = Generator(
    GeneratorConfig(model=MODEL, optimizer=OptimizerConfig()), Vocabulary(2), (SIDE, SIDE, 1)
)


@pytest.fixture(scope="module")
def images():
    """Members and, behind them, others of the same kind."""
    return np.random.default_rng(0).integers(0, 256, (2 * N, SIDE, SIDE, 1)).astype(np.uint8)


@pytest.fixture(scope="module")
def program():
    return membership.make_program(GENERATOR, TIMES, 3, 0, mesh.make_mesh(4))


@pytest.fixture(scope="module")
def params():
    return GENERATOR.init()


def losses_of(denoise, images, draws=4):
    floats = augment.normalize(images)
    example_keys = keys.per_example(jax.random.key(0), jnp.arange(len(images)))

    def errors(x, labels, drawn):
        del labels
        return denoising_error.of_denoiser(PROCESS, denoise, x, drawn, TIMES)

    labels = jnp.zeros(len(images), jnp.int32)
    return np.asarray(
        jax.jit(lambda x, k: membership.averaged(errors, x, labels, k, draws))(floats, example_keys)
    )


def attacked(values):
    member = np.arange(len(values)) < len(values) // 2
    labels = np.zeros(len(values), int)
    groups = np.arange(len(values))
    return privacy.attack(values.astype(float), member, labels, groups, TIMES, ("a",))


def test_a_generator_that_returns_its_nearest_image_betrays_all(images):
    members = augment.normalize(images[:N])

    def denoise(x_t, log_snr):
        alpha = jnp.sqrt(jax.nn.sigmoid(log_snr))[:, None, None, None]
        gap = x_t[:, None] - alpha[:, None] * members[None]
        nearest = jnp.argmin(jnp.square(gap).sum(axis=(2, 3, 4)), axis=1)
        # As a network does, not to the last bit: losses are above 0.
        return members[nearest] + 1e-3

    found = attacked(losses_of(denoise, images))
    assert found["times"][0]["auroc"] == 1 and found["times"][0]["tpr"]["tpr"] == 1
    assert found["mean"]["auroc"] > 0.99 and found["calibrated"]["auroc"] > 0.99
    assert not found["mean"]["tpr"]["resolved"]  # of 16 non-members


def test_a_generator_that_saw_neither_side_betrays_none():
    """The best denoiser of the images' distribution: 1/2 within the interval."""
    many = np.random.default_rng(1).normal(127, 40, (120, SIDE, SIDE, 1)).clip(0, 255)
    spread = 40 / 127.5

    def denoise(x_t, log_snr):
        alpha = jnp.sqrt(jax.nn.sigmoid(log_snr))[:, None, None, None]
        noise = jax.nn.sigmoid(-log_snr)[:, None, None, None]
        return alpha * spread**2 / (alpha**2 * spread**2 + noise) * x_t

    found = attacked(losses_of(denoise, many.astype(np.uint8)))
    for entry in (*found["times"], found["mean"], found["calibrated"]):
        assert entry["ci95"][0] <= 0.5 <= entry["ci95"][1]


def test_a_network_trained_on_sixteen_images_remembers_them(images, program, params):
    """Three hundred steps on the members alone; before them, nothing tells."""
    labels, rows = np.zeros(2 * N, np.int32), np.arange(2 * N, dtype=np.int32)
    before = np.asarray(program(params, images, labels, rows))
    optimizer = train_state.make_optimizer(OptimizerConfig(learning_rate=1e-2), 300)
    state = train_state.create(params, optimizer, ema=False)
    floats, example = augment.normalize(images[:N]), GENERATOR.example[2]
    conditions = jax.tree.map(lambda leaf: jnp.repeat(leaf, N, axis=0), example)
    conditions = dataclasses.replace(conditions, label=jnp.zeros(N, jnp.int32))

    @jax.jit
    def step(state, key):
        noised = GENERATOR.process.draw(floats, key)

        def loss(params):
            prediction = module.apply(
                GENERATOR.unet, params, noised.x_t, noised.log_snr, conditions, train=False
            )
            return GENERATOR.process.error(prediction, floats, noised).mean(), {}

        return train_state.update(state, optimizer, loss)[0]

    state = dataclasses.replace(state, params=jax.tree.map(jnp.copy, state.params))
    for i in range(300):
        state = step(state, jax.random.fold_in(jax.random.key(1), i))
    after = np.asarray(program(jax.device_get(state.params), images, labels, rows))
    low, high = attacked(before)["mean"]["ci95"]
    assert low <= 0.5 <= high
    found = attacked(after)
    assert found["mean"]["auroc"] > 0.9 and found["mean"]["ci95"][0] > 0.75
    assert found["times"][1]["median"]["member"] < found["times"][1]["median"]["non_member"]


def test_losses_are_means_of_the_denoising_errors_of_each_draw(images, program, params):
    labels, rows = (np.arange(8) % 2).astype(np.int32), np.arange(8, dtype=np.int32) + 5
    found = np.asarray(program(params, images[:8], labels, rows))
    key = keys.stream(keys.root(0), "membership")
    mine = keys.per_example(key, jnp.asarray(rows))
    each = [
        denoising_error.errors(
            GENERATOR,
            params,
            augment.normalize(images[:8]),
            jnp.asarray(labels),
            jax.vmap(lambda k, d=d: jax.random.fold_in(k, d))(mine),
            TIMES,
        )
        for d in range(3)
    ]
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=2e-4)
    # Another batch or order moves no image's loss.
    back = np.asarray(program(params, images[:8][::-1], labels[::-1], rows[::-1]))
    np.testing.assert_allclose(back[::-1], found, rtol=1e-5)


def test_an_interrupted_measurement_goes_on_where_it_was(images, program, params, tmp_path):
    labels, rows = np.zeros(2 * N, int), np.arange(2 * N)
    measure = lambda folder: membership.measure(
        program, params, images, labels, rows, 8, 3 * len(TIMES), folder=folder
    )
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir(), part.mkdir()
    found = measure(whole)
    assert found.values.shape == (2 * N, 3) and found.cost.images == 2 * N * 9
    assert found.cost.flops > 0
    np.save(part / "losses.npy", found.values[:16] + 1)  # marked, so that what was kept shows
    again = measure(part)
    np.testing.assert_array_equal(again.values[:16], found.values[:16] + 1)
    np.testing.assert_array_equal(again.values[16:], found.values[16:])
    np.testing.assert_array_equal(np.load(part / "losses.npy"), again.values)
    # Stopped once all is measured, too, it costs what it cost.
    for cost in (again.cost, measure(part).cost):
        assert (cost.images, cost.flops) == (found.cost.images, found.cost.flops)


def test_only_the_forward_pass_is_in_the_program(images, program, params):
    """No parameter is updated: the same losses twice, the parameters as they were."""
    before = ravel_pytree(params)[0].copy()
    arguments = images[:8], np.zeros(8, np.int32), np.arange(8, dtype=np.int32)
    first, second = (np.asarray(program(params, *arguments)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(ravel_pytree(params)[0], before)
