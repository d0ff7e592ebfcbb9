"""What the agents are paid for: soft metrics on policy_val, head recall, and synthetic images.

With p_i the class probabilities of policy_val image i, y_i its label, V_k the images of class k,

    C_jk = sum_(i in V_j) p_ik                      soft confusion matrix, Y^T P            (1)
    R_k = C_kk / |V_k|                              soft recall                             (2)
    P_k = C_kk / sum_j C_jk                         soft precision                          (3)
    S_k = 2 C_kk / (|V_k| + sum_j C_jk)             soft F1                                 (4)
    m_k = mean_(i in V_k) p_ik - max_(j != k) p_ij  margin, in [-1, 1]                      (5)
    M = mean_k R_k (balanced accuracy) or mean_k S_k (macro F1)                             (6)
    F = mean_(k in head) max(0, rho_rk - R_k - tolerance)                                   (7)
    U = M - lambda F                                                                        (8)

Where all p_i are one-hot, (2) to (4) are recall, precision and F1 as usual. A hard recall of eight
images moves in steps of 1/8, when one of them crosses a boundary; (2) moves with each of them.

What head recall falls below is rho_rk, that of real images alone after as many rounds, the mean
of a few trainings. Head recall rises early and falls again while the tail is learned, with or
without synthesis: below its own best so far the one would be blamed for the other, and a policy
that keeps the head from ever being learned would not be blamed at all. Each head class counts for
itself, so that none is sold for another. Being a difference of U, the reward gives a penalty back
once the head recovers; what remains in an episode's sum is the fall of the finished classifier.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from lt_jax.config.mixing import RewardConfig
from lt_jax.shapes import Array, Bool, Float, Int

LEAST = 1e-12  # of a sum of probabilities that divides


@struct.dataclass
class Measured:
    """A classifier on policy_val: soft recall, precision, F1 in [0, 1], margin in [-1, 1]; [k]."""

    recall: Any
    precision: Any
    f1: Any
    margin: Any


def measure(probabilities: Float[Array, "n k"], labels: Int[Array, "n"]) -> Measured:
    """Equations (1) to (5); every class must be among the labels."""
    member = jax.nn.one_hot(labels, probabilities.shape[-1])
    labelled = member.sum(0)
    confusion = jnp.matmul(member.T, probabilities, precision="highest")
    hits, predicted = jnp.diagonal(confusion), confusion.sum(0)
    true = (member * probabilities).sum(-1)
    rival = jnp.where(member > 0, -1.0, probabilities).max(-1)
    return Measured(
        recall=hits / labelled,
        precision=hits / jnp.maximum(predicted, LEAST),
        f1=2 * hits / (labelled + predicted),
        margin=(member * (true - rival)[:, None]).sum(0) / labelled,
    )


def metric(config: RewardConfig, measured: Measured) -> Float[Array, ""]:
    """Equation (6), in [0, 1]."""
    return (measured.f1 if config.metric == "macro_f1" else measured.recall).mean()


def head_fall(
    recall: Float[Array, "k"],
    reference: Float[Array, "k"],
    head: Bool[Array, "k"],
    tolerance: float,
) -> Float[Array, ""]:
    """Equation (7), in [0, 1]; 0 where no class is of the head."""
    fall = jnp.maximum(reference - recall - tolerance, 0.0)
    return jnp.where(head, fall, 0.0).sum() / jnp.maximum(head.sum(), 1)


def potential(
    config: RewardConfig,
    measured: Measured,
    reference: Float[Array, "k"],
    head: Bool[Array, "k"],
) -> Float[Array, ""]:
    """Equation (8): what a round's reward is the change of, before the price of its images."""
    fall = head_fall(measured.recall, reference, head, config.head_tolerance)
    return metric(config, measured) - config.head_penalty * fall
