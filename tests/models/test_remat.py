"""Rematerialised blocks: same parameters, values and gradients, and less is kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.config import ClassifierConfig, GeneratorConfig, ResNetConfig, UNetConfig, ViTConfig
from lt_jax.config.fields import key_fields
from lt_jax.models import classifier, module
from lt_jax.models.conditioning import Conditions, Vocabulary
from lt_jax.models.unet import UNet
from tests.models.arrays import jit, random_params

UNET = UNetConfig(
    channels=(8,), blocks=1, attention_resolutions=(4,), head_channels=8, embedding=8, dropout=0.5
)
VIT = ViTConfig(
    variant="custom", width=8, depth=2, heads=2, mlp=16, patch_size=2, dropout=0.5, drop_path=0.5
)
RESNET = ResNetConfig(channels=(8,), blocks=(1,))
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 3)), jnp.float32)


def made(kind, remat):
    if kind == "unet":
        config = dataclasses.replace(UNET, remat=remat)
        told = Conditions(label=jnp.arange(3))
        return UNet(config, Vocabulary(3), 3), (IMAGES, jnp.linspace(-2.0, 2.0, 3), told)
    config = ClassifierConfig(
        kind=kind,
        vit=dataclasses.replace(VIT, remat=remat),
        resnet=dataclasses.replace(RESNET, remat=remat),
    )
    return classifier.make(config, 3), (IMAGES,)


def loss_of(network, args):
    def loss(params):
        out = module.apply(network, params, *args, key=jax.random.key(1), train=True)
        return jnp.sum(jnp.square(jax.tree.leaves(out)[0]))

    return loss


def kept(loss, params):
    """Bytes that stand between the forward and the backward pass."""
    held = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(held))


@pytest.mark.parametrize(
    ("kind", "remat"), [("unet", "blocks"), ("vit", "dots"), ("resnet", "blocks")]
)
def test_gradients_are_the_same_and_less_is_kept(kind, remat):
    told = {}
    for each in ("none", remat):
        network, args = made(kind, each)
        params = random_params(network, *args)
        loss = loss_of(network, args)
        told[each] = jit(jax.value_and_grad(loss))(params), kept(loss, params)
    ((value, gradient), before), ((again, other), after) = told.values()
    assert jax.tree.structure(gradient) == jax.tree.structure(other)
    np.testing.assert_allclose(again, value, rtol=1e-5)  # dropout has dropped the same
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    jax.tree.map(same, other, gradient)
    assert after < before


def test_dense_layers_products_are_kept_by_dots_alone():
    sizes = {}
    for remat in ("blocks", "dots"):
        network, args = made("vit", remat)
        params = module.abstract(network, *args, train=False)
        sizes[remat] = kept(loss_of(network, args), params)
    assert sizes["blocks"] < sizes["dots"]


def test_it_is_in_no_cache_key():
    plain = GeneratorConfig(model=UNET)
    other = GeneratorConfig(model=dataclasses.replace(UNET, remat="blocks"))
    assert plain != other and key_fields(plain) == key_fields(other)
