"""The mixing environment on features: an episode trains a linear or MLP head, in matrix products.

The problem is that of `environment`. A round is `minibatches` steps of `batch_size` draws with
replacement (`draws`); where all shares are zero, draws and steps are bit for bit those of real
images alone. Steps are plain SGD or Adam on the cross entropy of logits z, or with the effective
counts N (`draws`, equation 3) on the balanced softmax (Ren et al. 2020, arXiv:2007.10740, eq. 3),

    -log softmax(z + log N)_y                                                               (1)

The reference of head recall (`rewards`, equation 7) is measured once, when an environment is made,
by a few trainings on real images alone. A difference reward trains its round again for each class,
with that class's share at zero and the same numbers drawn: K extra rounds, in one vmap.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from lt_jax.config import ConfigError
from lt_jax.config.mixing import MixingConfig, ProxyConfig
from lt_jax.mixing import draws, observations, rewards
from lt_jax.mixing.draws import Draws
from lt_jax.mixing.environment import Step
from lt_jax.mixing.observations import Track
from lt_jax.mixing.proxy_data import ProxyData
from lt_jax.runtime import keys
from lt_jax.shapes import Array, Float, Int, PRNGKey

OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}


class Layer(NamedTuple):
    """Kernel [d e] and bias [e]."""

    kernel: Any
    bias: Any


@struct.dataclass
class State:
    """An episode under way.

    Attributes:
      params: of the head, a tuple of Layers; optimizer: state of its optimiser.
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
    """A pytree, hashed by identity: pass it through jit, or close over it; made by `make`.

    Attributes:
      data: features; reference: recall of real images alone after 0 ... R rounds [R+1 k].
      config: rounds, levels, weights, proxy and reward are read.
      sampler: exponent of the class weights, as a base sampler's name.
      optimizer: "sgd" or "adam".
      horizon: rounds after which an episode is truncated; 0 is never.
    """

    data: Any
    reference: Any
    config: MixingConfig = struct.field(pytree_node=False)
    sampler: str = struct.field(pytree_node=False, default="instance")
    optimizer: str = struct.field(pytree_node=False, default="sgd")
    horizon: int = struct.field(pytree_node=False, default=0)

    @property
    def num_agents(self) -> int:
        """K."""
        return self.data.sizes.shape[-1]

    @property
    def num_actions(self) -> tuple[int, ...]:
        """Levels, and weights where there are any."""
        heads = len(self.config.levels), len(self.config.weights)
        return heads if heads[1] else heads[:1]

    @property
    def rounds(self) -> int:
        """Steps of an episode."""
        return min(self.config.rounds, self.horizon or self.config.rounds)

    @property
    def observations(self) -> tuple[str, ...]:
        """Names of the features of an agent."""
        return observations.NAMES

    def reset(self, key: PRNGKey) -> tuple[Float[Array, "k o"], State]:
        """Fresh parameters, scored on policy_val."""
        width = self.data.features.shape[-1]
        params = init_head(self.config.proxy, width, self.num_agents, keys.stream(key, "init"))
        measured = self._measure(params)
        state = State(
            params=params,
            optimizer=self._make_optimizer().init(params),
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
            reward = jnp.where(share > 0, reward, 0.0)  # the same round, but for rounding
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
        params, optimizer, losses = self.fit(state, batches, prior)
        measured = self._measure(params)
        potential = self._potential(measured, state.round + 1)
        drawn = jnp.stack([weight * (1 - share), weight * share])
        track = Track(
            share=share,
            drawn=state.track.drawn + proxy.minibatches * drawn,
            losses=jnp.where(jnp.isnan(losses), state.track.losses, losses),
            measured=measured,
            before=state.track.measured,
        )
        team = potential - state.potential - self.config.reward.price * share.mean()
        return State(params, optimizer, track, potential, state.round + 1), team

    def fit(
        self, state: State, batches: Draws, prior: Float[Array, "k"]
    ) -> tuple[Any, Any, Float[Array, "2 k"]]:
        """Equation (1) on each minibatch of `batches` [n b]; `prior` [k] is log N, or zeros.

        Returns:
          Parameters, optimiser's state, and the mean loss of each class's draws, real and
          synthetic, over log K; NaN where there was none.
        """
        optimizer, classes = self._make_optimizer(), self.num_agents

        def step(carry: tuple[Any, Any], batch: Draws) -> tuple[tuple[Any, Any], Array]:
            params, slots = carry

            def mean_loss(params: Any) -> tuple[Array, Array]:
                logits = logits_of(params, self.data.features[batch.rows]) + prior[None]
                losses = optax.losses.softmax_cross_entropy_with_integer_labels(
                    logits, batch.labels
                )
                return losses.mean(), losses

            slopes, losses = jax.grad(mean_loss, has_aux=True)(params)
            updates, slots = optimizer.update(slopes, slots, params)
            member = jax.nn.one_hot(batch.labels + classes * batch.synthetic, 2 * classes)
            sums = jnp.stack([losses, jnp.ones_like(losses)]) @ member
            return (optax.apply_updates(params, updates), slots), sums

        (params, slots), sums = jax.lax.scan(step, (state.params, state.optimizer), batches)
        total, number = sums.sum(0)
        mean = jnp.where(number > 0, total / jnp.maximum(number, 1), jnp.nan)
        return params, slots, mean.reshape(2, classes) / jnp.log(classes)

    def _without_each(self, state: State, share: Array, factor: Array, key: PRNGKey) -> Array:
        def without(label: Array) -> Array:
            return self.train_round(state, share.at[label].set(0.0), factor, key)[1]

        return jax.vmap(without)(jnp.arange(self.num_agents))

    def _make_optimizer(self) -> optax.GradientTransformation:
        return OPTIMIZERS[self.optimizer](self.config.proxy.learning_rate)

    def _measure(self, params: Any) -> rewards.Measured:
        probabilities = jax.nn.softmax(logits_of(params, self.data.policy_val))
        return rewards.measure(probabilities, self.data.policy_val_labels)

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
    sampler: str = "instance",
    optimizer: str = "sgd",
    horizon: int = 0,
    reference_runs: int = 8,
    seed: int = 0,
) -> ProxyEnv:
    """The environment, its reference measured by `reference_runs` real-only trainings.

    Args:
      data, config, sampler, optimizer, horizon: as of ProxyEnv.
      reference_runs: at least 1; classifier trainings, to be counted as such.
      seed: of these trainings.

    Raises:
      ConfigError: no level is zero, or a name or number is none of those taken.
    """
    if 0.0 not in config.levels:
        raise ConfigError(f"mixing.levels: got {config.levels}; takes shares of which one is 0.0")
    if sampler not in draws.EXPONENTS or optimizer not in OPTIMIZERS:
        raise ConfigError(
            f"mixing: got sampler={sampler!r}, optimizer={optimizer!r}; takes "
            f"{', '.join(draws.EXPONENTS)}; {', '.join(OPTIMIZERS)}"
        )
    if horizon < 0 or reference_runs < 1:
        raise ConfigError(
            f"mixing: got horizon={horizon}, reference_runs={reference_runs}; takes 0 or more; 1 "
            "or more"
        )
    nothing = jnp.zeros((config.rounds + 1, data.sizes.shape[-1]))
    env = ProxyEnv(data, nothing, config, sampler, optimizer, horizon)
    runs = jax.random.split(keys.stream(keys.root(seed), "reference"), reference_runs)
    return env.replace(reference=_real_only_recalls(env, runs).mean(0))  # type: ignore[attr-defined]


@jax.jit
def _real_only_recalls(env: ProxyEnv, runs: Array) -> Float[Array, "m r k"]:
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

    return jax.vmap(run)(runs)


def init_head(config: ProxyConfig, width: int, classes: int, key: PRNGKey) -> tuple[Layer, ...]:
    """Fresh parameters: a hidden layer after He et al. (2015), zeros in the last."""
    if config.head == "linear":
        return (Layer(jnp.zeros((width, classes)), jnp.zeros(classes)),)
    kernel = jnp.sqrt(2 / width) * jax.random.normal(key, (width, config.hidden))
    hidden = Layer(kernel, jnp.zeros(config.hidden))
    return hidden, Layer(jnp.zeros((config.hidden, classes)), jnp.zeros(classes))


def logits_of(params: tuple[Layer, ...], features: Float[Array, "b d"]) -> Float[Array, "b k"]:
    """Affine layers with ReLUs between."""
    *hidden, last = params
    for layer in hidden:
        features = jax.nn.relu(features @ layer.kernel + layer.bias[None])
    return features @ last.kernel + last.bias[None]
