"""Decoupled training (Kang et al. 2020, arXiv:1910.09217): the head anew, on a frozen trunk.

The first stage trains the network as the arm says, in the steps that the second leaves it, so that
both together take as many steps as any other arm's training. With f(x) the frozen features and
w_k, b_k the head of the first stage, the second stage is

  crt       a new head from zeros, trained on batches with as many images of every class       (1)
  lws       logits s_k (w_k . f(x) + b_k), scales s_k from 1, trained likewise                 (2)
  tau_norm  logits w_k / |w_k|^tau . f(x), tau of `TAUS` with the best balanced accuracy on    (3)
            val, the smallest where several are equal; nothing is trained, so that the first
            stage has all steps

(1) and (2) minimise the cross-entropy, as in the paper, whatever the first stage's loss; synthetic
images keep the shares of its last round. Images are augmented in the loop, with RandAugment where
the arm has it and never mixed with each other, and the trunk runs without dropout. (3) leaves the
biases out, as the paper does. The result is a network's parameters as any other training's: scales
are multiplied into the head.

The optimiser is the recipe's, begun anew: rate, warm-up and schedule over the second stage's steps.
Scales move by at most about the learning rate a step, which may be too slow for few steps:
`second_stage_rate` multiplies it. What the authors tune for each data set is not tuned here.

A training that was killed goes on in the stage where it was: the first one's last checkpoint stays
in `checkpoints`, the second has its own folder `second_stage` with checkpoints and metrics.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lt_jax.classify import losses, objective, predict, train
from lt_jax.config import ArmConfig
from lt_jax.errors import UserError
from lt_jax.evaluate import metrics
from lt_jax.mixing.controllers import Mixture
from lt_jax.models import classifier, module
from lt_jax.runtime import distributed, files, keys, loop, mesh, spmd, train_state, training
from lt_jax.runtime import metrics as metric_lines
from lt_jax.runtime.job import Job
from lt_jax.runtime.ledger import Clock, Ledger
from lt_jax.runtime.metrics import MetricWriter
from lt_jax.shapes import Array, Features, Float, Int, Logits, Params, PRNGKey

Head = Mapping[str, Array | np.ndarray]  # "kernel" [d k] and "bias" [k], or "scale" [k]

TAUS = tuple(round(0.1 * i, 1) for i in range(11))  # 0 to 1, the range of the paper's section 4.2
FOLDER = "second_stage"
CHOICE = "second_stage.json"  # of `tau_norm`: what tau was chosen from


class DecoupledError(UserError, ValueError):
    """A second stage that has nothing to choose by."""


@dataclasses.dataclass(frozen=True)
class SecondStage:
    """What follows the first stage.

    Attributes:
      kind: "crt", "lws" or "tau_norm".
      steps: updates, taken from the first stage's; 0 for `tau_norm`.
      rate: times the recipe's learning rate.
    """

    kind: str
    steps: int
    rate: float


def of(arm: ArmConfig, steps: int) -> SecondStage | None:
    """The second stage of an arm whose stages have `steps` steps together; None: it has none."""
    if not arm.second_stage:
        return None
    own = 0 if arm.second_stage == "tau_norm" else round(arm.second_stage_steps * steps)
    return SecondStage(arm.second_stage, own, arm.second_stage_rate)


def finish(
    second: SecondStage,
    recipe: train.Recipe,
    data: train.TrainData,
    mixture: Mixture,
    params: Params,
    job: Job,
) -> tuple[Params, Ledger]:
    """The second stage, or its rest, in `job.folder`.

    Args:
      recipe: of the first stage, of a network without experts.
      mixture: of its last round.
      params: that it ended with.

    Returns:
      Parameters of the whole network, and the cost of this stage alone. Predictions on val, by
      which tau is chosen, count in seconds, not in images and FLOPs, as those of learning curves.

    Raises:
      DecoupledError: `tau_norm`, and the validation split is empty.
    """
    if second.kind == "tau_norm":
        return _normalised(recipe, data, params, job)
    state, costs = training.train(describe(second, recipe, data, mixture, params, job))
    return _whole(second, params, state), costs


def describe(
    second: SecondStage,
    recipe: train.Recipe,
    data: train.TrainData,
    mixture: Mixture,
    params: Params,
    job: Job,
) -> training.Training:
    """The training of `crt` or `lws`, of the arguments of `finish`."""
    classes = len(data.train_rows)
    stream = train.make_stream(recipe, data, job.runtime)
    tags = {**job.tags, "second_stage": second.kind}

    def before(number: int) -> Params:
        del number
        stream.set_mixture(np.full(classes, 1 / classes), mixture.share)
        return params

    def after(until: int, state: train_state.TrainState, writer: MetricWriter) -> None:
        if len(data.val_rows):
            forward = predict.make_forward(recipe.model, classes, job.mesh)
            found = _whole(second, params, state)
            writer.write(until, train.validate(forward, found, data, recipe.batch_size))

    fresh = start_of(second.kind, mesh.fetch(params["head"]))  # type: ignore[index]
    return training.Training(
        step=make_step(dataclasses.replace(recipe, seed=0), second, classes, job.mesh),
        state=train_state.create(fresh, _optimizer(recipe, second), ema=False),
        stream=stream,
        key=keys.stream(keys.root(recipe.seed), "second_stage"),
        job=dataclasses.replace(job, folder=job.folder / FOLDER, tags=tags),
        ends=[second.steps],
        batch=(recipe.batch_size, train.BATCH_FIELD),
        before=before,
        after=after,
    )


def _whole(second: SecondStage, params: Params, state: train_state.TrainState) -> dict[str, Any]:
    """The network's parameters, with what the second stage has learned."""
    head = mesh.fetch(params["head"])  # type: ignore[index]
    learned = attach(second.kind, {"head": head}, mesh.fetch(state.params))
    return {**params, **learned}  # type: ignore[dict-item]


def curves(folder: pathlib.Path, steps: int) -> list[dict[str, Any]]:
    """The metrics of the second stage of a training in `folder`, `steps` steps after its first."""
    lines = metric_lines.read(folder / FOLDER / "metrics.jsonl")
    return [{**line, "step": line["step"] + steps} for line in lines]


def start_of(kind: str, head: Head) -> dict[str, Array]:
    """What (1) or (2) trains, at its start."""
    if kind == "crt":
        return {name: jnp.zeros_like(leaf) for name, leaf in head.items()}
    return {"scale": jnp.ones_like(head["bias"])}


def logits_of(kind: str, own: Head, head: Head, features: Features) -> Logits:
    """Equation (1) or (2)."""
    if kind == "crt":
        return features @ jnp.asarray(own["kernel"]) + jnp.asarray(own["bias"])[None]
    first = features @ jnp.asarray(head["kernel"]) + jnp.asarray(head["bias"])[None]
    return jnp.asarray(own["scale"])[None] * first


def attach(kind: str, params: Params, own: Head) -> dict[str, Any]:
    """A network's parameters with what the second stage has learned in them."""
    head = params["head"]  # type: ignore[index]
    if kind == "crt":
        new = dict(own)
    else:
        scale = own["scale"]
        new = {"kernel": head["kernel"] * scale[None], "bias": head["bias"] * scale}
    return {**params, "head": new}  # type: ignore[dict-item]


@functools.cache
def make_step(
    recipe: train.Recipe, second: SecondStage, num_classes: int, device_mesh: Mesh
) -> loop.Step:
    """The jitted update of the head. Its context is the first stage's parameters."""
    network = classifier.make(recipe.model, num_classes)
    optimizer = _optimizer(recipe, second)
    alike = jnp.ones(num_classes)  # of cross-entropy, which reads no counts

    def step(
        state: train_state.TrainState, batch: Mapping[str, Array], key: PRNGKey, context: Params
    ) -> tuple[train_state.TrainState, dict[str, Array]]:
        images = objective.augmented(batch["image"], key, recipe.augment, recipe.randaugment)
        _, features = module.apply(network, context, images, train=False)
        progress = state.step / second.steps

        def loss_fn(own: Params) -> tuple[Array, dict[str, Array]]:
            logits = logits_of(second.kind, own, context["head"], features)  # type: ignore
            targets = objective.targets(batch)
            values = objective.combined(losses.cross_entropy, logits, targets, alike, progress)
            accuracy = (logits.argmax(-1) == batch["label"]).mean()
            return values.mean(), {"train_accuracy": accuracy}

        return train_state.update(state, optimizer, loss_fn)

    return spmd.jit_step(step, device_mesh)


def normalised(head: Head, tau: float) -> dict[str, Float[np.ndarray, "..."]]:
    """The head of equation (3); a class whose weights are zero keeps them."""
    kernel = np.asarray(head["kernel"], np.float64)
    norm = np.linalg.norm(kernel, axis=0, keepdims=True)
    kernel = kernel / np.where(norm > 0, norm, 1.0) ** tau
    return {
        "kernel": kernel.astype(np.float32),
        "bias": np.zeros(kernel.shape[1], np.float32),
    }


def choose_tau(
    features: Float[np.ndarray, "v d"], labels: Int[np.ndarray, "v"], head: Head
) -> tuple[float, list[float]]:
    """The tau of equation (3), and the balanced accuracy of each of `TAUS` on these images.

    A class that has no image here is left out of the mean.
    """
    found = []
    for tau in TAUS:
        own = normalised(head, tau)
        probabilities = metrics.softmax(features @ own["kernel"], "validation")
        recall = metrics.recall_of(metrics.count(probabilities, labels))
        found.append(float(metrics.mean_defined(recall)))
    return TAUS[int(np.argmax(found))], found


def _normalised(
    recipe: train.Recipe,
    data: train.TrainData,
    params: Params,
    job: Job,
) -> tuple[Params, Ledger]:
    if not len(data.val_rows):
        raise DecoupledError(
            "second_stage: tau_norm chooses tau on the split val, which is empty; raise "
            "config.data.split.val, or take crt or lws"
        )
    costs = Ledger()
    clock = Clock(costs)
    forward = predict.make_forward(recipe.model, len(data.train_rows), job.mesh)
    _, features = predict.predict(forward, params, data.real, data.val_rows, recipe.batch_size)
    head = mesh.fetch(params["head"])  # type: ignore[index]
    tau, found = distributed.agree(choose_tau(features, data.val_labels, head))
    choice = {"tau": tau, "taus": TAUS, "val_balanced_accuracy": found, "n": len(data.val_rows)}
    files.write_atomically(job.folder / CHOICE, json.dumps(choice), "the choice of tau")
    clock.read()
    return {**params, "head": normalised(head, tau)}, costs  # type: ignore[dict-item]


def _optimizer(recipe: train.Recipe, second: SecondStage) -> Any:
    rate = recipe.optimizer.learning_rate * second.rate
    config = dataclasses.replace(recipe.optimizer, learning_rate=rate)
    return train_state.make_optimizer(config, second.steps)
