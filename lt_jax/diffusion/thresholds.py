"""Thresholding: holding the denoised image in range before a sampler steps towards it.

Images lie in [-1, 1], a network's estimates of them need not, and guidance drives them out. With
s the q-quantile of |x_0| over one image's pixels and channels,

  static:   x_0 <- clip(x_0, -1, 1)                                                       (1)
  dynamic:  s <- max(1, s),  x_0 <- clip(x_0, -s, s) / s                                  (2)

(Saharia et al. 2022, arXiv:2205.11487, section 2.3). (1) saturates whatever stands out; (2) pulls
the whole image inwards instead, and is (1) where no more than 1 - q of an image stands out.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax.numpy as jnp

from lt_jax.config import SynthesizeConfig
from lt_jax.shapes import Images


@runtime_checkable
class Threshold(Protocol):
    """Holds denoised images in range, each by itself."""

    def __call__(self, x0: Images) -> Images:
        """x_0 in [-1, 1], unless the rule is to leave it as it is."""
        ...


@dataclasses.dataclass(frozen=True)
class NoThreshold:
    """Leaves images as they are: for data that is not bounded."""

    def __call__(self, x0: Images) -> Images:
        """The same images."""
        return x0


@dataclasses.dataclass(frozen=True)
class StaticThreshold:
    """Equation (1)."""

    def __call__(self, x0: Images) -> Images:
        """Images in [-1, 1]."""
        return jnp.clip(x0, -1, 1)


STATIC = StaticThreshold()


@dataclasses.dataclass(frozen=True)
class DynamicThreshold:
    """Equation (2); `percentile` is q, a fraction."""

    percentile: float = 0.995

    def __post_init__(self) -> None:
        """Refuses a percentile out of range."""
        if not 0 < self.percentile <= 1:
            raise ValueError(
                f"dynamic threshold: got percentile={self.percentile}; takes a fraction in (0, 1]"
            )

    def __call__(self, x0: Images) -> Images:
        """Images in [-1, 1]."""
        size = jnp.abs(x0).reshape(x0.shape[0], -1)
        limit = jnp.maximum(1, jnp.quantile(size, self.percentile, axis=1))[:, None, None, None]
        return jnp.clip(x0, -limit, limit) / limit


def make(config: SynthesizeConfig) -> Threshold:
    """The rule that a config names."""
    if config.threshold == "dynamic":
        return DynamicThreshold(config.percentile)
    return STATIC if config.threshold == "static" else NoThreshold()
