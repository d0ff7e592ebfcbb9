"""The test set as groups (patients, lesions): what it says, which class a group is of, group level.

Images of one group are not independent. Everything that speaks of chance therefore counts groups,
and where groups hold several images there are two levels to report: images, and groups whose
probabilities are the mean of their images' (what a reader of all of a patient's images would say).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from lt_jax.evaluate.errors import EvaluationError
from lt_jax.evaluate.metrics import classification

ClassGroups = Mapping[str, Sequence[int]]
MIXED = ("leave_out", "error")


@dataclasses.dataclass(frozen=True)
class Truth:
    """What the test set says.

    labels: class indices [n]. groups: group codes 0..g-1 [n], see `group_codes`.
    class_groups: class indices of head, medium and tail. k: number of classes. bins: of ECE.
    specificity: at which sensitivity is read off the ROC curve.
    """

    labels: Int[np.ndarray, "n"]
    groups: Int[np.ndarray, "n"]
    class_groups: ClassGroups
    k: int
    bins: int = 15
    specificity: float = classification.SPECIFICITY

    @property
    def n_groups(self) -> int:
        """Groups of test images."""
        return int(self.groups.max()) + 1

    @property
    def has_clusters(self) -> bool:
        """Whether any group holds several images."""
        return self.n_groups < len(self.labels)


def group_codes(groups: Sequence[str] | Sequence[int] | np.ndarray) -> Int[np.ndarray, "n"]:
    """Names or numbers of groups as codes 0..g-1, by sorted value."""
    return np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)


def groups_per_class(truth: Truth) -> Int[np.ndarray, "k"]:
    """Groups with an image of each class."""
    return _members(truth).sum(axis=0)


def _members(truth: Truth) -> Bool[np.ndarray, "g k"]:
    member = np.zeros((truth.n_groups, truth.k), bool)
    member[truth.groups, truth.labels] = True
    return member


def group_classes(truth: Truth) -> Int[np.ndarray, "g"]:
    """The class of every group: that of its labels which the fewest groups have.

    Ties go to the class with fewer images, then the lower index. A group of several labels thus
    stands with the rarest, which it is needed for. A class that occurs only beside rarer ones can
    still be missing from a resample, which is then left out, see `intervals.MAX_UNDEFINED`.
    """
    member = _members(truth)
    images = np.bincount(truth.labels, minlength=truth.k)
    rarest_first = np.lexsort((images, member.sum(axis=0)))
    return rarest_first[member[:, rarest_first].argmax(axis=1)]


@dataclasses.dataclass(frozen=True)
class GroupLevel:
    """The groups that have one label, as a test set of their own.

    truth: a label a group; every group is its own. rows: the code that each had [h].
    left_out: codes of the groups with several labels, which have no label as a whole.
    """

    truth: Truth
    rows: Int[np.ndarray, "h"]
    left_out: tuple[int, ...]


def by_group(
    truth: Truth,
    mixed: str = "leave_out",
    names: Sequence[str] | Sequence[int] | np.ndarray | None = None,
) -> GroupLevel | None:
    """The test set at group level; None where no group has one label throughout.

    Args:
      truth: labels and groups of images.
      mixed: what becomes of a group with several labels: "leave_out" or "error".
      names: of the images' groups [n], for the message.

    Raises:
      EvaluationError: `mixed` is "error" and a group has several labels; the message names it.
    """
    member = _members(truth)
    several = np.flatnonzero(member.sum(axis=1) > 1)
    if len(several) and mixed == "error":
        rows = np.flatnonzero(truth.groups == several[0])
        name = several[0] if names is None else np.asarray(names)[rows[0]]
        labels = np.flatnonzero(member[several[0]]).tolist()
        raise EvaluationError(
            f"group {str(name)!r}: its {len(rows)} images have the labels {labels} (and "
            f"{len(several) - 1} further groups have several); group level takes one label a "
            "group: mend the groups, or set config.evaluate.mixed_groups=leave_out"
        )
    rows = np.flatnonzero(member.sum(axis=1) == 1)
    if not len(rows):
        return None
    labels = member[rows].argmax(axis=1)
    alone = dataclasses.replace(truth, labels=labels, groups=np.arange(len(rows)))
    return GroupLevel(alone, rows, tuple(several.tolist()))


def group_means(
    probabilities: Float[np.ndarray, "*m n k"], groups: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "*m g k"]:
    """Mean probabilities of every group's images."""
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(int(groups.max()) + 1))
    sums = np.add.reduceat(probabilities[..., order, :], starts, axis=-2)
    return np.asarray(sums / np.bincount(groups)[:, None])
