"""Class-balancing regularisation of the generator's training: CBDM.

Qin et al. 2023 (arXiv:2305.00562) add to the loss of an image x_0 of class y, noised to x_t, its
distance from what the network says under another label y', drawn from a label distribution q:

  L_r = tau t ( |e(x_t, y) - sg e(x_t, y')|^2 + gamma |sg e(x_t, y) - e(x_t, y')|^2 )      (1)

with e the predicted noise, sg a stopped gradient, squares averaged over pixels. The first term
lets a class learn from what the network knows of others, which is where a tail class gains; the
second ("commitment", gamma = 1/4) moves the others as well. t is in [0, 1], as in the authors' code
(qym7/CBDM-pytorch, whose runs have tau = 1).

The loss beside which (1) stands weighs the error of e by w(lambda), equation (9) of `process`; the
paper has w = 1. So does the regulariser here: at every level the two keep the paper's proportion,
which is what their joint minimiser depends on. Since predictions of every kind are affine in e at
a given x_t, w |e - e'|^2 is `process.weight` times the squared difference of the predictions
themselves, and no conversion is made. With min_snr_gamma = 0 this is (1) as published.

The authors' code draws y' from the train labels (q_k ~ n_k) when training from scratch and
uniformly when adapting a trained model; `other_labels` takes q_k ~ n_k^power, which has both and
what lies between.
"""

import jax
import jax.numpy as jnp

from lt_jax.diffusion.process import Noised, VPProcess
from lt_jax.shapes import Array, Float, Images, Labels, PRNGKey


def other_labels(
    key: PRNGKey, labels: Labels, counts: Float[Array, "k"], power: float = 0.0
) -> Labels:
    """Draws y' of equation (1) for every example, with probability proportional to n_k^power.

    Args:
      key: of the step. The draws are functions of (key, index in the batch).
      labels: y. Outside [0, k) (no label: dropped for guidance) there is nothing to balance, and
        y' is y.
      counts: train images n_k of each class. A class without any is never drawn.
      power: 0 draws classes alike, 0.5 by the square root of their counts, 1 as in train.
    """
    log_weights = jnp.where(counts > 0, power * jnp.log(jnp.maximum(counts, 1e-30)), -jnp.inf)
    drawn = jax.random.categorical(key, log_weights, shape=labels.shape).astype(labels.dtype)
    told = (labels >= 0) & (labels < counts.shape[0])
    return jnp.where(told, drawn, labels)


def cbdm(
    process: VPProcess,
    noised: Noised,
    prediction: Images,
    other_prediction: Images,
    labels: Labels,
    others: Labels,
    *,
    weight: float,
    commitment: float = 0.25,
) -> Float[Array, "b"]:
    """Equation (1) for each example; add it to `process.error` of the same draw.

    Args:
      process: weighs the levels, and says what the network predicts.
      noised: from `process.draw`.
      prediction: the network's, at `noised` under the examples' own conditions.
      other_prediction: at the same `noised` under the same conditions but for the label.
      labels: y, after conditions were dropped.
      others: y', from `other_labels`.
      weight: tau >= 0.
      commitment: gamma >= 0.

    Returns:
      [b], 0 where y' = y, also if dropout makes the two predictions differ.
    """
    towards_others = jnp.square(prediction - jax.lax.stop_gradient(other_prediction))
    of_others = jnp.square(jax.lax.stop_gradient(prediction) - other_prediction)
    distance = jnp.mean(towards_others + commitment * of_others, axis=(1, 2, 3))
    level = weight * noised.t * process.weight(noised.log_snr)
    return jnp.where(labels != others, level * distance, 0.0)
