"""Checkpoints of one training: a pytree and a JSON note an atomic step, verified by digest.

orbax ignores half-written steps but restores flipped bits silently, so each step carries a sha256
of its arrays. A step that does not match it, or cannot be decoded, is put aside as `<step>.corrupt`
with a warning, and the one before is used. Where the storage fails, which may pass, or where the
step is intact but does not fit (another network's), that is an error and nothing is moved.

Steps hold whole arrays, whose digest depends on nothing else: of several processes the first one
gathers (the others hold no copy) and writes, all read. So a training may go on with other
processes, devices and shardings.

orbax takes 0.7 ms an array, however small, and a training's state has hundreds: its steps are
packed, one array a dtype. Those of a finished result keep their names, for others to read.
"""

import contextlib
import errno
import hashlib
import math
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from lt_jax.errors import UserError
from lt_jax.runtime import distributed, files, mesh

T = TypeVar("T")


_BESIDES = 2**20  # bytes that a step takes beside its arrays, at most


class CheckpointError(UserError, ValueError):
    """A checkpoint that is damaged, or is not this training's."""


class UnreadableError(UserError, OSError):
    """The storage failed while a checkpoint was read; what lies there may well be intact."""


class _DamagedError(Exception):
    """A step whose content is not what was saved."""


def digest(tree: Any) -> str:
    """sha256 over paths, types, shapes and bytes of a pytree's arrays."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(mesh.fetch(tree)):
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def layout(tree: Any) -> str:
    """sha256 over paths, types and shapes of a pytree's arrays."""
    leaves = jax.tree.leaves_with_path(tree)
    lines = [f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}" for path, leaf in leaves]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def newest(folder: pathlib.Path) -> int:
    """The newest step in `folder` by its name, be it intact or not; 0: there is none."""
    return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)


class Checkpointer:
    """The last two steps of one training, in one folder."""

    def __init__(self, folder: pathlib.Path, *, packed: bool = True):
        """Opens (and makes) `folder`; what it saves is packed, or keeps its arrays' names."""
        self._folder, self._packed = folder.absolute(), packed
        self._manager: Any = None  # of the process that writes
        distributed.on_first(self._open)

    def _open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.LatestN(2),
                # Synchronous: a step exists when `save` returns, and buffers may then be donated.
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,  # of a process that was killed while it saved
                create=False,
                multiprocessing_options=_by_itself(),
            ),
        )

    def save(self, step: int, state: Any, note: dict[str, Any]) -> None:
        """Writes `state` (pytree of arrays) and `note` (JSON) as `step`, atomically.

        A step that stands there already is left as it is: the same training made it.

        Raises:
          DiskFullError: no space left; the steps before are intact.
          CheckpointError: a later step stands there.
        """
        host = mesh.fetch_to_first(state)
        distributed.on_first(lambda: self._save(step, host, note))

    def _save(self, step: int, host: Any, note: dict[str, Any]) -> None:
        stored = _packed(host) if self._packed else host
        note = {**note, "layout": layout(host), "digest": digest(stored), "packed": self._packed}
        # Of a disk that fills up under it, orbax's threads go on complaining after the error.
        needed = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(stored)) + _BESIDES
        files.require_space(self._folder, needed, "the checkpoint")
        with files.disk_errors(self._folder, "the checkpoint"):
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(stored), note=ocp.args.JsonSave(note)
                ),
            )
        if not saved and step not in self._manager.all_steps():
            raise CheckpointError(
                f"{self._folder}: step {step} is not saved, since step "
                f"{self._manager.latest_step()} is there already; delete the folder to train anew"
            )

    def restore(self, target: T) -> tuple[int, T, dict[str, Any]] | None:
        """The newest intact step as `(step, state, note)`, or None where there is none.

        Args:
          target: a pytree with the state's structure, shapes and shardings.

        Raises:
          CheckpointError: the newest readable step does not fit `target`, or is not the same to
            this process as to the first.
          UnreadableError: the storage failed; nothing is moved.
        """
        found = distributed.on_first(lambda: self._newest(target))
        step = distributed.agree(found and found[0])
        if step is None:
            return None
        if found is None:  # this process is another than that which has verified the step
            files.appeared(self._folder / str(step))
            try:
                with _reading(self._folder) as manager:
                    found = step, *_read(manager, self._folder, step, target)
            except _DamagedError as error:
                raise CheckpointError(
                    f"{self._folder}/{step} is read differently here than by the first process "
                    f"({error}); see that all hosts see the same files, and run the same command "
                    "again"
                ) from error
        _, host, note = found
        return step, jax.tree.map(_place_like, host, target), note

    def _newest(self, target: T) -> tuple[int, T, dict[str, Any]] | None:
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return step, *_read(self._manager, self._folder, step, target)
            except _DamagedError as error:
                self._put_aside(step, error)
        return None

    def _put_aside(self, step: int, error: _DamagedError) -> None:
        aside = self._folder / f"{step}.corrupt"
        logging.warning(
            "checkpoint %s/%d is corrupt (%s): put aside as %s, the one before it is tried",
            self._folder,
            step,
            error,
            aside.name,
        )
        shutil.rmtree(aside, ignore_errors=True)  # of an earlier time: one is kept a step
        (self._folder / str(step)).rename(aside)
        self._manager.reload()

    def close(self) -> None:
        """Waits for orbax and frees its threads."""
        if self._manager is not None:
            self._manager.close()


def _by_itself() -> ocp.options.MultiprocessingOptions:
    """orbax waits for no other process."""
    if not jax.distributed.is_initialized():
        return ocp.options.MultiprocessingOptions()
    mine = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=mine, active_processes={mine}, barrier_sync_key_prefix=f"process{mine}"
    )


@contextlib.contextmanager
def _reading(folder: pathlib.Path) -> Iterator[ocp.CheckpointManager]:
    """A manager that changes nothing in `folder`."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # orbax warns that a folder opened to read is read-only
    manager = ocp.CheckpointManager(
        folder.absolute(),
        options=ocp.CheckpointManagerOptions(
            read_only=True, create=False, multiprocessing_options=_by_itself()
        ),
    )
    try:
        yield manager
    finally:
        manager.close()
        logging.set_verbosity(verbosity)


def _read(
    manager: ocp.CheckpointManager, folder: pathlib.Path, step: int, target: T
) -> tuple[T, dict[str, Any]]:
    """State, on the host, and note of one step; changes nothing on disk.

    Raises:
      _DamagedError: the digest does not match, or the content cannot be decoded or is missing.
      CheckpointError: it does not fit `target`.
      UnreadableError: the operating system could not read it.
    """

    def item(name: str, how: Any) -> Any:
        return manager.restore(step, args=ocp.args.Composite(**{name: how}))[name]

    try:
        note = item("note", ocp.args.JsonRestore())
        if not isinstance(note, dict):
            raise ValueError("its note is no JSON object")
        saved_digest = note.pop("digest")
        packed = note.pop("packed", False)  # steps of before they were packed do not say so
        fits = note.pop("layout") == layout(target)
        # As host arrays: of one that it is to put on devices and cannot read, orbax raises a bare
        # Exception.
        host = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), target)
        stored: Any = _packed(host) if packed else host
        if fits:
            stored = item("state", ocp.args.StandardRestore(stored))
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if _storage_failed(error):
            raise UnreadableError(
                f"{folder}/{step} cannot be read ({reason}); nothing was changed there: mend the "
                "storage and run the same command again"
            ) from error
        raise _DamagedError(reason) from error
    if not fits:
        raise CheckpointError(
            f"{folder}/{step} holds arrays of other names, types or shapes than this training's; "
            "other code or libraries wrote it: go on with those, or delete the folder to train anew"
        )
    if digest(stored) != saved_digest:
        raise _DamagedError("its digest does not match")
    state = _unpacked(stored, target) if packed else stored
    return state, note


def _packed(tree: Any) -> dict[str, np.ndarray]:
    """All arrays of a pytree end to end, in the order of its leaves: one array a dtype."""
    parts: dict[str, list[np.ndarray]] = {}
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(leaf)
        parts.setdefault(array.dtype.name, []).append(array.ravel())
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _unpacked(packed: dict[str, np.ndarray], target: T) -> T:
    """Views of what `_packed` made, in the structure and shapes of `target`."""
    begun = dict.fromkeys(packed, 0)

    def take(leaf: Any) -> np.ndarray:
        name, start = leaf.dtype.name, begun[leaf.dtype.name]
        begun[name] = start + math.prod(leaf.shape)
        return packed[name][start : begun[name]].reshape(leaf.shape)

    return jax.tree.map(take, target)


def _place_like(host: np.ndarray, leaf: Any) -> Any:
    """A host array where `leaf` lies; a copy, since what is restored will be donated."""
    if not isinstance(leaf, jax.Array):
        return host
    if leaf.is_fully_addressable:
        return jax.device_put(host, leaf.sharding, may_alias=False)
    return mesh.place(host, leaf.sharding)


def _storage_failed(error: Exception) -> bool:
    """Whether the operating system failed, as against content that is missing or undecodable.

    A missing file is damage, as after a copy that broke off; orbax says so without a number. An
    input/output error, a lost mount or too many open files say nothing about the content.
    """
    missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    if isinstance(error, OSError):
        return not missing
    gone = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    return files.os_error_number(error) not in gone


def save_tree(folder: pathlib.Path, tree: Any) -> None:
    """Writes one finished pytree (a stage's result), replacing what was there."""
    distributed.on_first(lambda: shutil.rmtree(folder, ignore_errors=True))
    checkpointer = Checkpointer(folder, packed=False)
    checkpointer.save(0, tree, {})
    checkpointer.close()


def load_tree(folder: pathlib.Path, target: T) -> T:
    """Reads what `save_tree` wrote. Changes nothing on disk: others may read the same folder.

    Raises:
      CheckpointError: there is no intact pytree in `folder`, or it does not fit `target`.
      UnreadableError: the storage failed.
    """
    remedy = "delete its stage's folder and rerun"
    if not files.appeared(folder / "0"):
        raise CheckpointError(f"{folder}: no checkpoint; {remedy}")
    try:
        with _reading(folder) as manager:
            host = _read(manager, folder, 0, target)[0]
    except _DamagedError as error:
        raise CheckpointError(f"{folder}: no intact checkpoint ({error}); {remedy}") from error
    return jax.tree.map(_place_like, host, target)
