"""Toy problems in the form of the mixing environment, whose best actions are known exactly.

Each class stands for itself. With the share s_k of round r, a factor v_k of its draws (1 where
agents choose no weight), retention rho in (0, 1], and x_k = 0 at first,

    x_k <- rho x_k + v_k s_k                                  (dose that is left)            (1)
    f_k(x) = b_k + q_k (1 - exp(-x / tau_k)) - h_k x^2        (recall)                       (2)
    M = (1 / K) sum_k f_k(x_k)                                                               (3)
    G = M_after - M_before - (c / K) sum_k v_k s_k            (reward of a round)            (4)

A class's draws are its own here, so that no factor takes from others', and v_k s_k is what
equation (2) of `environment` prices. The quality q_k of class k's synthetic images is above zero
where they help, zero where they are useless, below zero where they harm; the gain saturates over
tau_k, and overuse costs h_k (public results peak near one synthetic image for each real one, and
fall after). With rho = 1 the order of doses is of no matter; below, what was given early is
forgotten and paid for in vain, so that the best action changes with r.

The return is a sum over classes, so that the best action sequence is found class by class. Rewards
and recall can be noisy: they are then those of a measured f_k, of which a noise is drawn anew each
round; its differences telescope, which leaves the expected return as it is.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lt_jax.errors import UserError
from lt_jax.mixing.environment import Step, heads
from lt_jax.shapes import Array, Float, Int, PRNGKey

MAX_STATES = 2_000_000  # of one class: what the oracle enumerates in a second or two
LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8)
OBSERVATIONS = (
    "log_count",
    "share",
    "dose",
    "recall",
    "recall_change",
    "fidelity",
    "progress",
)


class ToyError(UserError, ValueError):
    """A toy problem that is no problem, or too large for its oracle."""


@struct.dataclass
class Problem:
    """Constants of equations (1) to (4); arrays are [k].

    Attributes:
      quality: q_k. saturation: tau_k > 0. overuse: h_k >= 0. base: b_k, recall without synthesis.
      log_count: log of the train count, an observation alone.
      hint: what agents see as fidelity of the synthetic images; may speak of q_k.
      price: c. retention: rho. noise: standard deviation of a measured recall.
      levels: shares to choose from, ascending from 0; weights: factors v, empty where it is 1.
      rounds: R. horizon: rounds after which an episode is cut; 0 is never.
      difference: whether each agent is paid its difference reward.
    """

    quality: Any
    saturation: Any
    overuse: Any
    base: Any
    log_count: Any
    hint: Any
    price: float = struct.field(pytree_node=False, default=0.0)
    retention: float = struct.field(pytree_node=False, default=1.0)
    noise: float = struct.field(pytree_node=False, default=0.0)
    levels: tuple[float, ...] = struct.field(pytree_node=False, default=LEVELS)
    weights: tuple[float, ...] = struct.field(pytree_node=False, default=())
    rounds: int = struct.field(pytree_node=False, default=8)
    horizon: int = struct.field(pytree_node=False, default=0)
    difference: bool = struct.field(pytree_node=False, default=False)

    def __post_init__(self) -> None:
        """Refuses levels without a zero: nothing could be left alone."""
        if not self.levels or self.levels[0] != 0.0 or list(self.levels) != sorted(self.levels):
            raise ToyError(f"toy: levels are {self.levels}; takes shares ascending from 0.0")
        if self.rounds < 1 or self.horizon < 0 or not 0 < self.retention <= 1:
            raise ToyError(
                f"toy: got rounds={self.rounds}, horizon={self.horizon}, "
                f"retention={self.retention}; takes rounds >= 1, horizon >= 0, retention in (0, 1]"
            )


@struct.dataclass
class State:
    """Dose [k], share [k], measured recall [k] and its last change [k], rounds done []."""

    dose: Any
    share: Any
    recall: Any
    change: Any
    round: Any


@struct.dataclass(eq=False)
class ToyEnv:
    """The environment of a problem; a pytree, hashed by identity."""

    problem: Any

    @property
    def num_agents(self) -> int:
        """K."""
        return len(self.problem.quality)

    @property
    def num_actions(self) -> tuple[int, ...]:
        """Levels, and weights where there are any."""
        return heads(self.problem.levels, self.problem.weights)

    @property
    def rounds(self) -> int:
        """Steps of an episode."""
        return min(self.problem.rounds, self.problem.horizon or self.problem.rounds)

    @property
    def observations(self) -> tuple[str, ...]:
        """Names of the features."""
        return OBSERVATIONS

    def reset(self, key: PRNGKey) -> tuple[Float[Array, "k o"], State]:
        """No dose yet; the recall is measured once."""
        zeros = jnp.zeros(self.num_agents)
        first = State(zeros, zeros, self._measure(zeros, key), zeros, jnp.zeros((), jnp.int32))
        return self._observe(first), first

    def step(self, state: State, action: Int[Array, "k *heads"], key: PRNGKey) -> Step:
        """Equations (1) to (4)."""
        problem = self.problem
        action = action.reshape(self.num_agents, len(self.num_actions))
        share = jnp.array(problem.levels, jnp.float32)[action[:, 0]]
        given = share
        if problem.weights:
            given = share * jnp.array(problem.weights, jnp.float32)[action[:, 1]]
        kept = problem.retention * state.dose
        dose = kept + given
        recall = self._measure(dose, key)
        gain = (recall - state.recall - problem.price * given) / self.num_agents
        reward = team = jnp.broadcast_to(gain.sum(), gain.shape)
        if problem.difference:  # only class k's own recall and price depend on its share
            without = recall_of(problem, kept) - recall_of(problem, dose)
            reward = -(without + problem.price * given) / self.num_agents
        after = State(dose, share, recall, recall - state.recall, state.round + 1)
        terminated = after.round >= problem.rounds
        truncated = jnp.zeros((), bool)
        if problem.horizon:
            truncated = (after.round >= problem.horizon) & ~terminated
        info = {"team": team[0], "metric": recall.mean(), "share": share, "recall": recall}
        return Step(self._observe(after), after, reward, terminated, truncated, info)

    def _measure(self, dose: Array, key: PRNGKey) -> Array:
        noise = self.problem.noise * jax.random.normal(key, dose.shape)
        return recall_of(self.problem, dose) + noise

    def _observe(self, state: State) -> Array:
        columns = {
            "log_count": jnp.asarray(self.problem.log_count) / 10,
            "share": state.share,
            "dose": jnp.log1p(state.dose),
            "recall": state.recall,
            "recall_change": 10 * state.change,
            "fidelity": jnp.asarray(self.problem.hint),
            "progress": jnp.full(self.num_agents, state.round / self.problem.rounds),
        }
        return jnp.stack([columns[name] for name in OBSERVATIONS], axis=-1)


def recall_of(problem: Problem, dose: Float[Array, "k"]) -> Float[Array, "k"]:
    """Equation (2)."""
    gain = problem.quality * -jnp.expm1(-dose / problem.saturation)
    return problem.base + gain - problem.overuse * dose**2


def random_problem(
    key: PRNGKey,
    classes: int,
    levels: tuple[float, ...] = LEVELS,
    rounds: int = 8,
    **others: Any,
) -> Problem:
    """A long-tailed problem with helpful, harmful and useless classes, one third each, mixed.

    Helpful: q in [0.2, 0.5], with a peak of (2) within reach or beyond it. Harmful: q in
    [-0.3, -0.1]. Useless: q = 0. Train counts fall from 1000 to 10, and base recall with them.
    Agents see q + 0.05 z as fidelity, z standard normal.

    Args:
      key: decides all of it.
      classes: K >= 2; of two, the one helps and the other harms.
      levels: shares to choose from, ascending from 0.
      rounds: R.
      others: fields of Problem; without a `price`, it is 0.01.
    """
    if classes < 2:
        raise ToyError(f"toy: got {classes} classes; takes 2 or more")
    kinds, size, slow, costs, order, hints = jax.random.split(key, 6)
    kind = jax.random.permutation(kinds, jnp.arange(classes) % 3)
    part = jax.random.uniform(size, (classes,))
    quality = jnp.where(kind == 0, 0.2 + 0.3 * part, jnp.where(kind == 1, -0.1 - 0.2 * part, 0.0))
    reach = rounds * max(levels)  # the largest dose that there is
    log_count = jnp.linspace(jnp.log(1000.0), jnp.log(10.0), classes)
    log_count = jax.random.permutation(order, log_count)
    excess = jax.random.uniform(costs, (classes,), minval=0.1, maxval=0.6)
    return Problem(
        quality=quality,
        saturation=reach * jax.random.uniform(slow, (classes,), minval=0.1, maxval=0.4),
        overuse=excess * jnp.maximum(quality, 0.05) / reach**2,
        base=0.2 + 0.4 * (log_count - log_count.min()) / (log_count.max() - log_count.min()),
        log_count=log_count,
        hint=quality + 0.05 * jax.random.normal(hints, (classes,)),
        levels=tuple(levels),
        rounds=rounds,
        **{"price": 0.01, **others},
    )


def oracle(problem: Problem) -> tuple[Int[np.ndarray, "r k *heads"], float]:
    """The best actions of every round, and their return, undiscounted and without noise.

    Dynamic programming, forward over all doses that can be reached, of which equal ones are merged
    with the cheapest way to get there; exact. Of equal returns the least bought wins.

    Returns:
      Actions [r k], or [r k 2] with weights, of r = `rounds` or, where it cuts, `horizon` rounds;
      and the sum of the rewards (4) over them.

    Raises:
      ToyError: more than MAX_STATES doses; use fewer rounds or levels, or retention = 1.
    """
    choices = _choices(problem)
    rounds = ToyEnv(problem).rounds
    best, total = [], 0.0
    doses, bought, trail = _reachable(problem.retention, _given(problem, choices), rounds)
    for constants in _constants(problem):
        value = _gain(constants, doses) - problem.price * bought
        end = int(value.argmax())
        total += float(value[end])
        best.append(_walk_back(trail, end))
    actions = np.array(choices)[np.array(best).T]
    return (actions if problem.weights else actions[..., 0]), total / len(best)


def returns(problem: Problem, actions: Int[np.ndarray, "r k *heads"]) -> float:
    """The return of an action sequence without noise, in double precision: (4), summed."""
    choices = _choices(problem)
    rows = actions.reshape(len(actions), len(problem.quality), len(choices[0]))
    given = _given(problem, choices)
    index = np.array([[choices.index(tuple(row)) for row in each] for each in rows.tolist()])
    dose = functools.reduce(
        lambda x, now: problem.retention * x + now, given[index], np.zeros(rows.shape[1])
    )
    gain = _gain(_constants(problem).T, dose).sum()
    return float(gain - problem.price * given[index].sum()) / len(dose)


def _choices(problem: Problem) -> list[tuple[int, ...]]:
    heads = range(len(problem.levels)), range(len(problem.weights))
    return list(itertools.product(*heads[: 1 + bool(problem.weights)]))


def _given(problem: Problem, choices: list[tuple[int, ...]]) -> np.ndarray:
    weights = problem.weights or (1.0,)
    return np.array([problem.levels[row[0]] * weights[(*row, 0)[1]] for row in choices])


def _constants(problem: Problem) -> np.ndarray:
    """(q, tau, h) of each class, in double precision."""
    rows = jax.device_get((problem.quality, problem.saturation, problem.overuse))
    return np.stack(rows, axis=-1).astype(np.float64)


def _gain(constants: np.ndarray, dose: np.ndarray) -> np.ndarray:
    """Equation (2), less recall without synthesis."""
    quality, saturation, overuse = constants
    return -quality * np.expm1(-dose / saturation) - overuse * dose**2


def _reachable(
    retention: float, given: np.ndarray, rounds: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Doses after the last round, what each cost, and per round (choice, dose before)."""
    doses, bought, trail = np.zeros(1), np.zeros(1), []
    for _ in range(rounds):
        if doses.size * given.size > MAX_STATES:
            raise ToyError(
                f"toy: the oracle would enumerate more than {MAX_STATES} doses of a class; use "
                "fewer rounds or levels, or retention = 1"
            )
        after = (retention * doses[:, None] + given[None]).ravel()
        cost = (bought[:, None] + given[None]).ravel()
        order = np.lexsort((cost, np.round(after, 9)))  # of equal doses the cheapest comes first
        _, first = np.unique(np.round(after, 9)[order], return_index=True)
        kept = order[first]
        trail.append((kept % given.size, kept // given.size))
        doses, bought = after[kept], cost[kept]
    return doses, bought, trail


def _walk_back(trail: list[tuple[np.ndarray, np.ndarray]], end: int) -> list[int]:
    path = []
    for choice, before in reversed(trail):
        path.append(int(choice[end]))
        end = int(before[end])
    return path[::-1]
