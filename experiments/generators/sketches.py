r"""Do samples obey a sketch that is given? Edge F1 against chance, by class of the sketch's image.

    python -m experiments.generators.sketches --config=configs/phantom.py --out=runs/generators

Takes the generator of the variant `sketch`, gives it class and sketch of val images, which it has
not seen, and compares the edges of what it makes with the sketch: beside them the edges of samples
that were given the class alone, and the F1 of sketches of other images of the same class (chance).
"""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import arms
from experiments.generators import generators
from lt_jax import command
from lt_jax.data import augment
from lt_jax.diffusion import program, sketch, trained
from lt_jax.diffusion.requests import Request
from lt_jax.evaluate.statistics import tables
from lt_jax.models import conditioning
from lt_jax.runtime import files, keys, mesh

FLAGS = flags.FLAGS
PER_CLASS = 32


def measure(context: Any, seed: int = 0) -> dict[str, Any]:
    """F1 of each class's samples with and without their sketch, and chance."""
    manifest, images = context.data
    generator, config = context.generator, context.config
    params = trained.load(context.folder("generator"), generator, config.synthesize.ema_length)
    edges = functools.partial(sketch.edges, scale=config.generator.sketch.scale)
    val = manifest.rows("val")
    found = []
    for k, name in enumerate(manifest.classes):
        rows = val[manifest.labels[val] == k][:PER_CLASS]
        asked = edges(augment.normalize(images[rows]))
        told = conditioning.nulls(generator.vocabulary, len(rows), *generator.image_shape[:2])
        told = dataclasses.replace(told, label=jnp.full(len(rows), k, jnp.int32))
        values = {"chance": sketch.chance_f1(asked, asked)}
        for way, present, drawn in (
            ("with", ("label", "sketch"), images[rows]),
            ("without", ("label",), None),
        ):
            networks = program.Networks(generator, config.extractor.model, present)
            make = functools.partial(program.make_images, config.synthesize, networks)
            made = jax.jit(make)(
                params, keys.root(seed), jnp.arange(len(rows)), Request(told, drawn=drawn)
            )
            values[way] = sketch.edge_f1(edges(augment.normalize(made)), asked)
        found.append(
            {
                "class": name,
                "n": len(rows),
                **{way: arms.summary(np.asarray(v).tolist()) for way, v in values.items()},
            }
        )
    return {"edge_f1": found}


def main(_: list[str]) -> None:
    """Prints the table and writes sketches.json."""
    out = pathlib.Path(FLAGS.out)
    run = generators.pipeline_of(FLAGS.config, out, "sketch")
    mesh.configure_devices(run.config.runtime.cpu_devices, str(out / ".jax_cache"))
    found = measure(run.context())
    files.write_atomically(out / "sketches.json", json.dumps(found, indent=1), "the sketches")
    ways = ("with", "without", "chance")
    rows = tuple(
        (row["class"], *(arms.mean_cell(row[way]) for way in ways)) for row in found["edge_f1"]
    )
    table = tables.Table(("Class", "With its sketch", "Without", "Chance"), rows, "n: sketches")
    print(tables.to_markdown(table))


if __name__ == "__main__":
    command.experiment(main)
