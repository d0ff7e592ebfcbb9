"""What a trained generator leaves in its folder, and which of its averages is sampled from.

params/              the average, or of a `power` EMA one a length
snapshots/<step>/    of a `power` EMA: the averages at that step
generator.json       what it knows: classes, devices, attributes, and the sha256 of its images
adapter/             of an adapted generator: what was trained, alone (`models.lora`)
"""

import dataclasses
import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from lt_jax.config import ConfigError, GeneratorConfig, build, to_dict
from lt_jax.diffusion.annotations import Annotations
from lt_jax.diffusion.generator import Generator
from lt_jax.models.conditioning import Vocabulary
from lt_jax.models.lora import flatten
from lt_jax.runtime import checkpoint, ema, files
from lt_jax.shapes import Params

Meanings = Mapping[str, list[Any]]  # see `meanings`
# Tables of which a row means a name, and the list that holds the names.
_TABLES = {
    "backbone/embedding/label/embedding": "classes",
    "backbone/embedding/device/embedding": "devices",
    "backbone/embedding/attributes/kernel": "attributes",
}


def snapshot_steps(config: GeneratorConfig) -> tuple[int, ...]:
    """After which steps snapshots are taken, the last one in; the last alone where none are."""
    count = config.ema_snapshots if config.ema == "power" else 1
    return ema.snapshot_steps(config.steps, count)


def save_snapshot(folder: pathlib.Path, averages: Any, step: int) -> None:
    """Keeps the averages at a step, of a `power` EMA."""
    (folder / "snapshots").mkdir(exist_ok=True)
    checkpoint.save_tree(folder / "snapshots" / str(step), _as_dict(averages))


def save(folder: pathlib.Path, averages: Any) -> None:
    """Keeps the final average, or averages."""
    checkpoint.save_tree(folder / "params", _as_dict(averages))


def meanings(classes: tuple[str, ...], generator: Generator, known: Annotations) -> Meanings:
    """What the rows of its tables, and its attributes, stand for: lists by kind, JSON-able.

    An attribute is its name and the mean and deviation by which it was standardised.
    """
    names = generator.config.conditions.attributes
    standardised = zip(names, known.means, known.deviations, strict=True)
    return {
        "classes": list(classes),
        "devices": list(known.devices),
        "attributes": [list(attribute) for attribute in standardised],
    }


def describe(
    folder: pathlib.Path, generator: Generator, known: Meanings, seen: Collection[str]
) -> None:
    """Writes what those who start from the generator have to know of it.

    Args:
      folder: of its stage.
      generator: what was trained.
      known: see `meanings`.
      seen: sha256 of every image that it, or a base of it, was trained on.
    """
    description = {
        **known,
        "seen": sorted(seen),
        "vocabulary": dataclasses.asdict(generator.vocabulary),
        "image_shape": generator.image_shape,
        "config": to_dict(generator.config),
    }
    files.write_atomically(
        folder / "generator.json", json.dumps(description, indent=1), "the generator's description"
    )


def check_length(config: GeneratorConfig, ema_length: float) -> None:
    """Raises ConfigError where a length is asked of an average whose length is fixed."""
    if ema_length and config.ema != "power":
        raise ConfigError(
            f"config.synthesize.ema_length: got {ema_length}; takes 0 unless "
            "config.generator.ema is power"
        )


def load(folder: pathlib.Path, generator: Generator, ema_length: float = 0.0) -> Params:
    """The parameters to sample from.

    Args:
      folder: of the generator's stage.
      generator: what was trained there.
      ema_length: of a `power` EMA, sigma_rel of the average that is wanted, which need not be one
        that was tracked; 0: the first that was.

    Raises:
      ConfigError: a length is asked of another EMA.
      CheckpointError: the files are damaged.
    """
    config = generator.config
    check_length(config, ema_length)
    shapes = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), generator.abstract())
    if config.ema != "power":
        return checkpoint.load_tree(folder / "params", {"0": shapes})["0"]
    target = {str(i): shapes for i in range(len(config.ema_lengths))}
    if not ema_length or ema_length in config.ema_lengths:
        index = config.ema_lengths.index(ema_length) if ema_length else 0
        return checkpoint.load_tree(folder / "params", target)[str(index)]
    gammas = [ema.gamma_of(length) for length in config.ema_lengths]
    steps = snapshot_steps(config)
    weights = ema.solve_weights(
        np.repeat(steps, len(gammas)),
        np.tile(gammas, len(steps)),
        config.steps,
        ema.gamma_of(ema_length),
    )
    snapshots = (
        checkpoint.load_tree(folder / "snapshots" / str(step), target)[str(i)]
        for step in steps
        for i in range(len(gammas))
    )
    return ema.reconstruct(snapshots, weights)


def load_base(
    folder: pathlib.Path, known: Meanings, held_out: Collection[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """The average of a trained generator, for another one to start from.

    What means something else there (tables of classes and devices, weights of attributes) is left
    out, so that it is made anew and trained in full.

    Args:
      folder: of its stage.
      known: of the new generator; see `meanings`.
      held_out: sha256 of the images of this run that are not its train split's.

    Returns:
      Parameters by path, and the sha256 of every image that they were trained on.

    Raises:
      ConfigError: there is no trained generator in `folder`, or it was trained on an image that
        this run holds out. Exact copies are found, not other images of a patient or lesion.
    """
    path = folder / "generator.json"
    if not path.exists():
        raise ConfigError(
            f"config.generator.adapt.base: {folder} holds no trained generator (generator.json is "
            "missing); give the folder `generator` of a workdir whose generator is finished"
        )
    held = json.loads(path.read_text())
    if leaked := set(held["seen"]) & set(held_out):
        raise ConfigError(
            f"config.generator.adapt.base: {folder} was trained on {len(leaked)} images that this "
            "run holds out (policy_val, val or test); give a base of other images, or this run the "
            "base's splits (config.data.manifest)"
        )
    generator = Generator(
        build(GeneratorConfig, held["config"], f"{path}: config"),
        Vocabulary(**held["vocabulary"]),
        tuple(held["image_shape"]),
    )
    leaves = flatten(load(folder, generator))
    for table, kind in _TABLES.items():
        if held[kind] != known[kind]:
            leaves.pop(table, None)
    return leaves, held["seen"]


def _as_dict(averages: Any) -> dict[str, Any]:
    held = averages if isinstance(averages, tuple) else (averages,)
    return {str(i): one for i, one in enumerate(held)}
