"""Denoising strips: what the generator takes the image for, on the way from noise to it.

Sampled by DDIM with eta = 0 (`samplers`, equation 1), which follows the probability-flow ODE and
adds no noise of its own, under the guidance, grid, thresholds and number of steps of the config,
whatever sampler or method makes the pool: from pure noise, and without what a source image would
add. The noise is that of the pool's candidate of the same index, so that where the pool is made
from noise by a deterministic sampler, the strip ends near the image in it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.config import SynthesizeConfig
from lt_jax.data import augment
from lt_jax.diffusion import guidance, program, samplers, thresholds
from lt_jax.diffusion.grids import levels
from lt_jax.diffusion.program import Networks
from lt_jax.diffusion.requests import Request
from lt_jax.runtime import keys
from lt_jax.shapes import Array, Float, Images, Int, Params, PRNGKey, UInt8

LEVELS = 8


def shown(steps: int, count: int = LEVELS) -> Int[np.ndarray, "l"]:
    """Which steps' estimates are shown: at most `count`, evenly spread, first and last in."""
    return np.unique(np.linspace(0, steps - 1, min(count, steps)).round().astype(int))


def estimates(
    config: SynthesizeConfig,
    networks: Networks,
    params: Params,
    key: PRNGKey,
    indices: Int[Array, "b"],
    request: Request,
) -> tuple[Float[Array, "s b h w c"], Float[Array, "s"], Images]:
    """The estimate of x_0 at every step, the log-SNR at which it is made, and the final image.

    Args:
      config, networks: of the pool.
      params: the generator's.
      key: of the stream by which the pool was made.
      indices: of candidates, for their noise.
      request: what they are asked to show.
    """
    generator = networks.generator
    denoise = program.make_denoiser(config, networks, params, request)
    example_keys = program.keys_of(keys.per_example(key, indices), "noise")
    noise = jax.vmap(lambda k: jax.random.normal(k, generator.image_shape))(example_keys)
    grid: Any = config.grid
    table = samplers.coefficients(levels(generator.process.schedule, config.steps, grid), 0.0)
    threshold = thresholds.make(config)

    def step(x: Images, factors: samplers.Coefficients) -> tuple[Images, Images]:
        x0 = threshold(denoise(x, jnp.broadcast_to(factors.log_snr, x.shape[:1])))
        return factors.advance(x, x0), x0

    last, held = jax.lax.scan(step, noise, table)
    return held, table.log_snr, last


@functools.cache
def make_program(
    config: SynthesizeConfig, networks: Networks
) -> Callable[..., tuple[UInt8[Array, "l b h w c"], Float[Array, "l"]]]:
    """`(params, key, indices [b], request)` -> estimates at the `shown` steps, their log-SNRs."""
    at = shown(config.steps)

    def strips(
        params: Params, key: PRNGKey, indices: Int[Array, "b"], request: Request
    ) -> tuple[UInt8[Array, "l b h w c"], Float[Array, "l"]]:
        held, log_snr, _ = estimates(config, networks, params, key, indices, request)
        return jax.vmap(augment.quantize)(held[at]), log_snr[at]

    return jax.jit(strips)


def passes(config: SynthesizeConfig, networks: Networks) -> int:
    """Images that go through the network for one strip."""
    return config.steps * guidance.make(config, networks.present).evaluations
