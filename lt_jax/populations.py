"""Classifiers of a run that are trained together: those of equal recipes, whatever their arms.

Seeds of an arm, and arms that differ in controller, doses or pool alone, have the same step, and
`config.runtime.classifiers` of them at a time are trained by one program before the first stage
`classify`. Each leaves in its own folder what its stage would: the stage then finds its last
checkpoint, makes no step, and goes on from there (second stages, predictions).

Left to the stages, one after the other: what is too few for a population, a folder in which another
run is at work, and trainings whose newest checkpoint turns out to be damaged. What the devices of a
run cannot share evenly, they then need not: see `classification.on_its_devices`.
"""

import contextlib
import dataclasses
from collections.abc import Sequence

from lt_jax import classification
from lt_jax import specs as specs_lib
from lt_jax.classify import train as classify_train
from lt_jax.config import ConfigError
from lt_jax.context import Context
from lt_jax.runtime import checkpoint, distributed, faults, files, population, progress, training
from lt_jax.runtime.artifacts import Spec


def train(specs: Sequence[Spec], context: Context) -> None:
    """Trains those of `specs` (of the stage classify) that are not finished, as far as they fit.

    Raises:
      NonFiniteError, Preempted: see `training.train_together`.
    """
    runtime = context.config.runtime
    if runtime.classifiers == 1:
        return
    find = lambda: [i for i, spec in enumerate(specs) if not context.store.done(spec)]
    unfinished = distributed.told(find)
    left = distinct([specs[i] for i in unfinished])
    stand = lambda: [_standing(spec, context) for spec in left]
    steps = distributed.told(stand)
    # Those who stand furthest come first: where one stops the run, it stops the fewest others.
    groups = chunks(left, context, [-step for step in steps])
    if left:
        progress.say(_plan(len(left), groups, runtime.population))
    for group in groups:
        with contextlib.ExitStack() as locks:
            _train(_taken(group, context, locks), context)
        faults.raise_if_stopping("the classifiers so far")


def chunks(
    specs: Sequence[Spec], context: Context, order: Sequence[int] | None = None
) -> list[list[Spec]]:
    """Populations: specs whose recipes are equal but for the seed, and equal in `order`, which
    they are sorted by; in the order given where it is None.
    """
    runtime = context.config.runtime
    alike: dict[tuple[int, classify_train.Recipe], list[Spec]] = {}
    for spec, rank in zip(specs, order or [0] * len(specs), strict=True):
        recipe = classification.recipe_of(context.config, *specs_lib.arm_and_seed(spec))
        alike.setdefault((rank, dataclasses.replace(recipe, seed=0)), []).append(spec)
    found = []
    for _, group in sorted(alike.items(), key=lambda item: item[0][0]):
        for at in range(0, len(group), runtime.classifiers):
            some = group[at : at + runtime.classifiers]
            if size := population.fitting(len(some), runtime.population, context.mesh.size):
                found.append(some[:size])
    return found


def check(context: Context) -> None:
    """Refuses populations that these devices cannot have.

    Raises:
      ConfigError: a population on devices that are those of several processes, or do not divide it.
    """
    runtime, devices = context.config.runtime, context.mesh.size
    if runtime.classifiers == 1 or runtime.population != "devices":
        return
    if context.mesh.is_multi_process:
        raise ConfigError(
            "config.runtime.population: got devices in a run of several processes; takes map or "
            "vmap there"
        )
    if runtime.classifiers % devices:
        raise ConfigError(
            f"config.runtime.classifiers: got {runtime.classifiers}; with population=devices it "
            f"takes a multiple of the {devices} devices of this run"
        )


def described(specs: Sequence[Spec], context: Context) -> list[list[training.Training]]:
    """The trainings of classifiers of one recipe, those whose batches have the same columns
    together. Raises what `classification.mixed_data` and `classify.train.describe` do.
    """
    by_columns: dict[bool, list[training.Training]] = {}
    for spec in specs:
        arm, seed = specs_lib.arm_and_seed(spec)
        recipe = classification.recipe_of(context.config, arm, seed)
        controller, data = classification.mixed_data(context, arm, seed)
        job = context.job(context.store.folder(spec), stage="classify", arm=arm, seed=seed)
        # Soft labels are columns of a batch, and those of a population are stacked.
        alike = by_columns.setdefault(data.soft is None, [])
        alike.append(classify_train.describe(recipe, data, controller, job))
    return list(by_columns.values())


def _train(specs: Sequence[Spec], context: Context) -> None:
    how = context.config.runtime.population
    for group in described(specs, context):
        if size := population.fitting(len(group), how, context.mesh.size):
            training.train_together(group[:size], how)


def _taken(specs: Sequence[Spec], context: Context, locks: contextlib.ExitStack) -> list[Spec]:
    """Those on which no other run works; no other will, until `locks` are closed."""

    def take() -> list[int]:
        free = []
        for i, spec in enumerate(specs):
            folder = context.store.open(spec)
            try:
                locks.enter_context(faults.lock(folder))
            except faults.WorkdirInUseError:
                continue
            if not context.store.done(spec):
                files.sweep(folder)
                free.append(i)
        return free

    return [specs[i] for i in distributed.told(take)]


def _standing(spec: Spec, context: Context) -> int:
    return checkpoint.newest(context.store.folder(spec) / "checkpoints")


def distinct(specs: Sequence[Spec]) -> list[Spec]:
    """Without arms that are others by another name, whose folders are the same."""
    return list({spec.key: spec for spec in reversed(specs)}.values())[::-1]


def _plan(count: int, groups: Sequence[Sequence[Spec]], how: str) -> str:
    sizes = [len(group) for group in groups]
    alone = count - sum(sizes)
    parts = []
    if sizes:
        many = "program" if len(sizes) == 1 else "programs"
        each = ", ".join(map(str, sizes if len(set(sizes)) > 1 else sizes[:1]))
        parts.append(f"{len(sizes)} {many} of {each} ({how})")
    if alone:
        parts.append(f"{alone} one after the other")
    return f"classify: {count} classifiers in {' and '.join(parts)}"
