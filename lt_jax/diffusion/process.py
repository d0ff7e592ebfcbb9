"""The variance-preserving noising process: schedules, parametrisations, training loss.

An image x_0 in [-1, 1] is noised to level t in [0, 1] with e ~ N(0, I):

  x_t = alpha x_0 + sigma e,    alpha^2 + sigma^2 = 1                                     (1)

Everything below is a function of the level's log signal-to-noise ratio, which falls with t:

  lambda = log(alpha^2 / sigma^2),  alpha^2 = sigmoid(lambda),  sigma^2 = sigmoid(-lambda)  (2)

(Kingma et al. 2021, arXiv:2107.00630, eqs. 1-4). lambda here is the log of SNR, twice the "half
log-SNR" of the DPM-Solver papers. A schedule is lambda(t) and its inverse:

  cosine:  lambda(t) = -2 log tan(pi u / 2)                                               (3)
  linear:  lambda(t) = -log(exp(B(u)) - 1),  B(u) = beta_min u + (beta_max - beta_min) u^2 / 2  (4)

(3) is Nichol and Dhariwal 2021 (arXiv:2102.09672) in the form of simple diffusion (Hoogeboom et
al. 2023, arXiv:2301.11093), (4) the VP-SDE of Song et al. 2021 (arXiv:2011.13456, eq. 33). Both are
infinite at an end of u in [0, 1], so u = u_0 + t (u_1 - u_0) with u_0, u_1 chosen such that
lambda stays in [log_snr_min, log_snr_max].

A network predicts one of three targets, each an affine function of any other given x_t:

  eps: e        x_0 = (x_t - sigma e) / alpha                                             (5)
  x0:  x_0      e = (x_t - alpha x_0) / sigma                                             (6)
  v:   alpha e - sigma x_0,   x_0 = alpha x_t - sigma v,   e = sigma x_t + alpha v        (7)

(v: Salimans and Ho 2022, arXiv:2202.00512, appendix D). From (5)-(7), at one and the same x_t,

  |e - e^|^2 = SNR |x_0 - x_0^|^2,    |v - v^|^2 = (1 + SNR) |x_0 - x_0^|^2               (8)

so that min-SNR-gamma (Hang et al. 2023, arXiv:2303.09556), which weighs the error of x_0 by
min(SNR, gamma), weighs the error of what the network predicts by

  x0: min(SNR, gamma)    eps: min(SNR, gamma) / SNR    v: min(SNR, gamma) / (SNR + 1)     (9)

gamma = 0 stands for no cap: the plain eps loss of Ho et al. 2020 (arXiv:2006.11239, eq. 14), in
which min(SNR, gamma) of (9) is SNR, whatever the network predicts.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp

from lt_jax.config import ConfigError, ProcessConfig
from lt_jax.shapes import Array, Float, Images, LogSNR, PRNGKey

LOG_SNR_LIMIT = 15.0  # sigma(0) = alpha(1) = 5.5e-4, a tenth of one step of an 8-bit image
NOISIEST_ALLOWED = -4.0  # log-SNR that t = 1 must reach for samples to start from pure noise

Predict = Callable[[Images, LogSNR], Images]  # (x_t, log_snr) -> the network's prediction


@runtime_checkable
class Schedule(Protocol):
    """A falling log-SNR over t in [0, 1], and its inverse; both elementwise."""

    def log_snr(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """lambda(t)."""
        ...

    def inverse(self, log_snr: Float[Array, "..."]) -> Float[Array, "..."]:
        """The t in [0, 1] whose log-SNR is nearest to `log_snr`."""
        ...


@dataclasses.dataclass(frozen=True)
class CosineSchedule:
    """Equation (3), truncated to [log_snr_min, log_snr_max]."""

    log_snr_min: float = -LOG_SNR_LIMIT
    log_snr_max: float = LOG_SNR_LIMIT

    def __post_init__(self) -> None:
        """Refuses an empty range."""
        _check_range(self.log_snr_min, self.log_snr_max)

    def log_snr(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """Equation (3) as 2 log(sin(pi/2 - a) / sin(a)), with a = pi u / 2.

        Both angles are summed from their own small end, so that neither end of the schedule
        loses digits to a difference with pi / 2.
        """
        clean, noisy, span = self._angles()
        angle = clean + span * t
        complement = noisy + span * (1 - t)
        return 2 * (jnp.log(jnp.sin(complement)) - jnp.log(jnp.sin(angle)))

    def inverse(self, log_snr: Float[Array, "..."]) -> Float[Array, "..."]:
        """The t in [0, 1] whose log-SNR is nearest to `log_snr`."""
        clean, noisy, span = self._angles()
        small = jnp.arctan(jnp.exp(-0.5 * jnp.abs(log_snr)))  # the angle, or its complement
        t = jnp.where(log_snr > 0, (small - clean) / span, 1 - (small - noisy) / span)
        return jnp.clip(t, 0, 1)

    def _angles(self) -> tuple[float, float, float]:
        """The angle at t = 0, the complement of the angle at t = 1, and what lies between."""
        clean = math.atan(math.exp(-0.5 * self.log_snr_max))
        noisy = math.atan(math.exp(0.5 * self.log_snr_min))
        return clean, noisy, math.pi / 2 - clean - noisy


@dataclasses.dataclass(frozen=True)
class LinearSchedule:
    """Equation (4), truncated to [log_snr_min, log_snr_max]; its own end may come first."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    log_snr_min: float = -LOG_SNR_LIMIT
    log_snr_max: float = LOG_SNR_LIMIT

    def __post_init__(self) -> None:
        """Raises ConfigError for betas that fall, or whose end is not yet noise."""
        _check_range(self.log_snr_min, self.log_snr_max)
        if not 0 <= self.beta_min <= self.beta_max:
            raise ConfigError(
                f"linear schedule: got beta_min={self.beta_min}, beta_max={self.beta_max}; "
                "takes 0 <= beta_min <= beta_max"
            )
        total = 0.5 * (self.beta_min + self.beta_max)
        if total < math.log1p(math.exp(-NOISIEST_ALLOWED)):
            raise ConfigError(
                f"linear schedule: beta_min={self.beta_min} and beta_max={self.beta_max} leave an "
                f"image visible at t = 1 (exp(-{total:g}) of its variance), but sampling starts "
                "from pure noise; raise beta_max (20 is usual)"
            )

    def log_snr(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """Equation (4)."""
        start, end = self._ends()
        u = start + (end - start) * t
        total = self.beta_min * u + 0.5 * (self.beta_max - self.beta_min) * jnp.square(u)
        return -total - jnp.log(-jnp.expm1(-total))

    def inverse(self, log_snr: Float[Array, "..."]) -> Float[Array, "..."]:
        """The t in [0, 1] whose log-SNR is nearest to `log_snr`."""
        start, end = self._ends()
        total = jax.nn.softplus(-log_snr)
        slope = self.beta_max - self.beta_min
        u = 2 * total / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * slope * total))
        return jnp.clip((u - start) / (end - start), 0, 1)

    def _ends(self) -> tuple[float, float]:
        """u at t = 0 and at t = 1."""
        slope = self.beta_max - self.beta_min

        def solve(log_snr: float) -> float:
            total = math.log1p(math.exp(-log_snr))
            return 2 * total / (self.beta_min + math.sqrt(self.beta_min**2 + 2 * slope * total))

        return solve(self.log_snr_max), min(1.0, solve(self.log_snr_min))


@flax.struct.dataclass
class Noised:
    """A batch at random levels: x_t and its noise [b h w c], times t in [0, 1] and log-SNRs [b]."""

    x_t: Any
    noise: Any
    t: Any
    log_snr: Any


@dataclasses.dataclass(frozen=True)
class VPProcess:
    """Equations (1), (2) and (5)-(9) for one schedule and one kind of prediction.

    `log_snr` is one number an example, x_t, x_0, noise and predictions are [b h w c].
    """

    schedule: Schedule
    prediction: Literal["eps", "v", "x0"] = "v"
    min_snr_gamma: float = 5.0

    def add_noise(self, x0: Images, noise: Images, log_snr: LogSNR) -> Images:
        """Equation (1)."""
        alpha, sigma = _alpha_sigma(log_snr)
        return alpha * x0 + sigma * noise

    def target(self, x0: Images, noise: Images, log_snr: LogSNR) -> Images:
        """What the network should predict from `add_noise(x0, noise, log_snr)`."""
        if self.prediction == "x0":
            return x0
        if self.prediction == "eps":
            return noise
        alpha, sigma = _alpha_sigma(log_snr)
        return alpha * noise - sigma * x0

    def to_x0(self, prediction: Images, x_t: Images, log_snr: LogSNR) -> Images:
        """The image that a prediction stands for. Equations (5) and (7)."""
        if self.prediction == "x0":
            return prediction
        alpha, sigma = _alpha_sigma(log_snr)
        if self.prediction == "eps":
            return (x_t - sigma * prediction) / alpha
        return alpha * x_t - sigma * prediction

    def to_eps(self, prediction: Images, x_t: Images, log_snr: LogSNR) -> Images:
        """The noise that a prediction stands for. Equations (6) and (7)."""
        if self.prediction == "eps":
            return prediction
        alpha, sigma = _alpha_sigma(log_snr)
        if self.prediction == "x0":
            return (x_t - alpha * prediction) / sigma
        return sigma * x_t + alpha * prediction

    def from_x0(self, x0: Images, x_t: Images, log_snr: LogSNR) -> Images:
        """The prediction that stands for an image: the inverse of `to_x0`."""
        if self.prediction == "x0":
            return x0
        alpha, sigma = _alpha_sigma(log_snr)
        if self.prediction == "eps":
            return (x_t - alpha * x0) / sigma
        return (alpha * x_t - x0) / sigma

    def weight(self, log_snr: LogSNR) -> LogSNR:
        """Equation (9): the weight of the squared error of what the network predicts."""
        cap = math.log(self.min_snr_gamma) if self.min_snr_gamma > 0 else math.inf
        per_x0_error = jnp.minimum(log_snr, cap)
        if self.prediction == "x0":
            return jnp.exp(per_x0_error)
        if self.prediction == "eps":
            return jnp.exp(per_x0_error - log_snr)
        return jnp.exp(per_x0_error + jax.nn.log_sigmoid(-log_snr))

    def loss(self, predict: Predict, x0: Images, key: PRNGKey) -> Float[Array, "b"]:
        """Each example's weighted squared error, averaged over its pixels, at a random level.

        Args:
          predict: the network, `(x_t [b h w c], log_snr [b]) -> prediction [b h w c]`.
          x0: images in [-1, 1].
          key: the step's key. The draws are functions of (key, index in the batch), so they are
            the same however a global batch is sharded under `jit`.

        Returns:
          [b]. Example i's term depends on x0[i] alone among the images; the caller averages.
        """
        noised = self.draw(x0, key)
        return self.error(predict(noised.x_t, noised.log_snr), x0, noised)

    def draw(self, x0: Images, key: PRNGKey) -> Noised:
        """The first half of `loss`: images at random levels, for losses with further terms."""
        time_key, noise_key = jax.random.split(key)
        t = stratified_times(time_key, x0.shape[0]).astype(x0.dtype)
        log_snr = self.schedule.log_snr(t)
        noise = jax.random.normal(noise_key, x0.shape, x0.dtype)
        return Noised(x_t=self.add_noise(x0, noise, log_snr), noise=noise, t=t, log_snr=log_snr)

    def error(self, prediction: Images, x0: Images, noised: Noised) -> Float[Array, "b"]:
        """The second half of `loss`: a prediction's weighted squared error, a pixel."""
        error = jnp.square(prediction - self.target(x0, noised.noise, noised.log_snr))
        return self.weight(noised.log_snr) * jnp.mean(error, axis=(1, 2, 3))


def stratified_times(key: PRNGKey, count: int) -> Float[Array, "{count}"]:
    """`count` times in [0, 1), evenly spaced, shifted together by one uniform draw.

    Kingma et al. 2021, appendix I.1: each time is uniform by itself, so no example's loss is
    biased by its place in the batch, while the batch's mean varies far less than with independent
    draws. In `shard_map`, where each device draws with its own key, it is even within a device.
    """
    return (jax.random.uniform(key) + jnp.arange(count) / count) % 1.0


def make(config: ProcessConfig) -> VPProcess:
    """The process that a config describes. Raises ConfigError for betas that make no schedule."""
    if config.schedule == "cosine":
        schedule: Schedule = CosineSchedule()
    else:
        schedule = LinearSchedule(config.beta_min, config.beta_max)
    return VPProcess(schedule, config.prediction, config.min_snr_gamma)  # type: ignore[arg-type]


def _alpha_sigma(
    log_snr: LogSNR,
) -> tuple[Float[Array, "b 1 1 1"], Float[Array, "b 1 1 1"]]:
    """Equation (2), shaped to multiply images; neither is had from the other by a difference."""
    expanded = log_snr[:, None, None, None]
    return jnp.sqrt(jax.nn.sigmoid(expanded)), jnp.sqrt(jax.nn.sigmoid(-expanded))


def _check_range(log_snr_min: float, log_snr_max: float) -> None:
    if not log_snr_min < log_snr_max:
        raise ValueError(
            f"schedule: got log_snr_min={log_snr_min}, log_snr_max={log_snr_max}; "
            "takes log_snr_min < log_snr_max"
        )
