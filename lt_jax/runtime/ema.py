"""Moving averages of parameters: exponential, or power functions of a length chosen afterwards.

A rule says what average a train state holds. After update t = 1, 2, ..., with parameters p_t,

  e_t = beta(t) e_{t-1} + (1 - beta(t)) p_t                                               (1)

  exponential:  beta(t) = min(decay, (1 + t) / (10 + t))                                  (2)
  power:        beta(t) = (1 - 1/t)^(gamma + 1)                                           (3)

(2) is TensorFlow's and ADM's warm-up: early averages do not hold the initial parameters. (3) is
Karras et al. 2024 (EDM2, arXiv:2312.02696, section 3.1): its beta(1) is 0 and its products
telescope, so that e_t weighs p_s by (s^(gamma+1) - (s-1)^(gamma+1)) / t^(gamma+1), which is the
integral over (s-1, s] of the profile

  P(tau) = (gamma + 1) tau^gamma / t^(gamma+1),  0 <= tau <= t.                           (4)

The profile stretches with training, so its length is told relative to t, by its standard deviation

  sigma_rel = ((gamma + 1) / ((gamma + 2)^2 (gamma + 3)))^(1/2),                          (5)

which inverts to the largest root of

  gamma^3 + 7 gamma^2 + (16 - sigma_rel^-2) gamma + (12 - sigma_rel^-2) = 0.              (6)

Post hoc (ibid., section 3.2 and appendix C), the average of any length at any step is had from
snapshots of the tracked ones, as their linear combination whose profile is nearest in least
squares. With profiles P_i the weights solve sum_j <P_i, P_j> w_j = <P_i, P>, where for t_a <= t_b

  <P_a, P_b> = (gamma_a + 1)(gamma_b + 1) / ((gamma_a + gamma_b + 1) t_b) (t_a / t_b)^gamma_b.  (7)

Averages of factors, as an adapter's, are not averages of their products: combine snapshots of the
parameters that they make.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from lt_jax.config import ConfigError
from lt_jax.shapes import Array, Float, Int, Params, PyTree

LONGEST = 12**-0.5  # sigma_rel of the plain mean of all steps, gamma = 0


@runtime_checkable
class Rule(Protocol):
    """What average a train state holds; hashable."""

    def init(self, params: Params) -> Any:
        """The average before the first update, of its own buffers, which may be donated."""
        ...

    def update(self, ema: Any, params: Params, step: Int[Array, ""]) -> Any:
        """The average after update number `step`, counted from 1, which gave `params`."""
        ...


@dataclasses.dataclass(frozen=True)
class Exponential:
    """Equation (2); its average is a tree like the parameters."""

    decay: float

    def init(self, params: Params) -> Params:
        """See `Rule.init`."""
        return jax.tree.map(jnp.copy, params)  # aliased, donating would fail

    def update(self, ema: Params, params: Params, step: Int[Array, ""]) -> Params:
        """See `Rule.update`."""
        n = step.astype(jnp.float32)
        d = jnp.minimum(self.decay, (1.0 + n) / (10.0 + n))
        return jax.tree.map(lambda old, new: old * d + new * (1.0 - d), ema, params)


@dataclasses.dataclass(frozen=True)
class Power:
    """Equation (3) for several lengths at once; its average is a tuple of trees, one a length.

    Attributes:
      lengths: sigma_rel of each, in (0, 12^-1/2]; no two alike.
    """

    lengths: tuple[float, ...]

    def __post_init__(self) -> None:
        """Raises ConfigError for no length, one out of range, or one given twice."""
        if not self.lengths or len(set(self.lengths)) != len(self.lengths):
            raise ConfigError(f"ema_lengths: got {self.lengths}; takes one or more, no two alike")
        for length in self.lengths:
            gamma_of(length)

    @property
    def gammas(self) -> tuple[float, ...]:
        """The exponent of each length."""
        return tuple(gamma_of(length) for length in self.lengths)

    def init(self, params: Params) -> tuple[Params, ...]:
        """See `Rule.init`. The first update forgets it, since beta(1) = 0."""
        return tuple(jax.tree.map(jnp.copy, params) for _ in self.lengths)

    def update(
        self, ema: tuple[Params, ...], params: Params, step: Int[Array, ""]
    ) -> tuple[Params, ...]:
        """See `Rule.update`."""
        pairs = zip(ema, self.gammas, strict=True)
        return tuple(update(one, params, step, gamma) for one, gamma in pairs)


def make(kind: str, decay: float, lengths: tuple[float, ...]) -> Rule:
    """`Exponential(decay)` or `Power(lengths)`, where `kind` is "exponential" or "power"."""
    return Power(lengths) if kind == "power" else Exponential(decay)


def update(ema: Params, params: Params, step: Int[Array, ""], gamma: float) -> Params:
    """One update of a power-function average. Equations (1) and (3).

    Args:
      ema: the average after `step - 1` updates.
      params: the parameters after `step` of them.
      step: t, counted from 1.
      gamma: the exponent.
    """
    # 1 - beta, of order gamma / t, would lose its digits in a difference of 1 and float32's beta.
    fraction = -jnp.expm1((gamma + 1) * jnp.log1p(-1 / step.astype(jnp.float32)))
    return jax.tree.map(lambda old, new: old + fraction * (new - old), ema, params)


def sigma_rel_of(gamma: float) -> float:
    """Equation (5): the profile's standard deviation over its length t."""
    return float(np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))))


def gamma_of(sigma_rel: float) -> float:
    """Equation (6), the inverse of `sigma_rel_of` on gamma >= 0.

    Raises:
      ConfigError: `sigma_rel` is not in (0, 12^-1/2].
    """
    if not 0 < sigma_rel <= LONGEST:
        raise ConfigError(f"EMA length: got {sigma_rel}; takes a number in (0, {LONGEST:.4f}]")
    inverse = float(sigma_rel) ** -2
    return max(0.0, float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max()))


def snapshot_steps(steps: int, count: int) -> tuple[int, ...]:
    """The updates, of `steps`, after which snapshots are taken: `count` even ones, the last in."""
    return tuple(sorted({-(-steps * i // count) for i in range(1, count + 1)}))


def solve_weights(
    steps: Sequence[float] | np.ndarray,
    gammas: Sequence[float] | np.ndarray,
    step: float,
    gamma: float,
) -> Float64[np.ndarray, "n"]:
    """Weights of snapshots whose sum is nearest to the average of exponent `gamma` at `step`.

    Least squares over profiles, equation (7), then scaled to sum to one, as the paper's code does.
    The average is nearly the tracked one where a snapshot was taken at `step` and the length is one
    of the tracked or between or above them. It is rough at a step between two snapshots, and for a
    shorter length, where large weights of both signs show it.

    Args:
      steps: t of each snapshot.
      gammas: its exponent.
      step: of the average that is wanted, at most the last snapshot's.
      gamma: of the average that is wanted.

    Raises:
      ValueError: there are no snapshots, or they end before `step`.
    """
    t, g = np.asarray(steps, np.float64), np.asarray(gammas, np.float64)
    if not len(t) or len(t) != len(g) or not 0 < step <= t.max():
        raise ValueError(
            f"{len(t)} snapshots (with {len(g)} exponents), up to step {max(t, default=0):g}, do "
            f"not give an average at step {step:g}; take them at that step and before"
        )
    gram = _inner(t[:, None], g[:, None], t[None, :], g[None, :])
    towards = _inner(t, g, np.float64(step), np.float64(gamma))
    # Not `solve`: neighbouring snapshots are so alike that the matrix may be singular in float64.
    weights = np.linalg.lstsq(gram, towards, rcond=None)[0]
    return weights / weights.sum()


def _inner(t_a: Any, gamma_a: Any, t_b: Any, gamma_b: Any) -> Float[np.ndarray, "..."]:
    """Equation (7), elementwise and in either order."""
    later = np.maximum(t_a, t_b)
    overlap = (np.minimum(t_a, t_b) / later) ** np.where(t_a <= t_b, gamma_b, gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) / ((gamma_a + gamma_b + 1) * later) * overlap


def reconstruct(snapshots: Iterable[PyTree], weights: Sequence[float] | np.ndarray) -> PyTree:
    """The weighted sum of snapshots, as NumPy arrays of their dtypes.

    Args:
      snapshots: trees of one form, read one after the other: a generator may load them.
      weights: one each, from `solve_weights`.

    Raises:
      ValueError: there are more of the one than of the other, or none.
    """
    total: Any = None
    form: Any = None
    for snapshot, weight in zip(snapshots, weights, strict=True):
        form = jax.device_get(snapshot)
        # In float64: the weights have both signs, and what they cancel must not leave rounding.
        part = jax.tree.map(lambda leaf, w=weight: w * np.asarray(leaf, np.float64), form)
        total = part if total is None else jax.tree.map(np.add, total, part)
    if total is None:
        raise ValueError("there are no snapshots to reconstruct an average from")
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), total, form)
