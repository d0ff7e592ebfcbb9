r"""How well does each score tell images that selection should turn away? AUROC, and FPR at 95%.

    python -m experiments.selection.detection --config=configs/digits.py --out=runs/detection \
        --left_out=3 --other=configs/phantom.py

In-distribution are the real images of val and policy_val: nothing is fitted to them. Scores are
fitted to train images alone, and the test split is not opened. Every extractor objective is
trained anew for each of `--seeds`; data and generator are made once, in a cache that all share.

Outliers are made of the same images of val and policy_val (`outliers`), of those of another data
set, of a class that a further extractor and generator never saw, and by generators: the config's
own, and one that was trained for a tenth of its steps. `variants.ENSEMBLE` combines one score of
each kind, chosen before any of these figures.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments.selection import outliers
from experiments.selection.outliers import Outliers
from experiments.selection.variants import ENSEMBLE, SCORES
from lt_jax import command
from lt_jax import config as config_lib
from lt_jax.classify import predict
from lt_jax.context import Context
from lt_jax.data import augment
from lt_jax.diffusion import denoising_error, program, requests, trained
from lt_jax.evaluate import metrics
from lt_jax.evaluate.statistics import tables
from lt_jax.pipeline import Pipeline
from lt_jax.runtime import files, keys, mesh
from lt_jax.selection import ood
from lt_jax.selection.ood import Evidence

_CONFIG = command.define_config("of data, extractor and generator")
_OUT = flags.DEFINE_string("out", None, "folder of all workdirs and of the cache", required=True)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "of the extractors")
_OBJECTIVES = flags.DEFINE_list("objectives", ["supervised", "contrastive"], "of the extractors")
_LEFT_OUT = flags.DEFINE_string("left_out", "", "class, by name, that extractors are not shown")
_OTHER = command.define_config("config of another data set", "other")
_OTHER_ROOT = flags.DEFINE_string("other_root", "", "its config.data.root")
_GENERATOR = flags.DEFINE_enum(
    "generator", "all", ["none", "own", "all"],
    "denoising errors and generated images; own: but for the class left out, which takes another",
)  # fmt: skip

SEED = 0  # of outliers and denoising errors
ErrorsOf = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Runs:
    """Finished stages of one config and of changes to it, in one cache."""

    def __init__(self, shared: ConfigDict, out: pathlib.Path):
        """Workdirs are made in `out` as they are asked for."""
        self._shared, self._out = shared, out

    def context(self, name: str, stages: Sequence[str], changes: dict[str, Any]) -> Context:
        """The run called `name`, with these stages finished.

        Args:
          name: of its workdir.
          stages: to run where they are not finished.
          changes: to the config, nested as it is.
        """
        config: Any = self._shared.copy_and_resolve_references()
        with config.unlocked():
            # An arm that draws from a pool, so that there are an extractor and a generator.
            config.classify.arms = config_lib.arms(pool={"controller": "fill_to_head"})
            config.evaluate.baseline = "pool"
            config.update(changes)
        command = f"detection {name}"
        run = Pipeline(config, self._out / name, self._out / "cache", command=command)
        run.run(stages)
        return run.context()


def held_out(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of policy_val and val."""
    manifest, images = context.data
    rows = np.concatenate([manifest.rows("policy_val"), manifest.rows("val")])
    return np.asarray(images[rows]), manifest.labels[rows]


def make_images(context: Context, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first candidates of a run's generator, whatever selection says of them; their classes."""
    manifest, images = context.data
    config, generator = context.config, context.generator
    params = trained.load(context.folder("generator"), generator, config.synthesize.ema_length)
    asked = requests.Requests(config.synthesize, generator, context.annotations, manifest, images)
    networks = program.Networks(generator, config.extractor.model, asked.present)
    make = jax.jit(functools.partial(program.make_images, config.synthesize, networks))
    size = config.synthesize.batch_size
    made = []
    for start in range(0, count, size):
        indices = np.arange(start, start + size, dtype=np.int32)
        made.append(np.asarray(make(params, keys.root(SEED), indices, asked(indices)[0])))
    return np.concatenate(made)[:count], np.arange(count, dtype=np.int32) % len(manifest.classes)


def make_errors(context: Context, count: int) -> ErrorsOf:
    """The generator's denoising errors of `count` images under any labels; measured once each."""
    config, generator = context.config.synthesize, context.generator
    params = trained.load(context.folder("generator"), generator, config.ema_length)
    times = config.selection.noise_times
    known = np.full((count, len(context.data[0].classes), len(times)), np.nan, np.float32)

    @jax.jit
    def measure(images: jax.Array, labels: jax.Array, rows: jax.Array) -> jax.Array:
        image_keys = keys.per_example(keys.root(SEED), rows)
        seen = augment.normalize(images)
        return denoising_error.errors(generator, params, seen, labels, image_keys, times)

    def errors(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        missing = np.flatnonzero(np.isnan(known[np.arange(count), labels]).any(axis=1))
        for start in range(0, len(missing), config.batch_size):
            rows = missing[start : start + config.batch_size]
            padded = mesh.pad(rows, config.batch_size)
            found = measure(images[padded], labels[padded], padded)
            known[rows, labels[rows]] = np.asarray(found)[: len(rows)]
        return known[np.arange(count), labels]

    return errors


class Detection:
    """One data set's train and held-out images, and outliers that each extractor is asked about."""

    def __init__(self, context: Context, sets: Sequence[Outliers], generator: bool):
        """`generator`: whether the context has one, for denoising errors."""
        manifest, images = context.data
        rows = manifest.rows("train")
        inliers, labels = held_out(context)
        self._sets = sets
        self._labels = [manifest.labels[rows], labels, *[held.labels for held in sets]]
        shown = [np.asarray(images[rows]), inliers, *[held.images for held in sets]]
        self._parts = outliers.bounds([len(part) for part in shown])
        self._images: Any = np.concatenate(shown)  # an array serves as an image store
        self._errors = make_errors(context, len(self._images)) if generator else None

    def measure(self, context: Context) -> tuple[list[dict[str, Any]], float]:
        """Figures of every score and set under an extractor, and its own balanced accuracy."""
        evidence = self._evidence(context)
        first = self._parts[1].start
        train = jax.tree.map(lambda leaf: leaf[:first], evidence)
        rest = jax.tree.map(lambda leaf: leaf[first:], evidence)
        inliers, *others = outliers.bounds([p.stop - p.start for p in self._parts[1:]])
        found = []
        for name, members in _asked(self._errors is not None).items():
            scores = _scores(context, members, train, rest)
            for held, part in zip(self._sets, others, strict=True):
                pair = scores[inliers], scores[part]
                figures = {
                    "auroc": outliers.auroc(*pair),
                    "fpr95": outliers.false_positive_rate(*pair),
                }
                found.append({"score": name, "set": held.name, "near": held.near,
                              "n": len(held.images), "inliers": len(scores[inliers]),
                              "members": members, **figures})  # fmt: skip
        held = jax.tree.map(lambda leaf: np.asarray(leaf[inliers]), rest)
        probabilities = metrics.softmax(held.logits[None].astype(np.float64))
        return found, float(metrics.balanced_accuracy(probabilities, held.labels)[0])

    def _evidence(self, context: Context) -> Evidence:
        config = context.config.extractor
        num_classes = len(context.data[0].classes)
        forward = predict.make_forward(config.model, num_classes, context.mesh)
        params = context.classifier_params("extractor", config.model)
        rows = np.arange(len(self._images))
        logits, features = predict.predict(forward, params, self._images, rows, config.batch_size)
        taken = logits.argmax(axis=1)
        labels = np.concatenate(
            [taken[part] if given is None else given
             for part, given in zip(self._parts, self._labels, strict=True)]
        ).astype(np.int32)  # fmt: skip
        errors = self._errors(self._images, labels) if self._errors else None
        return Evidence(features=features, logits=logits, labels=labels, errors=errors)


def _asked(generator: bool) -> dict[str, tuple[str, ...]]:
    """Members by name of what is measured."""
    asked = {**{name: (name,) for name in SCORES}, "ensemble": ENSEMBLE}
    if generator:
        return asked
    del asked["denoising"]
    return {**asked, "ensemble": tuple(name for name in ENSEMBLE if name != "denoising")}


def _scores(
    context: Context, members: tuple[str, ...], train: Evidence, rest: Evidence
) -> np.ndarray:
    selection = dataclasses.replace(context.config.synthesize.selection, scores=members)
    ensemble = ood.make(selection, len(context.data[0].classes))
    return np.asarray(ensemble.score(ensemble.fit(train), jax.tree.map(jnp.asarray, rest))[0])


def _outliers(runs: Runs, base: Context, stages: Sequence[str]) -> list[Outliers]:
    """All sets but the class left out, whose images are judged by extractors without it."""
    images, labels = held_out(base)
    num_classes = len(base.data[0].classes)
    sets = outliers.of_labels(images, labels, num_classes, SEED)
    if "generator" in stages:
        steps = base.config.generator.steps // 10
        early = runs.context("early", ("prepare", "generator"), {"generator": {"steps": steps}})
        for name, context in (("early generator", early), ("generator", base)):
            sets.append(Outliers(name, True, *make_images(context, len(images))))
    sets += outliers.corrupted(images, labels, SEED)
    if _OTHER.value is not None:
        other: Any = _OTHER.value.data.copy_and_resolve_references()
        data = base.config.data
        with other.unlocked():
            other.update(image_size=data.image_size, channels=data.channels)
            other.root = _OTHER_ROOT.value or other.root
        context = runs.context("other", ("prepare",), {"data": other.to_dict()})
        sets.append(Outliers(other.source.partition(":")[0], False, held_out(context)[0]))
    return sets


def _left_out(runs: Runs, base: Context, stages: Sequence[str]) -> tuple[Detection, dict[str, Any]]:
    """Images of the class that is left out, for extractors that do not know it; their config."""
    name, classes = _LEFT_OUT.value, base.data[0].classes
    if name not in classes:
        raise config_lib.ConfigError(f"--left_out: got {name!r}; takes one of {', '.join(classes)}")
    images, labels = held_out(base)
    unseen = Outliers("class left out", True, images[labels == classes.index(name)])
    changes = {"data": {"classes": tuple(held for held in classes if held != name)}}
    context = runs.context("left_out", stages, changes)
    return Detection(context, [unseen], "generator" in stages), changes


def measure(runs: Runs) -> dict[str, Any]:
    """All figures: rows of `found`, by extractor, set and score, with a value a seed."""
    makers = ("prepare", "generator") if _GENERATOR.value != "none" else ("prepare",)
    base = runs.context("base", makers, {})
    sets = _outliers(runs, base, makers)
    whole: dict[str, Any] = {}
    parts = {"": (Detection(base, sets, "generator" in makers), whole, makers)}
    if _LEFT_OUT.value:
        fewer = makers if _GENERATOR.value == "all" else ("prepare",)
        parts["_left_out"] = (*_left_out(runs, base, fewer), fewer)
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    accuracies: dict[str, list[float]] = {}
    for objective in _OBJECTIVES.value:
        for part, (detection, changes, stages) in parts.items():
            for seed in map(int, _SEEDS.value):
                asked = {**changes, "extractor": {"objective": objective, "seed": seed}}
                name = f"{objective}{seed}{part}"
                context = runs.context(name, (*stages, "extractor"), asked)
                found, accuracy = detection.measure(context)
                accuracies.setdefault(objective + part, []).append(accuracy)
                for row in found:
                    figures = {name: row.pop(name) for name in ("auroc", "fpr95")}
                    key = (objective, row["set"], row["score"])
                    held = rows.setdefault(key, {"objective": objective, **row,
                                                 "auroc": [], "fpr95": []})  # fmt: skip
                    for figure, value in figures.items():
                        held[figure].append(value)
    return {
        "source": base.config.data.source,
        "seeds": list(map(int, _SEEDS.value)),
        "train": len(base.data[0].rows("train")),
        "balanced_accuracy": accuracies,
        "found": list(rows.values()),
    }


def main(_: list[str]) -> None:
    """Prints the tables and writes results.json."""
    out = pathlib.Path(_OUT.value)
    mesh.configure_devices(_CONFIG.value.runtime.cpu_devices, str(out / ".jax_cache"))
    results = measure(Runs(_CONFIG.value, out))
    files.write_atomically(out / "results.json", json.dumps(results, indent=1), "the results")
    print("\n\n".join(map(tables.to_markdown, outliers.tables_of(results))))


if __name__ == "__main__":
    command.experiment(main)
