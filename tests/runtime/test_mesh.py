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


def test_padding_repeats_the_last_row():
    array = np.arange(6).reshape(3, 2)
    padded = mesh.pad(array, 5)
    np.testing.assert_array_equal(padded[:3], array)
    np.testing.assert_array_equal(padded[3:], [[4, 5], [4, 5]])
    np.testing.assert_array_equal(mesh.pad(array, 3), array)
