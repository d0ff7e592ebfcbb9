"""Samplers: from noise to images by solving the reverse process with a denoiser.

Levels lambda_0 < ... < lambda_N (log-SNR, from t = 1 to t = 0); h = (lambda_s - lambda_t) / 2 for a
step from level t to the next cleaner level s, and D an estimate of x_0. All samplers here are

  x_s = (sigma_s / sigma_t) c x_t + alpha_s (1 - c exp(-h)) D
        + sigma_s eta sqrt(1 - exp(-2h)) z                                                (1)
  c^2 = 1 - eta^2 (1 - exp(-2h)),    z ~ N(0, I)                                          (2)

DDIM (Song et al. 2021, arXiv:2010.02502, eqs. 12 and 16) has D = denoise(x_t), with
e = (x_t - alpha_t D) / sigma_t put in and, from alpha^2 + sigma^2 = 1,
(1 - alpha_t^2 / alpha_s^2) / sigma_t^2 = 1 - exp(-2h). eta = 0 is the probability-flow ODE, solved
to first order; eta = 1 is ancestral sampling. DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095,
algorithm 2) has eta = 0 and extrapolates D from the last two levels, to second order:

  D = D_i + (h_i / (2 h_{i-1})) (D_i - D_{i-1})                                           (3)

Its first step has no past, and its last, which leaps to almost no noise and where extrapolation
would overshoot, is taken without (3); one first-order step among N leaves the order at two.

A sampler ends at the schedule's lambda(0), where what noise is left lies far below one step of an
8-bit image. An image depends on its own row of `noise` and its own key only.
"""

import dataclasses
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Key

from lt_jax.config import SynthesizeConfig
from lt_jax.diffusion.guidance import Denoiser
from lt_jax.diffusion.process import Schedule, VPProcess
from lt_jax.shapes import Array, Float, Images

Grid = Literal["time", "log_snr"]


@runtime_checkable
class Sampler(Protocol):
    """Turns noise into images."""

    def sample(
        self, denoise: Denoiser, noise: Images, keys: Key[Array, "b"] | None = None
    ) -> Images:
        """Images from noise.

        Args:
          denoise: `(x_t [b h w c], log_snr [b]) -> x_0 [b h w c]`.
          noise: x_1, standard normal.
          keys: one key an image, needed where the sampler is stochastic. The number of the step is
            folded in, so draw `noise` from other keys than these.

        Returns:
          x_0, about [-1, 1]; it may stand out by what noise is left, so clip before quantising.
        """
        ...


@dataclasses.dataclass(frozen=True)
class DDIM:
    """Equation (1) with D = denoise(x_t): first order, stochastic where eta > 0.

    `grid` says in what the levels are evenly spaced; `clip` holds D in [-1, 1].
    """

    schedule: Schedule
    steps: int
    eta: float = 0.0
    grid: Grid = "time"
    clip: bool = True

    def __post_init__(self) -> None:
        """Refuses steps and eta out of range."""
        _check_steps(self.steps)
        if not 0 <= self.eta <= 1:
            raise ValueError(f"DDIM: got eta={self.eta}; takes a number in [0, 1]")

    def sample(
        self, denoise: Denoiser, noise: Images, keys: Key[Array, "b"] | None = None
    ) -> Images:
        """See `Sampler.sample`. Raises ValueError where eta > 0 and no keys are given."""
        if self.eta == 0:
            keys = None
        elif keys is None:
            raise ValueError("DDIM: eta > 0 draws noise in every step; pass keys, one an image")
        table = _table(_levels(self.schedule, self.steps, self.grid), self.eta)

        def step(x: Images, row: tuple[Array, Array]) -> tuple[Images, None]:
            index, (log_snr, keep, pull, fresh) = row
            x0 = _denoise(denoise, x, log_snr, self.clip)
            following = keep * x + pull * x0
            if keys is not None:
                following += fresh * _step_noise(keys, index, x)
            return following, None

        rows = (jnp.arange(self.steps), table.astype(noise.dtype))
        return jax.lax.scan(step, noise, rows)[0]


@dataclasses.dataclass(frozen=True)
class DPMSolverPP:
    """DPM-Solver++(2M): second order from one evaluation a step. Equations (1) and (3).

    `grid` says in what the levels are evenly spaced; `clip` holds each D_i in [-1, 1].
    """

    schedule: Schedule
    steps: int
    grid: Grid = "time"
    clip: bool = True

    def __post_init__(self) -> None:
        """Refuses steps out of range."""
        _check_steps(self.steps)

    def sample(
        self, denoise: Denoiser, noise: Images, keys: Key[Array, "b"] | None = None
    ) -> Images:
        """See `Sampler.sample`; `keys` are not used."""
        del keys
        levels = _levels(self.schedule, self.steps, self.grid)
        width = jnp.diff(levels)
        # The first and the last step keep a zero; a run of one or two steps has nothing else.
        extrapolation = jnp.zeros_like(width)
        extrapolation = extrapolation.at[1:-1].set(
            0.5 * width[1:-1] / width[: max(self.steps - 2, 0)]
        )

        def step(
            carry: tuple[Images, Images], row: tuple[Array, Array]
        ) -> tuple[tuple[Images, Images], None]:
            x, previous = carry
            (log_snr, keep, pull, _), extrapolate = row
            x0 = _denoise(denoise, x, log_snr, self.clip)
            return (keep * x + pull * (x0 + extrapolate * (x0 - previous)), x0), None

        rows = jax.tree.map(
            lambda row: row.astype(noise.dtype), (_table(levels, 0.0), extrapolation)
        )
        return jax.lax.scan(step, (noise, jnp.zeros_like(noise)), rows)[0][0]


def make(config: SynthesizeConfig, process: VPProcess) -> Sampler:
    """The sampler that a config names, on the process's schedule."""
    if config.sampler == "ddim":
        return DDIM(process.schedule, config.steps)
    return DPMSolverPP(process.schedule, config.steps)


def _levels(schedule: Schedule, steps: int, grid: Grid) -> Float[Array, "n"]:
    """steps + 1 rising log-SNRs from t = 1 to t = 0."""
    if grid == "time":
        return schedule.log_snr(jnp.linspace(1.0, 0.0, steps + 1))
    noisy, clean = schedule.log_snr(jnp.asarray([1.0, 0.0]))
    return jnp.linspace(noisy, clean, steps + 1)


def _table(levels: Float[Array, "n"], eta: float) -> Float[Array, "m 4"]:
    """Each step's log-SNR and the factors of x_t, D and z in equation (1)."""
    now, following = levels[:-1], levels[1:]
    half = 0.5 * (following - now)
    fresh_fraction = -jnp.expm1(-2 * half)
    log_c = 0.5 * jnp.log1p(-jnp.square(eta) * fresh_fraction)
    log_sigma = lambda log_snr: 0.5 * jax.nn.log_sigmoid(-log_snr)
    keep = jnp.exp(log_sigma(following) - log_sigma(now) + log_c)
    pull = -jnp.sqrt(jax.nn.sigmoid(following)) * jnp.expm1(log_c - half)
    fresh = eta * jnp.sqrt(jax.nn.sigmoid(-following) * fresh_fraction)
    return jnp.stack([now, keep, pull, fresh], axis=1)


def _denoise(denoise: Denoiser, x: Images, log_snr: Float[Array, ""], clip: bool) -> Images:
    x0 = denoise(x, jnp.full(x.shape[:1], log_snr))
    return jnp.clip(x0, -1, 1) if clip else x0


def _step_noise(keys: Key[Array, "b"], index: Array, x: Images) -> Images:
    """Each image's z of one step, from its own key."""

    def draw(key: Key[Array, ""]) -> Array:
        return jax.random.normal(jax.random.fold_in(key, index), x.shape[1:], x.dtype)

    return jax.vmap(draw)(keys)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"sampler: got steps={steps}; takes an integer >= 1")
