"""Moments of a score in each class, from few images: so that it means the same in every class.

Some scores depend on the class by their nature: a classifier is less sure of a rare class, whatever
the image. A score x of images of class k, of which n_k are known, is taken to have mean mu_k and
variance v, and the means mu_k to lie about a common mean with variance a. The best linear estimate
of mu_k, from the mean x_k of the class's images, is Buhlmann and Straub's (1970, Mitteilungen der
Vereinigung Schweizerischer Versicherungsmathematiker 70, 111-133):

  m_k = c_k x_k + (1 - c_k) m,   c_k = a n_k / (a n_k + v),   m = sum_k c_k x_k / sum_k c_k   (1)
  v = sum_i (x_i - x_k(i))^2 / (n - K)                                                       (2)
  a = (sum_k n_k (x_k - x)^2 - (K - 1) v) / (n - sum_k n_k^2 / n),  or 0 where negative      (3)

with K classes and x the mean of all n images; in (3), the images' classes explain more than chance
would by a. Where classes differ much, a class's own mean is believed from the first image on; where
they do not, all have the common one. A class's own variance is shrunk towards v, which weighs as
much as PRIOR_FREEDOM images of the class, and a new image is off by the error of m_k as well:

  s_k^2 = (sum_{i in k} (x_i - x_k)^2 + PRIOR_FREEDOM v) / (n_k - 1 + PRIOR_FREEDOM)         (4)
  z = (x - m_k) / sqrt(s_k^2 + v c_k / n_k)                                                  (5)

so that z has mean 0 and variance 1 over new images, in classes of many images and of one. With one
image a class, v is taken from all of them and a = 0. What does not vary at all is left unscaled.
"""

from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np

from lt_jax.shapes import Array, Float, Int, Labels

PRIOR_FREEDOM = 20.0
ROUNDING = 1e-6  # of the size of float32 scores: a smaller spread is none


@flax.struct.dataclass
class Moments:
    """m_k and the square root in (5), both [k]."""

    means: Any
    scales: Any


def moments(
    scores: Float[np.ndarray | Array, "n"], labels: Int[np.ndarray | Array, "n"], num_classes: int
) -> Moments:
    """Equations (1)-(5), for labels of which every class has one. Runs on host."""
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    n, counts = len(labels), np.bincount(labels, minlength=num_classes)
    own, squares = _by_class(scores, labels, num_classes)
    within, between = within_classes(scores, labels, num_classes), 0.0
    if n > num_classes > 1:
        explained = (counts * np.square(own - scores.mean())).sum()
        unexplained = (num_classes - 1) * within
        between = max(explained - unexplained, 0.0) / (n - np.square(counts).sum() / n)
    credibility = np.zeros(num_classes)
    if between:
        credibility = between * counts / (between * counts + within)
    common = np.average(own, weights=credibility if between else counts)
    means = credibility * own + (1 - credibility) * common
    variances = (squares + PRIOR_FREEDOM * within) / (counts - 1 + PRIOR_FREEDOM)
    scales = np.sqrt(variances + within * credibility / counts)
    as_state = lambda array: jnp.asarray(array, jnp.float32)
    return Moments(as_state(means), as_state(np.where(scales > _rounding(scores), scales, 1.0)))


def standardize(state: Moments, scores: Float[Array, "b"], labels: Labels) -> Float[Array, "b"]:
    """Equation (5)."""
    return (scores - state.means[labels]) / state.scales[labels]


def within_classes(
    scores: Float[np.ndarray, "n"], labels: Int[np.ndarray, "n"], num_classes: int
) -> float:
    """v: equation (2) or, with one image a class, the variance of all images."""
    scores = scores.astype(np.float64)
    if freedom := len(labels) - num_classes:
        variance = float(_by_class(scores, labels, num_classes)[1].sum() / freedom)
    else:
        variance = float(np.var(scores))
    return variance if variance > _rounding(scores) ** 2 else 0.0


def _rounding(scores: np.ndarray) -> float:
    return ROUNDING * float(np.sqrt(np.mean(np.square(scores))))


def _by_class(
    scores: np.ndarray, labels: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Means, and sums of squares about them."""
    total = lambda array: np.bincount(labels, array, minlength=num_classes)
    own = total(scores) / np.bincount(labels, minlength=num_classes)
    return own, total(np.square(scores - own[labels]))
