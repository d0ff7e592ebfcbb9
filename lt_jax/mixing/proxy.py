"""The mixing environment on a proxy: an episode trains a small classifier, on features or images.

The problem is that of `environment`, the classifier one of `classifiers`. A round is `minibatches`
steps of `batch_size` draws with replacement (`draws`); where all shares are zero, draws and steps
are bit for bit those of real images alone. Steps are on the cross entropy of logits z, or with the
effective counts N (`draws`, equation 3) on the balanced softmax (Ren et al. 2020, arXiv:2007.10740,
eq. 3),

    -log softmax(z + log N)_y                                                               (1)

The reference of head recall (`rewards`, equation 7) is measured once, when an environment is made,
by a few trainings on real images alone. A difference reward trains its round again for each class,
with that class's share at zero, its factor at one and the same numbers drawn: K extra rounds.
Either is a population, of which `ProxyEnv.at_once` are trained at once (`population`).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from lt_jax.config import ConfigError
from lt_jax.config.mixing import MixingConfig
from lt_jax.mixing import draws, observations, rewards
from lt_jax.mixing.classifiers import Classifier, Head, Strategy
from lt_jax.mixing.draws import Draws
from lt_jax.mixing.environment import Step, heads
from lt_jax.mixing.mixture import EXPONENTS
from lt_jax.mixing.observations import Track
from lt_jax.mixing.proxy_data import ProxyData, ProxyError
from lt_jax.runtime import keys, mesh, population
from lt_jax.shapes import Array, Float, Int, PRNGKey

HEAD = Head()
MEASURED = 256  # images of policy_val in one forward pass of a network, which bounds the memory


@struct.dataclass
class State:
    """An episode under way.

    Attributes:
      params: of the classifier; optimizer: state of its optimiser.
      track: what the next observation needs.
      potential: U of `rewards`, equation (8), after the last round; float32 [].
      round: rounds trained; int32 [].
    """

    params: Any
    optimizer: Any
    track: Any
    potential: Any
    round: Any


@struct.dataclass(eq=False)
class ProxyEnv:
    """A pytree, hashed by identity, made by `make`; an argument of what is jitted, since the data
    would be constants of a program that closed over it.

    Attributes:
      data: features or images; reference: recall of real images alone after 0 ... R rounds
        [R+1 k].
      config: rounds, levels, weights, proxy and reward are read.
      classifier: what is trained, which reads the data's kind.
      sampler: exponent of the class weights, as a base sampler's name.
      horizon: rounds after which an episode is truncated; 0 is never.
      together: of its own populations, classifiers in one vmap; 0: see `at_once`.
    """

    data: Any
    reference: Any
    config: MixingConfig = struct.field(pytree_node=False)
    classifier: Strategy = struct.field(pytree_node=False, default=HEAD)
    sampler: str = struct.field(pytree_node=False, default="instance")
    horizon: int = struct.field(pytree_node=False, default=0)
    together: int = struct.field(pytree_node=False, default=0)

    @property
    def num_agents(self) -> int:
        """K."""
        return self.data.sizes.shape[-1]

    @property
    def num_actions(self) -> tuple[int, ...]:
        """Levels, and weights where there are any."""
        return heads(self.config.levels, self.config.weights)

    @property
    def rounds(self) -> int:
        """Steps of an episode."""
        return min(self.config.rounds, self.horizon or self.config.rounds)

    @property
    def at_once(self) -> int:
        """Classifiers in one vmap, as `population.over` takes them: `together`; where that is 0,
        one after the other in pixels (`classifiers` says why), and on features all, which is 0."""
        return self.together or int(self.data.kind == "images")

    @property
    def observations(self) -> tuple[str, ...]:
        """Names of the features of an agent."""
        return observations.NAMES

    def reset(self, key: PRNGKey) -> tuple[Float[Array, "k o"], State]:
        """Fresh parameters, scored on policy_val."""
        params = self.trained.init(keys.stream(key, "init"))
        measured = self.measure(params)
        state = State(
            params=params,
            optimizer=self.trained.optimizer.init(params),
            track=observations.begin(measured),
            potential=self._potential(measured, jnp.zeros((), jnp.int32)),
            round=jnp.zeros((), jnp.int32),
        )
        return self._observe(state), state

    def step(self, state: State, action: Int[Array, "k *heads"], key: PRNGKey) -> Step:
        """Trains a round with the levels, and weights, that `action` [k] or [k 2] picks."""
        share, factor = self.chosen(action)
        after, team = self.train_round(state, share, factor, key)
        reward = jnp.broadcast_to(team, share.shape)
        if self.config.reward.difference:
            reward = team - self._without_each(state, share, factor, key)
            default = (share == 0) & (factor == 1)
            reward = jnp.where(default, 0.0, reward)  # the same round, but for rounding
        terminated = after.round >= self.config.rounds
        truncated = jnp.zeros((), bool)
        if self.horizon:
            truncated = (after.round >= self.horizon) & ~terminated
        measured = after.track.measured
        info = {
            "team": team,
            "metric": rewards.metric(self.config.reward, measured),
            "head_fall": self._fall(measured, after.round),
            "recall": measured.recall,
            "precision": measured.precision,
            "share": share,
            "class_weight": draws.class_weights(self.data.counts, share, factor, self.sampler),
        }
        return Step(self._observe(after), after, reward, terminated, truncated, info)

    def chosen(self, action: Int[Array, "k *heads"]) -> tuple[Float[Array, "k"], Float[Array, "k"]]:
        """Share and factor of each class; no share where its pool is empty."""
        action = action.reshape(self.num_agents, len(self.num_actions))
        levels = jnp.array(self.config.levels, jnp.float32)
        share = jnp.where(self.data.pool > 0, levels[action[:, 0]], 0.0)
        if not self.config.weights:
            return share, jnp.ones_like(share)
        return share, jnp.array(self.config.weights, jnp.float32)[action[:, 1]]

    def train_round(
        self, state: State, share: Float[Array, "k"], factor: Float[Array, "k"], key: PRNGKey
    ) -> tuple[State, Float[Array, ""]]:
        """One round with any shares and factors; the state after it, and the team's reward."""
        proxy, data = self.config.proxy, self.data
        weight = draws.class_weights(data.counts, share, factor, self.sampler)
        shape = proxy.minibatches, proxy.batch_size
        batches = draws.draw(data, weight, share, keys.stream(key, "draw"), shape)
        prior = jnp.zeros_like(weight)
        if proxy.loss == "balanced_softmax":
            prior = jnp.log(draws.effective_counts(data.counts, weight, share))
        params, optimizer, losses = self.fit(state, batches, prior, keys.stream(key, "steps"))
        measured = self.measure(params)
        potential = self._potential(measured, state.round + 1)
        drawn = jnp.stack([weight * (1 - share), weight * share])
        track = Track(
            share=share,
            drawn=state.track.drawn + proxy.minibatches * drawn,
            losses=jnp.where(jnp.isnan(losses), state.track.losses, losses),
            measured=measured,
            before=state.track.measured,
        )
        bought = share
        if self.config.weights:  # of what the class would be drawn without a factor
            plain = draws.class_weights(data.counts, share, jnp.ones_like(share), self.sampler)
            bought = share * weight / plain
        team = potential - state.potential - self.config.reward.price * bought.mean()
        return State(params, optimizer, track, potential, state.round + 1), team

    def fit(
        self, state: State, batches: Draws, prior: Float[Array, "k"], key: PRNGKey
    ) -> tuple[Any, Any, Float[Array, "2 k"]]:
        """Equation (1) on each minibatch of `batches` [n b]; `prior` [k] is log N, or zeros.

        The i-th step's key is `fold_in(key, i)`.

        Returns:
          Parameters, optimiser's state, and the mean cross entropy of each class's draws, without
          the prior, real and synthetic, over log K; NaN where there was none.
        """
        trained, classes = self.trained, self.num_agents

        def step(
            carry: tuple[Any, Any], each: tuple[Draws, PRNGKey]
        ) -> tuple[tuple[Any, Any], Array]:
            (params, slots), (batch, at) = carry, each

            def mean_loss(params: Any) -> tuple[Array, Array]:
                logits = trained.apply(params, self.data.features[batch.rows], at)
                cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
                losses = cross_entropy(logits + prior[None], batch.labels)
                return losses.mean(), cross_entropy(logits, batch.labels)

            slopes, losses = jax.grad(mean_loss, has_aux=True)(params)
            updates, slots = trained.optimizer.update(slopes, slots, params)
            member = jax.nn.one_hot(batch.labels + classes * batch.synthetic, 2 * classes)
            sums = jnp.stack([losses, jnp.ones_like(losses)]) @ member
            return (optax.apply_updates(params, updates), slots), sums

        turns = keys.per_example(key, jnp.arange(len(batches.rows)))
        start = state.params, state.optimizer
        (params, slots), sums = jax.lax.scan(step, start, (batches, turns))
        total, number = sums.sum(0)
        mean = jnp.where(number > 0, total / jnp.maximum(number, 1), jnp.nan)
        return params, slots, mean.reshape(2, classes) / jnp.log(classes)

    @property
    def trained(self) -> Classifier:
        """What an episode trains."""
        config, shape = self.config, self.data.features.shape[1:]
        steps = config.rounds * config.proxy.minibatches
        return self.classifier.make(config.proxy, shape, self.num_agents, steps)

    def measure(self, params: Any) -> rewards.Measured:
        """A classifier on policy_val."""
        logits = self._logits(params, self.data.policy_val)
        return rewards.measure(jax.nn.softmax(logits), self.data.policy_val_labels)

    def _without_each(self, state: State, share: Array, factor: Array, key: PRNGKey) -> Array:
        def without(label: Array) -> Array:
            default = share.at[label].set(0.0), factor.at[label].set(1.0)
            return self.train_round(state, *default, key)[1]

        # In pixels one by one: `together` episodes may be doing so at once.
        at_once = 1 if self.data.kind == "images" else self.at_once
        return population.over(without, jnp.arange(self.num_agents), at_once)

    def _logits(self, params: Any, inputs: Array) -> Array:
        """Of inputs [n ...], measured; images in parts of equal size, `MEASURED` at most."""
        forward = lambda part: self.trained.apply(params, part, None)
        count = len(inputs)
        if self.data.kind == "features" or count <= MEASURED:
            return forward(inputs)
        parts = -(-count // MEASURED)
        size = -(-count // parts)
        rows = jnp.arange(parts * size) % count  # the last part is filled up
        held = inputs[rows].reshape(parts, size, *inputs.shape[1:])
        logits = jax.lax.map(forward, held)
        return logits.reshape(parts * size, -1)[:count]

    def _potential(self, measured: rewards.Measured, round: Array) -> Array:
        reward = self.config.reward
        return rewards.potential(reward, measured, self._reference(round), self.data.head)

    def _fall(self, measured: rewards.Measured, round: Array) -> Array:
        tolerance = self.config.reward.head_tolerance
        recall, reference = measured.recall, self._reference(round)
        return rewards.head_fall(recall, reference, self.data.head, tolerance)

    def _reference(self, round: Array) -> Array:
        return self.reference[jnp.minimum(round, self.config.rounds)]

    def _observe(self, state: State) -> Array:
        return observations.observe(
            state.track,
            counts=self.data.counts,
            pool=self.data.pool,
            ood=self.data.ood,
            fidelity=self.data.fidelity,
            progress=state.round / self.config.rounds,
        )


def make(
    data: ProxyData,
    config: MixingConfig,
    *,
    classifier: Strategy = HEAD,
    sampler: str = "instance",
    horizon: int = 0,
    together: int = 0,
    reference_runs: int = 8,
    seed: int = 0,
    device_mesh: Mesh | None = None,
) -> ProxyEnv:
    """The environment, its reference measured by `reference_runs` real-only trainings.

    Args:
      data, config, classifier, sampler, horizon, together: as of ProxyEnv.
      reference_runs: at least 1; classifier trainings, to be counted as such.
      seed: of these trainings.
      device_mesh: over which they are split, where they divide.

    Raises:
      ConfigError: no level is zero, a name or number is none of those taken, or a network does
        not fit the images.
      ProxyError: the classifier reads images and the data are features, or the other way round.
    """
    if 0.0 not in config.levels:
        raise ConfigError(f"mixing.levels: got {config.levels}; takes shares of which one is 0.0")
    if sampler not in EXPONENTS:
        raise ConfigError(f"mixing: got sampler={sampler!r}; takes {', '.join(EXPONENTS)}")
    if horizon < 0 or together < 0 or reference_runs < 1:
        raise ConfigError(
            f"mixing: got horizon={horizon}, together={together}, reference_runs={reference_runs}; "
            "takes 0 or more; 0 or more; 1 or more"
        )
    if classifier.reads != data.kind:
        raise ProxyError(
            f"proxy: {type(classifier).__name__} reads {classifier.reads}, and the data are "
            f"{data.kind}; a Head takes features, a Network images"
        )
    nothing = jnp.zeros((config.rounds + 1, data.sizes.shape[-1]))
    env = ProxyEnv(data, nothing, config, classifier, sampler, horizon, together)
    runs = jax.random.split(keys.stream(keys.root(seed), "reference"), reference_runs)
    recalls = mesh.fetch(_real_only_recalls(env, runs, device_mesh))
    return env.replace(reference=jnp.asarray(recalls).mean(0))  # type: ignore[attr-defined]


@functools.partial(jax.jit, static_argnums=2)
def _real_only_recalls(
    env: ProxyEnv, runs: Array, device_mesh: Mesh | None
) -> Float[Array, "m r k"]:
    """Soft recall after 0 ... R rounds of real images alone, for each key [m]."""

    def run(key: PRNGKey) -> Array:
        def train(state: State, turn: PRNGKey) -> tuple[State, Array]:
            nothing = jnp.zeros(env.num_agents)
            after, _ = env.train_round(state, nothing, nothing + 1, turn)
            return after, after.track.measured.recall

        start = env.reset(key)[1]
        turns = jax.random.split(keys.stream(key, "turns"), env.config.rounds)
        recalls = jax.lax.scan(train, start, turns)[1]
        return jnp.concatenate([start.track.measured.recall[None], recalls])

    return population.over(run, runs, env.at_once, device_mesh)
