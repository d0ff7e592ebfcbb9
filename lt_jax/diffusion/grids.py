"""Time grids: the noise levels that a sampler steps through, from noise to image.

With a schedule's log-SNR lambda(t), the noise-to-signal ratio s(t) = exp(-lambda(t) / 2) (the sigma
of Karras et al. 2022, arXiv:2206.00364, to whose process ours is x_t / alpha_t), the time t_0 that
sampling starts at and u = i / N for i = 0 ... N, the levels are evenly spaced in

  time:     lambda_i = lambda((1 - u) t_0)                                                (1)
  log_snr:  lambda_i = (1 - u) lambda(t_0) + u lambda(0)                                  (2)
  karras:   s_i^(1/rho) = (1 - u) s(t_0)^(1/rho) + u s(0)^(1/rho),  rho = 7               (3)

(3) is their equation 5, with the schedule's own ends for sigma_max and sigma_min and without a last
level of no noise at all. It lies between (1) and (2): short steps where images take shape, and
neighbouring levels of similar ratio, as solvers in s rather than in lambda need.
"""

from typing import Literal

import jax.numpy as jnp

from lt_jax.diffusion.process import Schedule
from lt_jax.shapes import Array, Float

Grid = Literal["time", "log_snr", "karras"]

RHO = 7.0  # Karras et al. 2022, table 1


def levels(
    schedule: Schedule, steps: int, grid: Grid, start: Float[Array, "b"] | None = None
) -> Float[Array, "n *b"]:
    """steps + 1 strictly rising log-SNRs, from `start` to t = 0. Equations (1)-(3).

    Args:
      schedule: gives lambda(t).
      steps: N, at least 1.
      grid: in what the levels are evenly spaced.
      start: t_0 of each image, in (0, 1]; None: 1 for all.

    Returns:
      [n] where `start` is None, else [n b], with n = steps + 1.
    """
    if grid == "time":
        times = jnp.linspace(1.0, 0.0, steps + 1)
        return schedule.log_snr(times if start is None else times[:, None] * start[None, :])
    if start is None:
        noisy, clean = schedule.log_snr(jnp.asarray([1.0, 0.0]))
    else:
        noisy, clean = schedule.log_snr(start), schedule.log_snr(jnp.zeros_like(start))
    if grid == "log_snr":
        return jnp.linspace(noisy, clean, steps + 1)
    roots = jnp.linspace(jnp.exp(-noisy / (2 * RHO)), jnp.exp(-clean / (2 * RHO)), steps + 1)
    return -2 * RHO * jnp.log(roots)
