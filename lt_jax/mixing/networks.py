"""Networks of the mixing policy, and acting by them: one actor for all agents, one critic.

There is an agent a class, and classes have no order. With x_k what agent k observes, every network
here is made of

  h_k = mlp(x_k),    z_k = mlp([h_k, pool_k(h_1, ..., h_K)])                                (1)

with the same weights for all k, so that permuting classes permutes z (deep sets, Zaheer et al.
2017, arXiv:1703.06114, theorem 3 and lemma 3), and K may be any number. `pool` is

  mean       1/K sum_j h_j, the same for all                                                (2)
  attention  sum_j softmax_j(q_k . m_j / sqrt(d)) v_j,  q, m, v linear in h                 (3)

(3) with one head (Vaswani et al. 2017, arXiv:1706.03762, equation 1). The actor's logits are linear
in z_k. The critic sees all agents: its value is linear in the mean of z over classes, hence
invariant and one for the team, or, where agents are paid apart (difference rewards),
linear in z_k, hence equivariant and one a class. Actor and critic share no weights, as in MAPPO
(Yu et al. 2022, arXiv:2103.01955), so that neither's loss needs weighing against the other's.

An agent chooses one level or, where there are weights to choose as well, a level and a weight,
independently given what all observe: log pi(a_k) is the sum over both parts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.config.mixing import PolicyConfig
from lt_jax.mixing.estimators import Moments, no_moments
from lt_jax.models import module
from lt_jax.shapes import Array, Float, Int, PRNGKey

Observations = Float[Array, "*b k o"]
PerPart = tuple[Float[Array, "*b k _"], ...]  # logits of each part of an action
Parts = Int[Array, "*b k p"]  # an action with its parts on an axis of their own, also where p = 1
Action = Int[Array, "k"] | Int[Array, "k 2"]
Act = Callable[["Policy", Float[Array, "k o"], PRNGKey, bool], Action]


def _dense(width: int, gain: float, name: str) -> nn.Dense:
    # Not orthogonal, as Yu et al. have it: the QR factorisations of a population, vmapped, wait in
    # every thread of XLA's CPU pool for a thread of the same pool, and hang for good on two cores.
    init = nn.initializers.variance_scaling(gain**2, "fan_in", "truncated_normal")
    return nn.Dense(width, kernel_init=init, name=name)


class Pool(nn.Module):
    """[*b k d] -> [*b k d]: what each class is told of all; equations (2) and (3)."""

    kind: str

    @nn.compact
    def __call__(self, h: Float[Array, "*b k d"]) -> Float[Array, "*b k d"]:
        """Permuting k permutes the result."""
        if self.kind == "mean":
            return jnp.broadcast_to(h.mean(axis=-2, keepdims=True), h.shape)
        query, memory, value = (_dense(h.shape[-1], 1.0, name)(h) for name in ("q", "m", "v"))
        scores = jnp.einsum("...kd,...jd->...kj", query, memory) / np.sqrt(h.shape[-1])
        return jnp.einsum("...kj,...jd->...kd", jax.nn.softmax(scores), value)


class Trunk(nn.Module):
    """[*b k o] -> [*b k width]: equation (1)."""

    width: int
    pooling: str

    @nn.compact
    def __call__(self, observation: Observations) -> Float[Array, "*b k d"]:
        """Permuting k permutes the result."""
        gain = float(np.sqrt(2))
        h = nn.tanh(_dense(self.width, gain, "own_0")(observation))
        h = nn.tanh(_dense(self.width, gain, "own_1")(h))
        both = jnp.concatenate([h, Pool(self.pooling, name="pool")(h)], axis=-1)
        return nn.tanh(_dense(self.width, gain, "both")(both))


class Actor(nn.Module):
    """Logits of each agent's choices, one array a part of the action.

    Attributes:
      width: of all hidden layers.
      pooling: "mean" or "attention".
      num_actions: choices of each part: (levels,) or (levels, weights).
    """

    width: int
    pooling: str
    num_actions: tuple[int, ...]

    @nn.compact
    def __call__(self, observation: Observations) -> PerPart:
        """Near zero at the start: all choices are about as likely."""
        z = Trunk(self.width, self.pooling, name="trunk")(observation)
        return tuple(
            _dense(choices, 0.01, f"part_{part}")(z)
            for part, choices in enumerate(self.num_actions)
        )


class Critic(nn.Module):
    """The value of what all agents see together.

    Attributes:
      width, pooling: as of `Actor`.
      class_values: one value a class in place of one for the team.
    """

    width: int
    pooling: str
    class_values: bool = False

    @nn.compact
    def __call__(self, observation: Observations) -> Float[Array, "*b v"]:
        """v is 1 (the team's) or k."""
        z = Trunk(self.width, self.pooling, name="trunk")(observation)
        if not self.class_values:
            z = z.mean(axis=-2, keepdims=True)
        return _dense(1, 1.0, "value")(z)[..., 0]


class Networks(NamedTuple):
    """Actor and critic; hashable, without arrays."""

    actor: Actor
    critic: Critic


def make(
    config: PolicyConfig, num_actions: tuple[int, ...], class_values: bool = False
) -> Networks:
    """The networks that a config asks for; `num_actions` and `class_values`: see there."""
    return Networks(
        Actor(config.width, config.pooling, num_actions),
        Critic(config.width, config.pooling, class_values),
    )


@flax.struct.dataclass
class Policy:
    """All that acting needs besides the config: what a checkpoint of a policy holds.

    Attributes:
      params: the actor's.
      moments: of the observations so far, by which they are normalised.
    """

    params: Any
    moments: Any


def init_policy(actor: Actor, key: PRNGKey, num_agents: int, num_observations: int) -> Policy:
    """A policy that has learned and seen nothing; also the target to load one into."""
    example = jnp.zeros((num_agents, num_observations))
    return Policy(module.init(actor, key, example), no_moments(num_observations))


def logits(actor: Actor, policy: Policy, observation: Observations) -> PerPart:
    """What the policy makes of raw observations."""
    moments: Moments = policy.moments
    return module.apply(actor, policy.params, moments.normalize(observation))


def log_prob(parts: PerPart, action: Parts) -> Float[Array, "*b k"]:
    """log pi of each agent's action: the sum over its parts."""
    chosen = [
        jnp.take_along_axis(jax.nn.log_softmax(part), action[..., i : i + 1], axis=-1)[..., 0]
        for i, part in enumerate(parts)
    ]
    return jnp.sum(jnp.stack(chosen), axis=0)


def entropy(parts: PerPart) -> Float[Array, "*b k"]:
    """Of each agent's choice, in nats, summed over parts."""
    each = [-(jax.nn.softmax(part) * jax.nn.log_softmax(part)).sum(axis=-1) for part in parts]
    return jnp.sum(jnp.stack(each), axis=0)


def divergence(old: PerPart, new: PerPart) -> Float[Array, "*b k"]:
    """KL(old || new) of each agent's choice, in nats, summed over parts."""
    each = [
        (jax.nn.softmax(p) * (jax.nn.log_softmax(p) - jax.nn.log_softmax(q))).sum(axis=-1)
        for p, q in zip(old, new, strict=True)
    ]
    return jnp.sum(jnp.stack(each), axis=0)


def make_act(config: PolicyConfig, num_actions: tuple[int, ...]) -> Act:
    """How a policy acts: `act(policy, observation [k o], key, greedy) -> action`.

    Greedy: the likeliest choices (the first of those that are equally likely), whatever the key;
    else: drawn. An action is int32 [k] where `num_actions` has one part, [k 2] where it has two.
    Pure, for `jit` and `vmap`, with `greedy` static.
    """
    actor = make(config, num_actions).actor

    def act(policy: Policy, observation: Float[Array, "k o"], key: PRNGKey, greedy: bool) -> Action:
        parts = logits(actor, policy, observation)
        draws = jax.random.split(key, len(parts))
        chosen = [
            part.argmax(axis=-1) if greedy else jax.random.categorical(draw, part)
            for draw, part in zip(draws, parts, strict=True)
        ]
        action = jnp.stack(chosen, axis=-1).astype(jnp.int32)
        return action[:, 0] if len(parts) == 1 else action

    return act
