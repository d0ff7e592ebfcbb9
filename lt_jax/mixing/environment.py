"""The problem that a mixing policy solves, the interface of what poses it, and others' forms of it.

Sources: Dec-POMDPs are Oliehoek and Amato's (2016), difference rewards Wolpert and Tumer's (2002).
The paper that trains agents to set the ratio of synthetic images of each class (arXiv:2507.22568)
does not publish its agent, state, action and reward; those below are ours.

**Agents.** One for each of K classes. An episode trains one classifier in R rounds r = 0 ... R-1 of
minibatch steps, from fresh parameters theta_0.

**State.** (theta_r, the optimiser's state, r), and what has been drawn so far.

**Actions.** Before round r agent k picks level a_k of a small ordered set that holds zero, which is
the synthetic share s_k of its class's draws, and as an option a factor v_k of its class's draws.
With n_k real train images, and no share where the pool has no accepted image of the class,

    w_k ~ v_k (n_k / (1 - s_k))^q,    q = 1 (instance), 0 (balanced), 1/2 (square_root)      (1)

is the class weight, as in `controllers`: a draw is of class k with probability w_k, and synthetic
with probability s_k then. Round r takes theta_r to theta_(r+1) by such draws: the transition.

**Observations.** Agent k sees o_k: of class k the train count, pool size, mean
out-of-distribution score and fidelity of its synthetic images; share and dose at present; recall,
precision and margin on policy_val and their changes in the last round; train loss on real and
on synthetic images; the progress r / R. A network may add a summary over all classes, since the
agents decide at one place; a policy of o_k alone is decentralised.

**Reward.** All agents are paid alike. With M_r a soft metric on policy_val of theta_r (of
probabilities, so that a class of eight images is not a coin toss), F_r in [0, 1] the fall of head
recall beyond a tolerance, lambda its price, c the price of synthetic images, and b_k the synthetic
draws of class k over all that it would have without factors: s_k w_k / w_k(v = 1), or s_k,

    G_r = (M_(r+1) - lambda F_(r+1)) - (M_r - lambda F_r) - (c / K) sum_k b_k                (2)
    sum_r G_r = (M_R - lambda F_R) - (M_0 - lambda F_0) - (c / K) sum_r sum_k b_k            (3)

so that what is maximised, without a discount, is the classifier at the end. As an option agent k
gets its difference reward: what the team gets, less what it gets where k alone leaves its class as
it is, without synthetic images and without a factor,

    D_k = G(a) - G(a with s_k = 0 and v_k = 1)                                               (4)

which is 0 for that default, and within one round ranks k's choices as G does, others' actions being
as they are: the second term is the same for all of them. Over an episode its optimum may be
another: earlier rounds are in both terms, so that the sum over rounds does not telescope to (3)
where what they gave lasts and fades. What maximises the sum of D_k exactly gets the best return of
a toy problem where doses last for good, and less than that where some of them is forgotten.

**End.** An episode that has had its R rounds is *terminated*: no reward is left. One cut by a
limit before that is *truncated*: its value goes on, and estimators must bootstrap there.

Rewards and observations read policy_val, never val or test.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct

from lt_jax.shapes import Array, Float, Int, PRNGKey


@struct.dataclass
class Step:
    """What one round leads to.

    Attributes:
      observation: of every agent, Float [k o].
      state: of the environment, a pytree.
      reward: Float [k]: G_r repeated, or the difference rewards (4).
      terminated: Bool []: the last round was trained.
      truncated: Bool []: a step limit cut the episode before that; never both.
      info: scalars and arrays [k] by name, "team" (G_r) among them.
    """

    observation: Any
    state: Any
    reward: Any
    terminated: Any
    truncated: Any
    info: Any


def heads(levels: Sequence[float], weights: Sequence[float]) -> tuple[int, ...]:
    """`num_actions` of these choices: (levels,), or (levels, weights) where there are any."""
    return (len(levels), len(weights)) if weights else (len(levels),)


@runtime_checkable
class Environment(Protocol):
    """A pure multi-agent environment; without auto-reset, and undefined once an episode is over."""

    @property
    def num_agents(self) -> int:
        """K, the number of classes."""
        ...

    @property
    def num_actions(self) -> tuple[int, ...]:
        """(levels,), or (levels, weights) where agents set the class's weight too."""
        ...

    @property
    def rounds(self) -> int:
        """Steps of an episode: R, or the limit that cuts it before."""
        ...

    @property
    def observations(self) -> tuple[str, ...]:
        """Names of the o features of an agent."""
        ...

    def reset(self, key: PRNGKey) -> tuple[Float[Array, "k o"], Any]:
        """First observation, and state, of a fresh episode."""
        ...

    def step(self, state: Any, action: Int[Array, "k *heads"], key: PRNGKey) -> Step:
        """One round; `action` [k] indexes levels, or [k 2] levels and weights."""
        ...


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Actions 0 ... n - 1."""

    n: int
    shape: tuple[int, ...] = ()
    dtype: Any = jnp.int32

    def sample(self, key: PRNGKey) -> Int[Array, ""]:
        """Each action alike."""
        return jax.random.randint(key, (), 0, self.n)

    def contains(self, x: Any) -> Any:
        """Whether x is an action."""
        return (x >= 0) & (x < self.n)


@dataclasses.dataclass(frozen=True)
class MultiDiscrete:
    """Actions of several heads: the i-th is in 0 ... num_categories[i] - 1."""

    num_categories: tuple[int, ...]
    dtype: Any = jnp.int32

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an action."""
        return (len(self.num_categories),)

    def sample(self, key: PRNGKey) -> Int[Array, "heads"]:
        """Each action alike."""
        return jax.random.randint(key, self.shape, 0, jnp.array(self.num_categories))

    def contains(self, x: Any) -> Any:
        """Whether x is an action."""
        return jnp.all((x >= 0) & (x < jnp.array(self.num_categories)))


@dataclasses.dataclass(frozen=True)
class Box:
    """Vectors within bounds."""

    low: float
    high: float
    shape: tuple[int, ...]
    dtype: Any = jnp.float32

    def sample(self, key: PRNGKey) -> Float[Array, "..."]:
        """Uniform within bounds, or standard normal where there are none."""
        if jnp.isfinite(self.high - self.low):
            return jax.random.uniform(key, self.shape, self.dtype, self.low, self.high)
        return jax.random.normal(key, self.shape, self.dtype)

    def contains(self, x: Any) -> Any:
        """Whether x lies within bounds."""
        return jnp.all((x >= self.low) & (x <= self.high))


@dataclasses.dataclass(frozen=True)
class OwnSpaces:
    """Spaces for whoever has none: attribute for attribute those of JaxMARL."""

    Discrete: Any = Discrete
    MultiDiscrete: Any = MultiDiscrete
    Box: Any = Box


class MultiAgent:
    """An environment in the form of JaxMARL's MultiAgentEnv (arXiv:2311.10090).

    Dicts are keyed by agent, "agent_0" to "agent_K-1". `step` resets by itself once the episode is
    over; `step_env` does not. `dones` says that it is over, and `infos` which way: "terminated"
    and "truncated". All infos have a row for each agent, as JaxMARL's baselines expect; all but
    the "final_observation" that may be asked for have one number in it.
    """

    def __init__(self, environment: Environment, spaces: Any, final_observation: bool = False):
        self.environment = environment
        self.final_observation = final_observation
        self.num_agents = environment.num_agents
        self.agents = [f"agent_{agent}" for agent in range(self.num_agents)]
        heads = environment.num_actions
        action = spaces.Discrete(heads[0]) if len(heads) == 1 else spaces.MultiDiscrete(heads)
        observation = spaces.Box(-jnp.inf, jnp.inf, (len(environment.observations),), jnp.float32)
        self.action_spaces = dict.fromkeys(self.agents, action)
        self.observation_spaces = dict.fromkeys(self.agents, observation)

    @property
    def name(self) -> str:
        """The wrapped environment's class."""
        return type(self.environment).__name__

    @property
    def agent_classes(self) -> dict[str, list[str]]:
        """All agents share one policy."""
        return {"class": self.agents}

    def observation_space(self, agent: str) -> Any:
        """The same for each agent."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Any:
        """The same for each agent."""
        return self.action_spaces[agent]

    def reset(self, key: Array) -> tuple[dict[str, Array], Any]:
        """Observations by agent, and state; takes typed and raw keys."""
        observation, state = self.environment.reset(_typed(key))
        return self._by_agent(observation), state

    def step_env(
        self, key: Array, state: Any, actions: dict[str, Array]
    ) -> tuple[dict[str, Array], Any, dict[str, Array], dict[str, Array], dict[str, Array]]:
        """One round: observations, state, rewards, dones, infos."""
        chosen = jnp.stack([actions[agent] for agent in self.agents])
        after = self.environment.step(state, chosen.astype(jnp.int32), _typed(key))
        over = after.terminated | after.truncated
        dones = {**dict.fromkeys(self.agents, over), "__all__": over}
        ends = {"terminated": after.terminated, "truncated": after.truncated}
        infos = {
            name: jnp.broadcast_to(value, (self.num_agents,))
            for name, value in {**after.info, **ends}.items()
        }
        if self.final_observation:
            infos["final_observation"] = after.observation
        observations = self._by_agent(after.observation)
        return observations, after.state, self._by_agent(after.reward), dones, infos

    def step(
        self, key: Array, state: Any, actions: dict[str, Array], reset_state: Any = None
    ) -> tuple[dict[str, Array], Any, dict[str, Array], dict[str, Array], dict[str, Array]]:
        """As `step_env`, but what follows the last round is the first of a new episode.

        A `reset_state` is refused, since an observation is no function of the state alone.
        """
        if reset_state is not None:
            raise ValueError("step: takes no reset_state; leave it out, and an episode starts anew")
        key, fresh = jax.random.split(key)
        observations, state, rewards, dones, infos = self.step_env(key, state, actions)
        first = self.reset(fresh)
        over = dones["__all__"]
        observations, state = jax.tree.map(
            lambda new, old: jnp.where(over, new, old), first, (observations, state)
        )
        return observations, state, rewards, dones, infos

    def get_avail_actions(self, state: Any) -> dict[str, Array]:
        """All actions, always; of several heads one after the other."""
        return dict.fromkeys(self.agents, jnp.ones(sum(self.environment.num_actions), bool))

    def _by_agent(self, rows: Array) -> dict[str, Array]:
        return {agent: rows[index] for index, agent in enumerate(self.agents)}


def as_multi_agent(
    environment: Environment, spaces: Any = None, final_observation: bool = False
) -> MultiAgent:
    """`environment` for JaxMARL's wrappers and baselines, which is no dependency.

    Args:
      environment: any.
      spaces: where Discrete, MultiDiscrete and Box are taken from: `jaxmarl.environments.spaces`
        for wrappers that ask for their types; None for ours.
      final_observation: put what followed a step, before any reset, into `infos` [k o]: where an
        episode was truncated its value goes on from there. JaxMARL's baselines, which do not
        bootstrap, take one number for each agent alone.
    """
    return MultiAgent(environment, spaces or OwnSpaces(), final_observation)


class SingleAgent:
    """An environment in the form of gymnax 1.0 (Lange 2022): one agent acts for all classes.

    An action is the classes' choices one after the other, int [k * heads]; the reward is the
    team's. `step` resets by itself once the episode is over, and `info["final_observation"]` is
    what followed the step before that: where an episode was truncated its value goes on from there.
    There are no parameters: `params` is taken and left unread, as wrappers pass it on.

    `spaces` is where Box and, if it has it, MultiDiscrete are taken from:
    `gymnax.environments.spaces` for wrappers that ask for their types; None for ours.
    """

    default_params = None

    def __init__(self, environment: Environment, spaces: Any = None):
        self.environment = environment
        self.spaces = spaces or OwnSpaces()
        self.name = type(environment).__name__

    def observation_space(self, params: Any = None) -> Any:
        """[k o]."""
        shape = self.environment.num_agents, len(self.environment.observations)
        return self.spaces.Box(-jnp.inf, jnp.inf, shape, jnp.float32)

    def action_space(self, params: Any = None) -> Any:
        """[k * heads]."""
        space = getattr(self.spaces, "MultiDiscrete", MultiDiscrete)  # gymnax has none
        return space(self.environment.num_actions * self.environment.num_agents)

    def reset(self, key: Array, params: Any = None) -> tuple[Float[Array, "k o"], Any]:
        """Observation and state; takes typed and raw keys."""
        return self.environment.reset(_typed(key))

    def step(
        self, key: Array, state: Any, action: Int[Array, "a"], params: Any = None
    ) -> tuple[Float[Array, "k o"], Any, Float[Array, ""], Array, Array, dict[str, Array]]:
        """One round: observation, state, reward, terminated, truncated, info."""
        key, fresh = jax.random.split(_typed(key))
        heads = self.environment.num_actions[1:] and (len(self.environment.num_actions),)
        chosen = action.reshape(self.environment.num_agents, *heads).astype(jnp.int32)
        after = self.environment.step(state, chosen, key)
        over = after.terminated | after.truncated
        first, last = self.reset(fresh), (after.observation, after.state)
        observation, state = jax.tree.map(lambda a, b: jnp.where(over, a, b), first, last)
        ends = {"terminated": after.terminated, "truncated": after.truncated}
        info = {**after.info, **ends, "final_observation": after.observation}
        return observation, state, after.info["team"], *ends.values(), info


def _typed(key: Array) -> PRNGKey:
    raw = not jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return jax.random.wrap_key_data(key) if raw else key
