"""Estimators of policy gradients: returns, generalised advantages, leave-one-out, running moments.

An episode yields rewards r_t. It ends at step t where it is `terminated` (nothing follows: the
value of what comes after is zero) or `truncated` (it would go on, but is not watched further). With
discount gamma and a value function V,

  G_t = r_t + gamma (1 - ended_t) G_{t+1}                                                   (1)
  delta_t = r_t + gamma (1 - terminated_t) V(o_{t+1}) - V(o_t)                              (2)
  A_t = delta_t + gamma lambda (1 - ended_t) A_{t+1}                                        (3)

(3) is generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, equation 16) with
o_{t+1} what the agents saw after step t, also where the episode ended there, so that truncation
is bootstrapped and termination is not (Pardo et al. 2018, arXiv:1712.00378). The last step of the
data is bootstrapped like a truncated one. (1) has no value function: what a truncated
episode would still have earned is left out of it.

Of N independent episodes at the same step, the baseline of episode i is the others' mean,

  b_i = 1 / (N - 1) sum_{j != i} G_j                                                        (4)

which does not depend on what was done in episode i, so that (G_i - b_i) grad log pi is unbiased
(Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!").
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lt_jax.shapes import Array, Bool, Float

Rewards = Float[Array, "t n k"]
Flags = Bool[Array, "t n"]  # of t steps in n episodes


def returns_to_go(rewards: Rewards, ended: Flags, discount: float) -> Rewards:
    """Equation (1): what each agent still gets from each step on."""

    def back(later: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, end = step
        total = reward + discount * jnp.where(end[:, None], 0.0, later)
        return total, total

    return jax.lax.scan(back, jnp.zeros_like(rewards[0]), (rewards, ended), reverse=True)[1]


def generalized_advantages(
    rewards: Rewards,
    values: Float[Array, "t+1 n v"],
    terminated: Flags,
    truncated: Flags,
    *,
    discount: float,
    trace: float,
) -> Rewards:
    """Equations (2) and (3).

    Args:
      rewards: of each step, episode and agent.
      values: V of what was seen before each step and after the last; v is 1 (the team's) or k.
      terminated: where an episode came to its end.
      truncated: where it was broken off.
      discount: gamma in [0, 1].
      trace: lambda in [0, 1]; 0 looks one step ahead, 1 is returns less values.
    """
    follows = jnp.where(terminated[:, :, None], 0.0, values[1:])
    deltas = rewards + discount * follows - values[:-1]
    ended = terminated | truncated

    def back(later: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, end = step
        advantage = delta + discount * trace * jnp.where(end[:, None], 0.0, later)
        return advantage, advantage

    return jax.lax.scan(back, jnp.zeros_like(deltas[0]), (deltas, ended), reverse=True)[1]


def leave_one_out(returns: Rewards, alive: Flags) -> Rewards:
    """The baseline (4) at each step, over the episodes that are still `alive` there.

    Zero where no other episode is: which episodes are alive depends on none but themselves, so
    that the estimate stays unbiased.
    """
    weight = alive[:, :, None].astype(returns.dtype)
    total = (weight * returns).sum(axis=1, keepdims=True)
    others = weight.sum(axis=1, keepdims=True) - weight
    return (total - weight * returns) / jnp.maximum(others, 1.0)


def masked_mean(values: Float[Array, "*b k"], weight: Float[Array, "*b"]) -> Float[Array, ""]:
    """Mean over agents and over what has weight 1; 0 where nothing has."""
    return (values.mean(axis=-1) * weight).sum() / jnp.maximum(weight.sum(), 1.0)


def standardize(values: Float[Array, "*b k"], weight: Float[Array, "*b"]) -> Float[Array, "*b k"]:
    """Values of mean 0 and variance 1, both taken over what has weight 1."""
    centred = values - masked_mean(values, weight)
    return centred / jnp.sqrt(masked_mean(centred**2, weight) + 1e-12)


@flax.struct.dataclass
class Moments:
    """Mean and variance of all that was seen so far, feature by feature.

    Attributes:
      count: observations so far, float32 scalar.
      mean: [o].
      square: sum of squared deviations from the mean [o].
    """

    count: Any
    mean: Any
    square: Any

    @property
    def variance(self) -> Float[Array, "o"]:
        """Of the population, as `numpy.var`; 1 before anything was seen."""
        return jnp.where(self.count > 0, self.square / jnp.maximum(self.count, 1.0), 1.0)

    def normalize(self, values: Float[Array, "*b o"], limit: float = 10.0) -> Float[Array, "*b o"]:
        """Values less the mean, over the deviation, clipped to [-limit, limit]."""
        lead = (1,) * (values.ndim - 1)
        mean, deviation = self.mean.reshape(*lead, -1), self._deviation.reshape(*lead, -1)
        return jnp.clip((values - mean) / deviation, -limit, limit)

    def restore(self, normalized: Float[Array, "*b o"]) -> Float[Array, "*b o"]:
        """The inverse of `normalize` within its limit."""
        lead = (1,) * (normalized.ndim - 1)
        return normalized * self._deviation.reshape(*lead, -1) + self.mean.reshape(*lead, -1)

    @property
    def _deviation(self) -> Float[Array, "o"]:
        # The floor keeps rounding in a feature that does not vary from being blown up.
        return jnp.sqrt(self.variance + 1e-8)


def no_moments(size: int) -> Moments:
    """Of nothing seen: `normalize` only clips."""
    return Moments(jnp.zeros(()), jnp.zeros(size), jnp.zeros(size))


def observe(moments: Moments, values: Float[Array, "*b o"], weight: Float[Array, "*b"]) -> Moments:
    """Adds the values of weight 1 (Chan, Golub and LeVeque 1983, "Algorithms for computing the
    sample variance", equation 2.1b), which loses no digits where the mean is far from zero."""
    axes = tuple(range(values.ndim - 1))
    column = weight[..., None]
    count = weight.sum()
    mean = (column * values).sum(axis=axes) / jnp.maximum(count, 1.0)
    centred = values - mean.reshape(*(1,) * len(axes), -1)
    total = moments.count + count
    shift = mean - moments.mean
    part = count / jnp.maximum(total, 1.0)
    return Moments(
        count=total,
        mean=moments.mean + part * shift,
        square=moments.square
        + (column * centred**2).sum(axis=axes)
        + moments.count * part * shift**2,
    )
