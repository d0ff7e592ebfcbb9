"""The kernels of a compiled GPU program, and the bytes that each has to move.

They are read from the program's text (`compiled.as_text()`), where a line is

  %fused = (bf16[8,4]{1,0}, f32[8]{0}) fusion(%a, %b), kind=kLoop, calls=%body

A kernel is taken to read each operand once, whole or the slices of it that it takes, and to write
each result once, as if nothing stayed in a cache between two of them. XLA itself counts no bytes of
such programs. A loop's body is counted as often as it runs, where XLA knows how often.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>\(.*?\)|\S+) (?P<op>[a-z][\w-]*)\((?P<rest>.*)"
)
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(?P<bits>\d+)\w*)\[(?P<dims>[\d,]*)\]")
_SCRATCH = re.compile(r", [su]8\[\d+\](\{0\})?")  # beside a library call's results
_CALLED = re.compile(r"(?:body|to_apply|branch_computations)=\{?%?([\w.%, -]+)")
_FUSED = re.compile(r"calls=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_TARGET = re.compile(r'custom_call_target="(__cu[^"]+)"')
# They start nothing on the device.
_NAMES = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}
_SLICES = {"slice", "dynamic-slice", "gather"}
_CONTROL = {"while", "call", "conditional"}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

Lines = list[re.Match[str]]  # of a computation


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel of a program.

    Attributes:
      kind: a library's function (`__cublas$lt$matmul`), a collective (`all-reduce`), else "own".
      moved: bytes that it reads and writes.
      times: how often it runs in a call of the program.
    """

    kind: str
    moved: int
    times: int

    @property
    def library(self) -> bool:
        """Whether it is cuBLAS's or cuDNN's."""
        return self.kind.startswith("__cu")


def kernels(text: str) -> list[Kernel]:
    """All of a program, in the order of its text."""
    entry, computations, lines = "", dict[str, Lines](), Lines()
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            lines = computations.setdefault(head["name"], [])
            entry = head["name"] if head["entry"] else entry
        elif found := _INSTRUCTION.match(line):
            lines.append(found)
    return list(_of(computations, entry, 1))


def _of(computations: Mapping[str, Lines], name: str, times: int) -> Iterator[Kernel]:
    lines = computations[name]
    sizes = {found["name"]: _bytes(found["shape"]) for found in lines}
    for found in lines:
        op, rest = found["op"], found["rest"]
        if op in _CONTROL:
            trips = int(known[1]) if op == "while" and (known := _TRIPS.search(rest)) else 1
            for called in re.findall(r"[\w.-]+", (_CALLED.search(rest) or [""] * 2)[1]):
                if called in computations:
                    yield from _of(computations, called, times * trips)
        elif op not in _NAMES and not op.endswith("-done"):
            read = [sizes.get(operand, 0) for operand in _operands(found)]
            if op in _SLICES:
                read[0] = _bytes(found["shape"])
            elif op == "fusion" and (fused := _FUSED.search(rest)):
                taken = _taken(computations[fused[1]])
                read = [min(size, taken.get(i, size)) for i, size in enumerate(read)]
            written = _bytes(_SCRATCH.sub("", found["shape"]))
            yield Kernel(_kind(op, rest), written + sum(read), times)


def _taken(lines: Lines) -> dict[int, int]:
    """Bytes of a fused computation's parameters, by number, of which it takes slices alone."""
    taken = {}
    for found in lines:
        if found["op"] == "parameter":
            uses = [other for other in lines if found["name"] in _operands(other)]
            if uses and all(other["op"] in _SLICES for other in uses):
                number = int(found["rest"].partition(")")[0])
                taken[number] = sum(_bytes(other["shape"]) for other in uses)
    return taken


def _operands(found: re.Match[str]) -> list[str]:
    return re.findall(r"%([\w.-]+)", found["rest"].partition(")")[0])


def _kind(op: str, rest: str) -> str:
    if target := _TARGET.search(rest):
        return target[1]
    return next((name for name in _COLLECTIVES if op.startswith(name)), "own")


def _bytes(shape: str) -> int:
    """Of an array, or of all arrays of a tuple."""
    return sum(
        int(found["bits"] or 8) * math.prod(int(dim) for dim in found["dims"].split(",") if dim)
        for found in _ARRAY.finditer(shape)
    ) // 8  # fmt: skip
