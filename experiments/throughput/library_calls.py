"""Bytes that a GPU's libraries move: XLA's own count of a compiled program gives their calls none.

A call of cuBLAS or cuDNN stands in the program's text as

  %gemm = (bf16[8,4]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm"

and is taken to read its operands once and to write its results once; a row of single bytes beside
the results is scratch space, and not counted. As in XLA's count, a loop's body stands there once.
"""

import math
import re

_DEFINED = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>.*?) [a-z][\w-]*\((?P<rest>.*)"
)
_ARRAY = re.compile(r"\b[a-z]+(?P<bits>\d+)\w*\[(?P<dims>[\d,]*)\]")
_SCRATCH = re.compile(r", [su]8\[\d+\]")
_LIBRARY = re.compile(r'custom_call_target="__(cublas|cudnn)')


def moved_bytes(text: str) -> int:
    """Of all library calls in a compiled program's text (`compiled.as_text()`)."""
    defined = [found for line in text.splitlines() if (found := _DEFINED.match(line))]
    sizes = {found["name"]: _bytes(found["shape"]) for found in defined}
    total = 0
    for found in defined:
        if _LIBRARY.search(found["rest"]):
            operands = re.findall(r"[\w.-]+", found["rest"].partition(")")[0])
            total += _bytes(_SCRATCH.sub("", found["shape"]))
            total += sum(sizes.get(name, 0) for name in operands)
    return total


def _bytes(shape: str) -> int:
    """Of an array, or of all arrays of a tuple."""
    return sum(
        int(found["bits"]) * math.prod(int(dim) for dim in found["dims"].split(",") if dim) // 8
        for found in _ARRAY.finditer(shape)
    )
