"""Quick networks for tests: compiling is what takes the time, so less of it is done."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.models import module

# Unoptimised code runs slower and compiles twice as fast.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random_params(net, *examples, scale=0.3, seed=0):
    """Normal parameters drawn by NumPy, with no zeros, so that every path carries."""
    rng = np.random.default_rng(seed)
    shapes = module.abstract(net, *examples, train=False)

    def draw(leaf):
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 1 / scale**2
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan_in), leaf.dtype)

    return jax.tree.map(draw, shapes)


def run(net, params, *args, **options):
    """`module.apply` under jit."""
    return jit(lambda p, *a: module.apply(net, p, *a, **options))(params, *args)
