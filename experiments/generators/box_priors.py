r"""How near sampled boxes come to those of train: cross-validated bandwidth against BUSGen's 0.001.

    python -m experiments.generators.box_priors --config=configs/busi.py --workdir=runs/busi \
        --config.data.root=DIR

Needs the stage prepare of that workdir.
"""

import pathlib
from typing import Any

import numpy as np
from absl import flags

from lt_jax import command
from lt_jax.diffusion import priors
from lt_jax.pipeline import Pipeline
from lt_jax.runtime import mesh

_CONFIG = command.define_config("of the run")
_WORKDIR = flags.DEFINE_string("workdir", None, "of the run", required=True)
DRAWS = 500  # images of each class
BANDWIDTHS = (None, 0.001)  # None: by cross-validation


def measure(context: Any) -> list[dict[str, Any]]:
    """One row a class and bandwidth."""
    manifest, _ = context.data
    rows = manifest.rows("train")
    boxes, labels = context.annotations.columns["boxes"][rows], manifest.labels[rows]
    held, counts = priors.by_class(boxes, labels, len(manifest.classes))
    found = []
    for bandwidth in BANDWIDTHS:
        prior = priors.BoxPrior.fit(held, counts, bandwidth=bandwidth)
        for k, name in enumerate(manifest.classes):
            if not len(held[k]):
                continue
            drawn = prior.sample(0, np.arange(DRAWS), np.full(DRAWS, k)).reshape(-1, 4)
            report = priors.distance_report(drawn, held[k])
            found.append({"class": name, "n": len(held[k]), "bandwidth": bandwidth, "of": report})
    return found


def main(_: list[str]) -> None:
    """Prints the table."""
    mesh.configure_devices(1, None)
    run = Pipeline(_CONFIG.value, pathlib.Path(_WORKDIR.value))
    print("| class | boxes | bandwidth | sampled to train | train to train | near copies |")
    print("|---|---|---|---|---|---|")
    for row in measure(run.context()):
        report = row["of"]
        width = "cross-validated" if row["bandwidth"] is None else f"{row['bandwidth']:g}"
        print(
            f"| {row['class']} | {row['n']} | {width} | {report.sampled:.3f} "
            f"| {report.train:.3f} | {report.near_copies:.2f} |"
        )


if __name__ == "__main__":
    command.experiment(main)
