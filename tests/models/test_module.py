"""The boundary around Flax: parameters made under one jit, counted without being made."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.models import module


class Small(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(3)(x)
        return nn.Dropout(0.5)(x, deterministic=not train)


def test_init_depends_on_the_key_and_on_shapes_alone(getkey):
    key = getkey()
    from_values = module.init(Small(), key, jnp.full((2, 5), 7.0), train=False)
    from_shape = module.init(Small(), key, jax.ShapeDtypeStruct((2, 5), jnp.float32), train=False)
    other = module.init(Small(), getkey(), jnp.ones((2, 5)), train=False)
    kernel = from_values["Dense_0"]["kernel"]
    np.testing.assert_array_equal(kernel, from_shape["Dense_0"]["kernel"])
    assert not np.array_equal(kernel, other["Dense_0"]["kernel"])


def test_seeds_of_one_network_share_a_program(getkey):
    traced = []

    class Telling(nn.Module):
        @nn.compact
        def __call__(self, x):
            traced.append(x.shape)
            return nn.Dense(3)(x)

    made = [module.init(Telling(), getkey(), jnp.ones((2, 5))) for _ in range(3)]
    assert not np.array_equal(made[0]["Dense_0"]["kernel"], made[1]["Dense_0"]["kernel"])
    assert module.abstract(Telling(), np.ones((2, 5), np.float32))["Dense_0"]["bias"].shape == (3,)
    module.init(Telling(), getkey(), jnp.ones((2, 6)))
    assert traced == [(2, 5), (2, 6)]


def test_abstract_agrees_with_init_and_counts(getkey):
    x = jnp.ones((1, 5))
    params = module.init(Small(), getkey(), x, train=False)
    shapes = module.abstract(Small(), x, train=False)
    described = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    assert described == shapes
    assert module.count(params) == module.count(shapes) == 5 * 3 + 3


def test_key_feeds_dropout_and_only_dropout(getkey):
    x = jnp.ones((4, 5))
    params = module.init(Small(), getkey(), x, train=False)
    key = getkey()
    plain = module.apply(Small(), params, x, train=False)
    np.testing.assert_array_equal(plain, module.apply(Small(), params, x, key=key, train=False))
    dropped = module.apply(Small(), params, x, key=key, train=True)
    assert (np.asarray(dropped) == 0).any()
    np.testing.assert_array_equal(dropped, module.apply(Small(), params, x, key=key, train=True))
