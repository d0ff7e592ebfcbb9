"""Devices: of two cores; what one can do at most, published or measured; how much it held."""

import dataclasses
import os
import pathlib
import resource
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lt_jax.runtime import mesh

# Of one device, by its `device_kind`: dense FLOP/s by dtype, and bytes/s of its memory. Vendors'
# data sheets. float32 is what XLA makes of a float32 product at default precision: TF32 on GPUs,
# one bfloat16 pass on TPUs. Names are taken whole: a card that begins alike is another card, or a
# part of one (MIG).
PEAK: Mapping[str, Mapping[str, float]] = {
    "NVIDIA A100-SXM4-40GB": {"bfloat16": 312e12, "float32": 156e12, "bytes": 1.56e12},
    "NVIDIA A100-SXM4-80GB": {"bfloat16": 312e12, "float32": 156e12, "bytes": 2.04e12},
    "NVIDIA A100-PCIE-40GB": {"bfloat16": 312e12, "float32": 156e12, "bytes": 1.56e12},
    "NVIDIA A100 80GB PCIe": {"bfloat16": 312e12, "float32": 156e12, "bytes": 1.94e12},
    "NVIDIA H100 PCIe": {"bfloat16": 756e12, "float32": 378e12, "bytes": 2.0e12},
    "NVIDIA H100 NVL": {"bfloat16": 835e12, "float32": 417e12, "bytes": 3.9e12},
    "NVIDIA H100 80GB HBM3": {"bfloat16": 989e12, "float32": 494e12, "bytes": 3.35e12},
    "NVIDIA H200 NVL": {"bfloat16": 835e12, "float32": 417e12, "bytes": 4.8e12},
    "NVIDIA H200": {"bfloat16": 989e12, "float32": 494e12, "bytes": 4.8e12},
    "TPU v4": {"bfloat16": 275e12, "float32": 275e12, "bytes": 1.23e12},
    "TPU v5 lite": {"bfloat16": 197e12, "float32": 197e12, "bytes": 0.82e12},
    "TPU v5": {"bfloat16": 459e12, "float32": 459e12, "bytes": 2.77e12},
    "TPU v6 lite": {"bfloat16": 918e12, "float32": 918e12, "bytes": 1.64e12},
}


def of_two_cores() -> Mesh:
    """All devices; of a CPU two at most, a core each. Call it before the first use of a device."""
    jax.config.update("jax_num_cpu_devices", min(2, len(os.sched_getaffinity(0))))
    return mesh.make_mesh()


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """FLOP/s of one device at most, where its kind is known."""
    return None if dtype == "bytes" else PEAK.get(device_kind, {}).get(dtype)


@dataclasses.dataclass(frozen=True)
class Limits:
    """FLOP/s and bytes/s of all devices of a mesh together, and where that is from."""

    flops: Mapping[str, float]
    bytes: float
    source: str


@dataclasses.dataclass(frozen=True)
class Probe:
    """What is measured: a product of two `side` x `side` matrices, and x + 1 of `mib` mebibytes.

    `calls` are under way at once: one alone takes a GPU less time than to start it.
    """

    side: int
    mib: int
    calls: int


CPU, ACCELERATOR = Probe(1536, 256, 1), Probe(8192, 2048, 10)


def limits(device_mesh: Mesh, probe: Probe | None = None) -> Limits:
    """Published where the device is in `PEAK`, else the best of a few measurements.

    The probe's (`CPU` or `ACCELERATOR` where none is given) product is made on each device; its
    x + 1 is split among them, read once and written once. On a CPU, whose caches may hold much, a
    program can be above such a bandwidth.
    """
    device = device_mesh.devices.flat[0]
    if known := PEAK.get(device.device_kind):
        rates = {name: known[name] * device_mesh.size for name in ("float32", "bfloat16")}
        return Limits(rates, known["bytes"] * device_mesh.size, "data sheet")
    probe = probe or (CPU if device.platform == "cpu" else ACCELERATOR)
    rates = {}
    for dtype in ("float32", "bfloat16"):
        shape = device_mesh.size, probe.side, probe.side
        factors = mesh.put(jnp.ones(shape, dtype), device_mesh)
        seconds = _best(jax.jit(lambda x: x @ x), factors, probe.calls)
        rates[dtype] = device_mesh.size * 2 * probe.side**3 / seconds
    row = probe.mib * 2**20 // 4 // device_mesh.size
    copied = mesh.put(jnp.zeros((device_mesh.size, row), jnp.float32), device_mesh)
    # In place: to map the pages of a fresh result takes longer than to fill them.
    seconds = _best(jax.jit(lambda x: x + 1, donate_argnums=0), copied, probe.calls, carries=True)
    return Limits(rates, 2 * 4 * row * device_mesh.size / seconds, "measured")


def _best(
    function: Callable[[Any], Any], argument: Any, calls: int, carries: bool = False
) -> float:
    """Least seconds of a call: a limit is what the device can do, not what it does on average.

    Each call gets `argument`, or, where it `carries`, the result of the call before.
    """
    found = []
    for _ in range(6):  # the first time compiles
        since = time.perf_counter()
        for _ in range(calls):
            result = function(argument)
            argument = result if carries else argument
        jax.block_until_ready(result)
        found.append((time.perf_counter() - since) / calls)
    return min(found)


def peak_memory(device: jax.Device) -> tuple[int, str]:
    """Most bytes held at once so far, and where: on the device, else by the process."""
    stats = device.memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"]), "device"
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # `getrusage` would pass a parent's peak on to its child
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024, "process"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "process"
