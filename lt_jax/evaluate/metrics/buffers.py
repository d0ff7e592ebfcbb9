"""Arrays that one thread uses over and over: fresh ones of megabytes cost as much as filling them.

What lies in a buffer holds until its name is taken again by the same `Buffers`.
"""

import threading

import numpy as np


class Buffers:
    """Buffers by name, grown where needed."""

    def __init__(self) -> None:
        """Empty."""
        self._held: dict[tuple[str, str], np.ndarray] = {}

    def take(self, name: str, like: np.ndarray) -> np.ndarray:
        """An array of the shape and type of `like`, with anything in it."""
        key = (name, like.dtype.str)
        held = self._held.get(key)
        if held is None or held.size < like.size:
            held = self._held[key] = np.empty(like.size, like.dtype)
        return held[: like.size].reshape(like.shape)


def take(buffers: Buffers | None, name: str, like: np.ndarray) -> np.ndarray:
    """The same of `buffers`, or a fresh array where there are none."""
    return np.empty_like(like) if buffers is None else buffers.take(name, like)


_THREAD = threading.local()


def of_thread() -> Buffers:
    """The calling thread's own; they go with it."""
    if not hasattr(_THREAD, "buffers"):
        _THREAD.buffers = Buffers()
    return _THREAD.buffers
