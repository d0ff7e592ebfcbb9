"""Out-of-distribution scores of images from a classifier's features: how far from a class.

A scorer is fitted to features of real train images and scores others against the class that each
is meant to show. Class-conditional Mahalanobis distance (Lee et al. 2018, arXiv:1807.03888, eq. 2)
with mean mu_k, covariance S and n_k train images of class k, in d dimensions:

  score(f, k) = (f - mu_k)^T S^-1 (f - mu_k) / (d (1 + 1 / n_k))                          (1)

For Gaussian classes f - mu_k has covariance (1 + 1 / n_k) S where f is a new image, since the mean
of few images is itself off by S / n_k; divided by that and by d, the score of a new image is about
1 in every class and dimension, so that thresholds of different classes can be pooled.

S is the sample covariance C shrunk towards a multiple of the identity (Ledoit and Wolf 2004,
Journal of Multivariate Analysis 88, 365-411, eqs. 11-14), which is invertible for n < d:

  S = (1 - rho) C + rho m I,   m = tr(C) / d,   rho = min(b^2, d^2) / d^2                 (2)
  d^2 = |C - m I|_F^2 / d,     b^2 = (sum_i |r_i|^4 / n - |C|_F^2) / (n d)                (3)

with r_i the images' residuals from their class's mean.
"""

import dataclasses
import functools
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.config import SelectionConfig
from lt_jax.errors import UserError
from lt_jax.shapes import Array, Features, Float, Int, Labels, Logits

# Least weight of the identity in (2): bounds the condition number, so that a Cholesky factor in
# float32 stands where many images leave rho at nothing and a feature is dead.
MIN_SHRINKAGE = 1e-4


class FitError(UserError, ValueError):
    """Train images that no score can be fitted to."""


@runtime_checkable
class Scorer(Protocol):
    """How far an image is from the class that it should show. Hashable; its state is a pytree.

    A score must mean the same in every class (thresholds are pooled over classes) and to images
    that were not in the fit.
    """

    @property
    def num_classes(self) -> int:
        """How many classes labels are of."""
        ...

    def fit(
        self,
        features: Float[np.ndarray | Array, "n d"],
        logits: Float[np.ndarray | Array, "n k"],
        labels: Int[np.ndarray | Array, "n"],
    ) -> Any:
        """The state that `score` needs, from real train images. Runs on host, not under `jit`.

        Raises FitError where a class has no image or a feature is not finite.
        """
        ...

    def score(
        self, state: Any, features: Features, logits: Logits, labels: Labels
    ) -> Float[Array, "b"]:
        """One number an image; higher is further out. Can be part of a compiled program."""
        ...


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

    def fit(
        self,
        features: Float[np.ndarray | Array, "n d"],
        logits: Float[np.ndarray | Array, "n k"],
        labels: Int[np.ndarray | Array, "n"],
    ) -> MahalanobisState:
        """Means and whitening. See `Scorer.fit`; `logits` are not used."""
        del logits
        _check_fit(np.asarray(features), np.asarray(labels), self.num_classes)
        return self._fit(jnp.asarray(features), jnp.asarray(labels))

    @functools.partial(jax.jit, static_argnums=0)
    def _fit(self, features: Float[Array, "n d"], labels: Int[Array, "n"]) -> MahalanobisState:
        members = jax.nn.one_hot(labels, self.num_classes, dtype=features.dtype)
        counts = jnp.sum(members, axis=0)
        # Twice, so that a large common offset of the features costs no digits of the residuals.
        centre = jnp.mean(features, axis=0, keepdims=True)
        offsets = members.T @ (features - centre) / counts[:, None]
        residuals = features - centre - offsets[labels]

        total = jnp.asarray(features.shape[0], features.dtype)
        pooled = _unbiased(residuals, total, total - self.num_classes)
        if self.tied:
            whitening = _whiten(pooled)
        else:

            def own(inputs: tuple[Array, Array]) -> Array:
                member, count = inputs
                return _unbiased(residuals * member[:, None], count, count - 1)

            covariances = jax.lax.map(own, (members.T, counts))
            variances = jnp.trace(covariances, axis1=1, axis2=2)
            own_stands = (counts >= 3) & (variances > 1e-6 * jnp.trace(pooled))
            whitening = jax.vmap(_whiten)(
                jnp.where(own_stands[:, None, None], covariances, pooled[None])
            )
        return MahalanobisState(centre + offsets, counts, whitening)

    def score(
        self, state: MahalanobisState, features: Features, logits: Logits, labels: Labels
    ) -> Float[Array, "b"]:
        """Equation (1); `logits` are not used."""
        del logits
        if self.tied:
            white = (features - state.means[labels]) @ state.whitening
            squared = jnp.sum(jnp.square(white), axis=1)
        else:
            # All classes in turn: b d numbers at a time, where W[labels] would take b d^2.
            def distance(inputs: tuple[Array, Array]) -> Array:
                mean, whitening = inputs
                return jnp.sum(jnp.square((features - mean[None]) @ whitening), axis=1)

            every = jax.lax.map(distance, (state.means, state.whitening))
            squared = jnp.take_along_axis(every, labels[None], axis=0)[0]
        return squared / (features.shape[1] * (1 + 1 / state.counts[labels]))


@dataclasses.dataclass(frozen=True)
class NoScore:
    """Every image scores 0 and passes: the ablation "without selection"."""

    num_classes: int

    def fit(
        self,
        features: Float[np.ndarray | Array, "n d"],
        logits: Float[np.ndarray | Array, "n k"],
        labels: Int[np.ndarray | Array, "n"],
    ) -> Any:
        """An empty state, for any features [n d], logits [n k] and labels [n]; raises nothing."""
        return ()

    def score(
        self, state: Any, features: Features, logits: Logits, labels: Labels
    ) -> Float[Array, "b"]:
        """Zeros [b], whatever the features [b d], logits [b k] and labels [b]; raises nothing."""
        return jnp.zeros(features.shape[0])


def make(config: SelectionConfig, num_classes: int) -> Scorer:
    """The scorer that a config names."""
    return {"mahalanobis": Mahalanobis, "none": NoScore}[config.score](num_classes)


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
    covariance = unit.T @ unit / count
    identity = jnp.eye(dimension, dtype=residuals.dtype)
    spread = jnp.sum(jnp.square(covariance - identity)) / dimension
    fourth = jnp.sum(jnp.square(jnp.sum(jnp.square(unit), axis=1))) / count
    noise = (fourth - jnp.sum(jnp.square(covariance))) / (count * dimension)
    rho = jnp.clip(noise, 0.0, spread) / jnp.where(spread > 0, spread, 1.0)
    rho = jnp.maximum(rho, MIN_SHRINKAGE)
    return variance * ((1 - rho) * covariance + rho * identity), rho


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


def _check_fit(features: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        raise FitError(
            f"OOD fit: labels lie in [{labels.min()}, {labels.max()}]; "
            f"{num_classes} classes take 0 to {num_classes - 1}"
        )
    counts = np.bincount(labels, minlength=num_classes)
    if empty := np.flatnonzero(counts == 0).tolist():
        raise FitError(
            f"OOD fit: no train image of class {', '.join(map(str, empty))} (by number); every "
            "class needs one: lower imbalance_factor, or drop the class from the data set"
        )
    if bad := np.flatnonzero(~np.isfinite(features).all(axis=1)).tolist():
        raise FitError(
            f"OOD fit: the features of {len(bad)} train images are not finite (first: row "
            f"{bad[0]}); the extractor diverged: lower its learning rate"
        )
