"""The peers that throughput is measured against do the same work; skipped where not installed."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.throughput import cases, mixing, peers, timing
from lt_jax import config as config_lib
from lt_jax.config import AugmentConfig, ViTConfig
from lt_jax.config.mixing import MixingConfig, PolicyConfig, ProxyConfig
from lt_jax.models import classifier, module
from lt_jax.models.conditioning import Conditions
from tests.models.arrays import random_params, run
from tests.shrink import shrink

CLASSES = 3


def peer(name):
    """A peer's module; the test is skipped where its library is not installed."""
    try:
        found = importlib.import_module(f"experiments.throughput.peers.{name}")
        peers.load("torch").set_num_threads(1)  # two that wait for each other take minutes
        return found
    except peers.PeerMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def config():
    values = shrink(config_lib.defaults())
    with values.unlocked():
        values.generator.augment.update(shift=1, horizontal_flip=True)
    return config_lib.build(config_lib.Config, values)


def with_model(config, **fields):
    model = dataclasses.replace(config.generator.model, **fields)
    return dataclasses.replace(config, generator=dataclasses.replace(config.generator, model=model))


def test_a_missing_library_names_the_command():
    with pytest.raises(peers.PeerMissingError, match=r"requirements-peers\.txt"):
        peers.load("no_such_library.at_all")


def test_a_library_that_does_not_load_is_told_with_the_reason(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(peers.PeerMissingError, match=r"broken_library .*\(operator nms does not"):
        peers.load("broken_library")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"modulation": "shift", "attention": "encoder", "patch_size": 1, "channels": (8, 8, 16)},
    ],
)
def test_the_pytorch_unet_is_ours(config, fields):
    unet = peer("torch_unet")
    generator = cases.generator_of(with_model(config, **fields), CLASSES)
    params = random_params(generator.unet, *generator.example)
    x = jax.random.normal(jax.random.key(0), (4, *generator.image_shape))
    log_snr, label = jnp.linspace(-9.0, 9.0, 4), jnp.array([0, 2, -1, 1])
    told = Conditions(label=label)
    expected = run(generator.unet, params, x, log_snr, told, train=False)
    model = unet.copied(unet.model_of(generator), params).eval()
    assert sum(p.numel() for p in model.parameters()) == module.count(params)
    asked = (np.moveaxis(np.asarray(x), -1, 1), np.asarray(log_snr), np.asarray(label))
    with unet.torch.no_grad():
        found = model(*(unet.torch.from_numpy(np.array(value)) for value in asked))
    np.testing.assert_allclose(np.moveaxis(found.numpy(), 1, -1), expected, rtol=1e-3, atol=1e-4)


def test_what_the_pytorch_unet_has_not_is_refused(config):
    unet = peer("torch_unet")
    other = cases.generator_of(with_model(config, resample="convolution"), CLASSES)
    with pytest.raises(unet.UnsupportedError, match="resample=block"):
        unet.model_of(other)


def test_every_mode_learns_a_batch(config):
    unet = peer("torch_unet")
    optimizer = dataclasses.replace(config.generator.optimizer, learning_rate=1e-2)
    generator = dataclasses.replace(config.generator, optimizer=optimizer)
    config = dataclasses.replace(config, generator=generator)
    unet.torch.manual_seed(0)
    for mode in (*peers.CONVOLUTIONS[:3], peers.GPU_CONVOLUTIONS[1]):  # those not compiled
        case = unet.case(config, CLASSES, mode)
        losses = [float(case.call()) for _ in range(40)]
        assert np.mean(losses[-15:]) < np.mean(losses[:15]), case.name
        assert case.images == config.generator.batch_size


def test_products_are_in_tf32_where_the_mode_says_so():
    step = peer("torch_step")
    for mode, precision in ((peers.EAGER, "high"), (peers.PUBLISHED[0], "highest")):
        with step.running(mode):
            assert step.torch.get_float32_matmul_precision() == precision
    assert [mode.dtype for mode in peers.PUBLISHED] == ["", "float32", "float32"]


def test_pytorch_shifts_and_flips_as_we_do():
    step = peer("torch_step")
    step.torch.manual_seed(0)
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    images = step.torch.from_numpy(np.repeat(image, 200, axis=0))
    out = step.augmented(images, AugmentConfig(shift=1, horizontal_flip=True)).numpy()
    assert out.shape == (200, 1, 4, 4)
    rows = np.arange(4)
    expected = set()
    for flip in (False, True):
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                y, x = np.clip(rows + dy, 0, 3), np.clip((rows[::-1] if flip else rows) + dx, 0, 3)
                expected.add(image[0, y[:, None], x[None, :], 0].tobytes())
    found = {np.round((o[0] * 255 + 255) / 2).astype(np.uint8).tobytes() for o in out}
    assert found == expected


def test_timm_has_as_many_parameters_with_a_token_and_learned_positions():
    timm = peer("timm_vit")
    tiny = ViTConfig(
        variant="custom", width=16, depth=2, heads=2, mlp=32, patch_size=4, position="learned",
        pool="token",
    )  # fmt: skip
    for vit, side in ((tiny, 8), (dataclasses.replace(tiny, variant="S", patch_size=16), 224)):
        ours = classifier.make(config_lib.ClassifierConfig(kind="vit", vit=vit), 7)
        params = module.abstract(ours, jnp.zeros((1, side, side, 3)), train=False)
        model = timm.make(vit, side, 3, 7)
        assert sum(p.numel() for p in model.parameters()) == module.count(params)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # its own
def test_diffusers_network_is_of_about_our_size_and_samples(config):
    diffusers = peer("diffusers_unet")
    config = with_model(config, channels=(32, 48), patch_size=1, attention_resolutions=(4,))
    generator = cases.generator_of(config, CLASSES)
    ratio = diffusers.parameters(diffusers.matched(generator)) / module.count(generator.abstract())
    assert 0.8 < ratio < 1.25
    case = diffusers.sampling(config, CLASSES, peers.EAGER)
    images = case.call()
    size, (side, _, channels) = config.synthesize.batch_size, generator.image_shape
    assert images.shape == (size, channels, side, side) and images.dtype == np.uint8
    assert case.evaluations == 2 * config.synthesize.steps * size
    assert case.flops == case.evaluations * diffusers.forward_flops(generator)
    # Three by three convolutions of every place: far more than two a parameter.
    assert diffusers.forward_flops(generator) > 4 * module.count(generator.abstract())


def test_the_python_loop_learns_by_ppo():
    ppo = peer("torch_ppo")
    env = mixing.environment(MixingConfig(rounds=2, proxy=ProxyConfig(batch_size=8, minibatches=2)))
    learner = ppo.PPO(env, PolicyConfig(width=8, episodes=3, epochs=2, minibatches=2))
    before = [param.detach().clone() for param in learner.params]
    told = learner.update()
    assert told["steps"] == 3 * env.rounds and 0 <= told["return"] <= env.rounds
    assert any(not (a == b).all() for a, b in zip(before, learner.params, strict=True))
    # Equal rewards whatever is done: nothing is left for the actor to learn but its entropy.
    advantages = ppo.advantages(ppo.torch.ones(4, 2), ppo.torch.zeros(5, 2), 1.0, 1.0)
    np.testing.assert_allclose(advantages, np.array([[4.0], [3], [2], [1]]) * np.ones((1, 2)))


def test_the_dataloader_gives_images_with_their_labels():
    loader = peer("torch_loader")
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    case = loader.case("memory", images, np.arange(5), 4, 0)
    seen = set()
    for _ in range(10):
        batch, labels = case.call()
        np.testing.assert_array_equal(batch[:, 0, 0, 0], labels)
        seen |= set(labels.tolist())
    assert seen == set(range(5))
    assert timing.time_all([case], 2, 0.0)[0][0] > 0
