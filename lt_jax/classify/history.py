"""Feedback on a training's rounds, for controllers that learn: measured, kept, taken up again.

A controller is a pure function of its history, which `history.json` holds: a list with the feedback
of a round each, by name.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from lt_jax.classify import predict
from lt_jax.classify.train_data import TrainData
from lt_jax.data.images import Images
from lt_jax.evaluate import metrics
from lt_jax.mixing import rewards
from lt_jax.mixing.controllers import (
    Controller,
    Feedback,
    Mixture,
    MixtureError,
    following,
    require_seen,
)
from lt_jax.runtime import distributed, files
from lt_jax.shapes import Float, Params

HISTORY = "history.json"
LOOKED_AT = 32  # images of a class and source at most whose train loss a controller is told


def measure(forward: predict.Forward, params: Params, data: TrainData, batch_size: int) -> Feedback:
    """The classifier on policy_val, which has images of every class, and on some train images."""
    logits, _ = predict.predict(forward, params, data.real, data.policy_rows, batch_size)
    probabilities = metrics.softmax(logits, "policy_val")
    labels = data.policy_labels
    soft = rewards.measure(jnp.asarray(probabilities, jnp.float32), jnp.asarray(labels))
    recall, precision, margin = (
        np.asarray(value, np.float64) for value in (soft.recall, soft.precision, soft.margin)
    )
    loss = np.bincount(labels, nats(probabilities, labels)) / np.bincount(labels)
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
    total = np.bincount(labels, nats(metrics.softmax(logits, "train"), labels), len(some))
    number = np.bincount(labels, minlength=len(some))
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def nats(probabilities: Float[np.ndarray, "n k"], labels: np.ndarray) -> Float[np.ndarray, "n"]:
    """Cross-entropy of each image."""
    return -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12))


def mixtures(
    folder: pathlib.Path, controller: Controller, data: TrainData, rounds: int
) -> list[Mixture]:
    """What the rounds of a finished training in `folder` were given."""
    history = held(folder, controller, data, rounds)
    return [following(controller, history[:r]) for r in range(rounds)]


def held(
    folder: pathlib.Path, controller: Controller, data: TrainData, rounds: int
) -> list[Feedback]:
    """Feedback of the first `rounds` rounds, or of fewer where `folder` holds no more."""
    if not controller.learns:
        return [Feedback.unmeasured(len(data.train_rows))] * rounds
    path = folder / HISTORY
    read = lambda: json.loads(path.read_text()) if path.is_file() else []
    entries = distributed.told(read)
    return [
        Feedback(**{name: np.asarray(values, np.float64) for name, values in entry.items()})
        for entry in entries[:rounds]
    ]


def resumed(
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
        keep(folder, history)
    if len(history) < behind:
        raise MixtureError(
            f"{folder / HISTORY} holds {len(history)} of the {behind} rounds that the checkpoint "
            "has behind it, and their mixtures depend on it; delete the folder to train anew"
        )
    return history


def keep(folder: pathlib.Path, history: Sequence[Feedback]) -> None:
    """Writes the history, whole or not at all."""
    entries = [
        {name: array.tolist() for name, array in vars(feedback).items()} for feedback in history
    ]
    files.write_atomically(folder / HISTORY, json.dumps(entries), "the history of feedback")


def check(data: TrainData, rounds: int, steps: int) -> None:
    """Refuses a controller that learns where there is nothing to learn from.

    Raises MixtureError where a class is absent from policy_val, or a round has no step.
    """
    seen = np.bincount(data.policy_labels, minlength=len(data.train_rows))
    require_seen(seen, [f"class {label} (by number)" for label in range(len(seen))])
    if rounds > steps:
        raise MixtureError(
            f"{rounds} rounds in {steps} steps: a controller that learns takes at "
            "least one step a round; lower config.classify.rounds"
        )
