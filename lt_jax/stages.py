"""What each stage does: opens the artifacts that it reads, calls its room, writes its own.

The test split's labels reach `report` alone: every other stage works on a view of the manifest
in which they are masked.
"""

import functools
import pathlib
from collections.abc import Callable

import numpy as np

from lt_jax import auditing, classification, detection, policy_learning, reporting, synthesis
from lt_jax import specs as specs_lib
from lt_jax.classify import contrastive
from lt_jax.classify import train as classify_train
from lt_jax.config import ExtractorConfig
from lt_jax.context import Context
from lt_jax.data import prepare
from lt_jax.data.manifest import SplitManifest
from lt_jax.data.splits import SPLITS
from lt_jax.diffusion import train as diffusion_train
from lt_jax.diffusion import trained
from lt_jax.mixing import controllers
from lt_jax.runtime import arrays as arrays_lib
from lt_jax.runtime import artifacts, distributed
from lt_jax.runtime.artifacts import Spec
from lt_jax.runtime.ledger import Clock, Ledger
from lt_jax.runtime.progress import Progress, say
from lt_jax.shapes import Params

_NAMED = 12  # classes at most that are counted by name in the log


def run(spec: Spec, folder: pathlib.Path, context: Context) -> Ledger:
    """Runs one stage in its folder, from where it was left; returns what it has cost."""
    name = spec.stage.split("/")[0]
    if name == "audit":
        return auditing.run(folder, context, spec.stage.split("/")[1])
    if name in ("classify", "detect"):
        trains = classification.run if name == "classify" else detection.run
        return trains(folder, context, *specs_lib.arm_and_seed(spec))
    stages: dict[str, Callable[[pathlib.Path, Context], Ledger]] = {
        "prepare": functools.partial(_by_the_first, _prepare),
        "generator": _generator,
        "extractor": _extractor,
        "synthesize": synthesis.run,
        "mixing": policy_learning.run,
        "report": functools.partial(_by_the_first, reporting.report),
    }
    return stages[name](folder, context)


def _by_the_first(
    stage: Callable[[pathlib.Path, Context], Ledger], folder: pathlib.Path, context: Context
) -> Ledger:
    """A stage that is a host's work: of several processes the first runs it, on its devices."""
    return distributed.on_first(lambda: stage(folder, context.by_itself())) or Ledger()


def _prepare(folder: pathlib.Path, context: Context) -> Ledger:
    costs = Ledger()
    clock = Clock(costs)
    with Progress("prepare", 0, "image") as bar:
        made = prepare.prepare(context.config.data, folder, bar.of)
    for split in SPLITS:
        say(f"prepare: {split} {_counted(made, split)}")
    clock.read()
    return costs


def _counted(manifest: SplitManifest, split: str) -> str:
    """How many images a split has; but for the test split of each class, too."""
    counts = manifest.counts(split)
    total = f"{counts.sum():,} images"
    if split == "test" or not counts.any():
        return total
    if len(counts) > _NAMED:
        return f"{total}, {counts.min():,} to {counts.max():,} a class"
    named = (f"{name}: {count:,}" for name, count in zip(manifest.classes, counts, strict=True))
    return f"{total} ({', '.join(named)})"


def _generator(folder: pathlib.Path, context: Context) -> Ledger:
    manifest, images = context.data
    known, generator = context.annotations, context.generator
    base, seen = generator_base(context)
    job = context.job(folder, stage="generator")
    costs = diffusion_train.train(generator, images, context.train_rows, job, known.columns, base)
    meanings = trained.meanings(manifest.classes, generator, known)
    trained.describe(folder, generator, meanings, seen)
    return costs


def generator_base(context: Context) -> tuple[Params | None, set[str]]:
    """What a generator starts from, if anything, and sha256 of all images that it then has seen.

    Raises:
      ConfigError: the base has seen an image that this run holds out, or is told other things.
    """
    manifest, _ = context.data
    hashes = np.array(manifest.image_sha256)
    seen = set(hashes[manifest.rows("train")].tolist())
    if not (start := context.config.generator.adapt.base):
        return None, seen
    held_out = hashes[np.array(manifest.splits) != "train"].tolist()
    artifacts.compare(pathlib.Path(start))
    meanings = trained.meanings(manifest.classes, context.generator, context.annotations)
    base, before = trained.load_base(pathlib.Path(start), meanings, held_out)
    return base, seen | set(before)


def extractor_recipe(config: ExtractorConfig) -> classify_train.Recipe:
    """What decides the training of an extractor with labels, besides its data."""
    return classify_train.Recipe(
        model=config.model,
        optimizer=config.optimizer,
        augment=config.augment,
        loss=config.loss,
        tau=1.0,
        steps=config.steps,
        rounds=4,
        batch_size=config.batch_size,
        seed=config.seed,
    )


def _extractor(folder: pathlib.Path, context: Context) -> Ledger:
    config = context.config.extractor
    recipe = extractor_recipe(config)
    data = classification.train_data(context)
    splits = ("train", "policy_val", "val")
    job = context.job(folder, stage="extractor")
    if config.objective == "contrastive":
        params, costs = contrastive.train(config, data, job)
        outputs = classification.ask(folder, context, recipe, params, splits, costs)
    else:
        controller = controllers.real_only(data.counts, config.sampler)
        outputs, costs = classification.train_and_predict(
            job, context, recipe, data, controller, splits
        )
    arrays = {}
    for split, output in outputs.items():
        arrays |= {f"{split}_rows": output.rows, f"{split}_logits": output.logits}
        arrays[f"{split}_features"] = output.features
    arrays_lib.save(folder / "features.npz", arrays)
    return costs
