"""Named random streams: one root key, folded with a stream's name, then with a step.

A new stream moves no other, and the key of step n does not depend on how many steps came before
in this process, so that a resumed run draws what an unbroken one draws.
"""

import zlib

import jax

from lt_jax.shapes import Array, PRNGKey


def root(seed: int) -> PRNGKey:
    """The typed root key of a stage."""
    return jax.random.key(seed)


def stream(key: PRNGKey, name: str) -> PRNGKey:
    """The key of the stream called `name` under `key`."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def per_example(key: PRNGKey, indices: Array) -> Array:
    """One key an index [b]: the key of example i depends on `key` and i alone."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
