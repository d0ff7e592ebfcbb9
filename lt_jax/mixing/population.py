"""Many classifiers by one program: all at once, one after the other, or some at a time.

Members at once multiply the memory by their number; one after the other is a loop in the program.
Which is faster depends on the network and the device: experiments/throughput measures it.
"""

from collections.abc import Callable
from typing import Any

import jax

from lt_jax.shapes import PyTree


def over(function: Callable[[Any], PyTree], members: PyTree, together: int = 0) -> PyTree:
    """`function` of each member, stacked.

    Args:
      function: of one member; pure.
      members: arrays with a leading axis [n ...], such as keys [n].
      together: members in one batch of `vmap`; batches follow each other in a loop. 0: all at
        once, without a loop, as are members that are no more than `together`.

    Returns:
      What `function` returns, with a leading axis [n ...].
    """
    count = jax.tree.leaves(members)[0].shape[0]
    if together == 0 or 1 < count <= together:
        return jax.vmap(function)(members)
    return jax.lax.map(function, members, batch_size=together if together > 1 else None)
