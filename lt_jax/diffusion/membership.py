"""What a membership attack reads off a generator: its denoising errors of given images, averaged.

A generator that has kept single train images denoises them better than others of their kind. The
loss of an image x of class k at noise time t (equation (1) of `denoising_error`), over D draws of
the noise,

  loss(x, k, t) = mean_d |x - x^(x_t^(d), t, k)|^2 / pixels                               (1)

is what the attack puts a threshold on (Yeom et al. 2018, arXiv:1709.01604; of diffusion models:
Carlini et al. 2023, arXiv:2301.13188, section 5.2; Matsumoto et al. 2023, arXiv:2302.03262). Which
time betrays most is not known beforehand; low ones show nothing but noise, high ones nothing of the
image. `lt_jax.evaluate.images.privacy` judges the losses.

The attacker has the parameters that images are sampled from (the average; of an adapted generator
merged with its adapter) and knows the image's class. It is an attack on the generator alone:
nothing is differentiated, and nothing of selection or of the pool is seen.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Key

from lt_jax.data import augment
from lt_jax.data.images import Images
from lt_jax.diffusion import denoising_error
from lt_jax.diffusion.generator import Generator
from lt_jax.runtime import arrays, distributed, faults, files, keys, ledger, mesh, spmd
from lt_jax.runtime.progress import Progress
from lt_jax.shapes import Array, Float, ImagesU8, Int, Labels, Params

SAVE_EVERY = 32  # batches

# (images in [-1, 1], labels, keys of each image) -> errors [b l], of one draw
Errors = Callable[[Array, Array, Key[Array, "b"]], Array]


def averaged(
    errors: Errors, images: Array, labels: Array, example_keys: Key[Array, "b"], draws: int
) -> Float[Array, "b l"]:
    """Equation (1) from errors of single draws; can be part of a compiled program.

    Draw d of image i has noise from fold_in(example_keys[i], d): further draws move none.
    """

    def of_draw(draw: Array) -> Array:
        return errors(
            images, labels, jax.vmap(lambda key: jax.random.fold_in(key, draw))(example_keys)
        )

    return jax.lax.map(of_draw, jnp.arange(draws)).mean(axis=0)


@functools.cache
def make_program(
    generator: Generator, times: tuple[float, ...], draws: int, seed: int, device_mesh: Mesh
) -> spmd.Program:
    """The jitted equation (1), images split over the devices, forward only: from parameters,
    images [b h w c], labels [b] and rows [b] to losses [b l].

    Args:
      generator: that is attacked.
      times: l of them, in [0, 1].
      draws: of noise, an image and time.
      seed: of the noise; an image's depends on it and on the image's row alone.
      device_mesh: a batch is a multiple of its devices.
    """
    key = keys.stream(keys.root(seed), "membership")

    def losses(
        params: Params, images: ImagesU8, labels: Labels, rows: Int[Array, "b"]
    ) -> Float[Array, "b l"]:
        of_network = lambda x, k, drawn: denoising_error.errors(
            generator, params, x, k, drawn, times
        )
        mine = keys.per_example(key, rows)
        return averaged(of_network, augment.normalize(images), labels, mine, draws)

    return spmd.jit_rows(losses, device_mesh)


@dataclasses.dataclass(frozen=True)
class Losses:
    """values: losses [n l] of the images asked for. cost: of measuring them."""

    values: Float[np.ndarray, "n l"]
    cost: ledger.Ledger


def measure(
    program: spmd.Program,
    params: Params,
    images: Images,
    labels: Int[np.ndarray, "n"],
    rows: Int[np.ndarray, "n"],
    batch_size: int,
    passes: int,
    *,
    folder: pathlib.Path,
) -> Losses:
    """Equation (1) of `images[rows]`, of classes `labels`; goes on behind what is in `folder`.

    Args:
      program: from `make_program`.
      params: of the generator, on the devices.
      images: uint8, by row.
      labels, rows: of each image; n > 0.
      batch_size: a multiple of the mesh's devices.
      passes: of an image through the network, times by draws, for the ledger.
      folder: where losses are kept, `losses.npy` [m l] of the first m images, until all are there.

    Raises:
      Preempted: SIGTERM arrived; what is measured by then is kept.
    """
    costs = ledger.Ledger()
    clock = ledger.Clock(costs)
    path = folder / "losses.npy"
    before = lambda: arrays.load_one(path).tolist() if path.exists() else []
    held = distributed.told(before)
    found = [np.array(held, np.float32)] if held else []
    done = sum(map(len, found))
    with Progress("audit membership", len(rows), "image", done) as bar:

        def read(own: Int[np.ndarray, "b"]) -> tuple[Any, ...]:
            at = rows[own].astype(np.int32)
            return images[at], labels[own].astype(np.int32), at

        # Of all images, also where they were measured before. XLA counts the body of a loop once:
        # the loops here make `passes` of it.
        mine = mesh.own(np.arange(batch_size) % len(rows), program.mesh)
        one = mesh.put(read(mine), program.mesh)
        each = ledger.flops(program, params, *one) / batch_size
        costs.flops = each * passes * len(rows)
        left = np.arange(done, len(rows))
        measured = spmd.over_rows(program, params, left, batch_size, read)
        try:
            for number, losses in enumerate(measured, 1):
                found.append(losses)
                done += len(losses)
                bar.update(done)
                if number % SAVE_EVERY == 0 or done == len(rows):
                    _keep(path, np.concatenate(found))
        except faults.Preempted:
            if found:
                _keep(path, np.concatenate(found))
            raise
    costs.images = len(rows) * passes
    clock.read()
    return Losses(np.concatenate(found), costs)


def _keep(path: pathlib.Path, losses: np.ndarray) -> None:
    with files.whole_file(path, "losses of the audit") as stream:
        np.save(stream, losses, allow_pickle=False)
