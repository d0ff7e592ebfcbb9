"""The roofline of each compiled program: what bounds it, and how near to that bound it runs.

A program of F FLOPs that moves B bytes to and from memory has intensity I = F / B. On a device of
P FLOP/s and W bytes/s it reaches at most

  min(P, I W)                                                                             (1)

(Williams, Waterman and Patterson 2009, doi:10.1145/1498765.1498785): below I = P / W memory bounds
it, above arithmetic does.

F is XLA's count of the lowered program, before fusion, since the compiled one calls libraries whose
arithmetic XLA does not see; of a sampler, that of one evaluation of its network times their number.
B is XLA's "bytes accessed" of the compiled program, after fusion: what each fused operation reads
and writes, as if nothing stayed in a cache between two of them; on a GPU, where XLA counts none,
it is counted so here (`kernels.py`). A loop's body is counted once by XLA; it is multiplied by
its trips here, for a sampler, whose program is almost all loop.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.throughput.devices import Limits
from experiments.throughput.timing import Spread, number


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a program stands.

    Attributes:
      name: of the program.
      flops, bytes: of one call.
      seconds: of one call, the median.
      dtype: of its matrix products.
      peak, bandwidth: of the devices it ran on.
    """

    name: str
    flops: float
    bytes: float
    seconds: float
    dtype: str
    peak: float
    bandwidth: float

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / self.bytes

    @property
    def bound(self) -> str:
        """What it waits for at best: "compute" or "memory"."""
        return "compute" if self.intensity >= self.peak / self.bandwidth else "memory"

    @property
    def fraction(self) -> float:
        """Of the FLOP/s of (1), those that it reaches."""
        return self.flops / self.seconds / min(self.peak, self.intensity * self.bandwidth)

    def as_dict(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        derived = {"intensity": self.intensity, "bound": self.bound, "fraction": self.fraction}
        return {**dataclasses.asdict(self), **derived}


def places(
    cases: Mapping[str, Any], rates: Mapping[str, Sequence[float]], limits: Limits, devices: int
) -> list[dict[str, Any]]:
    """Of all cases whose FLOPs and bytes are known.

    Args:
      cases: `Case`s by name.
      rates: images a second of each in every turn.
      limits: of `devices` devices together; a case on fewer has its part of them.
    """
    return [
        Place(
            name, case.flops, case.moved, case.images / Spread.of(rates[name]).median, case.dtype,
            limits.flops[case.dtype] * case.devices / devices,
            limits.bytes * case.devices / devices,
        ).as_dict()
        for name, case in cases.items()
        if case.flops and case.moved
    ]  # fmt: skip


def table(found: Sequence[Mapping[str, Any]], source: str) -> str:
    """Markdown."""
    lines = [
        f"| program (limits: {source}) | GFLOPs | MiB | FLOPs a byte | bound | of the bound |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {entry['name']} | {number(entry['flops'] / 1e9)} | {number(entry['bytes'] / 2**20)} "
        f"| {number(entry['intensity'])} | {entry['bound']} | {entry['fraction']:.0%} |"
        for entry in found
    ]
    return "\n".join(lines)
