"""What MAPPO and REINFORCE minimise, over any steps of any episodes.

With A an agent's advantage, scaled over its batch, rho = pi(a) / pi_played(a) its own ratio, H the
entropy and c its weight,

  clipped    -mean min(rho A, clip(rho, 1 - eps, 1 + eps) A) - c mean H                     (1)
  reinforce  -mean A log pi(a) - c mean H                                                   (2)
  value      mean ((G - m) / s - V)^2 / 2                                                   (3)

(1): Schulman et al. 2017 (arXiv:1707.06347, equation 7), an agent at a time as in Yu et al. 2022
(arXiv:2103.01955, appendix A); (2): Williams 1992; (3): m and s are mean and deviation of all the
critic's targets G so far. Means are over steps and agents.
"""

from typing import Any

import flax.struct
import jax.numpy as jnp

from lt_jax.mixing import estimators, networks
from lt_jax.mixing.networks import Actor, Critic
from lt_jax.models import module
from lt_jax.shapes import Array, Float, Params

Metrics = dict[str, Float[Array, ""]]


@flax.struct.dataclass
class Samples:
    """What losses are of; b steps of any episodes.

    Attributes:
      observation: normalised [b k o].
      action: [b k p].
      log_prob: of the action when it was played [b k].
      advantage: scaled [b k].
      target: of the critic, normalised [b v]; v = 0 where there is none.
      weight: 1, or 0 after an episode's end [b].
    """

    observation: Any
    action: Any
    log_prob: Any
    advantage: Any
    target: Any
    weight: Any


def clipped_loss(
    actor: Actor, params: Params, samples: Samples, *, clip: float, entropy: float
) -> tuple[Float[Array, ""], Metrics]:
    """Equation (1). `ratio_error` is the largest |rho - 1|: 0 before the first step."""
    parts = module.apply(actor, params, samples.observation)
    ratio = jnp.exp(networks.log_prob(parts, samples.action) - samples.log_prob)
    bounded = jnp.clip(ratio, 1 - clip, 1 + clip)
    gain = jnp.minimum(ratio * samples.advantage, bounded * samples.advantage)
    away = jnp.abs(ratio - 1) * samples.weight[:, None]
    metrics = {
        "clip_fraction": estimators.masked_mean((away > clip).astype(gain.dtype), samples.weight),
        "ratio_error": away.max(),
    }
    return _loss(gain + entropy * networks.entropy(parts), samples), metrics


def reinforce_loss(
    actor: Actor, params: Params, samples: Samples, *, entropy: float
) -> tuple[Float[Array, ""], Metrics]:
    """Equation (2); its gradient at entropy = 0 is minus the estimate of the policy gradient."""
    parts = module.apply(actor, params, samples.observation)
    gain = networks.log_prob(parts, samples.action) * samples.advantage
    return _loss(gain + entropy * networks.entropy(parts), samples), {}


def value_loss(
    critic: Critic, params: Params, samples: Samples
) -> tuple[Float[Array, ""], Metrics]:
    """Equation (3)."""
    error = module.apply(critic, params, samples.observation) - samples.target
    return _loss(-(error**2) / 2, samples), {}


def _loss(gain: Float[Array, "b _"], samples: Samples) -> Float[Array, ""]:
    # Over all b, not over those of weight 1: their number depends on the actions, and dividing by
    # it would bias the gradient.
    return -(gain.mean(axis=-1) * samples.weight).mean()
