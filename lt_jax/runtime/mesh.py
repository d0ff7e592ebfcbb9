"""The device mesh: rows of a batch split over all devices, parameters whole or split, too.

The mesh has two axes, `data` and `fsdp`. A batch is split over both: every device has other rows.
Parameters, their average and the optimiser's state are whole on each device of `data`, and where
`fsdp` has more than one, split over these (`sharding_of`): each then holds a part, which the others
ask it for when they need it (Zhao et al. 2023, arXiv:2304.11277; here XLA's partitioner does it).

Devices are ordered by process, so that a process holds neighbouring rows of a batch (`own`).
"""

import functools
import math
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from lt_jax.config import ConfigError
from lt_jax.runtime import distributed

T = TypeVar("T")
Rows = TypeVar("Rows", np.ndarray, jax.Array)

AXES = ("data", "fsdp")
ROWS = PartitionSpec(AXES)  # of an array whose first axis is split over all devices
SMALL = 1024  # numbers: to gather a smaller array costs more than it saves


def configure_devices(cpu_devices: int, compilation_cache: str | None) -> None:
    """Sets process-wide JAX options; call it before the first use of a device.

    Args:
      cpu_devices: virtual CPU devices. XLA runs a CPU convolution on one thread, so the cores of
        a machine without an accelerator are used by splitting the batch over virtual devices.
      compilation_cache: folder for compiled programs, so that a second start compiles nothing;
        None: none.

    Raises:
      ConfigError: the process has made its devices already, and not so many.
    """
    try:
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    except RuntimeError as error:
        raise ConfigError(
            f"config.runtime.cpu_devices: got {cpu_devices}, but this process runs on "
            f"{jax.local_device_count('cpu')} already; runs that differ in it take a process each "
            "(of a sweep: --executor=local)"
        ) from error
    jax.config.update("jax_compilation_cache_dir", compilation_cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def make_mesh(devices: int | None = None, fsdp: int = 1) -> Mesh:
    """A mesh over the first `devices` devices (all where None), `fsdp` in a group.

    Raises:
      ConfigError: the devices cannot be cut into groups of `fsdp`.
    """
    among = jax.devices() if distributed.count() > 1 else jax.local_devices()
    chosen = sorted(among, key=lambda device: (device.process_index, device.id))[:devices]
    if len(chosen) % fsdp:
        raise ConfigError(
            f"config.runtime.fsdp: got {fsdp}; takes a divisor of the {len(chosen)} devices of "
            "this run"
        )
    # Auto axes: under the default, Explicit, Linen's dropout and embeddings fail.
    return Mesh(np.array(chosen).reshape(-1, fsdp), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def meet(device_mesh: Mesh) -> None:
    """One small message over each axis, where several processes share the mesh: all call it once.

    Where CPUs have to set up a connection for it, all have to be there within 30 seconds; later
    they may come as late as they will.
    """
    if not device_mesh.is_multi_process:
        return

    def total(ones: Any) -> Any:
        return sum(jax.lax.psum(ones, axes) for axes in ("data", "fsdp", AXES))

    counted = jax.shard_map(total, mesh=device_mesh, in_specs=ROWS, out_specs=ROWS)
    jax.block_until_ready(jax.jit(counted)(np.ones(device_mesh.size, np.float32)))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The first axis, or another one, is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, *ROWS))


def sharding_of(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """How an array of a training's state lies: its longest axis that `fsdp` divides is split.

    Of equally long ones the last; an array of fewer than `SMALL` numbers, or without such an axis,
    is whole on every device. It depends on the shape alone, so that a parameter's average and
    moments lie as it does.
    """
    groups = mesh.shape["fsdp"]
    fitting = [axis for axis, length in enumerate(shape) if length % groups == 0]
    if groups == 1 or math.prod(shape) < SMALL or not fitting:
        return replicated(mesh)
    longest = max(fitting, key=lambda axis: (shape[axis], axis))
    return NamedSharding(mesh, PartitionSpec(*[None] * longest, "fsdp"))


def shardings(tree: Any, mesh: Mesh) -> Any:
    """`sharding_of` each array of a tree; one for all where there is no group."""
    if mesh.shape["fsdp"] == 1:
        return replicated(mesh)
    return jax.tree.map(lambda leaf: sharding_of(np.shape(leaf), mesh), tree)


def check_batch(batch_size: int, mesh: Mesh, field: str) -> None:
    """Raises ConfigError, naming `field`, for a batch that the devices cannot share evenly."""
    if batch_size % mesh.size:
        raise ConfigError(
            f"{field}: got {batch_size}; takes a multiple of the {mesh.size} devices of this run "
            f"(set it to {batch_size - batch_size % mesh.size or mesh.size}, or "
            "config.runtime.cpu_devices=1 on CPU)"
        )


def part(mesh: Mesh) -> tuple[int, int]:
    """(i, n): this process holds the i-th of n equal parts of a batch's rows."""
    processes = sorted({device.process_index for device in mesh.devices.flat})
    return processes.index(jax.process_index()), len(processes)


def own(rows: Rows, mesh: Mesh) -> Rows:
    """Those of a batch's `rows` that this process's devices hold."""
    index, parts = part(mesh)
    size = len(rows) // parts
    return rows[index * size : (index + 1) * size]


def put(batch: T, mesh: Mesh, axis: int = 0) -> T:
    """Moves a pytree of host arrays to the devices, split along the first axis, or another one.

    Of several processes each gives the rows of its own devices (`own`).
    """
    split = batched(mesh, axis)
    if split.is_fully_addressable:
        return jax.device_put(batch, split)
    parts = part(mesh)[1]
    return jax.tree.map(lambda leaf: _joined(np.asarray(leaf), split, parts, axis), batch)


def _joined(rows: np.ndarray, split: NamedSharding, parts: int, axis: int) -> jax.Array:
    shape = (*rows.shape[:axis], rows.shape[axis] * parts, *rows.shape[axis + 1 :])
    return jax.make_array_from_process_local_data(split, rows, shape)


def place(tree: T, where: Any) -> T:
    """Moves a pytree to the devices, as the sharding or tree of shardings `where` says.

    Of several processes each gives the same arrays. Those that lie so already are left there.
    """
    if isinstance(where, Sharding):
        if where.is_fully_addressable:
            return jax.device_put(tree, where)
        return jax.tree.map(lambda leaf: _placed(leaf, where), tree)
    return jax.tree.map(_placed, tree, where)


def _placed(leaf: Any, where: Sharding) -> jax.Array:
    if where.is_fully_addressable:
        return jax.device_put(leaf, where)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if leaf.sharding.is_equivalent_to(where, leaf.ndim):
            return leaf
        return _moved(where)(leaf)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.make_array_from_callback(leaf.shape, where, lambda index: leaf[index])
    host = np.asarray(leaf)
    # A copy: it may become the buffer itself, and be donated.
    return jax.make_array_from_callback(host.shape, where, lambda index: np.array(host[index]))


@functools.lru_cache(maxsize=64)
def _moved(where: Sharding) -> Any:
    """What moves arrays to `where`, kept: a fresh function would be compiled at each call."""
    return jax.jit(lambda leaf: leaf, out_shardings=where)


def replicate(tree: T, mesh: Mesh) -> T:
    """Moves a pytree to the devices, whole on each."""
    return place(tree, replicated(mesh))


def distribute(tree: T, mesh: Mesh) -> T:
    """Moves a pytree to the devices, each array as `sharding_of` has it."""
    return place(tree, shardings(tree, mesh))


def fetch(tree: T) -> T:
    """The arrays of a pytree on the host, whole, in every process that its devices belong to."""
    return jax.tree.map(_fetched, tree)


def fetch_to_first(tree: T) -> T:
    """As `fetch`, in the first process alone: the others take part, and get None for each array."""
    return jax.tree.map(lambda leaf: _fetched(leaf, keep=distributed.is_first()), tree)


def _fetched(leaf: Any, keep: bool = True) -> Any:
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        if not leaf.is_fully_replicated:  # a message in which all take part
            lying = cast(NamedSharding, leaf.sharding)
            leaf = _moved(NamedSharding(lying.mesh, PartitionSpec()))(leaf)
        leaf = leaf.addressable_data(0)
    return jax.device_get(leaf) if keep else None


def pad(array: np.ndarray, size: int) -> np.ndarray:
    """Repeats the last row until the first axis has `size` rows; callers drop the surplus."""
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])
