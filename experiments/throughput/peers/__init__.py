"""What lt_jax is timed against: the same work in PyTorch, diffusers and timm, one file a peer.

None of these is a dependency: `requirements-peers.txt` has the versions that were measured. Where
one is not installed, its rows are left out, and the command that installs it is named. This file
names the ways in which PyTorch runs a network, without importing it.
"""

import dataclasses
import importlib
import importlib.util
from typing import Any

from lt_jax.errors import UserError

INSTALL = "pip install -r requirements-peers.txt"


class PeerMissingError(UserError, RuntimeError):
    """A library that a peer needs is not installed, or does not load."""


@dataclasses.dataclass(frozen=True)
class Mode:
    """How PyTorch runs a network.

    Attributes:
      name: for the table.
      compiled: through `torch.compile`.
      graphs: compiled for CUDA graphs ("reduce-overhead").
      channels_last: its memory format.
      amp: in bfloat16 by autocast.
      tf32: float32 products in TF32, as XLA has them on a GPU; else as PyTorch has them.
    """

    name: str
    compiled: bool = False
    graphs: bool = False
    channels_last: bool = False
    amp: bool = False
    tf32: bool = True

    @property
    def dtype(self) -> str:
        """That products are in, as in `devices.PEAK`; "" where that has no figure for it."""
        return "bfloat16" if self.amp else "float32" if self.tf32 else ""


EAGER = Mode("eager")
CONVOLUTIONS = (
    EAGER,
    Mode("channels last", channels_last=True),
    Mode("AMP", amp=True),
    Mode("compiled", compiled=True),
    Mode("compiled, channels last, AMP", compiled=True, channels_last=True, amp=True),
)
TRANSFORMERS = (
    EAGER,
    Mode("AMP", amp=True),
    Mode("compiled", compiled=True),
    Mode("compiled, AMP", compiled=True, amp=True),
)
# On a GPU float32 is not what one compiles for.
GPU_CONVOLUTIONS = (
    EAGER,
    Mode("channels last, AMP", channels_last=True, amp=True),
    CONVOLUTIONS[-1],
)
GPU_TRANSFORMERS = (EAGER, TRANSFORMERS[1], TRANSFORMERS[3])
# Of one image in float32, where what is published was run; the first is PyTorch's default.
PUBLISHED = (
    Mode("as published", tf32=False),
    Mode("TF32"),
    Mode("TF32, compiled, CUDA graphs", compiled=True, graphs=True),
)


def load(name: str) -> Any:
    """A library by the name of its module.

    Raises:
      PeerMissingError: it is not installed, or does not load; the message names the command.
    """
    library = name.split(".")[0]
    if importlib.util.find_spec(library) is None:
        raise PeerMissingError(f"{library} is not installed; for its rows: {INSTALL}")
    try:
        return importlib.import_module(name)
    except Exception as error:  # of builds that do not fit each other, e.g. torchvision's
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise PeerMissingError(f"{library} does not load ({reason[0]}): {INSTALL}") from error
