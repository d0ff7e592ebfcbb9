"""Finished work, addressed by what it was made from.

The artifact of a stage is a folder `<store>/<stage>-<key>`, where the key is the sha256 of the
config fields that the stage reads, the keys of its inputs and the stage's schema version.
`artifact.json` is written last and atomically: a folder without it is unfinished work, which the
stage may go on with. The workdir links to its artifacts by name.

The mark holds the sha256 of the artifact's files, which are compared when a run first reads it; not
of a training's checkpoints, which nobody reads any more, nor of a pool's shards, whose records have
digests of their own.
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


# Folders whose content has digests of its own, or is never read again.
_APART = ("checkpoints", "events", "parts", "shards")


class ArtifactError(UserError, ValueError):
    """A finished artifact that is not what its stage wrote."""


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
        self._compared: set[pathlib.Path] = set()

    def folder(self, spec: Spec) -> pathlib.Path:
        """Where the artifact lies or is going to lie."""
        return self.root / f"{spec.stage.split('/')[0]}-{spec.key[:16]}"

    def done(self, spec: Spec) -> bool:
        """Whether it is finished."""
        return (self.folder(spec) / MARK).exists()

    def intact(self, spec: Spec) -> pathlib.Path:
        """The folder; of a finished artifact, once its files are what the stage wrote.

        Other processes than the first, which has finished it, wait until they see that it has.

        Raises ArtifactError where they are not; they are compared once in the store's life.
        """
        folder = self.folder(spec)
        if folder not in self._compared and files.appeared(folder / MARK):
            compare(folder)
            self._compared.add(folder)
        return folder

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
            "files": _digests(self.folder(spec)),
        }
        description["sha256"] = _digest(description)
        files.write_atomically(
            self.folder(spec) / MARK, json.dumps(description, indent=1), "an artifact"
        )

    def ledger(self, spec: Spec) -> Ledger:
        """What the finished artifact has cost."""
        return Ledger.of(describe(self.folder(spec))["ledger"])


def describe(folder: pathlib.Path) -> dict[str, Any]:
    """What the mark of a finished artifact says. Raises ArtifactError where it is damaged."""
    path = folder / MARK
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        told = described.pop("sha256", None)  # older ones have none
        if told not in (None, _digest(described)):
            raise ValueError("its sha256 does not match")
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: damaged ({error}); {_anew(folder)}") from error
    return described


def compare(folder: pathlib.Path) -> None:
    """Raises ArtifactError where a file of a finished artifact is missing or altered."""
    for name, told in describe(folder).get("files", {}).items():
        path = files.inside(folder, name, follow_links=True)
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; {_anew(folder)}")
        if _sha256(path) != told:
            raise ArtifactError(f"{path} is not what was written (sha256); {_anew(folder)}")


def _anew(folder: pathlib.Path) -> str:
    return f"delete the folder {folder} and run the same command again, which makes it anew"


def _digests(folder: pathlib.Path) -> dict[str, str]:
    """sha256 of each file by its path below `folder`."""
    found = {}
    for at, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if name not in _APART)
        for name in sorted(names):
            path = pathlib.Path(at, name)
            if name != MARK and not name.startswith("."):
                found[path.relative_to(folder).as_posix()] = _sha256(path)
    return found


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(description: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


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
