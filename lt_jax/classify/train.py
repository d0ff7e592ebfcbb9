"""Training of a classifier on mixed batches, in rounds, under a controller."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lt_jax.classify import losses, predict
from lt_jax.config import AugmentConfig, ClassifierConfig, OptimizerConfig, RuntimeConfig
from lt_jax.data import augment
from lt_jax.data.images import Images
from lt_jax.data.stream import MixedStream
from lt_jax.evaluate import metrics
from lt_jax.mixing.controllers import Controller
from lt_jax.models import classifier, module
from lt_jax.runtime import keys, loop, mesh, train_state
from lt_jax.runtime.ledger import Ledger
from lt_jax.shapes import Array, Float, Params, PRNGKey


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides a classifier's training, besides its data and controller."""

    model: ClassifierConfig
    optimizer: OptimizerConfig
    augment: AugmentConfig
    loss: str
    tau: float
    steps: int
    rounds: int
    batch_size: int
    seed: int


@dataclasses.dataclass(frozen=True)
class SoftLabels:
    """Labels of synthetic images that are still partly of another class: their source's.

    Attributes:
      real: labels of the real store [n], which are whole.
      other: the second class of each entry of the synthetic store [m].
      weight: of the first class [m] in [0, 1]; the second has the rest.
    """

    real: np.ndarray
    other: np.ndarray
    weight: np.ndarray

    def columns(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """What the loader adds to a batch: `other_label` and `label_weight`, real and synthetic."""
        whole = np.ones(len(self.real), np.float32)
        other = self.real.astype(np.int32), self.other.astype(np.int32)
        return {"other_label": other, "label_weight": (whole, self.weight.astype(np.float32))}


@dataclasses.dataclass(frozen=True)
class TrainData:
    """Images and rows of a training. The test split is no part of it.

    Attributes:
      real: image store of the manifest.
      train_rows: train rows [n_k] of each class in `real`.
      val_rows: validation rows [n] in `real`; val_labels: their labels [n].
      extra: image store of the synthetic slots: pool, or real images for replay; or None.
      extra_rows: rows of each class in it, or None.
      soft: of the synthetic images, where not all of their labels are whole.
    """

    real: Images
    train_rows: Sequence[np.ndarray]
    val_rows: np.ndarray
    val_labels: np.ndarray
    image_shape: tuple[int, int, int]
    extra: Images | None = None
    extra_rows: Sequence[np.ndarray] | None = None
    soft: SoftLabels | None = None

    @property
    def counts(self) -> np.ndarray:
        """Real train images of each class [k]."""
        return np.array([len(rows) for rows in self.train_rows])


@functools.cache
def make_step(recipe: Recipe, num_classes: int, device_mesh: Mesh) -> loop.Step:
    """The jitted update. Its context is the round's effective train counts, float32 [k]."""
    network = classifier.make(recipe.model, num_classes)
    optimizer = train_state.make_optimizer(recipe.optimizer, recipe.steps)
    loss = losses.make(recipe.loss, tau=recipe.tau)

    def step(
        state: train_state.TrainState,
        batch: Mapping[str, Array],
        key: PRNGKey,
        context: Float[Array, "k"],
    ) -> tuple[train_state.TrainState, dict[str, Array]]:
        images = augment.augment(batch["image"], keys.stream(key, "augment"), recipe.augment)
        progress = state.step / recipe.steps

        def loss_fn(params: Params) -> tuple[Array, dict[str, Array]]:
            logits, _ = module.apply(
                network, params, images, key=keys.stream(key, "dropout"), train=True
            )
            accuracy = (logits.argmax(-1) == batch["label"]).mean()
            value = loss(logits, batch["label"], context, progress)
            if "label_weight" in batch:
                weight = batch["label_weight"]
                other = loss(logits, batch["other_label"], context, progress)
                value = weight * value + (1 - weight) * other  # a weight of 1 changes no bit
            return value.mean(), {"train_accuracy": accuracy}

        return train_state.update(state, optimizer, loss_fn)

    whole, split = mesh.replicated(device_mesh), mesh.batched(device_mesh)
    return jax.jit(
        step,
        in_shardings=(whole, split, whole, whole),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )


def init(recipe: Recipe, num_classes: int, image_shape: tuple[int, int, int]) -> Params:
    """Fresh parameters, by `recipe.seed`."""
    network = classifier.make(recipe.model, num_classes)
    key = keys.stream(keys.root(recipe.seed), "init")
    return module.init(network, key, jnp.zeros((1, *image_shape)), train=False)


def effective_counts(counts: np.ndarray, class_weight: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Images [k] of an imagined train set of which the mixture is the instance sampling.

    Its size is the sum of n_k / (1 - s_k), real and synthetic together; class k's part is w_k.
    Losses that correct for the label prior see these counts, since these are what is drawn.
    """
    return class_weight * (counts / (1.0 - share)).sum()


def _validate(
    forward: predict.Forward, params: Params, data: TrainData, batch_size: int
) -> dict[str, float]:
    logits, _ = predict.predict(forward, params, data.real, data.val_rows, batch_size)
    probabilities = metrics.softmax(logits, "validation")
    counted = metrics.count(probabilities, data.val_labels)
    true = probabilities[np.arange(len(logits)), data.val_labels]
    return {
        "val_balanced_accuracy": float(metrics.mean_defined(metrics.recall_of(counted))),
        "val_loss": float(-np.log(np.maximum(true, 1e-12)).mean()),
    }


def train(
    recipe: Recipe,
    data: TrainData,
    controller: Controller,
    *,
    folder: pathlib.Path,
    device_mesh: Mesh,
    runtime: RuntimeConfig,
    tags: Mapping[str, str | int],
) -> tuple[Params, Ledger]:
    """Trains, or goes on training, in `folder`; returns the final parameters and the cost.

    Before each round the controller sets class weights and synthetic shares; after it the
    validation split is scored for the learning curve. The last parameters are used: nothing is
    chosen by validation here.
    """
    classes = len(data.train_rows)
    mesh.check_batch(recipe.batch_size, device_mesh, "batch_size of the classifier")
    optimizer = train_state.make_optimizer(recipe.optimizer, recipe.steps)
    state = jax.device_put(
        train_state.create(init(recipe, classes, data.image_shape), optimizer, ema=False),
        mesh.replicated(device_mesh),
    )
    stream = MixedStream(
        data.real,
        data.train_rows,
        data.extra,
        data.extra_rows,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        columns=data.soft.columns() if data.soft else None,
        workers=runtime.loader_workers,
    )
    # Everything but the seed: seeds share one compiled step.
    step = make_step(dataclasses.replace(recipe, seed=0), classes, device_mesh)
    forward = predict.make_forward(recipe.model, classes, device_mesh)
    edges = np.linspace(0, recipe.steps, recipe.rounds + 1).round().astype(int).tolist()
    with loop.Loop(
        step,
        stream,
        keys.stream(keys.root(recipe.seed), "train"),
        steps=recipe.steps,
        folder=folder,
        device_mesh=device_mesh,
        runtime=runtime,
        tags=tags,
    ) as training:
        state, start = training.restore(state)
        for r, until in enumerate(edges[1:]):
            if start >= until:
                continue
            mixture = controller.mixture(r, None)
            stream.set_mixture(mixture.class_weight, mixture.share)
            counts = effective_counts(data.counts, mixture.class_weight, mixture.share)
            context = jax.device_put(counts.astype(np.float32), mesh.replicated(device_mesh))
            state = training.run(state, start, until, context)
            if len(data.val_rows):
                values = _validate(forward, state.params, data, recipe.batch_size)
                training.metrics.write(until, values)
            training.save(state, until)
            start = until
    return state.params, training.ledger
