r"""What a training's loop takes beside its steps: waiting for batches, checkpoints, logging.

    python -m experiments.throughput.overheads [--only=digits] [--out=FILE.json]

The product's own training of a generator, loader, loop, checkpoints and logs included, on the
demo's config and at 64 px with a reduced network, once to compile and then timed a few times, anew
each time. Seconds of every checkpoint and of every line of metrics are taken where the loop calls
them; both block it. Of a step's time they are, at the config's own intervals,

  checkpoint  seconds of one / (checkpoint_every * seconds of a step)                     (1)
  logging     seconds of one / (log_every * seconds of a step)                            (2)
  loader      seconds waited for batches / all seconds of the loop                        (3)

(3) is from the run's ledger: what the host waited, while devices may still have been busy.
"""

import contextlib
import dataclasses
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags, logging
from jax.sharding import Mesh

from experiments.throughput import contests, devices, timing
from experiments.throughput.cases import generator_of, shape_of
from lt_jax import command
from lt_jax.config import Config
from lt_jax.data.images import ArrayImages
from lt_jax.diffusion import train as diffusion_train
from lt_jax.runtime import loop, metrics, progress
from lt_jax.runtime.job import Job

# Most of a step's time that each may take.
LIMITS = {"loader": 0.05, "checkpoint": 0.02, "logging": 0.01}
_BLOCKING = {
    "checkpoint": [(loop.Loop, "save")],
    "logging": [(metrics.MetricWriter, "write"), (progress.Progress, "update")],
}


@contextlib.contextmanager
def booked() -> Iterator[dict[str, list[float]]]:
    """Seconds of each call of what blocks the loop, by kind, while the block lasts."""
    seconds: dict[str, list[float]] = {kind: [] for kind in _BLOCKING}
    before = [(owner, name, getattr(owner, name)) for parts in _BLOCKING.values()
              for owner, name in parts]  # fmt: skip

    def timed(method: Any, kind: str) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            since = time.perf_counter()
            try:
                return method(*args, **named)
            finally:
                seconds[kind].append(time.perf_counter() - since)

        return call

    for kind, parts in _BLOCKING.items():
        for owner, name in parts:
            setattr(owner, name, timed(getattr(owner, name), kind))
    try:
        yield seconds
    finally:
        for owner, name, method in before:
            setattr(owner, name, method)


def shares(config: Config, told: dict[str, Any]) -> dict[str, float]:
    """Equations (1) to (3) of one training; `told` is what `train` gives."""
    runtime, steps = config.runtime, config.generator.steps
    blocked = sum(told["checkpoint"]) + sum(told["logging"])
    step = (told["seconds"] - blocked) / steps
    # Both calls of logging belong to one line: `write`, and the bar's `update`.
    lines = max(1, len(told["logging"]) // 2)
    return {
        "loader": told["data_wait"] / told["seconds"],
        "checkpoint": statistics.mean(told["checkpoint"]) / (runtime.checkpoint_every * step),
        "logging": sum(told["logging"]) / lines / (runtime.log_every * step),
        "step_milliseconds": 1e3 * step,
        "checkpoint_milliseconds": 1e3 * statistics.mean(told["checkpoint"]),
    }


def train(config: Config, images: Any, classes: int, device_mesh: Mesh) -> dict[str, Any]:
    """One training of the generator from the beginning: its ledger, and what blocked the loop."""
    rows = np.array_split(np.arange(len(images)), classes)
    with tempfile.TemporaryDirectory() as folder, booked() as seconds:
        costs = diffusion_train.train(
            generator_of(config, classes), images, rows,
            Job(pathlib.Path(folder), device_mesh, config.runtime, {"stage": "generator"}),
        )  # fmt: skip
    return {**seconds, "seconds": costs.seconds, "data_wait": costs.data_wait}


def measure(
    config: Config, count: int, classes: int, device_mesh: Mesh, turns: int
) -> dict[str, Any]:
    """Shares of `turns` trainings on `count` random images, after one that compiles."""
    drawn = np.random.default_rng(0).integers(0, 256, (count, *shape_of(config)), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "images.npy"
        np.save(path, drawn)
        images = ArrayImages(path)
        train(config, images, classes, device_mesh)
        found = [shares(config, train(config, images, classes, device_mesh)) for _ in range(turns)]
    return {
        name: dataclasses.asdict(timing.Spread.of([one[name] for one in found]))
        for name in found[0]
    }


def problems(steps: int) -> dict[str, tuple[Config, int, int]]:
    """Config, images and classes of what is measured, shortened to `steps`."""

    def shortened(config: Config, **model: Any) -> Config:
        generator = dataclasses.replace(
            config.generator,
            steps=steps,
            model=dataclasses.replace(config.generator.model, dtype="float32", **model),
        )
        return dataclasses.replace(config, generator=generator)

    small = {"channels": (16, 32), "blocks": 1, "attention_resolutions": (), "dropout": 0.0}
    isic = shortened(contests.load("configs/isic2019.py"), **small)
    isic = dataclasses.replace(isic, generator=dataclasses.replace(isic.generator, batch_size=16))
    return {
        "configs/digits.py": (shortened(contests.load("configs/digits.py")), 331, 10),
        "configs/isic2019.py, channels 16-32, batch 16": (isic, 1_000, 8),
    }


def table(result: dict[str, dict[str, Any]]) -> str:
    """Markdown: shares in percent of the time, with the limit of each."""
    heads = [f"{kind} (under {limit:.0%})" for kind, limit in LIMITS.items()]
    lines = [
        f"| training | ms a step | {' | '.join(heads)} | ms a checkpoint |",
        "|---|---|" + "---|" * len(heads) + "---|",
    ]
    for name, told in result.items():
        cells = [
            f"{told[kind]['median']:.2%} ({told[kind]['min']:.2%} - {told[kind]['max']:.2%})"
            for kind in LIMITS
        ]
        step, saved = (timing.spread(told[f"{of}_milliseconds"]) for of in ("step", "checkpoint"))
        lines.append(f"| {name} | {step} | {' | '.join(cells)} | {saved} |")
    return "\n".join(lines)


def _main(argv: Sequence[str]) -> None:
    del argv
    values = flags.FLAGS
    logging.set_verbosity(logging.WARNING)
    device_mesh = devices.of_two_cores()
    result = {
        name: measure(config, count, classes, device_mesh, values.turns)
        for name, (config, count, classes) in problems(values.steps).items()
        if values.only in name
    }
    print(table(result))
    if values.out:
        told = {"load_average": list(os.getloadavg()), "steps": values.steps, "rows": result}
        timing.save(values.out, told)


if __name__ == "__main__":
    flags.DEFINE_integer("steps", 100, "updates of a training", lower_bound=2)
    flags.DEFINE_string("only", "", "trainings whose name has this in it")
    flags.DEFINE_integer("turns", 3, "timed trainings", lower_bound=1)
    flags.DEFINE_string("out", None, "JSON file to write")
    command.experiment(_main)
