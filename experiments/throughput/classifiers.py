r"""Times the training of several classifiers: one after the other, by one program, on own devices.

    python -m experiments.throughput.classifiers [--only=digits] [--members=1,4,8] [--out=FILE.json]

Each way makes one update of each of N classifiers as the training loop does: from batches on the
host, through the product's own layouts and compiled steps. The reference is the program of one
classifier, called N times. `chunks of 2` is a vmap of two in a loop, which the product does not
offer. A second table compares batches of pixels, streamed, with numbers of images that lie on the
devices, the loader included. Ways take turns; ratios are taken within a turn. Random images.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from jax.sharding import Mesh

from experiments.throughput import contests, devices, timing
from experiments.throughput.cases import Case, random_batch, shape_of
from lt_jax import command
from lt_jax.classify import train as classify_train
from lt_jax.config import Config
from lt_jax.data.stream import MixedStream
from lt_jax.runtime import mesh, population, resident, train_state
from lt_jax.runtime.job import Job

CLASSES, IMAGES = 10, 400
REFERENCE = "one after the other"
WAYS = ("vmap", "map", "devices")


@dataclasses.dataclass(frozen=True)
class Chunks(population.Together):
    """Two at a time by vmap, in a loop."""

    how: str = "vmap"

    def program(self, step: Any) -> Any:
        """What makes the updates of all."""

        def update(*members: Any) -> Any:
            return population.over(lambda one: step.function(*one), members, 2)

        whole, rows = mesh.replicated(self.device_mesh), mesh.batched(self.device_mesh, 1)
        shardings = (whole, rows, whole, whole)
        return jax.jit(update, in_shardings=shardings, out_shardings=whole, donate_argnums=0)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A classifier, in training, and its batches."""

    name: str
    config: Config
    batch_size: int

    @property
    def recipe(self) -> classify_train.Recipe:
        """Of the first arm."""
        part = self.config.classify
        loss = next(iter(part.arms.values())).loss
        return classify_train.Recipe(
            model=part.model, optimizer=part.optimizer, augment=part.augment, loss=loss, tau=1.0,
            steps=part.steps, rounds=1, batch_size=self.batch_size, seed=0,
        )  # fmt: skip

    def step(self, device_mesh: Mesh) -> Any:
        """The jitted update of one."""
        return classify_train.make_step(self.recipe, CLASSES, device_mesh)

    def fresh(self, count: int) -> list[train_state.TrainState]:
        """States of classifiers with seeds of their own."""
        optimizer = train_state.make_optimizer(self.recipe.optimizer, self.recipe.steps)
        recipes = [dataclasses.replace(self.recipe, seed=seed) for seed in range(count)]
        params = [classify_train.init(one, CLASSES, shape_of(self.config)) for one in recipes]
        return [train_state.create(one, optimizer, ema=False) for one in params]


def problems(batch_size: int) -> list[Problem]:
    """A ViT at 8 px, a residual network and a ViT at 32 px; `batch_size` 0: as configured."""
    found = []
    for name, path in (
        ("digits, ViT, 8 px", "configs/digits.py"),
        ("phantom, ResNet, 32 px", "configs/phantom.py"),
        ("HAM10000, ViT, 32 px", "configs/ham10000.py"),
    ):
        config = contests.load(path)
        found.append(Problem(name, config, batch_size or config.classify.batch_size))
    return found


def case(problem: Problem, name: str, count: int, layout: population.Layout) -> Case:
    """One update of each of `count` classifiers."""
    batch = random_batch(problem.config, CLASSES, problem.batch_size)
    prior = np.full(CLASSES, 100.0, np.float32)
    alone = name == REFERENCE
    groups = [[state] for state in problem.fresh(count)] if alone else [problem.fresh(count)]
    size = len(groups[0])
    held = [layout.restored([layout.target(state) for state in group]) for group in groups]
    keys = layout.keys([jax.random.key(seed) for seed in range(size)])
    context = layout.context([prior] * size)
    program = layout.program(problem.step(layout.device_mesh))
    turn = [0]

    def call() -> Any:
        turn[0] += 1
        for i, state in enumerate(held):
            placed = layout.batch([batch] * size)
            held[i], metrics = program(state, placed, layout.key(keys, turn[0]), context)
        return metrics

    return Case(name, call, count)


def ways(problem: Problem, count: int, device_mesh: Mesh) -> list[Case]:
    """All that `count` classifiers can be trained by."""
    found = [case(problem, REFERENCE, count, population.Alone(device_mesh))]
    if count == 1:
        return found
    for how in WAYS:
        if population.fitting(count, how, device_mesh.size) == count:
            layout = population.Together(device_mesh, how)
            found.append(case(problem, how, count, layout))
    if count > 2:
        found.append(case(problem, "chunks of 2", count, Chunks(device_mesh)))
    return found


def loading(problem: Problem, device_mesh: Mesh) -> list[Case]:
    """Batches from the loader onto the devices, and updates with them: streamed and resident."""
    shape = (IMAGES, *shape_of(problem.config))
    held: Any = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    layout, program = population.Alone(device_mesh), problem.step(device_mesh)
    prior = layout.context([np.full(CLASSES, 100.0, np.float32)])
    found = []
    for name, limit in (("streamed", 0), ("resident", 256)):
        stream = MixedStream(
            held, np.array_split(np.arange(IMAGES), CLASSES),
            batch_size=problem.batch_size, seed=0,
        )  # fmt: skip
        stream.set_mixture(np.full(CLASSES, 1 / CLASSES), np.zeros(CLASSES))
        runtime = dataclasses.replace(problem.config.runtime, resident_mib=limit)
        job = Job(pathlib.Path(), device_mesh, runtime, {"problem": problem.name})
        store = resident.settle([stream], job)

        def batch(stream: Any = stream, store: Any = store) -> Any:
            return resident.images(layout.batch([next(stream)]), store, device_mesh, 0)

        state = [layout.target(problem.fresh(1)[0])]

        def update(batch: Callable[[], Any] = batch, state: list = state) -> Any:
            state[0], metrics = program(state[0], batch(), jax.random.key(0), prior)
            return metrics

        # grain holds four batches, and one is under way.
        found += [Case(f"batch, {name}", batch, 1, drain=6, close=stream.close),
                  Case(f"update, {name}", update, 1, drain=6, close=stream.close)]  # fmt: skip
    return found


def measure(
    problem: Problem, members: Sequence[int], device_mesh: Mesh, turns: int, seconds: float
) -> list[dict[str, Any]]:
    """Updates of one classifier a second, by way, and how many times the reference's."""
    rows = []
    for count in members:
        rows += _rows(problem, count, ways(problem, count, device_mesh), turns, seconds)
    rows += _rows(problem, 1, loading(problem, device_mesh), turns, seconds)
    return rows


def _rows(
    problem: Problem, count: int, cases: Sequence[Case], turns: int, seconds: float
) -> list[dict[str, Any]]:
    with timing.closing(cases):
        rates = timing.time_all(cases, turns, seconds)
    found = {one.name: mine for one, mine in zip(cases, rates, strict=True)}
    rows = []
    for name, mine in found.items():
        below = found[name.replace("resident", "streamed") if "," in name else REFERENCE]
        rows.append({
            "problem": problem.name, "batch_size": problem.batch_size, "members": count,
            "way": name, "updates_per_second": dataclasses.asdict(timing.Spread.of(mine)),
            "times": timing.ratio(name, mine, below),
        })  # fmt: skip
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line a way, ratios with least and greatest over the turns."""
    lines = ["| classifier | N | way | updates/s | ratio | n |", "|---|---|---|---|---|---|"]
    for row in rows:
        rate, times = row["updates_per_second"], row["times"]
        same = times["min"] == times["max"] == 1
        lines.append(
            f"| {row['problem']}, batch {row['batch_size']} | {row['members']} | {row['way']} "
            f"| {timing.spread(rate)} | {'1' if same else timing.spread(times)} | {rate['n']} |"
        )
    return "\n".join(lines)


def _main(argv: Sequence[str]) -> None:
    del argv
    values = flags.FLAGS
    logging.set_verbosity(logging.WARNING)
    device_mesh, rows = devices.of_two_cores(), []
    for problem in problems(values.batch_size):
        if values.only in problem.name:
            members = [int(count) for count in values.members]
            own = measure(problem, members, device_mesh, values.turns, values.seconds)
            print(table(own), flush=True)
            rows += own
    if values.out:
        told = {
            "device": jax.devices()[0].device_kind, "devices": device_mesh.size,
            "jax": jax.__version__, "load_average": list(os.getloadavg()), "rows": rows,
        }  # fmt: skip
        timing.save(values.out, told)


if __name__ == "__main__":
    flags.DEFINE_string("only", "", "classifiers whose name has this in it")
    flags.DEFINE_list("members", "1,4,8", "how many classifiers")
    flags.DEFINE_integer("batch_size", 0, "images a batch; 0: as configured", lower_bound=0)
    flags.DEFINE_integer("turns", 5, "timed turns of each way", lower_bound=1)
    flags.DEFINE_float("seconds", 1.0, "about how long a way's turn lasts", lower_bound=0.0)
    flags.DEFINE_string("out", None, "JSON file to write")
    command.experiment(_main)
