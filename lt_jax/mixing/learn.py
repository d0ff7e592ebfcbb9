"""Learning the mixing policy: MAPPO and REINFORCE, pure from key to policy.

An update plays N episodes with the policy as it is, all from their beginning, and improves it on
them by the losses of `objectives`:

  MAPPO      (Yu et al. 2022, arXiv:2103.01955) generalised advantages, standardised over the
             batch; `epochs` passes of `minibatches` steps each. The critic learns
             G = A + V_played, normalised by the moments of all G so far.
  REINFORCE  (Kool et al. 2019) returns-to-go less the leave-one-out baseline of N episodes, over
             their root mean square; one step. There is no critic.

Both clip the norm of each gradient, and their learning rate falls linearly to zero. Observations
are normalised by the moments of all updates before, so that a policy's own moments are those it
played with.

`Learner.init` and `Learner.update` are a training cut in updates, whose state is a pytree of plain
arrays for a checkpoint; `make_train` scans over them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lt_jax.config import ConfigError
from lt_jax.config.mixing import PolicyConfig
from lt_jax.mixing import costs, estimators, networks
from lt_jax.mixing.environment import Environment
from lt_jax.mixing.networks import Policy
from lt_jax.mixing.objectives import Metrics, Samples, clipped_loss, reinforce_loss, value_loss
from lt_jax.mixing.proxy import ProxyEnv
from lt_jax.mixing.rollout import Episodes, play
from lt_jax.models import module
from lt_jax.runtime import keys, population, train_state
from lt_jax.shapes import Array, Float, Int, PRNGKey


@flax.struct.dataclass
class LearnState:
    """All that an update changes, as plain arrays: what a checkpoint holds.

    Attributes:
      key: data of the root key, from which with `updates` all draws come.
      updates: made so far, int32 scalar.
      actor: `TrainState` of the actor.
      critic: that of the critic; None under REINFORCE.
      observations: `Moments` of the observations [o].
      values: `Moments` of the critic's targets [1]; None under REINFORCE.
    """

    key: Any
    updates: Any
    actor: Any
    critic: Any
    observations: Any
    values: Any

    @property
    def policy(self) -> Policy:
        """What `act` takes."""
        return Policy(self.actor.params, self.observations)


@flax.struct.dataclass
class Trained:
    """A finished training.

    Attributes:
      policy: what `act` takes.
      curves: of each update [u]: `return_mean`, `return_std` (of the team, over episodes,
        undiscounted), `entropy` (nats an agent), `kl` (of the whole update, nats an agent),
        `clip_fraction`, `first_ratio_error` (of the first minibatch: 0 but for rounding),
        `explained_variance` (by the critic, or by REINFORCE's baseline), `trainings` (of a
        classifier, up to here).
      trainings: of a classifier, that were spent, int32 scalar; of an episode see `costs`.
    """

    policy: Any
    curves: Any
    trainings: Any


def check(config: PolicyConfig, rounds: int) -> None:
    """Raises ConfigError where there are more minibatches than steps to share out."""
    samples = config.episodes * rounds
    if config.algorithm == "mappo" and config.minibatches > samples:
        raise ConfigError(
            f"config.mixing.policy.minibatches: got {config.minibatches}, more than the "
            f"{samples} steps of an update (episodes x rounds); take fewer, or more episodes"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Learner:
    """A training cut in updates: `state, metrics = update(state)` from `init(key)` on.

    Both are pure, for `jit`, `vmap` over keys or states, and `scan`. A state that was saved and
    loaded goes on as if nothing had happened.

    Attributes:
      config: its `seeds` are left to the caller, who gives a key.
      environment: its rewards are the team's, or each agent's own with `class_values`.
      class_values: let the critic give one value a class, as difference rewards need.
      together: episodes in one vmap; 0 is all of them (`population`).
      device_mesh: over which the episodes of an update are split, where they divide.

    Raises ConfigError where there are more minibatches than steps to share out.
    """

    config: PolicyConfig
    environment: Environment
    class_values: bool = False
    together: int = 0
    device_mesh: Mesh | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be cut in minibatches."""
        check(self.config, self.environment.rounds)

    def of(self, environment: Any) -> "Learner":
        """The same in `environment`, which a jitted function is given as its argument.

        Of one that it closes over, all data would be constants of the program.
        """
        return dataclasses.replace(self, environment=environment)

    @property
    def each(self) -> int:
        """Trainings of a classifier in an episode; 1 where an environment trains none."""
        env = self.environment
        proxied = isinstance(env, ProxyEnv)
        return costs.trainings(env.config.reward, env.num_agents) if proxied else 1

    @property
    def trainings(self) -> int:
        """Of a classifier, in all updates."""
        return self.config.updates * self.config.episodes * self.each

    @property
    def _mappo(self) -> bool:
        return self.config.algorithm == "mappo"

    @functools.cached_property
    def modules(self) -> networks.Networks:
        """Actor and critic."""
        return networks.make(self.config, self.environment.num_actions, self.class_values)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Of actor and critic alike."""
        config = self.config
        steps = config.updates * (config.epochs * config.minibatches if self._mappo else 1)
        rate = optax.linear_schedule(config.learning_rate, 0.0, steps)
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.adam(rate, eps=1e-5))

    def init(self, key: PRNGKey) -> LearnState:
        """The state before the first update, by `key` alone."""
        agents, size = self.environment.num_agents, len(self.environment.observations)
        actor, critic = self.modules
        policy = networks.init_policy(actor, keys.stream(key, "actor"), agents, size)
        fresh = functools.partial(train_state.create, optimizer=self.optimizer, ema=False)
        value = values = None
        if self._mappo:
            example = jnp.zeros((agents, size))
            value = fresh(module.init(critic, keys.stream(key, "critic"), example))
            values = estimators.no_moments(1)
        return LearnState(
            key=jax.random.key_data(key),
            updates=jnp.zeros((), jnp.int32),
            actor=fresh(policy.params),
            critic=value,
            observations=policy.moments,
            values=values,
        )

    def update(self, state: LearnState) -> tuple[LearnState, Metrics]:
        """Plays `config.episodes` episodes and learns from them; metrics are those of `Trained`."""
        config = self.config
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.updates)
        episodes = self.episodes(state.policy, key)
        seen = episodes.observation[:-1]
        played = networks.logits(self.modules.actor, state.policy, seen)
        learn = self._learn_mappo if self._mappo else self._learn_reinforce
        new, metrics = learn(state, episodes, played, keys.stream(key, "minibatches"))
        after = networks.logits(self.modules.actor, new.policy, seen)
        weight = episodes.alive.astype(seen.dtype)
        agents = jnp.broadcast_to(weight[:, :, None], seen.shape[:-1])
        new = dataclasses.replace(
            new,
            updates=state.updates + 1,
            observations=estimators.observe(state.observations, seen, agents),
        )
        returns = episodes.team.sum(axis=0)
        return new, {
            "return_mean": returns.mean(),
            "return_std": returns.std(),
            "entropy": estimators.masked_mean(networks.entropy(played), weight),
            "kl": estimators.masked_mean(networks.divergence(played, after), weight),
            "trainings": new.updates.astype(jnp.float32) * (config.episodes * self.each),
            **metrics,
        }

    def episodes(self, policy: Policy, key: PRNGKey) -> Episodes:
        """What an update of key `fold_in(root, updates)` plays."""
        act = networks.make_act(self.config, self.environment.num_actions)

        def one(key: PRNGKey, environment: Any, policy: Policy) -> Episodes:
            choose = lambda observation, at: act(policy, observation, at, False)
            return play(environment, choose, key)

        turns = jax.random.split(keys.stream(key, "episodes"), self.config.episodes)
        shared = self.environment, policy
        played = population.over(one, turns, self.together, self.device_mesh, shared)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), played)

    def _learn_reinforce(
        self, state: LearnState, episodes: Episodes, played: networks.PerPart, key: PRNGKey
    ) -> tuple[LearnState, Metrics]:
        config, weight = self.config, episodes.alive.astype(jnp.float32)
        ended = episodes.terminated | episodes.truncated
        returns = estimators.returns_to_go(episodes.reward, ended, config.discount)
        baseline = estimators.leave_one_out(returns, episodes.alive)
        advantage = returns - baseline
        # Not centred: that would put each episode's own return into its baseline.
        scale = jnp.sqrt(estimators.masked_mean(advantage**2, weight) + 1e-8)
        samples = _samples(state, episodes, played, advantage / scale, returns[..., :0])
        loss = lambda params: reinforce_loss(
            self.modules.actor, params, samples, entropy=config.entropy
        )
        actor, _ = train_state.update(state.actor, self.optimizer, loss)
        return dataclasses.replace(state, actor=actor), {
            "clip_fraction": jnp.zeros(()),
            "first_ratio_error": jnp.zeros(()),
            "explained_variance": _explained(baseline, returns, weight),
        }

    def _learn_mappo(
        self, state: LearnState, episodes: Episodes, played: networks.PerPart, key: PRNGKey
    ) -> tuple[LearnState, Metrics]:
        config, weight = self.config, episodes.alive.astype(jnp.float32)
        normal = state.observations.normalize(episodes.observation)
        values = module.apply(self.modules.critic, state.critic.params, normal)
        values = state.values.restore(values[..., None])[..., 0]
        advantage = estimators.generalized_advantages(
            episodes.reward, values, episodes.terminated, episodes.truncated,
            discount=config.discount, trace=config.gae_lambda,
        )  # fmt: skip
        target = advantage + values[:-1]
        if not self.class_values:
            target = target.mean(axis=-1, keepdims=True)
        each = jnp.broadcast_to(weight[:, :, None], target.shape)
        moments = estimators.observe(state.values, target[..., None], each)
        samples = _samples(
            state, episodes, played, estimators.standardize(advantage, weight),
            moments.normalize(target[..., None])[..., 0],
        )  # fmt: skip
        trained, told = self._passes((state.actor, state.critic), samples, key)
        return dataclasses.replace(state, actor=trained[0], critic=trained[1], values=moments), {
            "clip_fraction": told["clip_fraction"].mean(),
            "first_ratio_error": told["ratio_error"][0, 0],
            "explained_variance": _explained(values[:-1], target, weight),
        }

    def _passes(
        self, states: tuple, samples: Samples, key: PRNGKey
    ) -> tuple[tuple, dict[str, Array]]:
        """Epochs of minibatches; metrics [epochs minibatches]. Of each epoch's samples, those that
        no whole number of minibatches can share are left out, others in each."""
        config, (actor, critic) = self.config, self.modules

        def minibatch(states: tuple, rows: Int[Array, "m"]) -> tuple[tuple, Metrics]:
            part = jax.tree.map(lambda leaf: leaf[rows], samples)
            of_actor = lambda params: clipped_loss(
                actor, params, part, clip=config.clip, entropy=config.entropy
            )
            of_critic = lambda params: value_loss(critic, params, part)
            new, told = train_state.update(states[0], self.optimizer, of_actor)
            return (new, train_state.update(states[1], self.optimizer, of_critic)[0]), told

        def epoch(states: tuple, at: PRNGKey) -> tuple[tuple, dict[str, Array]]:
            size = len(samples.weight) // config.minibatches
            order = jax.random.permutation(at, len(samples.weight))[: size * config.minibatches]
            return jax.lax.scan(minibatch, states, order.reshape(config.minibatches, size))

        return jax.lax.scan(epoch, states, jax.random.split(key, config.epochs))


def _samples(
    state: LearnState,
    episodes: Episodes,
    played: networks.PerPart,
    advantage: estimators.Rewards,
    target: Float[Array, "t n v"],
) -> Samples:
    """Steps of all episodes in one row."""
    by_step = Samples(
        observation=state.observations.normalize(episodes.observation[:-1]),
        action=episodes.action,
        log_prob=networks.log_prob(played, episodes.action),
        advantage=advantage,
        target=target,
        weight=episodes.alive.astype(jnp.float32),
    )
    size = by_step.weight.size
    return jax.tree.map(lambda leaf: leaf.reshape(size, *leaf.shape[2:]), by_step)


def _explained(
    predicted: Float[Array, "t n _"], actual: Float[Array, "t n v"], weight: Float[Array, "t n"]
) -> Float[Array, ""]:
    """1 - var(actual - predicted) / var(actual): 1 for a perfect prediction, 0 for a constant."""

    def variance(values: Float[Array, "t n v"]) -> Float[Array, ""]:
        mean = estimators.masked_mean(values, weight)
        return estimators.masked_mean((values - mean) ** 2, weight)

    return 1 - variance(actual - predicted) / jnp.maximum(variance(actual), 1e-12)


def make_train(
    config: PolicyConfig, environment: Environment, *, class_values: bool = False
) -> Callable[[PRNGKey], Trained]:
    """A whole training as one program: `train(key)`, or `jax.vmap(train)(keys)` for a population.

    Args:
      config, class_values: as of `Learner`.
      environment: a pytree, which the program is given as an argument (`Learner.of`).
    """
    learner = Learner(config, environment, class_values)

    @jax.jit
    def train(environment: Any, key: PRNGKey) -> Trained:
        here = learner.of(environment)
        state, curves = jax.lax.scan(
            lambda state, _: here.update(state), here.init(key), length=config.updates
        )
        return Trained(state.policy, curves, jnp.asarray(here.trainings, jnp.int32))

    return functools.partial(train, environment)
