"""What an out-of-distribution score is: what it is given, what it returns, what it refuses."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import flax.struct
import numpy as np

from lt_jax.errors import UserError
from lt_jax.shapes import Array, Features, Float, Int, Labels, Logits

_CAUSES = {
    "features": "the extractor diverged: lower its learning rate",
    "logits": "the extractor diverged: lower its learning rate",
    "denoising errors": "the generator diverged: lower its learning rate",
}


class FitError(UserError, ValueError):
    """Images, or what is known of them, that no score can be fitted to or had from."""


@flax.struct.dataclass
class Evidence:
    """What is known of images. (Typed `Any`: leaves may be NumPy's, JAX's, or shapes.)

    Attributes:
      features: Float[Array, "n d"], of the extractor.
      logits: Float[Array, "n k"], of the extractor.
      labels: Int[Array, "n"], the class that each shows, or is meant to show.
      errors: Float[Array, "n l"], the generator's mean squared denoising errors at l noise levels;
        None where no score reads them.
    """

    features: Any
    logits: Any
    labels: Any
    errors: Any = None


@runtime_checkable
class Scorer(Protocol):
    """How far an image is from the class that it should show. Hashable; its state is a pytree.

    A score must mean the same in every class (thresholds are pooled over classes) and to images
    that were not in the fit.

    `reads` says what is given as `features`: the "features" of an `Evidence`, or its "errors".
    """

    reads: ClassVar[str]

    @property
    def num_classes(self) -> int:
        """How many classes labels are of."""
        ...

    def fit(
        self,
        features: Float[np.ndarray | Array, "n d"],
        logits: Float[np.ndarray | Array, "n k"],
        labels: Int[np.ndarray | Array, "n"],
    ) -> Any:
        """The state that `score` needs, from real train images. Runs on host, not under `jit`.

        Raises FitError where a class has no image or what the score reads is not finite.
        """
        ...

    def score(
        self, state: Any, features: Features, logits: Logits, labels: Labels
    ) -> Float[Array, "b"]:
        """One number an image; higher is further out. Can be part of a compiled program."""
        ...


def check_fit(
    arrays: Mapping[str, Float[np.ndarray, "n _"]], labels: Int[np.ndarray, "n"], num_classes: int
) -> None:
    """Raises FitError unless every class has an image and all that is known of it is finite.

    Args:
      arrays: by name: "features", "logits" or "denoising errors".
      labels: in [0, num_classes).
      num_classes: how many there should be.
    """
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        raise FitError(
            f"OOD fit: labels lie in [{labels.min()}, {labels.max()}]; "
            f"{num_classes} classes take 0 to {num_classes - 1}"
        )
    counts = np.bincount(labels, minlength=num_classes)
    if empty := np.flatnonzero(counts == 0).tolist():
        raise FitError(
            f"OOD fit: no train image of class {', '.join(map(str, empty))} (by number); every "
            "class needs one: lower imbalance_factor, or drop the class from the data set"
        )
    for name, array in arrays.items():
        if bad := np.flatnonzero(~np.isfinite(array).all(axis=1)).tolist():
            raise FitError(
                f"OOD fit: the {name} of {len(bad)} train images are not finite (first: row "
                f"{bad[0]}); {_CAUSES[name]}"
            )
