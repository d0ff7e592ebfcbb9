r"""Cost against size: pixels, images and classes, and where a curve bends.

    python -m experiments.throughput.sizes [--axis=pixels|images|classes] [--out=FILE.json] \
        [--figure=FILE.png]

Networks are reduced (a few channels, batches of 4), so that 224 px takes seconds on a CPU: what is
told is how cost grows, not what it is. The slope from one size to the next is

  log(seconds' / seconds) / log(size' / size)                                             (1)

1 where twice the size takes twice as long, 2 where it takes four times as long. Of N, the
classifiers that the mixing policy trains at once, `mixing.py` and `populations.py` tell.
"""

import dataclasses
import math
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from jax.sharding import Mesh

from experiments.throughput import cases as cases_lib
from experiments.throughput import contests, sampling, timing
from experiments.throughput.cases import Case
from lt_jax import command
from lt_jax.config import AugmentConfig, ClassifierConfig, Config, ViTConfig
from lt_jax.data import duplicates
from lt_jax.runtime import mesh

SIZES = {
    "pixels": (28, 64, 128, 224),
    "images": (1_000, 10_000, 100_000),
    "classes": (2, 10, 100, 1_000),
}
_BATCH = 4
_VIT = ViTConfig(variant="custom", width=32, depth=2, heads=2, mlp=64, patch_size=4)


def reduced(side: int, attends: bool = False) -> Config:
    """A config of small networks; `attends`: attention at a fourth of the side."""
    config = contests.load("configs/digits.py")
    unet = dataclasses.replace(
        config.generator.model, channels=(8, 16, 16), blocks=1, embedding=32, head_channels=16,
        attention_resolutions=(side // 4,) if attends else (),
    )  # fmt: skip
    augment = AugmentConfig(shift=1)
    generator = dataclasses.replace(
        config.generator, model=unet, batch_size=_BATCH, augment=augment
    )
    model = ClassifierConfig(vit=_VIT)
    part = {"batch_size": _BATCH, "model": model, "augment": augment}
    return dataclasses.replace(
        config,
        generator=generator,
        classify=dataclasses.replace(config.classify, **part),
        extractor=dataclasses.replace(config.extractor, **part),
        data=dataclasses.replace(config.data, image_size=side),
        synthesize=dataclasses.replace(config.synthesize, batch_size=_BATCH, steps=2),
    )


def by_pixels(side: int, device_mesh: Mesh, folder: pathlib.Path) -> dict[str, Case]:
    """Both trainings, with and without attention among all places."""
    train = cases_lib.generator_training
    classify = cases_lib.classifier_training
    return {
        "UNet training": train(reduced(side), 10, device_mesh),
        "UNet training, attention at side / 4": train(reduced(side, True), 10, device_mesh),
        "ViT training, patch 4": classify(reduced(side), 10, device_mesh),
    }


def by_images(count: int, device_mesh: Mesh, folder: pathlib.Path) -> dict[str, Case]:
    """The search for near-duplicates, a batch of the loader, and sampling that looks for copies.

    All of a set of so many images.
    """
    rng = np.random.default_rng(0)
    shape = count, duplicates.THUMBNAIL, duplicates.THUMBNAIL
    thumbnails = rng.uniform(size=shape).astype(np.float32)
    search = lambda: duplicates.near_duplicates(thumbnails, 0.01)
    config = reduced(28)
    found = cases_lib.memory_loader(config, 10, folder, count)
    return {
        "near-duplicates of a set": Case("duplicates", search, 1),
        "a batch of the loader": dataclasses.replace(found, images=1),
        "sampling with gates, 2 steps": sampling.fused(reduced(8), 10, device_mesh, count),
    }


def by_classes(classes: int, device_mesh: Mesh, folder: pathlib.Path) -> dict[str, Case]:
    """Classifier, sampling with gates of so many classes, and the loader."""
    config = reduced(8)
    return {
        "ViT training, patch 4": cases_lib.classifier_training(config, classes, device_mesh),
        "sampling with gates, 2 steps": sampling.fused(config, classes, device_mesh, 2_000),
        "a batch of the loader": cases_lib.memory_loader(config, classes, folder, 2_000),
    }


AXES: dict[str, Callable[[int, Mesh, pathlib.Path], dict[str, Case]]] = {
    "pixels": by_pixels, "images": by_images, "classes": by_classes,
}  # fmt: skip


def measure(
    axis: str, sizes: Sequence[int], device_mesh: Mesh, *, repetitions: int, seconds: float
) -> list[dict[str, Any]]:
    """Seconds a call at each size, with slopes; what is at one size takes turns."""
    rows: list[dict[str, Any]] = []
    before: dict[str, dict[str, Any]] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            cases = AXES[axis](size, device_mesh, pathlib.Path(folder))
            with timing.closing(list(cases.values())):
                rates = timing.time_all(list(cases.values()), repetitions, seconds)
        for (name, case), own in zip(cases.items(), rates, strict=True):
            spent = timing.Spread.of([case.images / rate for rate in own])
            row = {
                "axis": axis, "size": size, "name": name, "seconds": dataclasses.asdict(spent),
                "flops": case.flops or None, "memory_bytes": case.memory or None,
                "slope": _slope(before.get(name), size, "seconds", spent.median),
                "memory_slope": _slope(before.get(name), size, "memory_bytes", case.memory),
            }  # fmt: skip
            before[name] = row
            rows.append(row)
            said = f"{name}, {size:,} {axis}: {1e3 * spent.median:,.3g} ms"
            print(said, file=sys.stderr, flush=True)
        jax.clear_caches()
    return rows


def _slope(before: dict[str, Any] | None, size: int, field: str, value: float) -> float | None:
    """Equation (1)."""
    if before is None or not value:
        return None
    past = before[field]["median"] if isinstance(before[field], dict) else before[field]
    return math.log(value / past) / math.log(size / before["size"])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    number = timing.number
    lines = [
        "| what | size | ms a call | slope | MiB | slope |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["axis"], row["name"], row["size"])):
        spent = {name: 1e3 * value for name, value in row["seconds"].items() if name != "n"}
        memory = row["memory_bytes"]
        slopes = [
            "" if row[name] is None else f"{row[name]:.2f}" for name in ("slope", "memory_slope")
        ]
        lines.append(
            f"| {row['name']} | {row['size']:,} {row['axis']} | {timing.spread(spent)} "
            f"| {slopes[0]} | {number(memory and memory / 2**20)} | {slopes[1]} |"
        )
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """A panel an axis, both scales logarithmic; dashed: slope 1 and 2."""
    from matplotlib.figure import Figure

    axes = [axis for axis in AXES if any(row["axis"] == axis for row in rows)]
    figure = Figure(figsize=(4.2 * len(axes), 3.4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(axes)))
    for axis, panel in zip(axes, panels, strict=True):
        own = [row for row in rows if row["axis"] == axis]
        for name in dict.fromkeys(row["name"] for row in own):
            line = [row for row in own if row["name"] == name]
            spent = [1e3 * row["seconds"]["median"] for row in line]
            panel.plot([row["size"] for row in line], spent, "o-", ms=3, lw=1, label=name)
        sizes = np.array(sorted({row["size"] for row in own}), float)
        least = min(1e3 * row["seconds"]["median"] for row in own)
        for power in (1, 2):
            panel.plot(sizes, least * (sizes / sizes[0]) ** power, "--", color="0.8", lw=0.8)
        panel.set(xscale="log", yscale="log", xlabel=axis, ylabel="ms a call")
        panel.set_ylim(least / 2, 4e3 * max(row["seconds"]["median"] for row in own))
        panel.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
        panel.minorticks_off()
        panel.legend(fontsize=6, frameon=False)
    figure.savefig(path, dpi=110)


def _main(_: list[str]) -> None:
    values = flags.FLAGS
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_num_cpu_devices", 1)
    device_mesh = mesh.make_mesh(1)
    rows = []
    for axis in [values.axis] if values.axis else AXES:
        rows += measure(
            axis, SIZES[axis], device_mesh, repetitions=values.repetitions, seconds=values.seconds
        )
    print(table(rows))
    if values.figure:
        draw(rows, pathlib.Path(values.figure))
    if values.out:
        kind = jax.devices()[0].device_kind
        result = {"device": kind, "load_average": list(os.getloadavg()), "rows": rows}
        timing.save(values.out, result)


if __name__ == "__main__":
    flags.DEFINE_enum("axis", None, sorted(AXES), "one of them alone")
    flags.DEFINE_integer("repetitions", 3, "timed turns", lower_bound=1)
    flags.DEFINE_float("seconds", 0.3, "that a turn of a case lasts, about", lower_bound=0.0)
    flags.DEFINE_string("out", None, "JSON file to write")
    flags.DEFINE_string("figure", None, "PNG file to write")
    command.experiment(_main)
