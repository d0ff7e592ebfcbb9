"""Problems so small that the right answer is known: a bandit, a lottery, a chain of two steps."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.mixing.environment import Step


def _step(observation, state, team, agents, terminated=True, reward=None):
    return Step(
        observation=observation,
        state=state,
        reward=jnp.broadcast_to(team, (agents,)) if reward is None else reward,
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(False),
        info={"team": team},
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Bandit:
    """Two agents, one step, a payoff for each pair of choices; observations say who is who."""

    payoff: Any
    num_agents = 2
    observations = ("first", "second")
    rounds = 1

    @property
    def num_actions(self):
        return (len(self.payoff),)

    def reset(self, key):
        return jnp.eye(2), jnp.zeros(())

    def step(self, state, action, key):
        return _step(jnp.eye(2), state, self.payoff[action[0], action[1]], 2)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Fate:
    """One step in which either agent gets 5 where its number is above 0, whatever it does.

    With `team`, all get the mean.
    """

    team: bool
    num_agents = 2
    num_actions = (2,)
    observations = ("number",)
    rounds = 1

    def reset(self, key):
        number = jax.random.normal(key, (2,))
        return number[:, None], number

    def step(self, state, action, key):
        each = 5.0 * (state > 0)
        return _step(state[:, None], state, each.mean(), 2, reward=None if self.team else each)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """Agent k is paid in the second step if it chose the sign of its number in the first.

    The first step pays for the wrong choice, but less, so that one has to look ahead. With
    `impatient`, an episode is terminated after the first step where agent 0 chose 0. Numbers are
    drawn anew in each episode; they are far from unit scale.
    """

    num_agents: int = 3
    parts: int = 1
    impatient: bool = False
    observations = ("number", "progress")
    rounds = 2

    @property
    def num_actions(self):
        return (2, 3)[: self.parts]

    def reset(self, key):
        number = 50.0 * jax.random.normal(key, (self.num_agents,))
        state = {"number": number, "right": jnp.zeros(self.num_agents), "round": jnp.zeros(())}
        return self._observe(state), state

    def step(self, state, action, key):
        action = action.reshape(self.num_agents, self.parts)
        right = (action[:, 0] == (state["number"] > 0)).astype(jnp.float32)
        if self.parts == 2:  # the second part has one right choice, whatever the number
            right = right * (action[:, 1] == 2)
        first = state["round"] == 0
        each = jnp.where(first, 0.3 * (1 - right), state["right"])
        state = {**state, "right": right, "round": state["round"] + 1}
        over = ~first | (self.impatient & (action[0, 0] == 0))
        return _step(self._observe(state), state, each.mean(), self.num_agents, over)

    def _observe(self, state):
        progress = jnp.full(self.num_agents, state["round"])
        return jnp.stack([state["number"] + 200.0, progress], axis=-1)


def collected(real, synthetic, policy_val, rng, classes):
    """What `proxy_data.collect` takes, of three pairs of images or features and their labels."""
    return {
        "real": real[0],
        "real_labels": real[1],
        "synthetic": synthetic[0],
        "synthetic_labels": synthetic[1],
        "scores": rng.normal(size=len(synthetic[0])),
        "policy_val": policy_val[0],
        "policy_val_labels": policy_val[1],
        "classes": classes,
        "head": np.arange(len(classes)) == 0,
    }
