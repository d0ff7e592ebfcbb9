"""Self-attention that never holds the whole matrix of weights between tokens.

With queries, keys and values q, k, v of d numbers a token and head,

  attention = softmax(q k^T / sqrt(d)) v                                                  (1)

(Vaswani et al. 2017, arXiv:1706.03762, eq. 1). The matrix under the softmax has t^2 numbers a head
and example: 1 GiB in float32 for the 16,384 tokens of a feature map of 128 x 128. A row of it
concerns one query alone, so that (1) can be had exactly for some queries at a time, and again in
the backward pass in place of being kept (Rabe & Staats 2021, arXiv:2112.05682; there keys are cut,
too). cuDNN's fused kernel (Dao 2023, arXiv:2307.08691) does the same within the GPU's own cache.
"""

import functools

import jax
import jax.numpy as jnp

from lt_jax.shapes import Array, Float

Tokens = Float[Array, "b t heads d"]


def attention(q: Tokens, k: Tokens, v: Tokens, chunk: int) -> Tokens:
    """Equation (1) among t tokens, with memory that grows with `chunk * t`, not with t * t.

    Args:
      q: queries.
      k: keys.
      v: values.
      chunk: up to this many tokens the plain formula is used. Beyond, an NVIDIA GPU uses its fused
        kernel where dtype and d allow it, and everything else takes so many queries at once.

    Returns:
      [b t heads d] in the dtype of the arguments; the softmax is in float32.
    """
    if q.shape[1] <= chunk:
        return jax.nn.dot_product_attention(q, k, v)
    if _has_fused_kernel(q):
        # Chosen again where the program is lowered: a GPU machine may also compile for its CPU.
        return jax.lax.platform_dependent(
            q,
            k,
            v,
            cuda=functools.partial(jax.nn.dot_product_attention, implementation="cudnn"),
            default=functools.partial(chunked, chunk=chunk),
        )
    return chunked(q, k, v, chunk)


def chunked(q: Tokens, k: Tokens, v: Tokens, chunk: int) -> Tokens:
    """Equation (1) for at most `chunk` queries at once; gradients compute the weights anew."""
    b, t, heads, d = q.shape
    count = -(-t // chunk)
    size = -(-t // count)  # as even as can be, so that few queries are padding
    padded = jnp.pad(q, ((0, 0), (0, count * size - t), (0, 0), (0, 0)))
    pieces = jnp.moveaxis(padded.reshape(b, count, size, heads, d), 1, 0)
    # A scan's iterations cannot be merged with each other, which is what prevent_cse is against.
    attend = jax.checkpoint(jax.nn.dot_product_attention, prevent_cse=False)
    attended = jax.lax.map(lambda piece: attend(piece, k, v), pieces)
    return jnp.moveaxis(attended, 0, 1).reshape(b, count * size, heads, d)[:, :t]


def _has_fused_kernel(q: Tokens) -> bool:
    """Whether cuDNN's kernel takes these queries: asked first, as it raises where it does not.

    Of an odd number it has values but no gradients (jax 0.10.2).
    """
    if q.dtype not in (jnp.bfloat16, jnp.float16) or q.shape[1] % 2:
        return False
    if jax.default_backend() != "gpu":
        return False
    device = jax.local_devices(backend="gpu")[0]
    if "cuda" not in device.client.platform_version:
        return False
    capability = tuple(int(part) for part in device.compute_capability.split("."))
    widest = 256 if capability >= (9, 0) else 128
    return capability >= (8, 0) and q.shape[-1] % 8 == 0 and q.shape[-1] <= widest
