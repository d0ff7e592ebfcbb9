"""Out-of-distribution score of the generator itself: how badly it denoises an image.

A generator that knows the images of class k recovers them from noise better than others. With
e_l(x, k) the mean squared error of denoising x at noise level l under class k
(`lt_jax.diffusion.denoising_error`),

  score(x, k) = z_k(mean over l of log e_l(x, k) / s_l)                                   (1)

(after Graham et al. 2023, arXiv:2211.07740, who average over levels; errors of one step rather than
of reconstructions, and logarithms since errors differ by factors). Levels are made comparable by
s_l, the standard deviation of log e_l within classes; and classes by z_k, standardised by moments
of class k (`standardize`), since textured classes have larger errors whatever the image.

The generator was trained on the train images, of which it remembers the more the fewer they are, so
its errors there are lower than those on any new image, a perfectly good one too. Cross-fitting does
not help: it refits z_k, not the generator. Calibrated on train images, a threshold on this score
is too strict for new images, and `held_out=policy_val` calibrates without that bias. For the same
reason an unusually low score is a sign of a copy, which is for the memorisation gate to see. Smooth
images have low errors, whether or not they show their class (Serra et al. 2020, arXiv:1909.11480,
on likelihoods): take the score together with others.
"""

import dataclasses
from typing import Any, ClassVar

import flax.struct
import jax.numpy as jnp
import numpy as np

from lt_jax.selection.scorer import check_fit
from lt_jax.selection.standardize import Moments, moments, standardize, within_classes
from lt_jax.shapes import Array, Features, Float, Int, Labels, Logits


@flax.struct.dataclass
class DenoisingState:
    """s [l], and the moments by class."""

    scales: Any
    moments: Moments


@dataclasses.dataclass(frozen=True)
class Denoising:
    """Equation (1). What it is given as features are errors [b l], not negative."""

    num_classes: int
    reads: ClassVar[str] = "errors"

    def fit(
        self,
        features: Float[np.ndarray | Array, "n l"],
        logits: Float[np.ndarray | Array, "n k"],
        labels: Int[np.ndarray | Array, "n"],
    ) -> DenoisingState:
        """Scales by level, moments by class. See `Scorer.fit`; `logits` are not used."""
        del logits
        errors, labels = np.asarray(features), np.asarray(labels)
        check_fit({"denoising errors": errors}, labels, self.num_classes)
        logs = np.asarray(_log(jnp.asarray(errors)))
        scales = np.sqrt([within_classes(level, labels, self.num_classes) for level in logs.T])
        scales = np.where(scales > 0, scales, 1.0).astype(np.float32)
        raw = np.mean(logs / scales, axis=1)
        return DenoisingState(jnp.asarray(scales), moments(raw, labels, self.num_classes))

    def score(
        self, state: DenoisingState, features: Features, logits: Logits, labels: Labels
    ) -> Float[Array, "b"]:
        """Equation (1), in standard deviations; `logits` are not used."""
        del logits
        raw = jnp.mean(_log(features) / state.scales[None], axis=1)
        return standardize(state.moments, raw, labels)


def _log(errors: Float[Array, "b l"]) -> Float[Array, "b l"]:
    """Of an error of nothing, that of the least float."""
    return jnp.log(jnp.maximum(errors, jnp.finfo(errors.dtype).tiny))
