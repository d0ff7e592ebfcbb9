"""Samplers: from noise to images by solving the reverse process with a denoiser.

Levels lambda_0 < ... < lambda_N (log-SNR, see grids.py); h = (lambda_s - lambda_t) / 2 for a step
from level t to the next cleaner level s, and D an estimate of x_0. All samplers here are

  x_s = (sigma_s / sigma_t) c x_t + alpha_s (1 - c exp(-h)) D
        + sigma_s eta sqrt(1 - exp(-2h)) z                                                (1)
  c^2 = 1 - eta^2 (1 - exp(-2h)),    z ~ N(0, I)                                          (2)

DDIM (Song et al. 2021, arXiv:2010.02502, eqs. 12 and 16) has D = denoise(x_t), with
e = (x_t - alpha_t D) / sigma_t put in and, from alpha^2 + sigma^2 = 1,
(1 - alpha_t^2 / alpha_s^2) / sigma_t^2 = 1 - exp(-2h). eta = 0 is the probability-flow ODE, solved
to first order; eta = 1 is ancestral sampling (Ho et al. 2020, arXiv:2006.11239, algorithm 2, with
the smaller of its two variances). DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2)
has eta = 0 and extrapolates D from the last two levels, to second order:

  D = D_i + (h_i / (2 h_{i-1})) (D_i - D_{i-1})                                           (3)

With eta = 1, where c = exp(-h), it is their SDE-DPM-Solver++(2M) ("dpmpp_2m_sde" elsewhere). Its
first step has no past, and its last, which leaps to almost no noise and where extrapolation would
overshoot, is taken without (3); one first-order step among N leaves the order at two.

Heun's method (Karras et al. 2022, arXiv:2206.00364, algorithm 1 without churn) solves
dy/dr = (y - denoise) / r for y = x / alpha in r = sigma / alpha = exp(-lambda / 2). Its Euler step
is (1) with eta = 0 and D_i = denoise(x_t). With D' the denoiser's answer at that step's end, the
trapezoid y_s = y_t + (r_s - r_t) (dy_t/dr + dy_s/dr) / 2, collected with r_s / r_t = exp(-h), is
(1) with eta = 0 and

  D = D_i + (exp(h) / 2) (D' - D_i)                                                       (4)

It is of second order; its last step is Euler's. As exp(h) says, it wants levels of similar ratio,
so use it on the `karras` grid.

A sampler ends at the schedule's lambda(0), where what noise is left lies far below one step of an
8-bit image. An image depends on its own rows of `noise` and `start` and its own key only.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Key

from lt_jax.config import SynthesizeConfig
from lt_jax.diffusion.grids import Grid, levels
from lt_jax.diffusion.guidance import Denoiser
from lt_jax.diffusion.process import Schedule, VPProcess
from lt_jax.diffusion.thresholds import STATIC, Threshold
from lt_jax.diffusion.thresholds import make as make_threshold
from lt_jax.shapes import Array, Float, Images, Int


@runtime_checkable
class Sampler(Protocol):
    """Turns noise into images."""

    @property
    def evaluations(self) -> int:
        """How often one image is denoised."""
        ...

    def sample(
        self,
        denoise: Denoiser,
        noise: Images,
        keys: Key[Array, "b"] | None = None,
        start: Float[Array, "b"] | None = None,
    ) -> Images:
        """Images from noise.

        Args:
          denoise: `(x_t [b h w c], log_snr [b]) -> x_0 [b h w c]`.
          noise: x at `start`; standard normal where that is None.
          keys: one key an image, needed where the sampler is stochastic. The number of the step is
            folded in, so draw `noise` from other keys than these.
          start: the time of `noise`, one an image in (0, 1]; the grid's steps lie between it and
            0. None: 1 for all.

        Returns:
          x_0, about [-1, 1]; it may stand out by what noise is left, so clip before quantising.

        Raises:
          ValueError: the sampler is stochastic and no keys are given.
        """
        ...


class Coefficients(NamedTuple):
    """Equation (1)'s factors: of all steps, each [m] or [m b]; of one step, each [] or [b].

    Attributes:
      log_snr: the level that a step leaves.
      keep: factor of x_t.
      pull: factor of D.
      fresh: factor of z; 0 where eta is 0.
    """

    log_snr: Array
    keep: Array
    pull: Array
    fresh: Array

    def advance(self, x_t: Images, x0: Images, z: Images | None = None) -> Images:
        """x_s from one step's factors, with `x0` for D; None stands for no noise."""
        following = _per_image(self.keep) * x_t + _per_image(self.pull) * x0
        return following if z is None else following + _per_image(self.fresh) * z


def coefficients(log_snr: Float[Array, "n *b"], eta: float) -> Coefficients:
    """Equations (1) and (2) for each pair of neighbouring levels.

    Args:
      log_snr: n >= 2 rising levels, for all images or each ([n b]).
      eta: in [0, 1]; 0 is deterministic, 1 ancestral.

    Returns:
      Factors [n - 1] or [n - 1, b]. Row i leads from level i to level i + 1.
    """
    now, following = log_snr[:-1], log_snr[1:]
    half = 0.5 * (following - now)
    fresh_fraction = -jnp.expm1(-2 * half)
    log_c = 0.5 * jnp.log1p(-jnp.square(eta) * fresh_fraction)
    log_sigma = lambda log_snr: 0.5 * jax.nn.log_sigmoid(-log_snr)
    keep = jnp.exp(log_sigma(following) - log_sigma(now) + log_c)
    pull = -jnp.sqrt(jax.nn.sigmoid(following)) * jnp.expm1(log_c - half)
    fresh = eta * jnp.sqrt(jax.nn.sigmoid(-following) * fresh_fraction)
    return Coefficients(now, keep, pull, fresh)


def step_noise(keys: Key[Array, "b"], index: Int[Array, ""] | int, like: Images) -> Images:
    """z of step `index`, shaped as `like`: each image's from its own key, the index folded in."""

    def draw(key: Key[Array, ""]) -> Array:
        return jax.random.normal(jax.random.fold_in(key, index), like.shape[1:], like.dtype)

    return jax.vmap(draw)(keys)


@dataclasses.dataclass(frozen=True)
class DDIM:
    """Equation (1) with D = denoise(x_t): first order, stochastic where eta > 0.

    `grid` says in what the levels are evenly spaced; `threshold` holds D in range.
    """

    schedule: Schedule
    steps: int
    eta: float = 0.0
    grid: Grid = "time"
    threshold: Threshold = STATIC

    def __post_init__(self) -> None:
        """Refuses steps and eta out of range."""
        _check(self.steps, self.eta)

    @property
    def evaluations(self) -> int:
        """One a step."""
        return self.steps

    def sample(
        self,
        denoise: Denoiser,
        noise: Images,
        keys: Key[Array, "b"] | None = None,
        start: Float[Array, "b"] | None = None,
    ) -> Images:
        """See `Sampler.sample`."""
        keys = _needed(keys, self.eta)
        table = coefficients(levels(self.schedule, self.steps, self.grid, start), self.eta)

        def step(x: Images, row: tuple[Array, Coefficients]) -> tuple[Images, None]:
            index, factors = row
            x0 = self.threshold(_denoise(denoise, x, factors.log_snr))
            z = None if keys is None else step_noise(keys, index, x)
            return factors.advance(x, x0, z), None

        rows = (jnp.arange(self.steps), _cast(table, noise))
        return jax.lax.scan(step, noise, rows)[0]


@dataclasses.dataclass(frozen=True)
class DPMSolverPP:
    """DPM-Solver++(2M): second order from one evaluation a step. Equations (1) and (3).

    eta = 0 solves the probability-flow ODE, eta = 1 is the SDE form. `grid` says in what the
    levels are evenly spaced; `threshold` holds each D_i in range.
    """

    schedule: Schedule
    steps: int
    eta: float = 0.0
    grid: Grid = "time"
    threshold: Threshold = STATIC

    def __post_init__(self) -> None:
        """Refuses steps and eta out of range."""
        _check(self.steps, self.eta)

    @property
    def evaluations(self) -> int:
        """One a step."""
        return self.steps

    def sample(
        self,
        denoise: Denoiser,
        noise: Images,
        keys: Key[Array, "b"] | None = None,
        start: Float[Array, "b"] | None = None,
    ) -> Images:
        """See `Sampler.sample`."""
        keys = _needed(keys, self.eta)
        log_snr = levels(self.schedule, self.steps, self.grid, start)
        width = jnp.diff(log_snr, axis=0)
        # The first and the last step keep a zero; a run of one or two steps has nothing else.
        extrapolation = jnp.zeros_like(width)
        extrapolation = extrapolation.at[1:-1].set(
            0.5 * width[1:-1] / width[: max(self.steps - 2, 0)]
        )

        def step(
            carry: tuple[Images, Images], row: tuple[Array, Coefficients, Array]
        ) -> tuple[tuple[Images, Images], None]:
            x, previous = carry
            index, factors, extrapolate = row
            x0 = self.threshold(_denoise(denoise, x, factors.log_snr))
            z = None if keys is None else step_noise(keys, index, x)
            estimate = x0 + _per_image(extrapolate) * (x0 - previous)
            return (factors.advance(x, estimate, z), x0), None

        table = _cast(coefficients(log_snr, self.eta), noise)
        rows = (jnp.arange(self.steps), table, extrapolation.astype(noise.dtype))
        return jax.lax.scan(step, (noise, jnp.zeros_like(noise)), rows)[0][0]


@dataclasses.dataclass(frozen=True)
class Heun:
    """Heun's method of Karras et al.: two evaluations a step, one in the last. Equation (4).

    `grid` says in what the levels are evenly spaced; `threshold` holds D_i and D' in range.
    """

    schedule: Schedule
    steps: int
    grid: Grid = "karras"
    threshold: Threshold = STATIC

    def __post_init__(self) -> None:
        """Refuses steps out of range."""
        _check(self.steps, 0.0)

    @property
    def evaluations(self) -> int:
        """Two a step, one in the last."""
        return 2 * self.steps - 1

    def sample(
        self,
        denoise: Denoiser,
        noise: Images,
        keys: Key[Array, "b"] | None = None,
        start: Float[Array, "b"] | None = None,
    ) -> Images:
        """See `Sampler.sample`; `keys` are not used.

        One row of the scan is one evaluation, by turns the Euler step from (x_t, D_i) and the step
        anew from the same x_t with equation (4), so that the network is compiled once.
        """
        del keys
        log_snr = levels(self.schedule, self.steps, self.grid, start)
        table = coefficients(log_snr, 0.0)
        correction = 0.5 * jnp.exp(0.5 * jnp.diff(log_snr, axis=0))

        def step(
            carry: tuple[Images, Images, Images], row: tuple[Array, Coefficients, Array]
        ) -> tuple[tuple[Images, Images, Images], None]:
            x, x_t, first = carry
            corrects, factors, weight = row
            x0 = self.threshold(_denoise(denoise, x, factors.log_snr))
            x_t, first = jnp.where(corrects, x_t, x), jnp.where(corrects, first, x0)
            following = factors.advance(x_t, first + _per_image(weight) * (x0 - first))
            return (following, x_t, first), None

        euler, trapezoid = table, table._replace(log_snr=log_snr[1:])
        turns = jax.tree.map(_in_turns, (euler, correction), (trapezoid, correction))
        corrects = jnp.arange(self.evaluations) % 2 == 1
        rows = (corrects, *_cast(turns, noise))
        return jax.lax.scan(step, (noise, noise, jnp.zeros_like(noise)), rows)[0][0]


def make(config: SynthesizeConfig, process: VPProcess) -> Sampler:
    """The sampler that a config names, on the process's schedule."""
    schedule, steps, threshold = process.schedule, config.steps, make_threshold(config)
    grid: Grid = config.grid  # type: ignore[assignment]
    if config.sampler == "heun":
        return Heun(schedule, steps, grid, threshold)
    if config.sampler == "dpmpp_2m":
        return DPMSolverPP(schedule, steps, 0.0, grid, threshold)
    if config.sampler == "dpmpp_2m_sde":
        return DPMSolverPP(schedule, steps, 1.0, grid, threshold)
    eta = 1.0 if config.sampler == "ancestral" else config.eta
    return DDIM(schedule, steps, eta, grid, threshold)


def _denoise(denoise: Denoiser, x: Images, log_snr: Array) -> Images:
    return denoise(x, jnp.broadcast_to(log_snr, x.shape[:1]))


def _per_image(factor: Array) -> Array:
    """A number for all images as it is, or one an image [b], shaped to multiply images."""
    return factor if factor.ndim == 0 else factor[:, None, None, None]


def _in_turns(first: Array, second: Array) -> Array:
    """[m ...] and [m ...] as [2m - 1 ...], in turns; the last of `second` is left away."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])[:-1]


def _cast(tree: Any, like: Images) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(like.dtype), tree)


def _needed(keys: Key[Array, "b"] | None, eta: float) -> Key[Array, "b"] | None:
    """The keys of a stochastic sampler, none of a deterministic one."""
    if eta > 0 and keys is None:
        raise ValueError("sampler: eta > 0 draws noise in every step; pass keys, one an image")
    return keys if eta > 0 else None


def _check(steps: int, eta: float) -> None:
    if steps < 1:
        raise ValueError(f"sampler: got steps={steps}; takes an integer >= 1")
    if not 0 <= eta <= 1:
        raise ValueError(f"sampler: got eta={eta}; takes a number in [0, 1]")
