"""Checkpoints: what is restored is what was saved, or the step before it, or an error."""

import errno
import json
import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl import logging

from lt_jax.config import OptimizerConfig
from lt_jax.errors import UserError
from lt_jax.runtime import checkpoint, files, mesh, train_state
from lt_jax.runtime.checkpoint import Checkpointer


def make_state(
    seed: int, devices: int = 1, width: int = 64, fsdp: int = 1
) -> train_state.TrainState:
    optimizer = train_state.make_optimizer(OptimizerConfig(warmup_steps=0), 10)
    rng = np.random.default_rng(seed)
    params = {
        "dense": {"kernel": jnp.asarray(rng.normal(size=(width, 32)), jnp.float32)},
        "half": jnp.asarray(rng.normal(size=9), jnp.bfloat16),
    }
    state = train_state.create(params, optimizer)
    gradients = jax.tree.map(jnp.ones_like, params)
    _, opt_state = optimizer.update(gradients, state.opt_state, params)
    state = state.replace(opt_state=opt_state, step=jnp.asarray(seed, jnp.int32))
    return mesh.distribute(state, mesh.make_mesh(devices, fsdp))


def assert_equal(left, right) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


@pytest.fixture
def opened(tmp_path):
    """Opens checkpointers on `tmp_path`/c and closes them at the test's end."""
    made = []

    def make() -> Checkpointer:
        made.append(Checkpointer(tmp_path / "c"))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(("saved_on", "restored_on"), [(1, 1), (2, 2), (8, 8), (2, 8), (8, 1)])
def test_a_train_state_comes_back_bit_for_bit_on_any_number_of_devices(
    opened, saved_on, restored_on
):
    state = make_state(3, saved_on)
    opened().save(3, state, {"ledger": {"seconds": 0.1}})
    target = make_state(0, restored_on)
    found = opened().restore(target)
    assert found is not None
    step, restored, note = found
    assert (step, note) == (3, {"ledger": {"seconds": 0.1}})
    assert isinstance(restored, train_state.TrainState)
    assert_equal(restored, state)
    assert restored.params["half"].sharding == target.params["half"].sharding
    jax.jit(lambda s: s, donate_argnums=0)(restored)  # buffers are its own


@pytest.mark.parametrize(
    ("saved_on", "restored_on"), [((8, 4), (1, 1)), ((1, 1), (8, 4)), ((8, 4), (4, 2))]
)
def test_a_state_that_is_split_comes_back_on_other_devices_and_groups(
    opened, saved_on, restored_on
):
    state = make_state(3, saved_on[0], fsdp=saved_on[1])
    opened().save(3, state, {})
    target = make_state(0, restored_on[0], fsdp=restored_on[1])
    found = opened().restore(target)
    assert found is not None
    assert_equal(found[1], state)
    kernel = lambda held: held.params["dense"]["kernel"]
    assert kernel(found[1]).sharding == kernel(target).sharding
    split = restored_on[1] > 1
    assert kernel(target).sharding.is_fully_replicated != split


def test_a_step_holds_one_array_a_type_and_one_that_was_not_packed_is_read_too(opened, tmp_path):
    state = make_state(3)
    opened().save(3, state, {"a": 1})
    with ocp.StandardCheckpointer() as reader:
        stored = reader.restore(tmp_path / "c" / "3" / "state")
    held = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    assert set(stored) == {array.dtype.name for array in held}
    for name, array in stored.items():
        assert array.shape == (sum(one.size for one in held if one.dtype.name == name),)
    by_name = Checkpointer(tmp_path / "c", packed=False)
    by_name.save(5, state, {"a": 2})
    by_name.close()
    step, restored, note = opened().restore(make_state(0))
    assert (step, note) == (5, {"a": 2})
    assert_equal(restored, state)


def test_where_nothing_was_saved_nothing_is_found(opened):
    assert opened().restore(make_state(0)) is None


def test_the_last_two_steps_are_kept(opened, tmp_path):
    checkpoints = opened()
    for step in (2, 4, 6):
        checkpoints.save(step, make_state(step), {})
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["4", "6"]


def largest(folder) -> pathlib.Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_byte(folder) -> None:
    path = largest(folder)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def rewrite_the_note(folder) -> None:
    path = folder / "note" / "metadata"
    note = json.loads(path.read_text())
    path.write_text(json.dumps({**note, "digest": "0" * 64}))


def cut_the_note(folder) -> None:
    path = folder / "note" / "metadata"
    path.write_text(path.read_text()[:20])


def replace_the_note(folder) -> None:
    (folder / "note" / "metadata").write_text("[1]")


def lose_the_arrays(folder) -> None:
    for path in (folder / "state").rglob("*"):
        if path.is_file():
            path.unlink()


@pytest.mark.parametrize(
    "damage",
    [flip_a_byte, rewrite_the_note, cut_the_note, replace_the_note, lose_the_arrays],
)
def test_a_damaged_step_is_put_aside_with_a_warning_for_the_one_before(
    opened, tmp_path, monkeypatch, damage
):
    first = opened()
    first.save(2, make_state(2), {"at": 2})
    first.save(4, make_state(4), {"at": 4})
    damage(tmp_path / "c" / "4")
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: warnings.append(text % args))
    second = opened()
    step, restored, note = second.restore(make_state(0))
    assert (step, note) == (2, {"at": 2})
    assert_equal(restored, make_state(2))
    assert sum("c/4 is corrupt" in warning for warning in warnings) == 1
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["2", "4.corrupt"]
    second.save(4, make_state(4), {"at": 44})  # made again
    third = opened()
    assert third.restore(make_state(0))[2] == {"at": 44}
    damage(tmp_path / "c" / "4")  # again, where one lies aside already
    assert third.restore(make_state(0))[2] == {"at": 2}
    third.save(6, make_state(6), {})
    third.save(8, make_state(8), {})
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["4.corrupt", "6", "8"]


def an_io_error(monkeypatch, error: Exception) -> None:
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "restore", fail)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        PermissionError(errno.EACCES, "Permission denied"),
        ValueError("UNKNOWN: Error reading: Stale file handle [os_error_code='116']"),
    ],
)
def test_where_the_storage_fails_nothing_is_moved_or_deleted(opened, monkeypatch, tmp_path, error):
    """Each failed read once deleted a step, and so all of them in turn."""
    first = opened()
    first.save(2, make_state(2), {"at": 2})
    first.save(4, make_state(4), {"at": 4})
    checkpoint.save_tree(tmp_path / "tree", make_state(1).params)
    with monkeypatch.context() as patch:
        an_io_error(patch, error)
        with pytest.raises(checkpoint.UnreadableError, match=r"c/4 cannot be read .*run the same"):
            opened().restore(make_state(0))
        with pytest.raises(OSError, match=r"tree/0 cannot be read") as caught:
            checkpoint.load_tree(tmp_path / "tree", make_state(0).params)
    assert isinstance(caught.value, UserError)
    assert opened().restore(make_state(0))[2] == {"at": 4}
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["2", "4"]
    assert_equal(
        checkpoint.load_tree(tmp_path / "tree", make_state(0).params), make_state(1).params
    )


@pytest.mark.parametrize("on_devices", [False, True])
def test_an_array_that_ends_early_is_damage_and_one_that_cannot_be_opened_is_not(
    opened, tmp_path, on_devices
):
    """The first once ended the run with orbax's bare Exception."""
    tree = {"w": np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)}
    if on_devices:
        tree = jax.device_put(tree, mesh.replicated(mesh.make_mesh(2)))
    opened().save(2, tree, {})
    path = largest(tmp_path / "c" / "2")
    whole = path.read_bytes()
    path.unlink()
    path.symlink_to(path.name)  # ELOOP, which the superuser meets as well
    with pytest.raises(checkpoint.UnreadableError, match="symbolic links"):
        opened().restore(tree)
    assert [entry.name for entry in (tmp_path / "c").iterdir()] == ["2"]
    path.unlink()
    path.write_bytes(whole[:100])
    assert opened().restore(tree) is None
    assert [entry.name for entry in (tmp_path / "c").iterdir()] == ["2.corrupt"]


def test_what_is_restored_may_be_donated(opened):
    """Where it aliased the arrays that were read, an update in place would change those."""
    opened().save(3, make_state(3), {})
    restored = opened().restore(make_state(0, devices=2))[1]
    doubled = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)(restored)
    assert_equal(doubled, jax.tree.map(lambda x: x * 2, make_state(3)))
    for shard in doubled.params["dense"]["kernel"].addressable_shards:
        np.testing.assert_array_equal(shard.data, 2 * make_state(3).params["dense"]["kernel"])


def test_a_state_without_an_average_comes_back_as_such(opened):
    state = make_state(3).replace(ema=None)
    opened().save(3, state, {})
    restored = opened().restore(make_state(0).replace(ema=None))[1]
    assert restored.ema is None
    assert_equal(restored, state)
    with pytest.raises(checkpoint.CheckpointError, match="other names"):
        opened().restore(make_state(0))


def test_where_every_step_is_damaged_nothing_is_found(opened, tmp_path):
    opened().save(2, make_state(2), {})
    flip_a_byte(tmp_path / "c" / "2")
    assert opened().restore(make_state(0)) is None


def test_another_networks_checkpoint_is_an_error_and_stays(opened, tmp_path):
    """It once was taken for a damaged one, and deleted."""
    opened().save(2, make_state(2), {})
    with pytest.raises(
        checkpoint.CheckpointError, match="c/2 holds arrays of other names, types or shapes"
    ):
        opened().restore(make_state(0, width=65))
    assert opened().restore(make_state(0)) is not None


def test_a_step_that_stands_is_left_and_an_earlier_one_refused(opened):
    checkpoints = opened()
    checkpoints.save(4, make_state(4), {"at": "first"})
    checkpoints.save(4, make_state(4), {"at": "second"})
    assert checkpoints.restore(make_state(0))[2] == {"at": "first"}
    with pytest.raises(ValueError, match="step 3 is not saved, since step 4"):
        checkpoints.save(3, make_state(3), {})


def test_what_a_killed_save_left_is_ignored_and_removed(opened, tmp_path):
    opened().save(2, make_state(2), {})
    half = tmp_path / "c" / "3.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "arrays").write_bytes(b"x")
    again = opened()
    assert again.restore(make_state(0))[0] == 2
    again.save(4, make_state(4), {})
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["2", "4"]


def test_no_space_left_is_said_and_the_last_step_is_intact(opened, monkeypatch):
    checkpoints = opened()
    checkpoints.save(2, make_state(2), {})

    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "save", full)
        with pytest.raises(files.DiskFullError, match="writing the checkpoint"):
            checkpoints.save(4, make_state(4), {})
    assert checkpoints.restore(make_state(0))[0] == 2


def test_digests_see_names_types_shapes_and_every_byte():
    base = {"a": np.zeros(4, np.float32), "b": np.ones(2, np.float32)}
    others = [
        {"c": base["a"], "b": base["b"]},
        {**base, "a": np.zeros(4, np.int32)},
        {**base, "a": np.zeros((2, 2), np.float32)},
        {**base, "a": np.array([0, 0, 0, -0.0], np.float32)},
        {"a": base["b"], "b": base["a"]},
    ]
    assert len({checkpoint.digest(tree) for tree in (base, *others)}) == 6
    assert checkpoint.digest(jax.tree.map(jnp.asarray, base)) == checkpoint.digest(base)


def test_a_finished_tree_is_read_back_replaced_and_checked(tmp_path):
    folder = tmp_path / "params"
    for seed in (1, 2):
        checkpoint.save_tree(folder, make_state(seed).params)
        target = jax.tree.map(jnp.zeros_like, make_state(0).params)
        assert_equal(checkpoint.load_tree(folder, target), make_state(seed).params)
    flip_a_byte(folder / "0")
    before = contents(folder)
    for _ in range(2):  # once it was deleted by the first, under whoever shares the folder
        with pytest.raises(
            checkpoint.CheckpointError, match=r"params: no intact checkpoint \(its digest.*delete"
        ):
            checkpoint.load_tree(folder, target)
    assert contents(folder) == before
    with pytest.raises(checkpoint.CheckpointError, match="none: no checkpoint; delete"):
        checkpoint.load_tree(tmp_path / "none", target)
    assert not (tmp_path / "none").exists()


def contents(folder) -> dict:
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def test_a_step_that_another_process_reads_otherwise_is_an_error_that_says_so(tmp_path, in_turn):
    state = make_state(0)

    def restore(process):
        one = Checkpointer(tmp_path / "c")
        one.save(3, state, {})
        if process:
            flip_a_byte(tmp_path / "c" / "3")
        try:
            return one.restore(state)
        except checkpoint.CheckpointError as error:
            return error
        finally:
            one.close()

    first, second = in_turn(restore)
    assert_equal(first[1], state)
    assert isinstance(second, checkpoint.CheckpointError)
    assert "c/3 is read differently here than by the first process" in str(second)
    assert (tmp_path / "c" / "3").is_dir()  # nothing is moved


def test_a_tree_that_another_process_does_not_see_yet_is_waited_for(tmp_path, in_turn):
    state, hidden = make_state(0), tmp_path / "hidden"

    def load(process):
        checkpoint.save_tree(tmp_path / "params", state)
        if process:
            (tmp_path / "params").rename(hidden)
            threading.Timer(0.3, lambda: hidden.rename(tmp_path / "params")).start()
        return checkpoint.load_tree(tmp_path / "params", state)

    first, second = in_turn(load)
    assert_equal(first, second)
