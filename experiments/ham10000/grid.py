"""A grid of synthetic images by class: accepted ones on the left, rejected ones on the right.

python -m experiments.ham10000.grid --workdir=runs/ham --out=grid.png
"""

import pathlib

import numpy as np
from absl import flags
from PIL import Image

from lt_jax import command
from lt_jax.data import manifest
from lt_jax.data.pool import PoolReader

_WORKDIR = flags.DEFINE_string("workdir", None, "a run with a finished pool", required=True)
_OUT = flags.DEFINE_string("out", "grid.png", "the picture to write")
_ACCEPTED, _REJECTED, _SCALE = 12, 4, 2


def main(_: list[str]) -> None:
    """Writes the picture."""
    workdir = pathlib.Path(_WORKDIR.value)
    pool = PoolReader(workdir / "synthesize", manifest.load(workdir / "prepare").sha256)
    rows = []
    for k in range(len(pool.info.classes)):
        half = _REJECTED // 2
        rejected = np.concatenate([pool.rows(k, "ood")[:half], pool.rows(k, "label")[:half]])
        left, right = _strip(pool, pool.rows(k), _ACCEPTED), _strip(pool, rejected, _REJECTED)
        gap = np.full((left.shape[0], 8, left.shape[2]), 255, np.uint8)
        rows.append(np.concatenate([left, gap, right], axis=1))
    grid = np.concatenate(rows).squeeze()
    size = (grid.shape[1] * _SCALE, grid.shape[0] * _SCALE)
    Image.fromarray(grid).resize(size, Image.Resampling.NEAREST).save(_OUT.value)


def _strip(pool: PoolReader, rows: np.ndarray, count: int) -> np.ndarray:
    """The first `count` images of `rows` side by side; white where there are fewer."""
    images = pool[rows[:count]] if len(rows) else pool[np.array([0])][:0]
    blank = np.full((count - len(images), *images.shape[1:]), 255, np.uint8)
    return np.concatenate([*images, *blank], axis=1)


if __name__ == "__main__":
    command.experiment(main)
