"""What a classifier is trained on: image stores, rows by class, labels that are not whole."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lt_jax.data.images import Images


@dataclasses.dataclass(frozen=True)
class SoftLabels:
    """Labels of synthetic images that are still partly of another class: their source's.

    Attributes:
      real: labels of the real store [n], which are whole.
      other: the second class of each entry of the synthetic store [m].
      weight: of the first class [m] in [0, 1]; the second has the rest.
    """

    real: np.ndarray
    other: np.ndarray
    weight: np.ndarray

    def columns(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """What the loader adds to a batch: `other_label` and `label_weight`, real and synthetic."""
        whole = np.ones(len(self.real), np.float32)
        other = self.real.astype(np.int32), self.other.astype(np.int32)
        return {"other_label": other, "label_weight": (whole, self.weight.astype(np.float32))}


@dataclasses.dataclass(frozen=True)
class TrainData:
    """Images and rows of a training. The test split is no part of it.

    Attributes:
      real: image store of the manifest.
      train_rows: train rows [n_k] of each class in `real`.
      val_rows: validation rows [n] in `real`; val_labels: their labels [n].
      policy_rows: policy_val rows [n] in `real`, of which controllers that learn are told;
        policy_labels: their labels [n].
      extra: image store of the synthetic slots: pool, or real images for replay; or None.
      extra_rows: rows of each class in it, or None.
      soft: of the synthetic images, where not all of their labels are whole.
    """

    real: Images
    train_rows: Sequence[np.ndarray]
    val_rows: np.ndarray
    val_labels: np.ndarray
    image_shape: tuple[int, int, int]
    extra: Images | None = None
    extra_rows: Sequence[np.ndarray] | None = None
    soft: SoftLabels | None = None
    policy_rows: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    policy_labels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def counts(self) -> np.ndarray:
        """Real train images of each class [k]."""
        return np.array([len(rows) for rows in self.train_rows])
