"""Confusion matrices over an arm's runs."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Confusion:
    """True classes (rows) against predicted ones, over m runs.

    counts: [m k k] images. share: [m k k] of the row, NaN in the rows of absent classes.
    """

    counts: Int[np.ndarray, "m k k"]

    @property
    def share(self) -> Float[np.ndarray, "m k k"]:
        """Counts over their row's sum."""
        total = self.counts.sum(axis=-1, keepdims=True)
        return np.divide(
            self.counts, total, out=np.full(self.counts.shape, np.nan), where=total > 0
        )


def confusion(probabilities: Float[np.ndarray, "m n k"], labels: Int[np.ndarray, "n"]) -> Confusion:
    """Of the top-1 prediction; of equal probabilities the first class wins."""
    m, _, k = probabilities.shape
    predicted = probabilities.argmax(axis=-1)
    cell = (np.arange(m)[:, None] * k + labels[None]) * k + predicted
    return Confusion(np.bincount(cell.reshape(-1), minlength=m * k * k).reshape(m, k, k))
