"""Compiles the programs in which a run spends its time, before it does, and says what each takes.

These are the steps of the trainings (each recipe once, whatever its arms and seeds), the fused
sampling program and the update of the mixing policies, as the stages are going to call them: what
is compiled lies in the persistent cache, from which a run of the same config, devices and versions
takes it. What XLA says of a program's memory shows whether a batch fits before hours are spent.

Shapes alone matter: networks are fresh ones where none is trained yet. But what a program has to be
told must be known: all need `prepare`, the sampling program a generator and an extractor, policies
and detectors on synthetic images a pool, as do classifiers on soft labels.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import jax

from lt_jax import classification, detection, policy_learning, populations, stages, synthesis
from lt_jax import specs as specs_lib
from lt_jax.classify import contrastive, decoupled
from lt_jax.classify import train as classify_train
from lt_jax.context import Context
from lt_jax.diffusion import train as diffusion_train
from lt_jax.mixing import controllers
from lt_jax.pipeline import Pipeline
from lt_jax.runtime import distributed, ledger, population, training
from lt_jax.runtime.artifacts import Spec

_NAMED = 2  # arms at most that a program is named after


@dataclasses.dataclass(frozen=True)
class Program:
    """What a stage is going to call.

    Attributes:
      name: of the stage, and of arms.
      lower: traces it, as the stage does.
      needs: stages that have to be finished before.
    """

    name: str
    lower: Callable[[], jax.stages.Lowered]
    needs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program.

    Attributes:
      seconds: that tracing and compiling, or finding it in the cache, took.
      flops: of a call on all devices together, a loop's body counted once.
      memory: bytes on a device while it runs: what it is given, makes and needs meanwhile; None
        where XLA does not say.
    """

    seconds: float
    flops: float
    memory: int | None


def report(run: Pipeline, names: Sequence[str]) -> Iterator[str]:
    """Compiles the programs of the named stages; a line each, as they are done.

    Raises:
      ConfigError: `prepare` is not finished, or a batch does not go with the devices.
    """
    context = run.finished("prepare")
    limit = _limit(context)
    yield f"{'program':48s} {'GFLOPs a call':>14s} {'MiB a device':>13s} {'compiled in':>12s}"
    for program in programs(run.selected(names), context):
        if wanting := [name for name in program.needs if not _finished(name, context)]:
            yield f"{program.name:48s} later: needs {' and '.join(wanting)} finished"
            continue
        made = compiled(program)
        memory = "-" if made.memory is None else f"{made.memory / 2**20:,.0f}"
        line = f"{program.name:48s} {made.flops / 1e9:14,.2f} {memory:>13s} {made.seconds:10.1f} s"
        if made.memory is not None and limit is not None and made.memory > limit:
            line += f"  more than the {limit / 2**20:,.0f} MiB of a device: take smaller batches"
        yield line


def compiled(program: Program) -> Compiled:
    """Traces and compiles a program."""
    began = time.perf_counter()
    lowered = program.lower()
    executable = lowered.compile()
    seconds = time.perf_counter() - began
    needs, memory = executable.memory_analysis(), None
    if needs is not None:
        memory = needs.argument_size_in_bytes + needs.output_size_in_bytes
        memory += needs.temp_size_in_bytes - needs.alias_size_in_bytes
    return Compiled(seconds, ledger.counted(lowered), memory)


def programs(selected: Sequence[Spec], context: Context) -> list[Program]:
    """Those of the stages `selected`, each once."""
    names = {spec.stage for spec in selected}
    found = []
    if "generator" in names and (described := _generator(context)) is not None:
        found.append(Program("generator", lambda: training.lower([described])))
    if "extractor" in names:
        found.append(Program("extractor", lambda: training.lower([_extractor(context)])))
    if "synthesize" in names:
        lower = functools.partial(synthesis.lower, context)
        found.append(Program("synthesize", lower, ("generator", "extractor")))
    if "mixing" in names:
        lower = functools.partial(policy_learning.lower, context)
        found.append(Program("mixing", lower, ("extractor", "synthesize")))
    found += _classifiers([s for s in selected if s.stage.startswith("classify/")], context)
    return found + _detectors([s for s in selected if s.stage.startswith("detect/")], context)


def _generator(context: Context) -> training.Training | None:
    base, _ = stages.generator_base(context)
    folder = context.store.folder(context.specs["generator"])
    return diffusion_train.describe(
        context.generator,
        context.data[1],
        context.train_rows,
        context.job(folder, stage="generator"),
        context.annotations.columns,
        base,
    )


def _extractor(context: Context) -> training.Training:
    config = context.config.extractor
    folder = context.store.folder(context.specs["extractor"])
    job = context.job(folder, stage="extractor")
    data = classification.train_data(context)
    if config.objective == "contrastive":
        return contrastive.describe(config, data.real, data.train_rows, data.image_shape, job)
    controller = controllers.real_only(data.counts, config.sampler)
    return classify_train.describe(stages.extractor_recipe(config), data, controller, job)


def _classifiers(specs: Sequence[Spec], context: Context) -> list[Program]:
    """One a recipe, whatever its arms and seeds, and a size of populations."""
    specs, groups = populations.distinct(specs), []
    if context.config.runtime.classifiers > 1:
        groups = populations.chunks(specs, context)
    together = {spec.stage for group in groups for spec in group}
    groups += [[spec] for spec in specs if spec.stage not in together]
    found: dict[tuple[classify_train.Recipe, int], list[Spec]] = {}
    for group in groups:
        recipe = classification.recipe_of(context.config, *specs_lib.arm_and_seed(group[0]))
        alike = found.setdefault((dataclasses.replace(recipe, seed=0), len(group)), [])
        alike += group
    made = []
    for (_, size), alike in found.items():
        made += _steps(alike, size, context)
    return made + _second_stages(specs, context)


def _steps(specs: Sequence[Spec], size: int, context: Context) -> list[Program]:
    """The step of classifiers of one recipe, `size` of them together.

    It is the same whether an arm has synthetic images or not, but for soft labels, so that those
    serve whose inputs are there.
    """
    arms = list(dict.fromkeys(specs_lib.arm_and_seed(spec)[0] for spec in specs))
    name = f"classify: {', '.join(arms[:_NAMED])}"
    name += f" and {len(arms) - _NAMED} more" if len(arms) > _NAMED else ""
    named = lambda count: name + (f", {count} together" if count > 1 else "")
    how = context.config.runtime.population
    if size == 1:  # one an arm
        specs = list({specs_lib.arm_and_seed(spec)[0]: spec for spec in specs}.values())
        context = classification.on_its_devices(context)
    wanting = {
        spec.stage: [name for name in spec.inputs if not _finished(name, context)] for spec in specs
    }
    ready = [spec for spec in specs if not wanting[spec.stage]]
    if len(ready) < size:
        needs = dict.fromkeys(itertools.chain(*wanting.values()))
        return [Program(named(size), _never, tuple(needs))]
    made = []
    for alike in populations.described(ready, context):  # those with soft labels apart
        count = population.fitting(min(size, len(alike)), how, context.mesh.size) or 1
        lower = functools.partial(training.lower, alike[:count], how if count > 1 else "")
        made.append(Program(named(count), lower))
    return made


def _second_stages(specs: Sequence[Spec], context: Context) -> list[Program]:
    """The step of each second stage that has one; of an arm the first seed's."""
    config = context.config.classify
    context = classification.on_its_devices(context)
    made = {}
    for spec in specs:
        arm, _ = specs_lib.arm_and_seed(spec)
        second = decoupled.of(config.arms[arm], config.steps)
        if arm not in made and second is not None and second.steps:
            lower = functools.partial(_second_stage, second, spec, context)
            made[arm] = Program(f"classify: {second.kind} of {arm}", lower, tuple(spec.inputs))
    return list(made.values())


def _second_stage(
    second: decoupled.SecondStage, spec: Spec, context: Context
) -> jax.stages.Lowered:
    arm, seed = specs_lib.arm_and_seed(spec)
    recipe = classification.recipe_of(context.config, arm, seed)
    controller, data = classification.mixed_data(context, arm, seed)
    params = classify_train.init(recipe, len(data.train_rows), data.image_shape)
    job = context.job(context.store.folder(spec), stage="classify", arm=arm, seed=seed)
    mixture = controller.mixture(())
    return training.lower([decoupled.describe(second, recipe, data, mixture, params, job)])


def _detectors(specs: Sequence[Spec], context: Context) -> list[Program]:
    """One an arm: how many boxes a row has depends on what it draws from."""
    first = {specs_lib.arm_and_seed(spec)[0]: spec for spec in reversed(specs)}
    return [
        Program(f"detect: {arm}", functools.partial(_detector, spec, context), tuple(spec.inputs))
        for arm, spec in reversed(first.items())
    ]


def _detector(spec: Spec, context: Context) -> jax.stages.Lowered:
    folder = context.store.folder(spec)
    return training.lower([detection.describe(folder, context, *specs_lib.arm_and_seed(spec))])


def _never() -> jax.stages.Lowered:
    raise AssertionError("a program whose inputs are wanting is not traced")


def _finished(stage: str, context: Context) -> bool:
    return distributed.told(lambda: context.store.done(context.specs[stage]))


def _limit(context: Context) -> int | None:
    """Bytes of memory that a device has; None where it does not say."""
    told = context.mesh.local_devices[0].memory_stats() or {}
    return told.get("bytes_limit")
