"""Many classifiers by one program: all at once, one after the other, or some at a time.

Members at once multiply the memory by their number; one after the other is a loop in the program.
Which is faster depends on the network and the device: experiments/throughput measures it. Over a
mesh, each device has its share of the members where they can be shared evenly.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from lt_jax.runtime import mesh
from lt_jax.shapes import PyTree


def over(
    function: Callable[[Any], PyTree],
    members: PyTree,
    together: int = 0,
    device_mesh: Mesh | None = None,
) -> PyTree:
    """`function` of each member, stacked.

    Args:
      function: of one member; pure.
      members: arrays with a leading axis [n ...], such as keys [n].
      together: members in one batch of `vmap`; batches follow each other in a loop. 0: all at
        once, without a loop, as are members that are no more than `together`.
      device_mesh: over whose devices the members are split, `together` of them on each; None, or a
        number of members that they do not divide: every device has all.

    Returns:
      What `function` returns, with a leading axis [n ...].
    """
    count = jax.tree.leaves(members)[0].shape[0]
    if splits(count, device_mesh):
        here = lambda own: over(function, own, together)
        # Unchecked: nothing that comes out is said to be the same on all devices.
        return jax.shard_map(
            here, mesh=device_mesh, in_specs=mesh.ROWS, out_specs=mesh.ROWS, check_vma=False
        )(members)
    if together == 0 or 1 < count <= together:
        return jax.vmap(function)(members)
    return jax.lax.map(function, members, batch_size=together if together > 1 else None)


def splits(count: int, device_mesh: Mesh | None) -> bool:
    """Whether so many members are split over the devices of a mesh."""
    return device_mesh is not None and device_mesh.size > 1 and count % device_mesh.size == 0
