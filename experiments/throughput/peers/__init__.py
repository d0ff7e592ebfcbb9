"""What lt_jax is timed against: the same work in PyTorch, diffusers and timm, one file a peer.

None of these is a dependency: `requirements-peers.txt` has the versions that were measured. Where
one is not installed, its rows are left out, and the command that installs it is named.
"""

import importlib
import importlib.util
from typing import Any

from lt_jax.errors import UserError

INSTALL = "pip install -r requirements-peers.txt"


class PeerMissingError(UserError, RuntimeError):
    """A library that a peer needs is not installed."""


def load(name: str) -> Any:
    """A library by the name of its module.

    Raises:
      PeerMissingError: it is not installed; the message names the command.
    """
    if importlib.util.find_spec(name.split(".")[0]) is None:
        raise PeerMissingError(f"{name.split('.')[0]} is not installed; for its rows: {INSTALL}")
    return importlib.import_module(name)
