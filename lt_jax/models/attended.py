"""Attention weights of a ViT, recomputed from its queries and keys.

The network itself does not keep them (`jax.nn.dot_product_attention` may fuse them away), and is
not changed to do so: what its dense layers called `qkv` put out is enough.
"""

import jax
import jax.numpy as jnp

from lt_jax.models import module
from lt_jax.models.vit import ViT, size_of
from lt_jax.shapes import Array, Float, Images, Params


def weights(network: ViT, params: Params, images: Images) -> Float[Array, "l b heads t t"]:
    """softmax(q k^T / sqrt(d)) of every block, from the first to the last; rows sum to 1.

    Of experts, whose last blocks are apart, the last entry is the mean over them: their logits are
    averaged likewise.

    Args:
      network: a `ViT`, or `ViTExperts`.
      params: its parameters.
      images: float32 in [-1, 1].
    """
    found = module.outputs_of(network, params, images, name="qkv", train=False)
    size = size_of(network.config)
    depths = [[path for path in found if _depth(path) == i] for i in range(size.depth)]
    layers = []
    for paths in depths:
        same = [_softmax(found[path], len(images), size.heads) for path in paths]
        layers.append(sum(same[1:], same[0]) / len(same))
    return jnp.stack(layers)


def _depth(path: str) -> int:
    """The number of a block, of `block_3/qkv` or `expert_0_block_3/qkv`."""
    return int(path.split("/")[0].rpartition("_")[2])


def _softmax(qkv: Float[Array, "n d"], b: int, heads: int) -> Float[Array, "b heads t t"]:
    """Of `b` images, whose tokens stand one image after the other."""
    width = qkv.shape[-1] // (3 * heads)
    split = qkv.astype(jnp.float32).reshape(b, -1, 3, heads, width)
    q, k, _ = jnp.moveaxis(split, 2, 0)
    return jax.nn.softmax(width**-0.5 * jnp.einsum("bqhd,bkhd->bhqk", q, k), axis=-1)
