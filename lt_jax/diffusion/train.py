"""Training of the generator: conditional diffusion on the train split, and nothing else.

The loss of an image is the process's weighted error, plus the class-balancing regulariser
(`balance`) and the loss of the perception branch (`sketch`) where they are on. A generator that is
adapted trains what `models.lora.Adapter` names over a frozen base, which is the step's context.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lt_jax.config import GeneratorConfig
from lt_jax.data.images import Images
from lt_jax.data.stream import MixedStream
from lt_jax.diffusion import balance, examples, sketch, trained
from lt_jax.diffusion.generator import Generator
from lt_jax.mixing import controllers
from lt_jax.models import lora, module
from lt_jax.runtime import ema, keys, loop, mesh, spmd, train_state, training
from lt_jax.runtime.job import Job
from lt_jax.runtime.ledger import Ledger
from lt_jax.runtime.metrics import MetricWriter
from lt_jax.shapes import Array, Float, Params, PRNGKey


def ema_rule(config: GeneratorConfig) -> ema.Rule:
    """The average that the generator is sampled from."""
    return ema.make(config.ema, config.ema_decay, config.ema_lengths)


def total_loss(
    generator: Generator,
    params: Params,
    seen: examples.Examples,
    counts: Float[Array, "k"],
    key: PRNGKey,
) -> tuple[Array, dict[str, Array]]:
    """The loss of one batch, a scalar, and its parts.

    Args:
      generator: what is trained.
      params: the network's.
      seen: the batch.
      counts: train images of each class.
      key: of the step.
    """
    config, process = generator.config, generator.process
    noised = process.draw(seen.images, keys.stream(key, "noise"))

    def predict(conditions: Any, perceive: bool = False) -> Any:
        return module.apply(
            generator.unet,
            params,
            noised.x_t,
            noised.log_snr,
            conditions,
            key=keys.stream(key, "dropout"),
            train=True,
            perceive=perceive,
        )

    if generator.has_branch:
        prediction, logits = predict(seen.conditions, perceive=True)
    else:
        prediction, logits = predict(seen.conditions), ()
    loss = process.error(prediction, seen.images, noised)
    parts = {}
    if config.cbdm_weight > 0:
        labels = seen.conditions.label
        others = balance.other_labels(keys.stream(key, "cbdm"), labels, counts, config.cbdm_power)
        parts["cbdm"] = balance.cbdm(
            process,
            noised,
            prediction,
            predict(seen.conditions.replace(label=others)),
            labels,
            others,
            weight=config.cbdm_weight,
            commitment=config.cbdm_commitment,
        )
        loss = loss + parts["cbdm"]
    if generator.has_branch:
        parts["sketch"] = sketch.branch_loss(logits, seen.sketches, noised.log_snr, config.sketch)
        loss = loss + config.sketch.weight * parts["sketch"]
    return loss.mean(), {name: part.mean() for name, part in parts.items()}


@functools.cache
def make_step(generator: Generator, counts: tuple[int, ...], device_mesh: Mesh) -> loop.Step:
    """The jitted update: augment, drop conditions, draw noise levels, descend, average.

    Its context is the frozen part of an adapted generator, () where all is trained. `counts` are
    the train images of each class.
    """
    config = generator.config
    optimizer = train_state.make_optimizer(config.optimizer, config.steps)
    rule, adapter = ema_rule(config), _adapter(config)

    def step(
        state: train_state.TrainState, batch: Mapping[str, Array], key: PRNGKey, frozen: Any
    ) -> tuple[train_state.TrainState, dict[str, Array]]:
        seen = examples.make(batch, key, generator)

        def loss_fn(trainable: Params) -> tuple[Array, dict[str, Array]]:
            params = adapter.merge(frozen, trainable) if adapter else trainable
            return total_loss(generator, params, seen, jnp.asarray(counts, jnp.float32), key)

        return train_state.update(state, optimizer, loss_fn, rule)

    return spmd.jit_step(step, device_mesh)


def train(
    generator: Generator,
    images: Images,
    rows: Sequence[np.ndarray],
    job: Job,
    columns: Mapping[str, Any] | None = None,
    base: Params | None = None,
) -> Ledger:
    """Trains, or goes on training, in `job.folder`, and saves there what `trained.load` reads.

    Args: as of `describe`.

    Returns:
      What the training has cost.
    """
    config = generator.config
    described = describe(generator, images, rows, job, columns, base)
    if described is None:  # `none`, and the base knows all that is asked for
        frozen, trainable = _parts(generator, base)
        average = ema_rule(config).init(trainable)
        for step in trained.snapshot_steps(config):
            _keep(job.folder, config, frozen, average, step)
        _finish(job.folder, config, frozen, average)
        return Ledger()
    state, costs = training.train(described)
    frozen = described.before(0)  # the context of every round
    _finish(job.folder, config, frozen, state.ema)
    return costs


def describe(
    generator: Generator,
    images: Images,
    rows: Sequence[np.ndarray],
    job: Job,
    columns: Mapping[str, Any] | None = None,
    base: Params | None = None,
) -> training.Training | None:
    """The training of a generator in `job.folder`; None where nothing of it is to be trained.

    Args:
      generator: what is trained.
      images: the image store.
      rows: train rows [n_k] of each class in it.
      columns: what else is known of its images; see `annotations`.
      base: parameters to adapt; see `GeneratorConfig.adapt`.
    """
    frozen, trainable = _parts(generator, base)
    if not jax.tree.leaves(trainable):
        return None
    frozen = mesh.distribute(frozen, job.mesh)
    config = generator.config
    counts = tuple(len(r) for r in rows)
    optimizer = train_state.make_optimizer(config.optimizer, config.steps)
    read = examples.needed(columns or {}, generator)
    stream = MixedStream(
        images,
        rows,
        batch_size=config.batch_size,
        seed=config.seed,
        columns={name: (held, None) for name, held in read.items()},
        workers=job.runtime.loader_workers,
    )
    supply = controllers.real_only(np.array(counts), config.sampler, config.temperature)
    mixture = supply.mixture(())

    def before(number: int) -> Any:
        del number
        stream.set_mixture(mixture.class_weight, mixture.share)
        return frozen

    def after(until: int, state: train_state.TrainState, metrics: MetricWriter) -> None:
        del metrics
        _keep(job.folder, config, frozen, state.ema, until)

    return training.Training(
        step=make_step(generator, counts, job.mesh),
        state=train_state.create(trainable, optimizer, ema_rule(config)),
        stream=stream,
        key=_key(config, "train"),
        job=job,
        ends=trained.snapshot_steps(config),
        batch=(config.batch_size, "config.generator.batch_size"),
        before=before,
        after=after,
    )


def _parts(generator: Generator, base: Params | None) -> tuple[Any, Any]:
    """What stays as it is of a generator's parameters, and a start of what is trained."""
    adapter, fresh = _adapter(generator.config), generator.init()
    return adapter.init(_key(generator.config, "adapt"), base, fresh) if adapter else ((), fresh)


def _keep(
    folder: pathlib.Path, config: GeneratorConfig, frozen: Any, average: Any, step: int
) -> None:
    """Snapshots an average whose length is chosen after training."""
    if isinstance(average, tuple):
        trained.save_snapshot(folder, _merged(config, frozen, average), step)


def _finish(folder: pathlib.Path, config: GeneratorConfig, frozen: Any, average: Any) -> None:
    """Leaves in the folder what `trained.load` reads, and an adapter alone."""
    trained.save(folder, _merged(config, frozen, average))
    if adapter := _adapter(config):
        first = average[0] if isinstance(average, tuple) else average
        lora.save(folder / "adapter", adapter, frozen, mesh.fetch(first))


def _adapter(config: GeneratorConfig) -> lora.Adapter | None:
    return lora.make(config.adapt) if config.adapt.base else None


def _key(config: GeneratorConfig, name: str) -> PRNGKey:
    return keys.stream(keys.root(config.seed), name)


def _merged(config: GeneratorConfig, frozen: Any, average: Any) -> Any:
    """The average, or a tuple of them, as parameters of the network."""
    adapter = _adapter(config)
    if adapter is None:
        return average
    if isinstance(average, tuple):
        return tuple(adapter.merge(frozen, one) for one in average)
    return adapter.merge(frozen, average)
