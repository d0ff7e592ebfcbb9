"""How badly a generator denoises an image: its error at a few noise levels, under a class.

With x_t = alpha x + sigma e the image at time t (`process`, equation 1) and x^ what the network
takes for x, told the class and nothing else,

  error(x, k, t) = mean over pixels of (x - x^(x_t, t, k))^2                              (1)

for one draw of e: the loss of training, unweighted, of a given image. A denoiser that knows the
image's distribution has the least, as far as its kind of image was learned.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Key

from lt_jax.diffusion import guidance
from lt_jax.diffusion.generator import Generator
from lt_jax.diffusion.process import VPProcess
from lt_jax.models import conditioning, module
from lt_jax.shapes import Array, Float, Images, Labels, LogSNR, Params


def errors(
    generator: Generator,
    params: Params,
    images: Images,
    labels: Labels,
    keys: Key[Array, "b"],
    times: tuple[float, ...],
) -> Float[Array, "b l"]:
    """Equation (1) under the generator itself; can be part of a compiled program.

    Args:
      generator: whose network is asked, once a time.
      params: its parameters.
      images: in [-1, 1].
      labels: the class that each should show; every other condition is null.
      keys: of each image, from which alone its noise comes; see `of_denoiser`.
      times: l of them, in [0, 1]; 0 is the image, 1 noise.
    """
    batch, height, width, _ = images.shape
    conditions = conditioning.nulls(generator.vocabulary, batch, height, width)
    conditions = dataclasses.replace(conditions, label=labels)

    def predict(x_t: Images, log_snr: LogSNR, told: conditioning.Conditions) -> Images:
        return module.apply(generator.unet, params, x_t, log_snr, told, train=False)

    unguided = guidance.ClassifierFree(1.0)
    denoise = guidance.denoiser(generator.process, predict, conditions, conditions, unguided)
    return of_denoiser(generator.process, denoise, images, keys, times)


def of_denoiser(
    process: VPProcess,
    denoise: guidance.Denoiser,
    images: Images,
    keys: Key[Array, "b"],
    times: tuple[float, ...],
) -> Float[Array, "b l"]:
    """Equation (1) for any denoiser of the process's images; no times: [b 0].

    The noise of image i at the j-th time comes from fold_in(keys[i], j): a further time, another
    batch or more devices move none.
    """
    if not times:
        return jnp.zeros((images.shape[0], 0), images.dtype)

    # One network in a scan, not one for each time.
    def at(inputs: tuple[Array, Array]) -> Array:
        number, time = inputs
        noise = jax.vmap(
            lambda key: jax.random.normal(
                jax.random.fold_in(key, number), images.shape[1:], images.dtype
            )
        )(keys)
        log_snr = jnp.broadcast_to(process.schedule.log_snr(time), images.shape[:1])
        found = denoise(process.add_noise(images, noise, log_snr), log_snr)
        return jnp.mean(jnp.square(found - images), axis=(1, 2, 3))

    numbers = jnp.arange(len(times))
    return jax.lax.map(at, (numbers, jnp.asarray(times, images.dtype))).T
