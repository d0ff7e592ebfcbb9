"""Training of the generator: conditional diffusion on the train split, and nothing else."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lt_jax.config import GeneratorConfig, RuntimeConfig
from lt_jax.data import augment
from lt_jax.data.images import Images
from lt_jax.data.stream import MixedStream
from lt_jax.diffusion import process as process_lib
from lt_jax.mixing import controllers
from lt_jax.models import conditioning, module
from lt_jax.models.unet import UNet
from lt_jax.runtime import keys, loop, mesh, train_state
from lt_jax.runtime.ledger import Ledger
from lt_jax.shapes import Array, Params, PRNGKey


def make_unet(config: GeneratorConfig, num_classes: int, channels: int) -> UNet:
    """The network for images of `channels` channels; label `num_classes` means "no label"."""
    return UNet(config.model, num_classes, channels)


def example(image_size: int, channels: int) -> tuple[Any, ...]:
    """Arguments of the network of batch 1, for initialisation and shape inference."""
    return (
        jax.numpy.zeros((1, image_size, image_size, channels)),
        jax.numpy.zeros((1,)),
        conditioning.Conditions(label=jax.numpy.zeros((1,), jax.numpy.int32)),
    )


def init(config: GeneratorConfig, num_classes: int, image_size: int, channels: int) -> Params:
    """Fresh parameters, by `config.seed`."""
    unet = make_unet(config, num_classes, channels)
    key = keys.stream(keys.root(config.seed), "init")
    return module.init(unet, key, *example(image_size, channels), train=False)


@functools.cache
def make_step(
    config: GeneratorConfig, num_classes: int, channels: int, device_mesh: Mesh
) -> loop.Step:
    """The jitted update: augment, drop conditions, draw noise levels, descend, average."""
    unet = make_unet(config, num_classes, channels)
    process = process_lib.make(config.process)
    optimizer = train_state.make_optimizer(config.optimizer, config.steps)

    def step(
        state: train_state.TrainState, batch: Mapping[str, Array], key: PRNGKey, context: Any
    ) -> tuple[train_state.TrainState, dict[str, Array]]:
        del context  # nothing but the step's own batch matters here
        x0 = augment.augment(batch["image"], keys.stream(key, "augment"), config.augment)
        conditions = conditioning.drop(
            conditioning.Conditions(label=batch["label"]),
            keys.stream(key, "drop"),
            config.condition_dropout,
        )

        def loss_fn(params: Params) -> tuple[Array, dict[str, Array]]:
            def predict(x_t: Array, log_snr: Array) -> Array:
                return module.apply(
                    unet,
                    params,
                    x_t,
                    log_snr,
                    conditions,
                    key=keys.stream(key, "dropout"),
                    train=True,
                )

            return process.loss(predict, x0, keys.stream(key, "noise")).mean(), {}

        return train_state.update(state, optimizer, loss_fn, config.ema_decay)

    whole, split = mesh.replicated(device_mesh), mesh.batched(device_mesh)
    return jax.jit(
        step,
        in_shardings=(whole, split, whole, whole),  # data parallel: gradients are all-reduced
        out_shardings=(whole, whole),
        donate_argnums=0,
    )


def train(
    config: GeneratorConfig,
    images: Images,
    rows: Sequence[np.ndarray],
    *,
    image_shape: tuple[int, int, int],
    folder: pathlib.Path,
    device_mesh: Mesh,
    runtime: RuntimeConfig,
) -> tuple[train_state.TrainState, Ledger]:
    """Trains, or goes on training, in `folder`.

    Args:
      images: the image store.
      rows: train rows [n_k] of each class in it.
      image_shape: (height, width, channels); height equals width.

    Returns:
      The final state (sample from its `ema`) and what the training has cost.
    """
    mesh.check_batch(config.batch_size, device_mesh, "config.generator.batch_size")
    counts = np.array([len(r) for r in rows])
    size, _, channels = image_shape
    params = init(config, len(rows), size, channels)
    optimizer = train_state.make_optimizer(config.optimizer, config.steps)
    state = jax.device_put(train_state.create(params, optimizer), mesh.replicated(device_mesh))
    stream = MixedStream(
        images,
        rows,
        batch_size=config.batch_size,
        seed=config.seed,
        workers=runtime.loader_workers,
    )
    with loop.Loop(
        make_step(config, len(rows), channels, device_mesh),
        stream,
        keys.stream(keys.root(config.seed), "train"),
        steps=config.steps,
        folder=folder,
        device_mesh=device_mesh,
        runtime=runtime,
        tags={"stage": "generator"},
    ) as training:
        state, start = training.restore(state)
        mixture = controllers.real_only(counts, config.sampler).mixture(0, None)
        stream.set_mixture(mixture.class_weight, mixture.share)
        state = training.run(state, start, config.steps)
        training.save(state, config.steps)
    return state, training.ledger
