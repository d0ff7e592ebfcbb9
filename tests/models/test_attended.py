"""Attention weights: those that the network has used, of one and of several experts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import ExpertsConfig, ViTConfig
from lt_jax.models import attended, classifier, module
from tests.models.arrays import jit, random_params, run

LAST = ViTConfig(variant="custom", width=16, depth=2, heads=2, mlp=16, patch_size=4, pool="token")


@pytest.fixture(scope="module")
def made():
    net = classifier.make(ExpertsConfig(kind="vit", vit=LAST, experts=2), 3)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    params = random_params(net, images, scale=1.0)
    weights = jit(lambda p, x: attended.weights(net, p, x))(params, images)
    return net, images, params, np.asarray(weights)


def test_rows_sum_to_one_of_every_block(made):
    *_, weights = made
    assert weights.shape == (2, 2, 2, 5, 5)  # a class token and four patches
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=1e-5)
    assert weights.std() > 0.01


def test_they_weigh_the_values_as_the_network_does(made):
    net, images, params, weights = made
    seen = lambda name: module.outputs_of(net, params, images, name=name, train=False)
    qkv = seen("qkv")["block_0/qkv"]
    v = np.asarray(qkv).reshape(2, 5, 3, 2, 8)[:, :, 2]
    mixed = np.einsum("bhqk,bkhd->bqhd", weights[0], v).reshape(10, 16)
    out = params["block_0"]["out"]
    np.testing.assert_allclose(
        mixed @ np.asarray(out["kernel"]) + np.asarray(out["bias"]),
        seen("out")["block_0/out"],
        atol=1e-5,
    )


def test_the_last_block_is_the_mean_of_the_experts(made):
    net, images, params, weights = made
    swap = {f"expert_{e}_block_1": params[f"expert_{1 - e}_block_1"] for e in range(2)}
    swapped = jit(lambda p, x: attended.weights(net, p, x))({**params, **swap}, images)
    np.testing.assert_allclose(swapped, weights, atol=1e-6)
    same = {"expert_1_block_1": params["expert_0_block_1"]}
    alone = jit(lambda p, x: attended.weights(net, p, x))({**params, **same}, images)
    assert np.abs(np.asarray(alone)[1] - weights[1]).max() > 1e-3


def test_looking_changes_no_answer(made):
    net, images, params, _ = made
    before = run(net, params, images, train=False)[0]
    module.outputs_of(net, params, images, name="qkv", train=False)
    np.testing.assert_array_equal(before, run(net, params, images, train=False)[0])
    assert jnp.isfinite(before).all()
