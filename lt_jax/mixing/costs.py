"""What trainings of a proxy classifier cost: how many, rows, FLOPs as XLA counts those of a step.

As in the ledger of other trainings, the steps alone are counted; looks at policy_val are not.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lt_jax.config.mixing import RewardConfig
from lt_jax.mixing.draws import Draws
from lt_jax.mixing.proxy import ProxyEnv
from lt_jax.runtime import keys, ledger
from lt_jax.runtime.ledger import Ledger


def trainings(reward: RewardConfig, classes: int) -> int:
    """Of a classifier, in an episode: difference rewards train every round again for each class."""
    return 1 + classes if reward.difference else 1


def training(env: ProxyEnv) -> Ledger:
    """One classifier's, over an episode of an environment that pays the team alone."""
    size = env.config.proxy.batch_size
    state = jax.eval_shape(env.reset, keys.root(0))[1]
    rows = jax.ShapeDtypeStruct((1, size), jnp.int32)
    batch = Draws(rows, rows, jax.ShapeDtypeStruct(rows.shape, jnp.bool_))
    prior = jax.ShapeDtypeStruct((env.num_agents,), jnp.float32)
    step = jax.jit(lambda env, *given: env.fit(*given))
    steps = env.rounds * env.config.proxy.minibatches
    flops = ledger.flops(step, env, state, batch, prior, keys.root(0))
    return Ledger(images=steps * size, flops=steps * flops)


def episode(env: ProxyEnv) -> Ledger:
    """One, with all of its trainings."""
    return times(training(env), trainings(env.config.reward, env.num_agents))


def times(cost: Ledger, number: int) -> Ledger:
    """So many of them; all fields."""
    return Ledger(**{name: number * value for name, value in dataclasses.asdict(cost).items()})
