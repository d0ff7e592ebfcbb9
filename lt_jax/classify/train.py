"""Training of a classifier on mixed batches, in rounds, under a controller.

A controller that learns is told after each round how the classifier does on policy_val. Being a
pure function of that history, it has no state of its own: `history.json` is written at the end of
a round, before the checkpoint, and holds at least the rounds that any checkpoint has behind it.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lt_jax.classify import history as history_lib
from lt_jax.classify import objective, predict
from lt_jax.classify.train_data import SoftLabels as SoftLabels
from lt_jax.classify.train_data import TrainData as TrainData
from lt_jax.config import AugmentConfig, ClassifierConfig, OptimizerConfig, RuntimeConfig
from lt_jax.data.batch_mixing import BatchMixing
from lt_jax.data.randaugment import RandAugment
from lt_jax.data.stream import MixedStream
from lt_jax.evaluate import metrics
from lt_jax.mixing.controllers import Controller, Feedback, following
from lt_jax.models import classifier, module
from lt_jax.runtime import keys, loop, spmd, train_state, training
from lt_jax.runtime.job import Job
from lt_jax.runtime.ledger import Ledger
from lt_jax.runtime.metrics import MetricWriter
from lt_jax.shapes import Array, Float, Params, PRNGKey

BATCH_FIELD = "batch_size of the classifier"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides a classifier's training, besides its data and controller.

    Attributes:
      loss, expert_loss: as `objective.make` takes them.
      randaugment, mixing: strong augmentation besides `augment`; None: none.
    """

    model: ClassifierConfig
    optimizer: OptimizerConfig
    augment: AugmentConfig
    loss: str
    tau: float
    steps: int
    rounds: int
    batch_size: int
    seed: int
    randaugment: RandAugment | None = None
    mixing: BatchMixing | None = None
    expert_loss: str = "own"


@functools.cache
def make_step(recipe: Recipe, num_classes: int, device_mesh: Mesh) -> loop.Step:
    """The jitted update. Its context is the round's effective train counts, float32 [k]."""
    network = classifier.make(recipe.model, num_classes)
    optimizer = train_state.make_optimizer(recipe.optimizer, recipe.steps)
    loss = objective.make(recipe.model, recipe.loss, recipe.expert_loss, recipe.tau)

    def step(
        state: train_state.TrainState,
        batch: Mapping[str, Array],
        key: PRNGKey,
        context: Float[Array, "k"],
    ) -> tuple[train_state.TrainState, dict[str, Array]]:
        images = objective.augmented(batch["image"], key, recipe.augment, recipe.randaugment)
        targets = objective.targets(batch)
        if recipe.mixing is not None:
            images, targets = objective.mixed(images, targets, key, recipe.mixing)
        progress = state.step / recipe.steps

        def loss_fn(params: Params) -> tuple[Array, dict[str, Array]]:
            each = {"each": True} if objective.has_experts(recipe.model) else {}
            logits, _ = module.apply(
                network, params, images, key=keys.stream(key, "dropout"), train=True, **each
            )
            values = objective.combined(loss, logits, targets, context, progress)
            answer = logits.mean(axis=1) if each else logits
            accuracy = (answer.argmax(-1) == batch["label"]).mean()
            return values.mean(), {"train_accuracy": accuracy}

        return train_state.update(state, optimizer, loss_fn)

    return spmd.jit_step(step, device_mesh)


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


def validate(
    forward: predict.Forward, params: Params, data: TrainData, batch_size: int
) -> dict[str, float]:
    """Balanced accuracy and mean cross-entropy on the validation split, for the learning curve."""
    logits, _ = predict.predict(forward, params, data.real, data.val_rows, batch_size)
    probabilities = metrics.softmax(logits, "validation")
    counted = metrics.count(probabilities, data.val_labels)
    return {
        "val_balanced_accuracy": float(metrics.mean_defined(metrics.recall_of(counted))),
        "val_loss": float(history_lib.nats(probabilities, data.val_labels).mean()),
    }


def train(
    recipe: Recipe,
    data: TrainData,
    controller: Controller,
    job: Job,
) -> tuple[Params, Ledger]:
    """Trains, or goes on training, in `job.folder`; returns the final parameters and the cost.

    Raises: as `describe` and `training.train`.
    """
    state, costs = training.train(describe(recipe, data, controller, job))
    return state.params, costs


def describe(
    recipe: Recipe,
    data: TrainData,
    controller: Controller,
    job: Job,
) -> training.Training:
    """The training of a classifier in `job.folder`, to be run alone or with others.

    Those of recipes that are equal but for the seed have the same step.

    Before each round the controller sets class weights and synthetic shares; after it the
    validation split is scored for the learning curve, and policy_val for the controller, where it
    learns. The last parameters are used: nothing is chosen by validation here.

    Raises:
      MixtureError: the controller learns, and policy_val lacks a class or a round has no step; or
        its folder has lost the history of a training that is to go on.
    """
    classes = len(data.train_rows)
    if controller.learns:
        history_lib.check(data, recipe.rounds, recipe.steps)
    optimizer = train_state.make_optimizer(recipe.optimizer, recipe.steps)
    stream = make_stream(recipe, data, job.runtime)
    # Everything but the seed: seeds share one compiled step.
    step = make_step(dataclasses.replace(recipe, seed=0), classes, job.mesh)
    forward = predict.make_forward(recipe.model, classes, job.mesh)
    look = functools.partial(history_lib.measure, forward, data=data, batch_size=recipe.batch_size)
    edges = np.linspace(0, recipe.steps, recipe.rounds + 1).round().astype(int).tolist()
    history: list[Feedback] = []

    def resumed(state: train_state.TrainState, start: int) -> None:
        held = history_lib.held(job.folder, controller, data, recipe.rounds)
        if controller.learns:
            again = functools.partial(look, params=state.params)
            held = history_lib.resumed(held, edges, start, again, job.folder)
        history.extend(held)

    def before(number: int) -> np.ndarray:
        mixture = following(controller, history[:number])
        stream.set_mixture(mixture.class_weight, mixture.share)
        counts = effective_counts(data.counts, mixture.class_weight, mixture.share)
        return counts.astype(np.float32)

    def after(until: int, state: train_state.TrainState, writer: MetricWriter) -> None:
        if len(data.val_rows):
            writer.write(until, validate(forward, state.params, data, recipe.batch_size))
        if controller.learns:
            history.append(look(params=state.params))
            history_lib.keep(job.folder, history)

    fresh = init(recipe, classes, data.image_shape)
    return training.Training(
        step=step,
        state=train_state.create(fresh, optimizer, ema=False),
        stream=stream,
        key=keys.stream(keys.root(recipe.seed), "train"),
        job=job,
        ends=edges[1:],
        batch=(recipe.batch_size, BATCH_FIELD),
        resumed=resumed,
        before=before,
        after=after,
    )


def make_stream(recipe: Recipe, data: TrainData, runtime: RuntimeConfig) -> MixedStream:
    """The loader of a training; the mixture is to be set."""
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
