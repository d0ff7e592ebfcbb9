"""Many members by one program: all at once, one after the other, or some at a time.

Members at once multiply the memory by their number; one after the other is a loop in the program.
Which is faster depends on the network and the device: experiments/throughput measures it. Over a
mesh, each device has its share of the members where they can be shared evenly.

Trainings whose steps are the same function make their updates by such a program (`Together`): each
array of theirs is stacked along a leading axis.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lt_jax.runtime import mesh, spmd
from lt_jax.shapes import PRNGKey, PyTree


@dataclasses.dataclass(frozen=True)
class Alone:
    """The arrays of one training, as `spmd.jit_step` takes them."""

    device_mesh: Mesh
    rows = 0  # the axis of a batch that is split over the devices

    def program(self, step: Any) -> Any:
        """What makes the update."""
        return step

    def countable(self, step: Any) -> Any:
        """The jitted update of one training, for arrays of any sharding."""
        return step

    def check(self, batch_size: int, field: str) -> None:
        """Raises ConfigError, naming `field`, for a batch that the devices cannot share evenly."""
        mesh.check_batch(batch_size, self.device_mesh, field)

    def keys(self, keys: Sequence[PRNGKey]) -> Any:
        """From which `key` makes those of a step."""
        return keys[0]

    def key(self, keys: Any, n: int) -> Any:
        """Of step n."""
        return jax.random.fold_in(keys, n)

    def target(self, state: Any) -> Any:
        """A fresh state, where a checkpoint is to be restored."""
        return mesh.distribute(state, self.device_mesh)

    def restored(self, states: Sequence[Any]) -> Any:
        """States that are like `target`, as the program takes them."""
        return states[0]

    def context(self, contexts: Sequence[Any]) -> Any:
        """What holds for many steps, on the devices."""
        return mesh.distribute(contexts[0], self.device_mesh)

    def batch(self, batches: Sequence[Mapping[str, np.ndarray]]) -> Any:
        """Of this process's rows, on the devices."""
        return mesh.put(dict(batches[0]), self.device_mesh)

    def members(self, tree: Any) -> list[Any]:
        """States or metrics of each training."""
        return [tree]

    def shapes(self, tree: Any) -> Any:
        """Those of one training's arrays."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None)
            ),
            tree,
        )


@dataclasses.dataclass(frozen=True)
class Together(Alone):
    """The arrays of several trainings, stacked: states [m ...], batches [m b ...], metrics [m].

    Attributes:
      how: "vmap", all at once; "map", one after the other: either on all devices, which share each
        training's batch; "devices": each device has trainings of its own, one after the other, and
        their whole batches.
    """

    how: str

    @property
    def rows(self) -> int:  # type: ignore[override]
        """The axis of a batch that is split over the devices."""
        return 0 if self.how == "devices" else 1

    def program(self, step: Any) -> Any:
        """What makes the updates of all."""
        return _program(step, self)

    def countable(self, step: Any) -> Any:
        """The jitted update of one training, for batches that the devices need not share."""
        return _whole(step)

    def check(self, batch_size: int, field: str) -> None:
        """As of one training, unless its batch stays on one device."""
        if self.how != "devices":
            super().check(batch_size, field)

    def keys(self, keys: Sequence[PRNGKey]) -> Any:
        """Stacked."""
        return jnp.stack(keys)

    def key(self, keys: Any, n: int) -> Any:
        """Of step n, of each training."""
        return _folded(keys, n)

    def target(self, state: Any) -> Any:
        """On the host."""
        return mesh.fetch(state)

    def restored(self, states: Sequence[Any]) -> Any:
        """Stacked, on the devices."""
        stacked = _stack(states)
        where = self.shardings(stacked)
        if not self.device_mesh.is_multi_process:
            # A copy: buffers are donated.
            return jax.device_put(stacked, where, may_alias=False)
        return mesh.place(stacked, where)

    def context(self, contexts: Sequence[Any]) -> Any:
        """Stacked, on the devices."""
        return self.restored(contexts)

    def batch(self, batches: Sequence[Mapping[str, np.ndarray]]) -> Any:
        """Stacked, on the devices."""
        return mesh.put(_stack([dict(own) for own in batches]), self.device_mesh, self.rows)

    def members(self, tree: Any) -> list[Any]:
        """Of each training, on the host."""
        host = mesh.fetch(tree)
        count = len(jax.tree.leaves(host)[0])
        return [jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), host) for i in range(count)]

    def shapes(self, tree: Any) -> Any:
        """Those of one training's arrays."""
        one = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        return jax.tree.map(one, tree)

    def shardings(self, tree: Any) -> Any:
        """How stacked states and contexts lie: as of one training, or split by trainings."""
        if self.how == "devices":
            return mesh.batched(self.device_mesh)
        if self.device_mesh.shape["fsdp"] == 1:
            return mesh.replicated(self.device_mesh)
        return jax.tree.map(lambda leaf: self._behind(np.shape(leaf)), tree)

    def _behind(self, shape: tuple[int, ...]) -> NamedSharding:
        own = mesh.sharding_of(shape[1:], self.device_mesh)
        return NamedSharding(self.device_mesh, PartitionSpec(None, *own.spec))


Layout = Alone  # the least that a layout does


def fitting(count: int, how: str, devices: int) -> int:
    """So many of `count` trainings can be a population; 0: none, each is trained by itself.

    "devices" takes as many on every one of the `devices`; a population has two or more.
    """
    most = count - count % devices if how == "devices" else count
    return most if most > 1 else 0


@functools.lru_cache(maxsize=64)
def _program(step: spmd.Program, layout: Together) -> spmd.Program:
    device_mesh, how = layout.device_mesh, layout.how

    def update(states: PyTree, batch: PyTree, keys: PyTree, contexts: PyTree) -> Any:
        return over(
            lambda one: step.function(*one),
            (states, batch, keys, contexts),
            0 if how == "vmap" else 1,
            device_mesh if how == "devices" else None,
        )

    split = mesh.batched(device_mesh)
    told = split if how == "devices" else mesh.replicated(device_mesh)

    def build(states: PyTree, batch: PyTree, keys: PyTree, contexts: PyTree) -> Any:
        del batch, keys
        kept = layout.shardings(states)
        rows = mesh.batched(device_mesh, layout.rows)
        return jax.jit(
            update,
            in_shardings=(kept, rows, told, layout.shardings(contexts)),
            out_shardings=(kept, told),
            donate_argnums=0,
        )

    return spmd.Program(build, device_mesh, update)


@functools.lru_cache(maxsize=64)
def _whole(step: spmd.Program) -> Any:
    return jax.jit(step.function)


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *own: np.stack([np.asarray(leaf) for leaf in own]), *trees)


@jax.jit
def _folded(keys: Any, n: Any) -> Any:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, n)


def over(
    function: Callable[..., PyTree],
    members: PyTree,
    together: int = 0,
    device_mesh: Mesh | None = None,
    shared: tuple[Any, ...] = (),
) -> PyTree:
    """`function` of each member, stacked.

    Args:
      function: of one member, and of what is `shared`; pure.
      members: arrays with a leading axis [n ...], such as keys [n].
      together: members in one batch of `vmap`; batches follow each other in a loop. 0: all at
        once, without a loop, as are members that are no more than `together`.
      device_mesh: over whose devices the members are split, `together` of them on each; None, or a
        number of members that they do not divide: every device has all.
      shared: what all members are given, pytrees where members are split. Traced arrays belong
        here: what lies on a mesh already cannot be closed over by what is split over it.

    Returns:
      What `function` returns, with a leading axis [n ...].
    """
    count = jax.tree.leaves(members)[0].shape[0]
    if splits(count, device_mesh):
        here = lambda own, *shared: over(function, own, together, shared=shared)
        specs = (mesh.ROWS, *(PartitionSpec() for _ in shared))
        # Unchecked: nothing that comes out is said to be the same on all devices.
        return jax.shard_map(
            here, mesh=device_mesh, in_specs=specs, out_specs=mesh.ROWS, check_vma=False
        )(members, *shared)
    each = lambda member: function(member, *shared)
    if together == 1 == count:
        alone = each(jax.tree.map(lambda leaf: leaf[0], members))
        return jax.tree.map(lambda leaf: leaf[None], alone)
    if together == 0 or 1 < count <= together:
        return jax.vmap(each)(members)
    return jax.lax.map(each, members, batch_size=together if together > 1 else None)


def splits(count: int, device_mesh: Mesh | None) -> bool:
    """Whether so many members are split over the devices of a mesh."""
    return device_mesh is not None and device_mesh.size > 1 and count % device_mesh.size == 0
