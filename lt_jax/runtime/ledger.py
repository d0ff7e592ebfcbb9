"""The compute ledger: seconds, images and FLOPs that a stage has cost, summed over its restarts."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

from lt_jax.config import ConfigError


@dataclasses.dataclass
class Ledger:
    """Costs so far. `seconds` is wall clock; `images` network passes over an image in training,
    or images generated; `flops` the arithmetic of the compiled steps as XLA counts it;
    `data_wait` the seconds in which the loop waited for a batch: at most so long did the device
    stand still, which meanwhile is busy with the step before.
    """

    seconds: float = 0.0
    images: int = 0
    flops: float = 0.0
    data_wait: float = 0.0

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Ledger":
        """The inverse of `dataclasses.asdict`."""
        return cls(**values)

    def add(self, other: "Ledger") -> None:
        """Adds the costs of another ledger to this one."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name) + getattr(other, field.name)
            setattr(self, field.name, value)


class Clock:
    """Adds elapsed wall-clock time to a ledger, or evenly to several, as often as it is read."""

    def __init__(self, *ledgers: Ledger):
        """Starts now."""
        self._ledgers = ledgers
        self._since = time.perf_counter()

    def read(self) -> float:
        """Books the time since the last reading; returns the (first) ledger's total."""
        now = time.perf_counter()
        for ledger in self._ledgers:
            ledger.seconds += (now - self._since) / len(self._ledgers)
        self._since = now
        return self._ledgers[0].seconds


def flops(step: Callable[..., Any], *args: Any) -> float:
    """FLOPs of one call of a jitted function, from XLA's analysis of the lowered program.

    A loop's body is counted once: callers multiply by its trips.
    """
    return counted(step.lower(*args))  # type: ignore[attr-defined]


def counted(lowered: jax.stages.Lowered) -> float:
    """FLOPs of a lowered program, before XLA's own changes, whatever it was lowered for.

    The CPU's client counts: those of GPUs and TPUs are plugins, which cannot (jax issue 22713).
    """
    client = jax.local_devices(backend="cpu")[0].client
    hlo: Any = lowered.compiler_ir("hlo")
    # Not public; `Lowered.cost_analysis` is this, but with the client that it was lowered for.
    return float(_jax.hlo_module_cost_analysis(client, hlo.as_hlo_module()).get("flops", 0.0))


def check_platforms() -> None:
    """Raises ConfigError where JAX was told to do without the CPU, which `counted` takes."""
    told = jax.config.jax_platforms  # type: ignore[attr-defined]
    if told and "cpu" not in told.split(","):
        raise ConfigError(
            f"JAX_PLATFORMS: got {told}; takes cpu, too, which counts FLOPs: set it to {told},cpu"
        )
