"""Where a training runs and under which name: what all trainings are told alike."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from lt_jax.config import RuntimeConfig


@dataclasses.dataclass(frozen=True)
class Job:
    """One training's place.

    Attributes:
      folder: holds `checkpoints/` and `metrics.jsonl`.
      mesh: whose devices make its updates.
      runtime: how often it logs and saves, how it loads.
      tags: mark every line of metrics, such as stage, arm and seed, and name it in messages.
    """

    folder: pathlib.Path
    mesh: Mesh
    runtime: RuntimeConfig
    tags: Mapping[str, Any]

    @property
    def name(self) -> str:
        """For messages."""
        return " ".join(str(value) for value in self.tags.values())
