"""Random search over schedules: the rival that a learned mixing policy has to beat.

A schedule gives each class a level (and a weight, where agents choose one) in each of R rounds. Of
m schedules the even ones draw a choice for each class and keep it in all rounds, the odd ones draw
anew in each round; choices are uniform. Each is played once, and what was measured best is taken:
with noise its measured return is that of the luckiest as well, which is why a return that is to be
believed has to be measured again. Such a search sees no observation, and costs what a policy does
that took m classifier trainings, one an episode where all agents are paid alike (Bergstra and
Bengio 2012, JMLR 13, "Random search for hyper-parameter optimization").
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lt_jax.mixing.environment import Environment
from lt_jax.mixing.rollout import replay
from lt_jax.runtime import keys, population
from lt_jax.shapes import Array, Float, Int, PRNGKey

CHUNK = 64  # schedules played at once, which bounds the memory


def random_search(
    environment: Environment,
    key: PRNGKey,
    trainings: int,
    together: int = CHUNK,
    device_mesh: Mesh | None = None,
) -> tuple[Int[Array, "r k *heads"], Float[Array, "m"]]:
    """The schedule of the highest measured return, and what each of them got.

    Pure, for `jit`, and for `vmap` over keys.

    Args:
      environment: any.
      key: decides all; schedule i and its episode depend on (key, i) alone, so that a search of
        fewer trainings is the beginning of a longer one.
      trainings: m >= 1, each of one classifier.
      together, device_mesh: of them in one vmap, and where (`population`).

    Returns:
      Actions of `environment.rounds` rounds, [r k] or with weights [r k 2], the first of those that
      are equally good; NaN is worse than any. And the team's undiscounted return of each schedule,
      in the order of i.
    """

    def measure(index: Int[Array, ""], env: Any, key: PRNGKey) -> Float[Array, ""]:
        turns = jax.random.fold_in(keys.stream(key, "episodes"), index)
        return replay(env, schedule(env, key, index), turns).team.sum()

    indices, shared = jnp.arange(trainings), (environment, key)
    returns = population.over(measure, indices, together, device_mesh, shared)
    best = jnp.where(jnp.isnan(returns), -jnp.inf, returns).argmax()
    return schedule(environment, key, best), returns


def schedule(
    environment: Environment, key: PRNGKey, index: Int[Array, ""] | int
) -> Int[Array, "r k *heads"]:
    """What a search by `key` plays as its schedule number `index`."""
    heads = jnp.asarray(environment.num_actions)
    shape = environment.rounds, environment.num_agents, len(heads)
    draw = jax.random.fold_in(keys.stream(key, "schedules"), index)
    each = jax.random.randint(draw, shape, 0, heads[None, None])
    constant = jnp.broadcast_to(each[:1], each.shape)
    chosen = jnp.where(jnp.asarray(index) % 2 == 0, constant, each)
    return chosen[..., 0] if len(heads) == 1 else chosen
