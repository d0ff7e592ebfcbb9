"""The device mesh: one axis, `data`, over which batches are split and parameters replicated."""

from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lt_jax.config import ConfigError

T = TypeVar("T")


def configure_devices(cpu_devices: int, compilation_cache: str | None) -> None:
    """Sets process-wide JAX options; call it before the first use of a device.

    Args:
      cpu_devices: virtual CPU devices. XLA runs a CPU convolution on one thread, so the cores of
        a machine without an accelerator are used by splitting the batch over virtual devices.
      compilation_cache: folder for compiled programs, so that a second start compiles nothing;
        None: none.
    """
    jax.config.update("jax_num_cpu_devices", cpu_devices)
    jax.config.update("jax_compilation_cache_dir", compilation_cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def make_mesh(devices: int | None = None) -> Mesh:
    """A mesh over the first `devices` devices (all where None)."""
    # Auto axes: under the default, Explicit, Linen's dropout and embeddings fail.
    return jax.make_mesh(
        (devices or jax.device_count(),),
        ("data",),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[: devices or jax.device_count()],
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
    """The first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch(batch_size: int, mesh: Mesh, field: str) -> None:
    """Raises ConfigError, naming `field`, for a batch that the devices cannot share evenly."""
    if batch_size % mesh.size:
        raise ConfigError(
            f"{field}: got {batch_size}; takes a multiple of the {mesh.size} devices of this run "
            f"(set it to {batch_size - batch_size % mesh.size or mesh.size}, or "
            "config.runtime.cpu_devices=1 on CPU)"
        )


def put(batch: T, mesh: Mesh) -> T:
    """Moves a pytree of host arrays to the devices, split along the first axis."""
    return jax.device_put(batch, batched(mesh))


def pad(array: np.ndarray, size: int) -> np.ndarray:
    """Repeats the last row until the first axis has `size` rows; callers drop the surplus."""
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])
