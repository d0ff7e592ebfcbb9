"""Classification accuracy score: what a classifier learns from synthetic images alone.

The run's own classifier, with its augmentation and steps, is trained on accepted synthetic images
and judged on real ones (Ravuri and Vinyals 2019, arXiv:1905.10887): what a generator leaves out of
a class, or mistakes for another, costs accuracy there, whatever its images look like. Three
trainings a seed, of cross-entropy on classes drawn equally often:

  synthetic      min(accepted, train) images of each class from the pool
  real           as many real train images of each class
  synthetic_all  all accepted images, where these are more

The first two differ in nothing but who made the images. A class without accepted images is left out
of all three and of what they are judged by. The pool's order is that of its indices, so that the
first images of a class are a random part of it.

This judges the generator beside the real images that it was trained on; what synthetic images are
worth on top of these is what arms are for.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lt_jax.auditing.pool import open_pool
from lt_jax.classify import predict
from lt_jax.classify import train as classify_train
from lt_jax.context import Context
from lt_jax.data.images import Images, names_of
from lt_jax.data.manifest import ManifestError
from lt_jax.data.pool import PoolReader
from lt_jax.errors import UserError
from lt_jax.mixing.controllers import Feedback, Mixture
from lt_jax.runtime import arrays as arrays_lib
from lt_jax.runtime.ledger import Ledger
from lt_jax.shapes import Int, UInt8

PREDICTIONS = "predictions.npz"
SPLITS = ("val", "test")


class ScoreError(UserError, ValueError):
    """A pool that no classifier can be trained on."""


@dataclasses.dataclass(frozen=True)
class Joined:
    """Two image stores as one: rows of the second follow those of the first."""

    first: Images
    second: Images

    def __len__(self) -> int:
        """Images of both."""
        return len(self.first) + len(self.second)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, h, w, c); as of either store, an AttributeError where images are not yet decoded."""
        shapes: list[Any] = [getattr(store, "shape") for store in (self.first, self.second)]  # noqa: B009
        return (len(self), *shapes[0][1:])

    def __getitem__(self, indices: Int[np.ndarray, "b"]) -> UInt8[np.ndarray, "b h w c"]:
        """The images of these rows, in this order."""
        indices = np.asarray(indices)
        ahead = indices < len(self.first)
        parts = [
            (where, store[indices[where] - offset])
            for where, store, offset in (
                (ahead, self.first, 0),
                (~ahead, self.second, len(self.first)),
            )
            if where.any()
        ]
        found = np.empty((len(indices), *parts[0][1].shape[1:]), np.uint8)
        for where, images in parts:
            found[where] = images
        return found

    def names(self, rows: Int[np.ndarray, "b"]) -> list[str]:
        """What messages call these rows, in the words of their own store."""
        ahead = rows < len(self.first)
        words = np.empty(len(rows), object)
        words[ahead] = names_of(self.first, rows[ahead])
        words[~ahead] = names_of(self.second, rows[~ahead] - len(self.first))
        return words.tolist()


@dataclasses.dataclass(frozen=True, eq=False)
class Alone:
    """A controller that draws real images alone, some classes equally often and others never."""

    classes: Sequence[bool]
    learns = False

    def mixture(self, history: Sequence[Feedback]) -> Mixture:
        """The same in every round."""
        del history
        drawn, none = np.array(self.classes, float), np.zeros(len(self.classes))
        nothing = np.zeros(len(self.classes), int)
        return Mixture(drawn / drawn.sum(), none, nothing, nothing)


def measure(folder: pathlib.Path, context: Context) -> tuple[dict[str, Any], Ledger]:
    """Trains, or goes on training, all of them in `folder`; keeps their predictions there.

    Returns:
      {"seeds", "steps", "classes": those that are judged, "counts": images of each in "synthetic"
      and in "real", and of "synthetic_all" where there is one, "val": {which: {"mean", "std", "n",
      "values": balanced accuracy of each seed}}}. std is None of one seed.

    Raises:
      ScoreError: the pool has no accepted image, or val none of its classes.
    """
    manifest, images = context.data
    pool = open_pool(context)
    made = [pool.rows(k) for k in range(len(manifest.classes))]
    counts = np.array([min(len(a), len(b)) for a, b in zip(made, context.train_rows, strict=True)])
    val = manifest.rows("val")
    if not counts.any() or not np.isin(manifest.labels[val], np.flatnonzero(counts)).any():
        raise ScoreError(
            f"audit accuracy_score: {sum(map(len, made))} accepted synthetic images, and "
            f"{len(val)} val images; takes some of both, of one class at least (a pool, and "
            "config.data.split.val above 0)"
        )
    first, made = _at_hand(context, pool, made)
    behind = len(first)
    some = {
        "synthetic": [rows[:n] for rows, n in zip(made, counts, strict=True)],
        "real": [
            np.random.default_rng((k, 6)).permutation(rows)[:n] + behind
            for k, (rows, n) in enumerate(zip(context.train_rows, counts, strict=True))
        ],
    }
    if any(len(rows) > n for rows, n in zip(made, counts, strict=True) if n):
        some["synthetic_all"] = [
            rows if n else rows[:0] for rows, n in zip(made, counts, strict=True)
        ]
    store = Joined(first, images)
    costs, values = Ledger(), {}
    arrays: dict[str, np.ndarray] = {
        f"{split}_ids": np.array(manifest.ids)[manifest.rows(split)] for split in SPLITS
    }
    for name, rows in some.items():
        for seed in context.config.classify.seeds:
            own = folder / f"{name}_seed{seed}"
            logits = _train(own, context, store, rows, behind, seed, costs, name)
            arrays |= {f"{split}_{name}_{seed}": held for split, held in logits.items()}
        values[name] = [
            _balanced(arrays[f"val_{name}_{seed}"], manifest.labels[val], counts > 0)
            for seed in context.config.classify.seeds
        ]
    arrays_lib.save(folder / PREDICTIONS, arrays)
    classes = np.flatnonzero(counts).tolist()
    found = {
        "seeds": list(context.config.classify.seeds),
        "steps": context.config.classify.steps,
        "classes": [manifest.classes[k] for k in classes],
        "labels": classes,
        "counts": {name: [len(rows[k]) for k in classes] for name, rows in some.items()},
        "val": {name: _summary(held) for name, held in values.items()},
    }
    return found, costs


def _at_hand(
    context: Context, pool: PoolReader, made: Sequence[np.ndarray]
) -> tuple[Images, list[np.ndarray]]:
    """The pool's images of those rows, decoded once where they fit; and where they are then."""
    ends = np.cumsum([len(rows) for rows in made])
    if ends[-1] * np.prod(context.image_shape) > context.config.data.decode_once_mib * 2**20:
        return pool, list(made)
    return pool.held(np.concatenate(made)), np.split(np.arange(ends[-1]), ends[:-1])


def test(
    found: dict[str, Any], folder: pathlib.Path, ids: tuple[str, ...], labels: np.ndarray
) -> None:
    """Adds "test", like "val", to what `measure` has found; for the report, which opens labels.

    Raises ManifestError where the predictions are of other images than `ids`.
    """
    held = arrays_lib.load(folder / PREDICTIONS)
    if [*held["test_ids"]] != [*ids]:
        raise ManifestError(
            f"{folder / PREDICTIONS} holds other test images than the manifest; delete its folder "
            "and run audit again"
        )
    judged = np.zeros(held[f"test_synthetic_{found['seeds'][0]}"].shape[1], bool)
    judged[found["labels"]] = True
    found["test"] = {
        name: _summary(
            [_balanced(held[f"test_{name}_{seed}"], labels, judged) for seed in found["seeds"]]
        )
        for name in found["val"]
    }


def _train(
    folder: pathlib.Path,
    context: Context,
    store: Joined,
    rows: Sequence[np.ndarray],
    behind: int,
    seed: int,
    costs: Ledger,
    name: str,
) -> Mapping[str, np.ndarray]:
    """Logits of val and test of one training; real images lie `behind` in the store."""
    config = context.config.classify
    manifest, _ = context.data
    recipe = classify_train.Recipe(
        model=config.model,
        optimizer=config.optimizer,
        augment=config.augment,
        loss="cross_entropy",
        tau=0.0,
        steps=config.steps,
        rounds=config.rounds,
        batch_size=config.batch_size,
        seed=seed,
    )
    val = manifest.rows("val")
    data = classify_train.TrainData(
        real=store,
        train_rows=rows,
        val_rows=val + behind,
        val_labels=manifest.labels[val],
        image_shape=context.image_shape,
    )
    folder.mkdir(parents=True, exist_ok=True)
    params, spent = classify_train.train(
        recipe,
        data,
        Alone([len(held) > 0 for held in rows]),
        context.job(folder, stage="audit", arm=name, seed=seed),
    )
    costs.add(spent)
    forward = predict.make_forward(config.model, len(manifest.classes), context.mesh)
    return {
        split: predict.predict(
            forward, params, store, manifest.rows(split) + behind, config.batch_size
        )[0]
        for split in SPLITS
    }


def _balanced(logits: np.ndarray, labels: np.ndarray, judged: np.ndarray) -> float:
    """Mean recall over the judged classes that have an image, among the judged classes."""
    guess = np.where(judged[None], logits, -np.inf).argmax(axis=1)
    recalls = [
        float((guess[labels == k] == k).mean())
        for k in np.flatnonzero(judged)
        if (labels == k).any()
    ]
    return float(np.mean(recalls))


def _summary(values: Sequence[float]) -> dict[str, Any]:
    several = len(values) > 1
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if several else None,
        "n": len(values),
        "values": list(values),
    }
