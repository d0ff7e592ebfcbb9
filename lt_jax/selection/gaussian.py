"""Mahalanobis distance from a class, plain and relative, with shrunk covariances.

Class-conditional distance (Lee et al. 2018, arXiv:1807.03888, eq. 2) with mean mu_k, covariance S
and n_k train images of class k, in d dimensions:

  score(f, k) = (f - mu_k)^T S^-1 (f - mu_k) / (d (1 + 1 / n_k))                          (1)

For Gaussian classes f - mu_k has covariance (1 + 1 / n_k) S where f is a new image, since the mean
of few images is itself off by S / n_k; divided by that and by d, the score of a new image is about
1 in every class and dimension, so that thresholds of different classes can be pooled.

S is the sample covariance C shrunk towards a multiple of the identity (Ledoit and Wolf 2004,
Journal of Multivariate Analysis 88, 365-411, eqs. 11-14), which is invertible for n < d:

  S = (1 - rho) C + rho m I,   m = tr(C) / d,   rho = min(b^2, d^2) / d^2                 (2)
  d^2 = |C - m I|_F^2 / d,     b^2 = (sum_i |r_i|^4 / n - |C|_F^2) / (n d)                (3)

with r_i the images' residuals from their class's mean.

Relative distance (Ren et al. 2021, arXiv:2106.09022, section 3) takes off what is far from any
class: the distance in a Gaussian of all train images, with mean mu_0 and shrunk covariance S_0,

  r(f, k) = (f - mu_k)^T S^-1 (f - mu_k) - (f - mu_0)^T S_0^-1 (f - mu_0)                 (4)

Its second part is large for classes far from mu_0, as those of few images are. With B = S_0^-1 S,
g_k = mu_k - mu_0 and c_k = 1 + 1 / n_k, r of a new image of a Gaussian class has the mean E_k, and
r - E_k, of which both vary with the error of mu_k, has the variance V_k:

  E_k = c_k d - (1 - 1 / n_k) tr B - g_k^T S_0^-1 g_k                                     (5)
  V_k = 2 c_k^2 d - 4 (1 - 1 / n_k^2) tr B + 2 (1 + 1 / n_k^2) tr B^2
        + 4 c_k max(g_k^T S_0^-1 S S_0^-1 g_k - tr B^2 / n_k, 0)                          (6)

where tr B / n_k in (5) and tr B^2 / n_k in (6) take off what that error adds to squares of g_k. The
score is (r - E_k) / sqrt(V_k): 0 on average, of variance 1, in every class, in the order of (4)
within one.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.selection.scorer import check_fit
from lt_jax.shapes import Array, Features, Float, Int, Labels, Logits

# Least weight of the identity in (2): bounds the condition number, so that a Cholesky factor in
# float32 stands where many images leave rho at nothing and a feature is dead.
MIN_SHRINKAGE = 1e-4

# An accelerator's default for float32 may keep 10 bits or fewer, and a distance has none to spare.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@flax.struct.dataclass
class MahalanobisState:
    """Means [k d], train counts [k] and W with W W^T = S^-1: [d d], or [k d d] where not tied."""

    means: Any
    counts: Any
    whitening: Any


@dataclasses.dataclass(frozen=True)
class Mahalanobis:
    """Equation (1), with one covariance for all classes or, where not `tied`, one for each.

    Tied, C is the pooled within-class covariance, sum_i r_i r_i^T / (n - k). Otherwise each class
    has its own C_k = sum_i r_i r_i^T / (n_k - 1), shrunk by its own rho; a class of identical
    images, or of fewer than three, takes the pooled S: the residuals of two are one vector and its
    negative, in which (3) sees no noise to shrink. If no class varies, S = I.
    """

    num_classes: int
    tied: bool = True
    reads: ClassVar[str] = "features"

    def fit(
        self,
        features: Float[np.ndarray | Array, "n d"],
        logits: Float[np.ndarray | Array, "n k"],
        labels: Int[np.ndarray | Array, "n"],
    ) -> MahalanobisState:
        """Means and whitening. See `Scorer.fit`; `logits` are not used."""
        del logits
        check_fit({"features": np.asarray(features)}, np.asarray(labels), self.num_classes)
        return self._fit(jnp.asarray(features), jnp.asarray(labels))

    @functools.partial(jax.jit, static_argnums=0)
    def _fit(self, features: Float[Array, "n d"], labels: Int[Array, "n"]) -> MahalanobisState:
        means, counts, residuals = _centred(features, labels, self.num_classes)
        pooled = _within(residuals, self.num_classes)
        if self.tied:
            return MahalanobisState(means, counts, _whiten(pooled))

        def own(inputs: tuple[Array, Array]) -> Array:
            label, count = inputs
            return _unbiased(residuals * (labels == label)[:, None], count, count - 1)

        covariances = jax.lax.map(own, (jnp.arange(self.num_classes), counts))
        variances = jnp.trace(covariances, axis1=1, axis2=2)
        own_stands = (counts >= 3) & (variances > 1e-6 * jnp.trace(pooled))
        whitening = jax.vmap(_whiten)(
            jnp.where(own_stands[:, None, None], covariances, pooled[None])
        )
        return MahalanobisState(means, counts, whitening)

    def score(
        self, state: MahalanobisState, features: Features, logits: Logits, labels: Labels
    ) -> Float[Array, "b"]:
        """Equation (1); `logits` are not used."""
        del logits
        if self.tied:
            squared = _squared(features - state.means[labels], state.whitening)
        else:
            # All classes in turn: b d numbers at a time, where W[labels] would take b d^2.
            def distance(inputs: tuple[Array, Array]) -> Array:
                mean, whitening = inputs
                return _squared(features - mean[None], whitening)

            every = jax.lax.map(distance, (state.means, state.whitening))
            squared = jnp.take_along_axis(every, labels[None], axis=0)[0]
        return squared / (features.shape[1] * (1 + 1 / state.counts[labels]))


@flax.struct.dataclass
class RelativeState:
    """Means [k d] and W [d d] of the classes, mu_0 [d] and W_0 [d d] of all, E and sqrt(V) [k]."""

    means: Any
    whitening: Any
    background_mean: Any
    background_whitening: Any
    expected: Any
    spread: Any


@dataclasses.dataclass(frozen=True)
class RelativeMahalanobis:
    """Equation (4), standardised by (5) and (6); the classes share one covariance.

    Of a single class, r is 0 whatever the image, and so is what the score tells.
    """

    num_classes: int
    reads: ClassVar[str] = "features"

    def fit(
        self,
        features: Float[np.ndarray | Array, "n d"],
        logits: Float[np.ndarray | Array, "n k"],
        labels: Int[np.ndarray | Array, "n"],
    ) -> RelativeState:
        """Both Gaussians. See `Scorer.fit`; `logits` are not used."""
        del logits
        check_fit({"features": np.asarray(features)}, np.asarray(labels), self.num_classes)
        return self._fit(jnp.asarray(features), jnp.asarray(labels))

    @functools.partial(jax.jit, static_argnums=0)
    def _fit(self, features: Float[Array, "n d"], labels: Int[Array, "n"]) -> RelativeState:
        dimension = features.shape[1]
        means, counts, residuals = _centred(features, labels, self.num_classes)
        covariance = _within(residuals, self.num_classes)
        whitening = _whiten(covariance)
        (centre,), _, centred = _centred(features, jnp.zeros_like(labels), 1)
        background = _whiten(_within(centred, 1))

        # In axes whitened by S_0, where S becomes G G^T with G = W_0^T W^-T, which has the
        # eigenvalues of B; a covariance of zero is whitened as the identity, and stands for it.
        inverse = jax.scipy.linalg.solve_triangular(
            whitening, jnp.eye(dimension, dtype=features.dtype), lower=False
        )
        root = _matmul(background.T, inverse.T)
        gaps = _matmul(means - centre[None], background)
        trace = jnp.sum(jnp.square(root))
        trace_of_square = jnp.sum(jnp.square(_matmul(root.T, root)))
        inflation = 1 + 1 / counts
        expected = (
            inflation * dimension - (1 - 1 / counts) * trace - jnp.sum(jnp.square(gaps), axis=1)
        )
        across = jnp.sum(jnp.square(_matmul(gaps, root)), axis=1) - trace_of_square / counts
        variance = (
            2 * jnp.square(inflation) * dimension
            - 4 * (1 - 1 / jnp.square(counts)) * trace
            + 2 * (1 + 1 / jnp.square(counts)) * trace_of_square
            + 4 * inflation * jnp.maximum(across, 0.0)
        )
        # (6) is at least 4 d / n_k; the floor is for its rounding.
        spread = jnp.sqrt(jnp.maximum(variance, dimension / counts))
        return RelativeState(means, whitening, centre, background, expected, spread)

    def score(
        self, state: RelativeState, features: Features, logits: Logits, labels: Labels
    ) -> Float[Array, "b"]:
        """Standard deviations of (4) from what is expected of the class; no `logits` used."""
        relative = self.raw(state, features, logits, labels)
        return (relative - state.expected[labels]) / state.spread[labels]

    def raw(
        self, state: RelativeState, features: Features, logits: Logits, labels: Labels
    ) -> Float[Array, "b"]:
        """Equation (4)."""
        del logits
        own = _squared(features - state.means[labels], state.whitening)
        offsets = features - state.background_mean[None]
        return own - _squared(offsets, state.background_whitening)


def ledoit_wolf(
    residuals: Float[Array, "n d"], count: Float[Array, ""]
) -> tuple[Float[Array, "d d"], Float[Array, ""]]:
    """Equations (2) and (3): the shrunk covariance, with divisor `count`, and rho in [0, 1].

    Args:
      residuals: rows of mean zero. Rows of zeros count for nothing, so that one class can be had
        from all rows by masking.
      count: how many rows are meant.
    """
    dimension = residuals.shape[1]
    variance = jnp.sum(jnp.square(residuals)) / (count * dimension)
    safe = jnp.where(variance > 0, variance, 1.0)
    unit = residuals / jnp.sqrt(safe)  # rho has no scale; fourth powers in float32 do
    covariance = _matmul(unit.T, unit) / count
    identity = jnp.eye(dimension, dtype=residuals.dtype)
    spread = jnp.sum(jnp.square(covariance - identity)) / dimension
    fourth = jnp.sum(jnp.square(jnp.sum(jnp.square(unit), axis=1))) / count
    noise = (fourth - jnp.sum(jnp.square(covariance))) / (count * dimension)
    rho = jnp.clip(noise, 0.0, spread) / jnp.where(spread > 0, spread, 1.0)
    rho = jnp.maximum(rho, MIN_SHRINKAGE)
    return variance * ((1 - rho) * covariance + rho * identity), rho


def _centred(
    features: Float[Array, "n d"], labels: Int[Array, "n"], num_classes: int
) -> tuple[Float[Array, "k d"], Float[Array, "k"], Float[Array, "n d"]]:
    """Means and counts of classes, and each row's residual from its class's mean."""
    members = jax.nn.one_hot(labels, num_classes, dtype=features.dtype)
    counts = jnp.sum(members, axis=0)
    # Twice, so that a large common offset of the features costs no digits of the residuals.
    centre = jnp.mean(features, axis=0, keepdims=True)
    offsets = _matmul(members.T, features - centre) / counts[:, None]
    return centre + offsets, counts, features - centre - offsets[labels]


def _within(residuals: Float[Array, "n d"], num_classes: int) -> Float[Array, "d d"]:
    """S of residuals from `num_classes` means."""
    total = jnp.asarray(residuals.shape[0], residuals.dtype)
    return _unbiased(residuals, total, total - num_classes)


def _unbiased(
    residuals: Float[Array, "n d"], count: Float[Array, ""], freedom: Float[Array, ""]
) -> Float[Array, "d d"]:
    """Shrunk covariance with divisor `freedom`, so that folds and the whole are of one scale."""
    return ledoit_wolf(residuals, count)[0] * (count / jnp.maximum(freedom, 1))


def _whiten(covariance: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """W = L^-T for covariance = L L^T; the identity for a covariance of zero."""
    identity = jnp.eye(covariance.shape[0], dtype=covariance.dtype)
    factor = jnp.linalg.cholesky(jnp.where(jnp.trace(covariance) > 0, covariance, identity))
    return jax.scipy.linalg.solve_triangular(factor, identity, lower=True).T


def _squared(offsets: Float[Array, "b d"], whitening: Float[Array, "d d"]) -> Float[Array, "b"]:
    return jnp.sum(jnp.square(_matmul(offsets, whitening)), axis=1)
