"""Attention by chunks: the plain formula's values and gradients, at a fraction of its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from lt_jax.models import attention as attention_lib
from lt_jax.models.attention import attention
from tests.models.arrays import jit


def tokens(getkey, t, batch=2, heads=2, d=4, dtype=jnp.float32):
    return [jax.random.normal(getkey(), (batch, t, heads, d), dtype) for _ in range(3)]


def reference(q, k, v):
    """Equation (1) in NumPy's float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("chunk", [1, 4, 5, 12])
def test_chunks_give_the_plain_values_and_gradients(getkey, chunk):
    qkv = tokens(getkey, 13)  # a prime: chunks that do not divide it are padded
    weight = jax.random.normal(getkey(), qkv[0].shape)

    def value_and_gradient(attend):
        def loss(qkv):
            out = attend(*qkv)
            return jnp.sum(out * weight), out

        return jax.jit(jax.grad(loss, has_aux=True))(qkv)

    gradient, out = value_and_gradient(lambda *qkv: attention(*qkv, chunk))
    plain_gradient, plain = value_and_gradient(jax.nn.dot_product_attention)
    np.testing.assert_allclose(out, reference(*qkv), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out, plain, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradient, plain_gradient, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_up_to_a_chunk_of_tokens_it_is_the_plain_call(getkey, dtype):
    qkv = tokens(getkey, 6, dtype=dtype)
    for chunk in (6, 1024):
        same = jax.make_jaxpr(lambda *qkv, chunk=chunk: attention(*qkv, chunk))(*qkv)
        assert str(same) == str(jax.make_jaxpr(jax.nn.dot_product_attention)(*qkv))
    chunks = attention(*qkv, 4)
    assert chunks.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(chunks, np.float32), reference(*qkv), rtol=2e-2, atol=2e-2
    )


def test_a_query_reaches_its_own_row_and_no_other(getkey):
    q, k, v = tokens(getkey, 7)
    gradient = np.array(jit(jax.grad(lambda q: attention(q, k, v, 3)[0, 4].sum()))(q))
    assert np.any(gradient[0, 4] != 0)
    gradient[0, 4] = 0
    assert np.all(gradient == 0)


# Of 128 x 128 pixels: 16,384 tokens, whose matrix is 1 GiB. Compiled, not run.
@pytest.mark.parametrize(("differentiate", "share"), [(False, 0.08), (True, 0.1)])
def test_memory_stays_far_below_the_matrix(differentiate, share):
    shapes = [jax.ShapeDtypeStruct((1, 128 * 128, 1, 128), jnp.float32)] * 3

    def memory(chunk):
        def total(q, k, v):
            return attention(q, k, v, chunk).sum()

        run = jax.grad(total, argnums=(0, 1, 2)) if differentiate else total
        return jax.jit(run).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    plain, chunks = memory(128 * 128), memory(1024)
    assert plain > 2**30, "the plain formula holds the matrix"
    assert chunks < share * plain


@pytest.fixture
def hopper(monkeypatch):
    """A GPU of capability 9.0 that programs can be lowered for, and not run on."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    device = type("Device", (), {"compute_capability": "9.0"})()
    device.client = type("Client", (), {"platform_version": "cuda 12080"})()
    monkeypatch.setattr(jax, "local_devices", lambda backend: [device])
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda least: True)
    return device


@pytest.mark.parametrize(("t", "fused"), [(196, True), (197, False), (64, False)])
def test_a_program_for_gpus_calls_the_fused_kernel_where_it_has_gradients(hopper, t, fused):
    def loss(q, k, v):
        return attention(q, k, v, 64).astype(jnp.float32).sum()

    shapes = [jax.ShapeDtypeStruct((2, t, 6, 64), jnp.bfloat16)] * 3
    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*shapes)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert ("__cudnn$fmhaSoftmaxBackward" in text) == fused
    assert ("stablehlo.while" in text) == (t == 197)


def test_the_fused_kernel_is_asked_of_a_gpu_that_takes_it(hopper, monkeypatch):
    device, q = hopper, jnp.zeros((1, 8, 1, 8), jnp.bfloat16)
    fused = lambda d, dtype: attention_lib._has_fused_kernel(jnp.zeros((1, 8, 1, d), dtype))
    assert fused(128, jnp.bfloat16) and fused(256, jnp.float16)
    assert not fused(64, jnp.float32) and not fused(12, jnp.bfloat16)
    assert not attention_lib._has_fused_kernel(q[:, :7])  # no gradients of an odd number
    device.compute_capability = "8.6"
    assert fused(128, jnp.bfloat16) and not fused(256, jnp.bfloat16)
    device.compute_capability = "7.5"
    assert not fused(128, jnp.bfloat16)
    device.client.platform_version = "rocm 6"
    device.compute_capability = "9.0"
    assert not fused(128, jnp.bfloat16)
    monkeypatch.undo()
    assert not fused(128, jnp.bfloat16)  # on CPU
