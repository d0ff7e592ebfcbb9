r"""Weights of Inception-V3 from a file that the user supplies: .npz or .safetensors, no pickle.

The weights that published FIDs are of come as a PyTorch checkpoint
(`pt_inception-2015-12-05-6726825d.pth`, of the project pytorch-fid), which is a pickle, and
unpickling runs code of whoever made the file. Nothing here does; where PyTorch is installed, its
restricted loader turns the file into one of plain arrays:

    python -c "import numpy, torch; w = torch.load('pt_inception-2015-12-05-6726825d.pth',
        map_location='cpu', weights_only=True);
        numpy.savez('inception.npz', **{k: v.numpy() for k, v in w.items()})"

A .safetensors file is a length (8 bytes, little-endian), so many bytes of JSON that say of each
array its type, shape and place, and the bytes of the arrays. Names are the checkpoint's, such as
`Mixed_5b.branch1x1.conv.weight`; of batch normalisation with weight g, offset b, running mean m and
variance v the network keeps

  scale = g / sqrt(v + 0.001),    bias = b - m scale                                       (1)
"""

import json
import math
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from lt_jax.errors import UserError
from lt_jax.models import module
from lt_jax.models.inception import EPSILON, SIDE, InceptionV3

_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
_LONGEST = 100 * 2**20  # bytes of a .safetensors header
_CONVERT = (
    "convert a PyTorch checkpoint once, where torch is installed: torch.load(path, "
    "weights_only=True), then numpy.savez('inception.npz', **{k: v.numpy() for k, v in "
    "weights.items()})"
)


class InceptionError(UserError, ValueError):
    """A file that holds no weights of Inception-V3, or in a format that is not read."""


def load(path: pathlib.Path) -> dict[str, Any]:
    """The parameters of `InceptionV3` from a file.

    Raises:
      InceptionError: the file is missing, of another format, damaged, or lacks an array.
    """
    if not path.is_file():
        raise InceptionError(
            f"config.audit.inception_weights: no file {str(path)!r}; give the weights as .npz or "
            f".safetensors ({_CONVERT}), or take `inception` out of config.audit.parts"
        )
    readers = {".npz": _npz, ".safetensors": _safetensors}
    if path.suffix not in readers:
        raise InceptionError(
            f"config.audit.inception_weights: got {str(path)!r}; takes .npz or .safetensors, since "
            f"other formats run code when they are read: {_CONVERT}"
        )
    try:
        arrays = readers[path.suffix](path)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InceptionError(
            f"{path}: no readable arrays ({type(error).__name__}: {error}); {_CONVERT}"
        ) from error
    return params_of(arrays, str(path))


def params_of(arrays: Mapping[str, np.ndarray], where: str) -> dict[str, Any]:
    """A checkpoint's arrays as parameters of `InceptionV3`; what it has beyond them is left out.

    Raises InceptionError, saying `where`, for an array that is missing or of another shape.
    """
    shapes = module.abstract(InceptionV3(), np.zeros((1, SIDE, SIDE, 3), np.float32))
    return {name: _part(held, name, arrays, where) for name, held in shapes.items()}  # type: ignore[union-attr]


def _part(
    shapes: Mapping[str, Any], name: str, arrays: Mapping[str, np.ndarray], where: str
) -> dict[str, Any]:
    if "kernel" not in shapes:
        return {k: _part(held, f"{name}.{k}", arrays, where) for k, held in shapes.items()}
    height, width, inputs, outputs = shapes["kernel"].shape

    def take(suffix: str, *shape: int) -> np.ndarray:
        array = arrays.get(f"{name}.{suffix}")
        if array is None or array.shape != shape:
            got = "is missing" if array is None else f"is of shape {array.shape}"
            raise InceptionError(
                f"{where}: {name}.{suffix} {got}; takes {shape}, as in pytorch-fid's "
                "pt_inception-2015-12-05-6726825d.pth"
            )
        return array.astype(np.float64)

    kernel = take("conv.weight", outputs, inputs, height, width).transpose(2, 3, 1, 0)
    norm = {k: take(f"bn.{k}", outputs) for k in ("weight", "bias", "running_mean", "running_var")}
    scale = norm["weight"] / np.sqrt(norm["running_var"] + EPSILON)
    bias = norm["bias"] - norm["running_mean"] * scale
    found = {"kernel": kernel, "scale": scale, "bias": bias}
    return {k: array.astype(np.float32) for k, array in found.items()}


def _npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as held:
        return {name: held[name] for name in held.files}


def _safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or length > min(_LONGEST, len(raw) - 8):
        raise ValueError(f"a header of {length} bytes in a file of {len(raw)}")
    header = json.loads(raw[8 : 8 + length])
    data, found = raw[8 + length :], {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in _TYPES:
            continue  # counters are integers, and not read
        start, end = entry["data_offsets"]
        kind = np.dtype(_TYPES[entry["dtype"]]).newbyteorder("<")
        size = math.prod(entry["shape"]) * kind.itemsize
        if not 0 <= start <= end <= len(data) or end - start != size:
            raise ValueError(f"{name} lies at {start} to {end} of {len(data)} bytes")
        found[name] = np.frombuffer(data[start:end], kind).reshape(entry["shape"])
    return found
