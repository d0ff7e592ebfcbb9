"""Kernels of a compiled program's text: which they are, and what each moves, counted by hand."""

import jax
import jax.numpy as jnp

from experiments.throughput.kernels import Kernel, kernels

TEXT = """\
HloModule jit_step, is_scheduled=true

%fused (p.1: f32[8,4]) -> (bf16[8,4], f32[8]) {
  %p.1 = f32[8,4]{1,0} parameter(0)
  ROOT %inner = (bf16[8,4]{1,0}, f32[8]{0}) custom(%p.1)
}

%sliced (p.2: f32[16], p.3: f32[4]) -> f32[4] {
  %p.2 = f32[16]{0} parameter(0)
  %p.3 = f32[4]{0} parameter(1)
  %part = f32[4]{0} slice(%p.2), slice={[4:8]}
  ROOT %added = f32[4]{0} add(%part, %p.3)
}

%body.1 (carried: (s32[], f32[16])) -> (s32[], f32[16]) {
  %carried = (s32[], f32[16]{0}) parameter(0)
  %x = f32[16]{0} get-tuple-element(%carried), index=1
  ROOT %next = f32[16]{0} fusion(%x), kind=kLoop, calls=%fused
}

ENTRY %main (a: f32[8,4], b: bf16[4,2], m: pred[8]) -> f32[16] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = bf16[4,2]{1,0} parameter(1)
  %m = pred[8]{0} parameter(2)
  %split = (bf16[8,4]{1,0}, f32[8]{0}) fusion(%a, %m), kind=kLoop, calls=%fused
  %half = bf16[8,4]{1,0} get-tuple-element(%split), index=0
  %gemm = (bf16[8,2]{1,0}, s8[4096]{0}) custom-call(%half, %b), custom_call_target="__cublas$gemm"
  %sum = f32[16]{0} all-reduce-start(%a), to_apply=%fused
  %summed = f32[16]{0} all-reduce-done(%sum)
  %part.1 = f32[4]{0} slice(%summed), slice={[0:4]}
  %part.2 = f32[4]{0} fusion(%summed, %part.1), kind=kLoop, calls=%sliced
  %looped = (s32[], f32[16]{0}) while(%summed), body=%body.1, config={"known_trip_count":{"n":"5"}}
  ROOT %out = f32[16]{0} get-tuple-element(%looped), index=1
}
"""


def test_every_kernel_is_counted_as_often_as_it_runs_with_what_it_reads_and_writes():
    assert kernels(TEXT) == [
        Kernel("own", 128 + 8 + 64 + 32, 1),
        Kernel("__cublas$gemm", 64 + 16 + 32, 1),  # and not its scratch space
        Kernel("all-reduce", 128 + 64, 1),
        Kernel("own", 16 + 16, 1),  # a slice is what it takes
        Kernel("own", 16 + 16 + 16, 1),
        Kernel("own", 64 + 64, 5),
    ]
    assert [kernel.library for kernel in kernels(TEXT)] == [False, True] + 4 * [False]


def test_a_program_s_text_is_read_as_xla_writes_it():
    def program(x, w):
        return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ w), x)

    text = jax.jit(program).lower(*jnp.ones((2, 64, 64))).compile().as_text()
    looped = [kernel for kernel in kernels(text) if kernel.times == 3]
    # The product reads two matrices and writes one; tanh reads and writes one, alone or with it.
    assert 3 * 4 * 64 * 64 <= sum(kernel.moved for kernel in looped) <= 6 * 4 * 64 * 64
