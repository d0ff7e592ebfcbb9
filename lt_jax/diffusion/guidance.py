"""Classifier-free guidance: from a conditional network to a denoiser.

With the network's prediction p_c under a condition and p_0 under the null condition,

  p = p_0 + w (p_c - p_0)                                                                 (1)

where w is `guidance_scale` (Ho and Salimans 2022, arXiv:2207.12598, eq. 6, whose own w is ours
minus one). w = 1 is the conditional network and w = 0 the unconditional one, both exactly, with one
evaluation; w > 1 sharpens towards the condition. The weights of (1) add up to one and conversions
between eps, v and x0 are affine at a given x_t, so that (1) gives the same image in every
parametrisation: it is applied to what the network predicts, and converted once.

A `Guidance` decides how often the network is asked and how its answers are combined; another rule
(an interval of log-SNR, rescaling, a scale per condition) is another class.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from lt_jax.diffusion.process import VPProcess
from lt_jax.shapes import Images, LogSNR, PyTree

# (x_t, log_snr, condition) -> prediction; a condition is a pytree of arrays with leading axis b.
ConditionalPredict = Callable[[Images, LogSNR, PyTree], Images]
# (x_t, log_snr) -> the mean of x_0 given x_t, as the network has it.
Denoiser = Callable[[Images, LogSNR], Images]


@runtime_checkable
class Guidance(Protocol):
    """How predictions under a condition and under its null become one."""

    def __call__(
        self,
        predict: ConditionalPredict,
        x_t: Images,
        log_snr: LogSNR,
        condition: PyTree,
        null: PyTree,
    ) -> Images:
        """The guided prediction, in the network's own parametrisation."""
        ...


@dataclasses.dataclass(frozen=True)
class ClassifierFree:
    """Equation (1) with one scale for all noise levels.

    `scale` is a Python number, so that 0 and 1 cost one evaluation at compile time.
    """

    scale: float

    def __call__(
        self,
        predict: ConditionalPredict,
        x_t: Images,
        log_snr: LogSNR,
        condition: PyTree,
        null: PyTree,
    ) -> Images:
        """One evaluation of 2b examples, each image beside its own twin.

        One call fills an accelerator better than two of half the size, at equal FLOPs. Twins are
        interleaved rather than the batch appended to itself, so that a batch sharded over devices
        needs no exchange: both halves of a pair stay where the image is.
        """
        if self.scale == 1:
            return predict(x_t, log_snr, condition)
        if self.scale == 0:
            return predict(x_t, log_snr, null)
        both = predict(
            jnp.repeat(x_t, 2, axis=0),
            jnp.repeat(log_snr, 2, axis=0),
            jax.tree.map(_interleave, condition, null),
        )
        conditional, unconditional = both[0::2], both[1::2]
        return unconditional + self.scale * (conditional - unconditional)


def denoiser(
    process: VPProcess,
    predict: ConditionalPredict,
    condition: PyTree,
    null: PyTree,
    guidance: Guidance,
) -> Denoiser:
    """The guided network as a function of (x_t, log_snr) that returns x_0.

    Args:
      process: tells what the network predicts.
      predict: `(x_t [b h w c], log_snr [b], condition) -> prediction [b h w c]`.
      condition: a pytree of arrays with leading axis b, such as labels [b].
      null: the same tree for "no condition", array by array of the same shape.
      guidance: how the two are combined.
    """

    def denoise(x_t: Images, log_snr: LogSNR) -> Images:
        prediction = guidance(predict, x_t, log_snr, condition, null)
        return process.to_x0(prediction, x_t, log_snr)

    return denoise


def _interleave(first: jax.Array, second: jax.Array) -> jax.Array:
    """[b ...] and [b ...] as [2b ...], in turns."""
    return jnp.stack([first, second], axis=1).reshape(2 * first.shape[0], *first.shape[1:])
