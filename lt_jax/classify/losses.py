"""Losses for long-tailed classification, one signature for all.

    loss(logits, labels, counts, progress) -> one loss per example

`counts` n_k are the classes' effective train counts (expected draws, when a controller mixes
synthetic images in), and `progress` in [0, 1] the fraction of training done. With z the logits
of an example, y its label, K classes, and cross-entropy CE(z, y) = -log softmax(z)_y:

    (1) cross-entropy       CE(z, y)
    (2) inverse weights     w_y CE(z, y), w_k proportional to 1 / n_k
    (3) effective number    w_y CE(z, y), w_k proportional to (1 - beta) / (1 - beta^n_k)
                            (Cui et al. 2019, equation 2)
    (4) focal               (1 - p_y)^gamma CE(z, y), p = softmax(z)   (Lin et al. 2017, equation 4)
    (5) LDAM                CE(z - m_y e_y, y), m_k proportional to n_k^(-1/4)
                            (Cao et al. 2019, equations 11-13), then weighted by (3): DRW
    (6) balanced softmax    -log(n_y exp z_y / sum_k n_k exp z_k)   (Ren et al. 2020, equation 3)
    (7) logit adjustment    CE(z + tau log pi, y), pi_k = n_k / sum n
                            (Menon et al. 2021, equation 10)
    (8) LADE                (6), and 0.1 times a regulariser of the batch, the same for each of its
                            examples: sum_c pi_c (-mean_(y_i = c) z_ic + R_c + 0.1 R_c^2) with
                            R_c = log mean_i (e^(z_ic) / (K pi_(y_i)))
                            (Hong et al. 2021, arXiv:2012.00321, equations 7 to 9)

By (8), z_c nears log p(x | c) / p(x), p(x) over classes that are alike: the variational bound of
Donsker and Varadhan, one a class. Classes that a batch lacks are left out of it, which in the
authors' code have only the second term and are thus pushed down. What LADE does at test, the PC
softmax z + log(target prior), adds nothing on a balanced test; for a cross-entropy network it is
the post-hoc adjustment that every report makes (`residual_log_prior`).

Weights have mean 1 over the classes that have images. A class without any has weight 0, and a
prior small but not zero, so that every loss is finite.
"""

import functools
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special

from lt_jax.shapes import Array, Float, Labels, Logits

Counts = Float[Array, "k"]
Scalar = Float[Array, ""] | float
PerExample = Float[Array, "b"]

BETA = 0.9999  # of equation (3)
MIN_COUNT = 1e-6  # in the logarithm of a prior, for a class without images
LADE_WEIGHT = 0.1  # of the regulariser of equation (8)
LADE_LAMBDA = 0.1  # of its square


@runtime_checkable
class Loss(Protocol):
    """What the training step receives."""

    def __call__(
        self, logits: Logits, labels: Labels, counts: Counts, progress: Scalar
    ) -> PerExample:
        """Returns one loss per example."""
        ...


def cross_entropy(logits: Logits, labels: Labels, counts: Counts, progress: Scalar) -> PerExample:
    """Equation (1)."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def inverse_weighted(
    logits: Logits, labels: Labels, counts: Counts, progress: Scalar
) -> PerExample:
    """Equation (2)."""
    weights = _mean_one(1 / jnp.maximum(counts, MIN_COUNT), counts)
    return weights[labels] * cross_entropy(logits, labels, counts, progress)


def class_balanced(
    logits: Logits, labels: Labels, counts: Counts, progress: Scalar, *, beta: float = BETA
) -> PerExample:
    """Equation (3); beta in [0, 1): 0 is cross-entropy, towards 1 it nears inverse weights."""
    weights = effective_number_weights(counts, beta)
    return weights[labels] * cross_entropy(logits, labels, counts, progress)


def focal(
    logits: Logits, labels: Labels, counts: Counts, progress: Scalar, *, gamma: float = 2.0
) -> PerExample:
    """Equation (4) over the softmax; gamma = 0 is cross-entropy."""
    loss = cross_entropy(logits, labels, counts, progress)
    return (-jnp.expm1(-loss)) ** gamma * loss  # 1 - p = -expm1(log p), exact where p nears 1


def ldam(
    logits: Logits,
    labels: Labels,
    counts: Counts,
    progress: Scalar,
    *,
    max_margin: float = 0.5,
    scale: float = 30.0,
    beta: float = BETA,
    reweight_from: float = 0.8,
) -> PerExample:
    """Equation (5), reweighted once `progress` reaches `reweight_from` (deferred, DRW).

    Cao et al. train on s (cos - margin) with s = 30 and cosines from a normalised head. The heads
    here are not normalised: their logits stand for s cos as they are, and the margin is in the
    same units, m_k = scale * max_margin * (n_min / n_k)^(1/4), n_min the smallest count above 0.
    Multiplying a free head's logits by s would only multiply its learning rate.
    """
    smallest = jnp.min(jnp.where(counts > 0, counts, jnp.inf))
    margins = scale * max_margin * (smallest / jnp.maximum(counts, smallest)) ** 0.25
    shifted = logits - margins[labels][:, None] * jax.nn.one_hot(labels, logits.shape[-1])
    weights = jnp.where(progress >= reweight_from, effective_number_weights(counts, beta), 1.0)
    return weights[labels] * cross_entropy(shifted, labels, counts, progress)


def balanced_softmax(
    logits: Logits, labels: Labels, counts: Counts, progress: Scalar
) -> PerExample:
    """Equation (6)."""
    shifted = logits + jnp.log(jnp.maximum(counts, MIN_COUNT))[None, :]
    return cross_entropy(shifted, labels, counts, progress)


def logit_adjusted(
    logits: Logits, labels: Labels, counts: Counts, progress: Scalar, *, tau: float = 1.0
) -> PerExample:
    """Equation (7); tau = 0 is cross-entropy, tau = 1 balanced softmax."""
    return cross_entropy(logits + tau * log_prior(counts)[None, :], labels, counts, progress)


def log_prior(counts: Counts) -> Counts:
    """log pi."""
    return jnp.log(jnp.maximum(counts, MIN_COUNT)) - jnp.log(counts.sum())


def lade(logits: Logits, labels: Labels, counts: Counts, progress: Scalar) -> PerExample:
    """Equation (8). An example's loss depends on its batch, whose global mean is taken."""
    own = jax.nn.one_hot(labels, logits.shape[-1])
    number = own.sum(axis=0)
    prior = log_prior(counts)
    log_weight = -jnp.log((counts > 0).sum()) - prior[labels]
    bound = jax.nn.logsumexp(logits + log_weight[:, None], axis=0) - math.log(len(labels))
    mean = (own * logits).sum(axis=0) / jnp.maximum(number, 1)
    terms = jnp.exp(prior) * (bound - mean + LADE_LAMBDA * jnp.square(bound))
    regulariser = jnp.where(number > 0, terms, 0.0).sum()
    return balanced_softmax(logits, labels, counts, progress) + LADE_WEIGHT * regulariser


LOSSES = {
    "cross_entropy": cross_entropy,
    "inverse_weighted": inverse_weighted,
    "effective_number": class_balanced,
    "focal": focal,
    "ldam_drw": ldam,
    "balanced_softmax": balanced_softmax,
    "logit_adjusted": logit_adjusted,
    "lade": lade,
}


def make(name: str, tau: float = 1.0) -> Loss:
    """The loss of a config's name; `tau` is read by "logit_adjusted" alone.

    Raises:
      ValueError: no such loss.
    """
    if name not in LOSSES:
        raise ValueError(f"no loss {name!r}; takes one of {', '.join(LOSSES)}")
    if name == "logit_adjusted":
        return functools.partial(logit_adjusted, tau=tau)
    return LOSSES[name]


def residual_log_prior(
    name: str, counts: Float[np.ndarray, "k"], tau: float = 1.0
) -> Float[np.ndarray, "k"]:
    """Log of the label distribution that a loss leaves uncorrected, up to an additive constant.

    At the loss's minimiser over the population, softmax(z - residual) is proportional to p(x | y):
    what a post-hoc adjustment has to subtract, no more. With v_k the loss's class weights, that is
    log(pi_k v_k): log pi for cross-entropy, nothing for inverse weights, and for (3) next to
    nothing while n_k is far below 1 / (1 - beta). Balanced softmax and LADE leave nothing, logit
    adjustment (1 - tau) log pi. Two losses have no closed form: focal is taken as
    cross-entropy, whose order of the classes its minimiser shares; LDAM by its weights late in
    training, its margins left out.

    Args:
      name: of the loss, as `make` takes it.
      counts: effective train counts n_k >= 0, those that the loss was given.
      tau: read by "logit_adjusted" alone.

    Returns:
      Finite for every class, [k].

    Raises:
      ValueError: no such loss.
    """
    make(name, tau)
    n = np.maximum(np.asarray(counts, np.float64), MIN_COUNT)
    log_pi = np.log(n / n.sum())
    if name in ("balanced_softmax", "inverse_weighted", "lade"):
        return np.zeros_like(log_pi)
    if name == "logit_adjusted":
        return (1 - tau) * log_pi
    if name in ("effective_number", "ldam_drw"):
        weighted = log_pi - np.log(-np.expm1(n * math.log(BETA)))
        return weighted - scipy.special.logsumexp(weighted)
    return log_pi


def effective_number_weights(counts: Counts, beta: float) -> Counts:
    """The weights of equation (3), mean 1 over the classes that have images."""
    if not 0 <= beta < 1:
        raise ValueError(f"beta = {beta}; takes a number in [0, 1)")
    if beta == 0:
        return _mean_one(jnp.ones_like(counts), counts)
    # 1 - beta^n as -expm1(n log beta): near beta = 1 the plain form has no digits left.
    return _mean_one(-1 / jnp.expm1(jnp.maximum(counts, MIN_COUNT) * math.log(beta)), counts)


def _mean_one(weights: Counts, counts: Counts) -> Counts:
    present = counts > 0
    weights = jnp.where(present, weights, 0.0)
    return weights * present.sum() / weights.sum()
