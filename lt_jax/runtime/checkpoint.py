"""Checkpoints of one training: a pytree and a JSON note an atomic step, verified by digest.

orbax ignores half-written steps but restores flipped bits silently, so each step carries a sha256
of its arrays; a step that does not match is dropped with a warning and the one before is used. A
step that is intact but does not fit (another network's) is an error: nothing is dropped.
"""

import hashlib
import json
import pathlib
import shutil
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from lt_jax.runtime import files

T = TypeVar("T")


def digest(tree: Any) -> str:
    """sha256 over paths, types, shapes and bytes of a pytree's arrays."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(jax.device_get(tree)):
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def layout(tree: Any) -> str:
    """sha256 over paths, types and shapes of a pytree's arrays."""
    leaves = jax.tree.leaves_with_path(tree)
    lines = [f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}" for path, leaf in leaves]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Checkpointer:
    """The last two steps of one training, in one folder."""

    def __init__(self, folder: pathlib.Path):
        """Opens (and makes) `folder`."""
        self._folder = folder.absolute()
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.LatestN(2),
                # Synchronous: a step exists when `save` returns, and buffers may then be donated.
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,  # of a process that was killed while it saved
            ),
        )

    def save(self, step: int, state: Any, note: dict[str, Any]) -> None:
        """Writes `state` (pytree of arrays) and `note` (JSON) as `step`, atomically.

        A step that stands there already is left as it is: the same training made it.

        Raises:
          DiskFullError: no space left; the steps before are intact.
          ValueError: a later step stands there.
        """
        host = jax.device_get(state)
        note = {**note, "layout": layout(host), "digest": digest(host)}
        with files.disk_errors(self._folder, "the checkpoint"):
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(host), note=ocp.args.JsonSave(note)
                ),
            )
        if not saved and step not in self._manager.all_steps():
            raise ValueError(
                f"{self._folder}: step {step} is not saved, since step "
                f"{self._manager.latest_step()} is there already"
            )

    def restore(self, target: T) -> tuple[int, T, dict[str, Any]] | None:
        """The newest intact step as `(step, state, note)`, or None where there is none.

        Args:
          target: a pytree with the state's structure, shapes and shardings.

        Raises:
          ValueError: the newest readable step does not fit `target`.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            fits, reason = True, "its digest does not match"
            try:
                note = self._read(step, note=ocp.args.JsonRestore())
                fits = note.pop("layout") == layout(target)
                if fits:
                    state = self._read(step, state=ocp.args.StandardRestore(target))
                    if note.pop("digest") == digest(state):
                        return step, state, note
            except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if not fits:
                raise ValueError(
                    f"{self._folder}/{step} holds arrays of other names, types or shapes than "
                    "this training's; other code or libraries wrote it: go on with those, or "
                    "delete the folder to train anew"
                )
            logging.warning(
                "checkpoint %s/%d is corrupt (%s): dropped, the one before it is tried",
                self._folder,
                step,
                reason,
            )
            self._manager.delete(step)
        return None

    def _read(self, step: int, **item: Any) -> Any:
        (name,) = item
        return self._manager.restore(step, args=ocp.args.Composite(**item))[name]

    def close(self) -> None:
        """Waits for orbax and frees its threads."""
        self._manager.close()


def save_tree(folder: pathlib.Path, tree: Any) -> None:
    """Writes one finished pytree (a stage's result), replacing what was there."""
    shutil.rmtree(folder, ignore_errors=True)
    checkpointer = Checkpointer(folder)
    checkpointer.save(0, tree, {})
    checkpointer.close()


def load_tree(folder: pathlib.Path, target: T) -> T:
    """Reads what `save_tree` wrote.

    Raises:
      ValueError: there is no intact pytree in `folder`.
    """
    checkpointer = Checkpointer(folder)
    try:
        restored = checkpointer.restore(target)
    finally:
        checkpointer.close()
    if restored is None:
        raise ValueError(f"{folder}: no intact checkpoint; delete its stage's folder and rerun")
    return restored[1]
