"""Finished work, addressed by what it was made from.

The artifact of a stage is a folder `<store>/<stage>-<key>`, where the key is the sha256 of the
config fields that the stage reads, the keys of its inputs and the stage's schema version.
`artifact.json` is written last and atomically: a folder without it is unfinished work, which the
stage may go on with. The workdir links to its artifacts by name.
"""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

from lt_jax.errors import UserError
from lt_jax.runtime import files
from lt_jax.runtime.ledger import Ledger

MARK = "artifact.json"  # written last, into a finished stage's folder
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class OccupiedError(UserError, FileExistsError):
    """A folder, which may hold something of the user's, stands where a link belongs."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """What an artifact is made from.

    Attributes:
      stage: e.g. "generator", or "classify/ce/seed0".
      schema: version of the stage's code; raised when the same config would give other results.
      config: the config fields that the stage reads, JSON-able.
      inputs: keys of the artifacts that it reads, by their stages' names.
    """

    stage: str
    schema: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def key(self) -> str:
        """The cache key, 64 hex digits."""
        # The name's first part only: two arms that differ in name alone are the same work.
        content = [self.stage.split("/")[0], self.schema, self.config, dict(self.inputs)]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """Artifacts of one workdir, in the workdir itself or in a cache that several share."""

    def __init__(self, workdir: pathlib.Path, cache: pathlib.Path | None = None):
        """Artifacts lie in `cache`, or in `workdir`/artifacts."""
        self._workdir = workdir.resolve()
        self.root = (cache or workdir / "artifacts").resolve()

    def folder(self, spec: Spec) -> pathlib.Path:
        """Where the artifact lies or is going to lie."""
        return self.root / f"{spec.stage.split('/')[0]}-{spec.key[:16]}"

    def done(self, spec: Spec) -> bool:
        """Whether it is finished."""
        return (self.folder(spec) / MARK).exists()

    def open(self, spec: Spec) -> pathlib.Path:
        """Makes the folder of unfinished work, and the workdir's link to it."""
        folder = self.folder(spec)
        folder.mkdir(parents=True, exist_ok=True)
        link(self._workdir / spec.stage, folder)
        return folder

    def finish(self, spec: Spec, ledger: Ledger) -> None:
        """Marks the artifact as finished. Everything else in it must be on disk by now."""
        description = {
            "stage": spec.stage,
            "schema": spec.schema,
            "key": spec.key,
            "inputs": dict(spec.inputs),
            "config": dict(spec.config),
            "versions": versions(),
            "ledger": dataclasses.asdict(ledger),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        files.write_atomically(
            self.folder(spec) / MARK, json.dumps(description, indent=1), "an artifact"
        )

    def ledger(self, spec: Spec) -> Ledger:
        """What the finished artifact has cost."""
        description = json.loads((self.folder(spec) / MARK).read_text())
        return Ledger.of(description["ledger"])


def link(at: pathlib.Path, target: pathlib.Path) -> None:
    """Makes `at` a relative symbolic link to `target`, replacing an older link in one step.

    Raises:
      OccupiedError: `at` is a folder, which may hold something of the user's.
    """
    if at.is_dir() and not at.is_symlink():
        raise OccupiedError(f"{at} is a folder, but a link to {target} belongs there: move it")
    at.parent.mkdir(parents=True, exist_ok=True)
    temporary = at.with_name(f".{at.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    # Resolved: ".." in a link is followed from where a folder lies, not from how it was reached.
    temporary.symlink_to(os.path.relpath(target.resolve(), at.parent.resolve()))
    temporary.replace(at)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }
