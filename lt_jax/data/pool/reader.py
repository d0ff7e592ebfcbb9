"""Reads a finished pool, for the users of the manifest whose train rows its generator saw."""

import pathlib

import numpy as np
from jaxtyping import Int

from lt_jax.data.pool import schema
from lt_jax.data.pool.records import Records


class PoolReader(Records):
    """A finished pool. `reader[rows]` are images [n, h, w, c] by row of the table.

    Attributes:
      info: what all records share.
      outcomes: what became of each class.
    """

    def __init__(self, folder: pathlib.Path, manifest_sha256: str):
        """Opens a pool for the users of one manifest.

        Raises:
          ForeignPoolError: the pool's generator saw the train rows of another manifest.
          PoolError: the pool is missing, unfinished, damaged or of another version.
        """
        self.info, self.outcomes = schema.read_description(folder)
        if self.info.manifest_sha256 != manifest_sha256:
            raise schema.ForeignPoolError(
                f"{folder} was generated from manifest {self.info.manifest_sha256[:12]}, this run "
                f"uses {manifest_sha256[:12]}: its images may show this run's test groups. "
                "Generate a pool from this split (stages generator and synthesize)"
            )
        super().__init__(folder, schema.read_table(folder / schema.TABLE))

    def counts(self, verdict: str = "accepted") -> Int[np.ndarray, "k"]:
        """Records of each class with one verdict."""
        own = self.columns["label"][self.columns["verdict"] == verdict]
        return np.bincount(own, minlength=len(self.info.classes))


def open_pool(folder: pathlib.Path) -> PoolReader:
    """A finished pool of whichever manifest: to be looked at, not to be trained on.

    Raises:
      PoolError: missing, unfinished, damaged or of another version.
    """
    info, _ = schema.read_description(folder)
    return PoolReader(folder, info.manifest_sha256)
