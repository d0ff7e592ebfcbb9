"""The mesh: how batches lie on the devices, and which ones are refused."""

import jax
import numpy as np
import pytest

from lt_jax.config import ConfigError
from lt_jax.runtime import mesh


@pytest.mark.parametrize("devices", [1, 2, None])
def test_a_batch_is_split_and_parameters_are_whole(devices):
    device_mesh = mesh.make_mesh(devices)
    assert device_mesh.size == (devices or jax.device_count())
    values = np.arange(16.0).reshape(16, 1)
    batch = mesh.put({"x": values}, device_mesh)["x"]
    assert {shard.data.shape for shard in batch.addressable_shards} == {(16 // device_mesh.size, 1)}
    np.testing.assert_array_equal(batch, values)
    whole = jax.device_put(values, mesh.replicated(device_mesh))
    assert {shard.data.shape for shard in whole.addressable_shards} == {(16, 1)}


def test_a_batch_that_does_not_split_is_refused_with_the_field_and_a_remedy():
    device_mesh = mesh.make_mesh(8)
    mesh.check_batch(16, device_mesh, "config.x.batch_size")
    with pytest.raises(
        ConfigError, match=r"config\.x\.batch_size: got 20.*8 devices.*set it to 16"
    ):
        mesh.check_batch(20, device_mesh, "config.x.batch_size")
    with pytest.raises(ValueError, match="set it to 8"):
        mesh.check_batch(3, device_mesh, "config.x.batch_size")


def test_longest_axis_that_groups_divide_is_split():
    device_mesh = mesh.make_mesh(8, fsdp=4)
    assert device_mesh.shape == {"data": 2, "fsdp": 4}
    spec = lambda *shape: tuple(mesh.sharding_of(shape, device_mesh).spec)
    assert spec(3, 3, 16, 64) == (None, None, None, "fsdp")
    assert spec(64, 3, 3, 16) == ("fsdp",)
    assert spec(64, 64) == (None, "fsdp")  # of equally long ones the last
    assert spec(62, 20) == (None, "fsdp")  # the longest does not divide
    assert spec(31, 63) == ()
    assert spec(4, 4) == () == spec()  # small
    one = mesh.make_mesh(8)
    assert tuple(mesh.sharding_of((64, 64), one).spec) == ()


@pytest.mark.parametrize("fsdp", [1, 2])
def test_trees_come_back_as_they_were_sent(fsdp):
    device_mesh = mesh.make_mesh(4, fsdp=fsdp)
    tree = {"w": np.arange(4096.0, dtype=np.float32).reshape(64, 64), "b": np.float32(3)}
    placed = mesh.distribute(tree, device_mesh)
    parts = {shard.data.shape for shard in placed["w"].addressable_shards}
    assert parts == {(64, 64 // fsdp)}
    jax.tree.map(np.testing.assert_array_equal, mesh.fetch(placed), tree)
    batch = mesh.put(np.arange(8), device_mesh)
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2,)}


def test_groups_that_devices_cannot_be_cut_into_are_refused():
    with pytest.raises(ConfigError, match=r"config\.runtime\.fsdp: got 3.*8 devices"):
        mesh.make_mesh(8, fsdp=3)


def test_one_process_holds_every_row():
    device_mesh = mesh.make_mesh(4, fsdp=2)
    assert mesh.part(device_mesh) == (0, 1)
    np.testing.assert_array_equal(mesh.own(np.arange(8), device_mesh), np.arange(8))


def test_padding_repeats_the_last_row():
    array = np.arange(6).reshape(3, 2)
    padded = mesh.pad(array, 5)
    np.testing.assert_array_equal(padded[:3], array)
    np.testing.assert_array_equal(padded[3:], [[4, 5], [4, 5]])
    np.testing.assert_array_equal(mesh.pad(array, 3), array)


def test_devices_that_are_made_already_are_not_changed():
    with pytest.raises(ConfigError, match=r"cpu_devices: got 3, .* runs on 8 already"):
        mesh.configure_devices(3, None)
    assert len(jax.devices()) == 8
