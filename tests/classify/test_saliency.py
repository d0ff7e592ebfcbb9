"""Integrated gradients are complete, and exact where they can be; rollout chains attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.classify import saliency
from lt_jax.config import ClassifierConfig, ExpertsConfig, ResNetConfig, ViTConfig
from lt_jax.models import classifier
from tests.models.arrays import random_params

VIT = ViTConfig(variant="custom", width=16, depth=2, heads=2, mlp=16, patch_size=4)
RESNET = ResNetConfig(channels=(8, 16), blocks=(1, 1))
CONFIGS = {
    "vit": ClassifierConfig(kind="vit", vit=VIT),
    "resnet": ClassifierConfig(kind="resnet", resnet=RESNET),
    "experts": ExpertsConfig(kind="vit", vit=VIT, experts=2),
}
K = 3


@pytest.fixture(scope="module", params=CONFIGS)
def made(request):
    config = CONFIGS[request.param]
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    net = classifier.make(config, K)
    return config, random_params(net, jnp.zeros((1, 8, 8, 3)), scale=1.0), images


def test_attributions_sum_to_the_difference_of_the_logits(made):
    config, params, images = made
    net = classifier.make(config, K)
    both = jnp.stack([jnp.asarray(images[0]) / 127.5 - 1, jnp.full((8, 8, 3), -1.0)])
    logits = np.asarray(jax.jit(lambda p, x: net.apply({"params": p}, x, train=False)[0])(
        params, both
    ))  # fmt: skip
    for label in range(K):
        found = saliency.integrated_gradients(config, K, params, images[:1], label)
        np.testing.assert_allclose(found.difference, logits[0, label] - logits[1, label], atol=1e-4)
        assert abs(found.gap) <= 0.02 * max(abs(found.difference), 0.5)
        np.testing.assert_allclose(found.pixels.sum(), found.difference + found.gap, atol=1e-5)
        assert found.pixels.shape == (8, 8) and np.abs(found.pixels).max() > 0


def test_a_black_image_has_no_attribution(made):
    config, params, images = made
    found = saliency.integrated_gradients(config, K, params, np.zeros_like(images[:1]), 1)
    np.testing.assert_allclose(found.pixels, 0.0)
    assert (found.difference, found.gap) == (0.0, 0.0)


def test_more_steps_miss_less(made):
    config, params, images = made
    gaps = [
        abs(saliency.integrated_gradients(config, K, params, images[1:], 0, steps).gap)
        for steps in (16, 256)
    ]
    assert gaps[1] <= gaps[0] + 1e-5


def test_rollout_is_a_map_of_patches_of_a_vit_alone(made):
    config, params, images = made
    found = saliency.rollout(config, K, params, images)
    if config.kind == "resnet":
        assert found is None
        return
    assert found.shape == (2, 2, 2) and (found > 0).all()
    np.testing.assert_allclose(found.sum(axis=(1, 2)), 1.0, rtol=1e-5)


def test_rollout_of_attention_to_oneself_is_even_and_of_one_token_is_that_token():
    eye = jnp.broadcast_to(jnp.eye(4), (3, 1, 2, 4, 4))
    np.testing.assert_allclose(saliency.rolled_out(eye, "gap", (2, 2)), 0.25)
    last = jnp.zeros((1, 1, 2, 5, 5)).at[..., 3].set(1.0)  # all tokens look at the third
    seen = np.asarray(saliency.rolled_out(last, "token", (2, 2)))[0]
    np.testing.assert_allclose(seen, [[0, 0], [1, 0]])  # behind the class token it is patch two
    two = jnp.concatenate([last, last])
    mean = np.asarray(saliency.rolled_out(two, "gap", (1, 5)))[0, 0]
    by_hand = np.linalg.matrix_power(0.5 * (np.eye(5)[3][None] + np.eye(5)), 2).mean(axis=0)
    np.testing.assert_allclose(mean, by_hand, rtol=1e-6)


@pytest.mark.parametrize(("label", "steps", "message"), [(3, 64, "label 3"), (0, 20, "steps = 20")])
def test_bad_arguments_are_refused(label, steps, message):
    image = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=message):
        saliency.integrated_gradients(CONFIGS["vit"], K, {}, image, label, steps)
