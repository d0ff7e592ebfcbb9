"""Playing episodes of an environment that does not reset itself, as fixed-size arrays."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lt_jax.mixing.environment import Environment
from lt_jax.runtime import keys
from lt_jax.shapes import Array, Float, Int, PRNGKey

Choose = Callable[[Float[Array, "k o"], PRNGKey], Int[Array, "k"] | Int[Array, "k 2"]]


@flax.struct.dataclass
class Episodes:
    """Episodes played to their end, or as long as an environment's are at most; t steps each.

    Attributes:
      observation: before each step and after the last [t+1 n k o]; the last one is repeated.
      action: parts of each agent's choice [t n k p].
      reward: of each agent [t n k]; 0 after the end.
      team: what the team got [t n], which difference rewards do not add up to; 0 after the end.
      terminated, truncated: where an episode ended [t n], at most once in each.
      alive: whether the step was played, rather than being after the end [t n].
    """

    observation: Any
    action: Any
    reward: Any
    team: Any
    terminated: Any
    truncated: Any
    alive: Any


def play(environment: Environment, choose: Choose, key: PRNGKey) -> Episodes:
    """One episode, `environment.rounds` steps; without the axis n: `vmap` over keys for more.

    What an environment does when stepped after its end has no effect.
    """
    return _episode(environment, lambda observation, at, _: choose(observation, at), key, None)


def replay(environment: Environment, actions: Int[Array, "t k *heads"], key: PRNGKey) -> Episodes:
    """The episode of a schedule: as `play` with the same key, where that chose `actions`."""
    return _episode(environment, lambda observation, at, action: action, key, actions)


def _episode(environment: Environment, choose: Callable, key: PRNGKey, given: Any) -> Episodes:
    def step(carry: tuple, turn: tuple[PRNGKey, Any]) -> tuple[tuple, tuple]:
        (observation, state, alive), (at, hint) = carry, turn
        action = choose(observation, keys.stream(at, "action"), hint)
        new = environment.step(state, action, keys.stream(at, "step"))
        terminated, truncated = new.terminated & alive, new.truncated & alive
        reward, team = (jnp.where(alive, got, 0.0) for got in (new.reward, new.info["team"]))
        after = jax.tree.map(
            lambda new, old: jnp.where(alive, new, old),
            (new.observation, new.state),
            (observation, state),
        )
        parts = action.reshape(observation.shape[0], -1)
        carry = (*after, alive & ~(terminated | truncated))
        return carry, (observation, parts, reward, team, terminated, truncated, alive)

    observation, state = environment.reset(keys.stream(key, "reset"))
    start = (observation, state, jnp.ones((), bool))
    turns = jax.random.split(keys.stream(key, "turns"), environment.rounds)
    (last, *_), (observations, *rest) = jax.lax.scan(step, start, (turns, given))
    return Episodes(jnp.concatenate([observations, last[None]]), *rest)
