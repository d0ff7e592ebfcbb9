"""Losses of small ensembles: what each expert learns, and what experts learn from each other.

    loss(logits [b e k], labels, counts, progress) -> one loss per example

with z_e the logits of expert e of E, n_k the classes' effective train counts, pi = n / sum n and
s_e = softmax(z_e + log n) the balanced probabilities of `losses` equation (6):

  own      mean_e loss(z_e), the arm's loss of each                                            (1)
  balpoe   mean_e CE(z_e + tau_e log pi, y), tau_e = 0 ... 2 at even distances                 (2)
           (Aimar et al. 2023, arXiv:2206.05260, equations 7 and 10: tau_e = 1 - lambda_e)
  ncl      mean_e [ -log s_e,y - log s^H_e,y ]                                                 (3)
             + 0.6 mean_(e, f != e) [ KL(s_f | s_e) + KL(s^H_f | s^H_e) ]                      (4)
           (Li et al. 2022, arXiv:2203.15359, sections 3.2 to 3.4)

At the minimum of (2) expert e is left with the label prior to the power 1 - tau_e: the first is
for the head, the last for the tail. These powers have mean 0, so the mean logits are balanced.

H are an image's hard classes: its own label and those of the largest logits, of the mean of all
experts, three tenths of the classes together and two at least; s^H is s over H alone. (3) is nested
individual learning, (4) nested online distillation; gradients reach both sides of a divergence, as
in the authors' code.

What differs from NCL: no momentum encoder with contrastive learning beside it, which is the other
half of the paper; one trunk under all experts, where theirs are whole networks; hard classes are
mined with all experts' mean, where the authors' code takes the first one's, and are left out of the
softmax as the paper has it, where the code sets their logits to zero.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.classify import losses
from lt_jax.shapes import Array, Bool, Float, Labels

ExpertLogits = Float[Array, "b e k"]
ExpertLoss = Callable[[ExpertLogits, Labels, losses.Counts, losses.Scalar], losses.PerExample]

HARD = 0.3  # of the classes
DISTILLATION = 0.6  # weight of equation (4)


def make(name: str, own: losses.Loss) -> ExpertLoss:
    """The loss of a config's name; `own` is read by "own" alone.

    Raises:
      ValueError: no such loss.
    """
    known = {"own": functools.partial(mean_of, own), "balpoe": balpoe, "ncl": ncl}
    if name not in known:
        raise ValueError(f"no expert loss {name!r}; takes one of {', '.join(known)}")
    return known[name]


def mean_of(
    loss: losses.Loss,
    logits: ExpertLogits,
    labels: Labels,
    counts: losses.Counts,
    progress: losses.Scalar,
) -> losses.PerExample:
    """Equation (1)."""
    each = jax.vmap(loss, in_axes=(1, None, None, None))
    return each(logits, labels, counts, progress).mean(axis=0)


def strengths(experts: int) -> Float[np.ndarray, "e"]:
    """The tau_e of equation (2), of mean 1: 0, 1, 2 for three experts."""
    return np.linspace(0.0, 2.0, experts)


def balpoe(
    logits: ExpertLogits, labels: Labels, counts: losses.Counts, progress: losses.Scalar
) -> losses.PerExample:
    """Equation (2)."""
    tau = jnp.asarray(strengths(logits.shape[1]), logits.dtype)
    shifted = logits + (tau[:, None] * losses.log_prior(counts)[None])[None]
    return mean_of(losses.cross_entropy, shifted, labels, counts, progress)


def ncl(
    logits: ExpertLogits, labels: Labels, counts: losses.Counts, progress: losses.Scalar
) -> losses.PerExample:
    """Equations (3) and (4)."""
    balanced = logits + losses.log_prior(counts)[None, None]
    everything = jnp.ones((len(labels), logits.shape[-1]), bool)
    hard = hard_classes(logits.mean(axis=1), labels)
    return _nested(balanced, labels, everything) + _nested(balanced, labels, hard)


def hard_classes(logits: Float[Array, "b k"], labels: Labels) -> Bool[Array, "b k"]:
    """H: of each image its label and the classes of the largest logits besides."""
    classes = logits.shape[-1]
    number = min(classes, max(2, math.ceil(HARD * classes)))
    own = jax.nn.one_hot(labels, classes, dtype=bool)
    _, chosen = jax.lax.top_k(jnp.where(own, jnp.inf, logits), number)
    return jax.nn.one_hot(chosen, classes, dtype=bool).any(axis=1)


def _nested(logits: ExpertLogits, labels: Labels, among: Bool[Array, "b k"]) -> losses.PerExample:
    """One level of (3) and (4): over the classes `among` alone."""
    log_p = jax.nn.log_softmax(jnp.where(among[:, None], logits, -jnp.inf), axis=-1)
    log_p = jnp.where(among[:, None], log_p, 0.0)  # so that 0 log 0 and its gradient are 0
    p = jnp.where(among[:, None], jnp.exp(log_p), 0.0)
    right = -jnp.take_along_axis(log_p, labels[:, None, None], axis=-1)[..., 0].mean(axis=1)
    experts = logits.shape[1]
    # sum_k p_f (log p_f - log p_e) over pairs; a pair of an expert with itself adds 0.
    crossed = jnp.einsum("bfk,bek->bfe", p, log_p)
    alone = jnp.einsum("bfk,bfk->bf", p, log_p)
    divergence = (alone[:, :, None] - crossed).sum(axis=(1, 2))
    return right + DISTILLATION * divergence / (experts * (experts - 1))
