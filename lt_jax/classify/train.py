"""Training of a classifier on mixed batches, in rounds, under a controller.

A controller that learns is told after each round how the classifier does on policy_val. Being a
pure function of that history, it has no state of its own: `history.json` is written at the end of
a round, before the checkpoint, and holds at least the rounds that any checkpoint has behind it.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

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
from lt_jax.mixing import rewards
from lt_jax.mixing.controllers import Controller, Feedback, Mixture, MixtureError, following
from lt_jax.models import classifier, module
from lt_jax.runtime import files, keys, loop, mesh, train_state
from lt_jax.runtime.ledger import Ledger
from lt_jax.shapes import Array, Float, Params, PRNGKey

HISTORY = "history.json"  # a list with the feedback of a round each, by name
LOOKED_AT = 32  # images of a class and source at most whose train loss a controller is told


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
      policy_rows: policy_val rows [n] in `real`, of which controllers that learn are told;
        policy_labels: their labels [n].
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
    policy_rows: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    policy_labels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))

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
    return {
        "val_balanced_accuracy": float(metrics.mean_defined(metrics.recall_of(counted))),
        "val_loss": float(_nats(probabilities, data.val_labels).mean()),
    }


def measure(forward: predict.Forward, params: Params, data: TrainData, batch_size: int) -> Feedback:
    """The classifier on policy_val, which has images of every class, and on some train images."""
    logits, _ = predict.predict(forward, params, data.real, data.policy_rows, batch_size)
    probabilities = metrics.softmax(logits, "policy_val")
    labels = data.policy_labels
    soft = rewards.measure(jnp.asarray(probabilities, jnp.float32), jnp.asarray(labels))
    recall, precision, margin = (
        np.asarray(value, np.float64) for value in (soft.recall, soft.precision, soft.margin)
    )
    loss = np.bincount(labels, _nats(probabilities, labels)) / np.bincount(labels)
    look = functools.partial(_mean_losses, forward, params, batch_size=batch_size)
    synthetic = np.full(len(data.train_rows), np.nan)
    if data.extra is not None and data.extra_rows is not None:
        synthetic = look(data.extra, data.extra_rows)
    real = look(data.real, data.train_rows)
    return Feedback(recall, precision, margin, loss, real, synthetic)


def _mean_losses(
    forward: predict.Forward,
    params: Params,
    images: Images,
    rows: Sequence[np.ndarray],
    *,
    batch_size: int,
) -> Float[np.ndarray, "k"]:
    """Mean cross-entropy of the first `LOOKED_AT` images of each class; NaN where it has none."""
    some = [own[:LOOKED_AT] for own in rows]
    labels = np.repeat(np.arange(len(some)), [len(own) for own in some])
    logits, _ = predict.predict(forward, params, images, np.concatenate(some), batch_size)
    nats = np.bincount(labels, _nats(metrics.softmax(logits, "train"), labels), len(some))
    number = np.bincount(labels, minlength=len(some))
    return np.where(number > 0, nats / np.maximum(number, 1), np.nan)


def _nats(probabilities: Float[np.ndarray, "n k"], labels: np.ndarray) -> Float[np.ndarray, "n"]:
    """Cross-entropy of each image."""
    return -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12))


def mixtures(
    folder: pathlib.Path, controller: Controller, data: TrainData, rounds: int
) -> list[Mixture]:
    """What the rounds of a finished training in `folder` were given."""
    history = _history(folder, controller, data, rounds)
    return [following(controller, history[:r]) for r in range(rounds)]


def _history(
    folder: pathlib.Path, controller: Controller, data: TrainData, rounds: int
) -> list[Feedback]:
    """Feedback of the first `rounds` rounds, or of fewer where `folder` holds no more."""
    if not controller.learns:
        return [Feedback.unmeasured(len(data.train_rows))] * rounds
    path = folder / HISTORY
    held = json.loads(path.read_text()) if path.is_file() else []
    return [
        Feedback(**{name: np.asarray(values, np.float64) for name, values in entry.items()})
        for entry in held[:rounds]
    ]


def _resumed(
    history: list[Feedback],
    edges: Sequence[int],
    start: int,
    again: Callable[[], Feedback],
    folder: pathlib.Path,
) -> list[Feedback]:
    """The feedback that a training has behind it at step `start`; rounds end at `edges[1:]`.

    A kill may have come between a history and its checkpoint: what is ahead is left out. A missing
    last entry is measured `again`, by the restored parameters, where `start` ends its round.
    """
    behind = sum(until <= start for until in edges[1:])
    history = history[:behind]
    if len(history) == behind - 1 and edges[behind] == start:
        history.append(again())
        _keep(folder, history)
    if len(history) < behind:
        raise MixtureError(
            f"{folder / HISTORY} holds {len(history)} of the {behind} rounds that the checkpoint "
            "has behind it, and their mixtures depend on it; delete the folder to train anew"
        )
    return history


def _keep(folder: pathlib.Path, history: Sequence[Feedback]) -> None:
    entries = [
        {name: array.tolist() for name, array in vars(feedback).items()} for feedback in history
    ]
    files.write_atomically(folder / HISTORY, json.dumps(entries), "the history of feedback")


def _check_feedback(recipe: Recipe, data: TrainData) -> None:
    """Refuses a controller that learns where there is nothing to learn from.

    Raises MixtureError where a class is absent from policy_val, or a round has no step.
    """
    seen = np.bincount(data.policy_labels, minlength=len(data.train_rows))
    if absent := np.flatnonzero(seen == 0).tolist():
        raise MixtureError(
            f"policy_val has no image of class {', '.join(map(str, absent))} (by number), and the "
            "controller learns from every class there: raise config.data.split.policy_val, or "
            "take a controller that does not learn (fill_to_head, fixed_share, schedule)"
        )
    if recipe.rounds > recipe.steps:
        raise MixtureError(
            f"{recipe.rounds} rounds in {recipe.steps} steps: a controller that learns takes at "
            "least one step a round; lower config.classify.rounds"
        )


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
    validation split is scored for the learning curve, and policy_val for the controller, where it
    learns. The last parameters are used: nothing is chosen by validation here.

    Raises:
      MixtureError: the controller learns, and policy_val lacks a class or a round has no step; or
        `folder` has lost the history of a training that is to go on.
    """
    classes = len(data.train_rows)
    mesh.check_batch(recipe.batch_size, device_mesh, "batch_size of the classifier")
    if controller.learns:
        _check_feedback(recipe, data)
    optimizer = train_state.make_optimizer(recipe.optimizer, recipe.steps)
    state = jax.device_put(
        train_state.create(init(recipe, classes, data.image_shape), optimizer, ema=False),
        mesh.replicated(device_mesh),
    )
    stream = _stream(recipe, data, runtime)
    # Everything but the seed: seeds share one compiled step.
    step = make_step(dataclasses.replace(recipe, seed=0), classes, device_mesh)
    forward = predict.make_forward(recipe.model, classes, device_mesh)
    look = functools.partial(measure, forward, data=data, batch_size=recipe.batch_size)
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
        history = _history(folder, controller, data, recipe.rounds)
        if controller.learns:
            params = state.params
            history = _resumed(history, edges, start, lambda: look(params=params), folder)
        for r, until in enumerate(edges[1:]):
            if start >= until:
                continue
            mixture = following(controller, history[:r])
            stream.set_mixture(mixture.class_weight, mixture.share)
            counts = effective_counts(data.counts, mixture.class_weight, mixture.share)
            context = jax.device_put(counts.astype(np.float32), mesh.replicated(device_mesh))
            state = training.run(state, start, until, context)
            if len(data.val_rows):
                values = _validate(forward, state.params, data, recipe.batch_size)
                training.metrics.write(until, values)
            if controller.learns:
                history.append(look(params=state.params))
                _keep(folder, history)
            training.save(state, until)
            start = until
    return state.params, training.ledger


def _stream(recipe: Recipe, data: TrainData, runtime: RuntimeConfig) -> MixedStream:
    return MixedStream(
        data.real,
        data.train_rows,
        data.extra,
        data.extra_rows,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        columns=data.soft.columns() if data.soft else None,
        workers=runtime.loader_workers,
    )
