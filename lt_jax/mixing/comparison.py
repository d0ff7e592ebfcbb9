"""Once a policy is learned: its schedule, what it reads, and how all rules do on fresh episodes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.config import MixingConfig
from lt_jax.mixing import costs, networks, rollout, search
from lt_jax.mixing.environment import Environment
from lt_jax.mixing.learn import Learner
from lt_jax.mixing.networks import Policy
from lt_jax.mixing.proxy import ProxyEnv
from lt_jax.runtime import faults, keys, mesh, population
from lt_jax.shapes import Array, Float, Int, PRNGKey

COMPARED = 32  # episodes of each rule
SHUFFLES = 4  # of each observation

Parts = Int[np.ndarray, "r k p"]  # of a schedule: level, and weight where there are any


def compare(
    learner: Learner, mixing: MixingConfig, policy: Policy, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A policy beside the other rules, on the proxy that it was learned on, paid as a team.

    Returns:
      Schedules by rule, as `entries` has them; and its "returns" and "importance", as the functions
      of these names have them.
    """
    trainings, learner = learner.trainings, learner.of(paying_the_team(learner.environment))
    stream = functools.partial(keys.stream, keys.stream(keys.root(seed), "compare"))
    schedules = {
        "policy_schedule": greedy_schedule(learner, policy, stream("schedule")),
        "random_search": searched_schedule(learner, stream("search"), trainings),
    }
    compared = {**schedules, **fixed_schedules(learner.environment, mixing)}
    return {name: entries(mixing, rounds) for name, rounds in schedules.items()}, {
        "returns": returns(learner, policy, compared, stream("episodes")),
        "importance": importance(learner, policy, stream("importance")),
    }


def episodes(learner: Learner, schedules: int) -> int:
    """Played for one policy that is set beside so many schedules; without the search for one."""
    return 1 + (1 + schedules) * COMPARED + learner.config.episodes


def spent(learner: Learner, mixing: MixingConfig, schedules: int) -> dict[str, dict[str, float]]:
    """Episodes, rows trained on and FLOPs (see `costs`) of all seeds, by what they were for."""
    env: Any = learner.environment
    seeds = len(mixing.policy.seeds)
    plain, learning = costs.training(env), costs.episode(env)
    played = mixing.policy.updates * mixing.policy.episodes
    parts = {
        "reference": (mixing.reference_runs, plain),
        "learning": (seeds * played, learning),
        "search": (seeds * learner.trainings, plain),
        "comparison": (seeds * episodes(learner, schedules), plain),
    }
    return {
        name: {"episodes": number, "images": number * each.images, "flops": number * each.flops}
        for name, (number, each) in parts.items()
    }


def paying_the_team(env: Any) -> ProxyEnv:
    """The environment for whoever reads no agent's own reward, which would be trained for."""
    reward = dataclasses.replace(env.config.reward, difference=False)
    config = dataclasses.replace(env.config, reward=reward)
    return dataclasses.replace(env, config=config)


def greedy_schedule(learner: Learner, policy: Policy, key: PRNGKey) -> Parts:
    """What the policy chooses in one greedy episode of its environment."""
    episode = jax.jit(lambda env, policy, key: _greedy(learner.of(env), policy)(key).action)
    return np.asarray(episode(learner.environment, policy, key))


def searched_schedule(learner: Learner, key: PRNGKey, trainings: int) -> Parts:
    """The best of as many random schedules, each of which takes one of the `trainings`.

    Raises NonFiniteError where every one of them got NaN.
    """
    env, at = learner.environment, learner.device_mesh
    together = learner.together or search.CHUNK
    best = jax.jit(lambda env, key: search.random_search(env, key, trainings, together, at))
    found, measured = mesh.fetch(best(env, key))
    if np.isnan(measured).all():
        raise faults.NonFiniteError(
            f"mixing: random search got no finite return in {trainings} trainings of the proxy; "
            "lower its learning rate"
        )
    return found.reshape(env.rounds, env.num_agents, len(env.num_actions))


def fixed_schedules(env: Environment, mixing: MixingConfig) -> dict[str, Parts]:
    """Each level for every class in every round, weights as near 1 as there are."""
    found = {}
    plain = int(np.abs(np.asarray(mixing.weights or (1.0,)) - 1).argmin())
    for level, share in enumerate(mixing.levels):
        fixed = np.full((env.rounds, env.num_agents, len(env.num_actions)), plain)
        fixed[..., 0] = level
        found[f"fixed {share:g}"] = fixed
    return found


def returns(
    learner: Learner, policy: Policy, schedules: dict[str, Parts], key: PRNGKey
) -> dict[str, dict[str, float]]:
    """The team's return by rule: mean, sample deviation and number of the same fresh episodes."""
    env = learner.environment
    together, devices = learner.together, learner.device_mesh
    turns = jax.random.split(key, COMPARED)

    @jax.jit
    def lived(*given: Any) -> Float[Array, "n"]:
        team = lambda at, env, policy: _greedy(learner.of(env), policy)(at).team.sum()
        return population.over(team, turns, together, devices, given)

    @jax.jit
    def replayed(*given: Any) -> Float[Array, "n"]:
        team = lambda at, env, actions: rollout.replay(env, actions, at).team.sum()
        return population.over(team, turns, together, devices, given)

    found = {"policy": lived(env, policy)}
    for name, parts in schedules.items():
        faults.check("a comparison of schedules")
        found[name] = replayed(env, parts if env.num_actions[1:] else parts[..., 0])
    found = mesh.fetch(found)
    return {
        name: {"mean": float(values.mean()), "std": float(values.std(ddof=1)), "n": COMPARED}
        for name, values in found.items()
    }


def importance(learner: Learner, policy: Policy, key: PRNGKey) -> list[float]:
    """How far the policy's choices move when one observation is shuffled, in nats an agent, [o].

    Permutation importance (Breiman 2001), of the policy rather than of its return: the mean of
    KL(pi(. | o) || pi(. | o')), where o' has one feature from another time, episode and class.
    """
    actor = learner.modules.actor
    learner = dataclasses.replace(learner, device_mesh=None)  # what follows is not split
    seen = learner.episodes(policy, keys.stream(key, "episodes")).observation[:-1]
    before = networks.logits(actor, policy, seen)
    draws = jax.random.split(keys.stream(key, "shuffles"), SHUFFLES)

    @jax.jit
    def each(seen: Float[Array, "t n k o"], before: networks.PerPart) -> Float[Array, "o"]:
        def moved(feature: Int[Array, ""], at: PRNGKey) -> Float[Array, ""]:
            order = jax.random.permutation(at, seen[..., 0].size)
            column = jnp.take(seen, feature, axis=-1)
            other = seen.at[..., feature].set(column.ravel()[order].reshape(column.shape))
            return networks.divergence(before, networks.logits(actor, policy, other)).mean()

        mean = lambda feature: jax.vmap(moved, (None, 0))(feature, draws).mean()
        return jax.lax.map(mean, jnp.arange(seen.shape[-1]))

    return each(seen, before).tolist()


def entries(mixing: MixingConfig, schedule: Parts) -> list[dict[str, list[float]]]:
    """A schedule as `controllers.read_schedule` takes it."""
    rounds = [{"share": np.asarray(mixing.levels)[now[:, 0]].tolist()} for now in schedule]
    if mixing.weights:
        for entry, now in zip(rounds, schedule, strict=True):
            entry["factor"] = np.asarray(mixing.weights)[now[:, 1]].tolist()
    return rounds


def _greedy(learner: Learner, policy: Policy) -> Callable[[PRNGKey], rollout.Episodes]:
    act = networks.make_act(learner.config, learner.environment.num_actions)
    choose = lambda observation, at: act(policy, observation, at, True)
    return functools.partial(rollout.play, learner.environment, choose)
