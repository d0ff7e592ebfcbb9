"""The boundary around Flax: a network is a pure function of a parameter tree.

Outside `lt_jax.models` no code calls Flax. A network is described by a module (hashable, holds no
array), `init` makes its parameters, and `apply` runs it. All state is in the parameters: the
networks here have no batch statistics and no other collections.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lt_jax.shapes import Params, PRNGKey, PyTree


def init(module: nn.Module, key: PRNGKey, *examples: Any, **static: Any) -> Params:
    """Makes a network's float32 parameters.

    Args:
      module: the network.
      key: decides the parameters.
      *examples: its positional arguments, arrays or `jax.ShapeDtypeStruct`s; only shapes and
        dtypes matter.
      **static: its keyword arguments (`train=False`).
    """
    return _initializer(module, examples, static)(key)


def abstract(module: nn.Module, *examples: Any, **static: Any) -> PyTree[jax.ShapeDtypeStruct]:
    """The parameters' shapes and dtypes, at no cost: for counts in a dry run and restore targets.

    Args: as of `init`.
    """
    return jax.eval_shape(_initializer(module, examples, static), jax.random.key(0))


def apply(
    module: nn.Module, params: PyTree, *args: Any, key: PRNGKey | None = None, **static: Any
) -> Any:
    """Runs a network.

    Args:
      module: the network.
      params: its parameters.
      *args: its positional arguments.
      key: feeds dropout and drop path; needed only where they are on and `train=True`.
      **static: its keyword arguments (`train=False`).
    """
    rngs = None if key is None else {"dropout": key}
    return module.apply({"params": params}, *args, rngs=rngs, **static)


def outputs_of(
    module: nn.Module, params: PyTree, *args: Any, name: str, **static: Any
) -> dict[str, Any]:
    """What the submodules called `name` put out when a network is run, by their path.

    The network computes what `apply` does: its numbers are looked at, not changed.

    Args: as of `apply`.
    """
    _, state = module.apply(
        {"params": params},
        *args,
        capture_intermediates=lambda part, method: part.name == name and method == "__call__",
        mutable=["intermediates"],
        **static,
    )
    leaves = jax.tree_util.tree_flatten_with_path(state["intermediates"])[0]
    # Paths end in the method's name and the number of the call.
    return {"/".join(str(key.key) for key in path[:-2]): leaf for path, leaf in leaves}


def count(params: PyTree) -> int:
    """The number of parameters in a tree of arrays or of their shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _initializer(module: nn.Module, examples: tuple, static: dict[str, Any]):
    leaves, structure = jax.tree.flatten(examples)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    return _jitted(module, shapes, structure, tuple(sorted(static.items())))


@functools.lru_cache(maxsize=64)
def _jitted(module: nn.Module, shapes: tuple, structure: Any, static: tuple):
    """One program for all seeds of a network.

    Under one jit: eager initialisation dispatches (and compiles) every small operation of a network
    apart, ten seconds for a UNet.
    """

    def make(key):
        zeros = jax.tree.unflatten(structure, [jnp.zeros(*shape) for shape in shapes])
        return module.init({"params": key}, *zeros, **dict(static))["params"]

    return jax.jit(make)
