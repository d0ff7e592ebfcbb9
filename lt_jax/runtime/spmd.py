"""Functions jitted over a mesh, and one of them run over many rows.

Each is one program for all devices, in which every device has its own rows of a batch; XLA puts in
the messages between them. How parameters lie depends on their shapes (`mesh.sharding_of`), so that
a function is jitted when it is first called.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lt_jax.runtime import faults, mesh
from lt_jax.shapes import PyTree


class Program:
    """A function that is jitted by `build(*arguments)` when it is first called."""

    def __init__(self, build: Callable[..., Any], device_mesh: Mesh, function: Callable[..., Any]):
        """Later arguments have the shapes of the first ones, but for the length of a batch."""
        self.mesh, self.function = device_mesh, function
        self._build = build
        self._jitted: Any = None

    def __call__(self, *arguments: Any) -> Any:
        """Calls the jitted function."""
        return self._of(arguments)(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """As of a jitted function."""
        return self._of(arguments).lower(*arguments)

    def clear_cache(self) -> None:
        """As of a jitted function."""
        if self._jitted is not None:
            self._jitted.clear_cache()

    def _of(self, arguments: tuple[Any, ...]) -> Any:
        if self._jitted is None:
            self._jitted = self._build(*arguments)
        return self._jitted


def jit_step(step: Callable[..., Any], device_mesh: Mesh) -> Program:
    """A training's `step(state, batch, key, context) -> (state, metrics)`.

    The batch is split over all devices; state and context lie as `mesh.sharding_of` says, before
    and after, and the state's buffers are given to the new one.
    """
    whole, split = mesh.replicated(device_mesh), mesh.batched(device_mesh)

    def build(state: PyTree, batch: PyTree, key: PyTree, context: PyTree) -> Any:
        del batch, key
        kept = mesh.shardings(state, device_mesh)
        return jax.jit(
            step,
            in_shardings=(kept, split, whole, mesh.shardings(context, device_mesh)),
            out_shardings=(kept, whole),
            donate_argnums=0,
        )

    return Program(build, device_mesh, step)


def jit_rows(function: Callable[..., Any], device_mesh: Mesh) -> Program:
    """`function(params, *rows)`, of which each device has its own rows, before and after."""
    split = mesh.batched(device_mesh)

    def build(params: PyTree, *rows: PyTree) -> Any:
        kept = mesh.shardings(params, device_mesh)
        return jax.jit(function, in_shardings=(kept, *[split] * len(rows)), out_shardings=split)

    return Program(build, device_mesh, function)


def over_rows(
    program: Program,
    params: PyTree,
    rows: np.ndarray,
    batch_size: int,
    read: Callable[[np.ndarray], tuple[PyTree, ...]],
) -> Iterator[PyTree]:
    """What a function from `jit_rows` says of `rows` [n], on the host, batch by batch.

    Args:
      program: the function.
      params: its first argument, anywhere.
      rows: any numbers that `read` knows.
      batch_size: rounded up to a multiple of the devices; the last batch is filled up to it, so
        that one shape is compiled.
      read: its other arguments for some rows; each process reads those of its own devices.

    Raises:
      Preempted: SIGTERM arrived.
    """
    params = mesh.distribute(params, program.mesh)
    batch_size += -batch_size % program.mesh.size
    for start in range(0, len(rows), batch_size):
        faults.check("a pass over images")
        chunk = rows[start : start + batch_size]
        mine = mesh.own(mesh.pad(chunk, batch_size), program.mesh)
        found = mesh.fetch(program(params, *mesh.put(read(mine), program.mesh)))
        yield _first(found, len(chunk))


def _first(found: PyTree, rows: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[:rows], found)
