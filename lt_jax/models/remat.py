"""Blocks whose insides are computed anew in the backward pass, in place of being kept for it.

A network's activations are most of what training holds. Of a block that is rematerialised (Chen et
al. 2016, arXiv:1604.06174) only what goes in is kept, for one more forward pass of it: a third more
arithmetic at most. Values and gradients are the same but for rounding.

XLA's CPU compiler merges the second pass with the first, so that on CPU nothing is saved and
nothing is lost; GPUs and TPUs keep them apart.
"""

from typing import Any

import flax.linen as nn
import jax

from lt_jax.shapes import Array

# What of a block's inside is kept all the same: nothing, or the results of matrix products without
# a batch dimension (dense layers), so that norms, activations and attention alone are done again.
POLICIES = {
    "blocks": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def run(block: nn.Module, remat: str, *args: Array, **static: Any) -> Array:
    """`block(*args, **static)`, in a compact method.

    Args:
      block: with parameters of its own.
      remat: "none" (everything is kept) or a name of `POLICIES`.
      *args: arrays.
      **static: what is not differentiated or traced.
    """
    if remat == "none":
        return block(*args, **static)
    anew = nn.remat(lambda same, *given: same(*given, **static), policy=POLICIES[remat])
    return anew(block, *args)
