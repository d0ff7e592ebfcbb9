"""Whether a training's state is finite, asked before it is saved: a NaN on disk would come back."""

from typing import Any

import jax
import jax.numpy as jnp

from lt_jax.runtime import faults, mesh
from lt_jax.shapes import Array


def require(tree: Any, what: str) -> None:
    """Raises NonFiniteError where an array of `tree` holds a NaN or an infinity; `what`: of whom.

    Metrics are finite a step longer than the state: those of a step are computed before its update.
    """
    named = [
        (path, leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    held = mesh.fetch(_finite([leaf for _, leaf in named]))
    if bad := [
        jax.tree_util.keystr(path) for (path, _), ok in zip(named, held, strict=True) if not ok
    ]:
        raise faults.NonFiniteError(
            f"{what}: {len(bad)} arrays of the state became non-finite, {bad[0]} for one: it is "
            "not saved; the same command goes on from the checkpoint before, where there is one: "
            "lower the learning rate or clip_norm"
        )


@jax.jit
def _finite(leaves: list[Array]) -> list[Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]
