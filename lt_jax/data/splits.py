"""Splits by whole groups, stratified by class."""

import collections
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from lt_jax.config import SplitConfig
from lt_jax.errors import UserError

SPLITS = ("train", "policy_val", "val", "test")


class SplitError(UserError, ValueError):
    """A split that the data cannot carry."""


def split_groups(
    labels: Int[np.ndarray, "n"],
    groups: Sequence[str],
    config: SplitConfig,
    classes: Sequence[str],
    named: Bool[np.ndarray, "n"] | None = None,
) -> tuple[str, ...]:
    """Gives each example a split, so that no group stands in two.

    Each class's groups are shuffled and dealt out by largest remainder of fraction x groups; every
    split with a fraction above zero gets at least one. A group that holds several labels counts
    for the one of them that has fewest groups. The draw depends on the seed, the group names and
    the labels, not on the order of the rows; a class moves no other class's groups.

    With `config.folds`, each class's shuffled groups are cut into so many parts of equal size,
    give or take one. Part `config.fold` is test, and the others are dealt out as before: over the
    folds of one seed every group is test once.

    With `named` the groups that hold a named example are test, and the others are dealt out.

    Args:
      labels: class indices in [0, k).
      groups: the group of each example.
      config: fractions of policy_val, val and test, and the seed; train is the rest.
      classes: the names of the k classes.
      named: which examples `config.test_where` names, where it is given.

    Returns:
      One of `SPLITS` for each example.

    Raises:
      SplitError: fractions leave nothing for train, or a class has too few groups to stand in
        every split that is not empty, and in the test split of every fold, or no named example.
    """
    fractions = _fractions(config)
    fixed = _fixed(labels, groups, config, classes, named)
    members = _groups_of_class(labels, groups, len(classes))
    needed = sum(fraction > 0 for fraction in fractions.values())
    split_of: dict[str, str] = dict.fromkeys(fixed, "test")
    for label, names in enumerate(members):
        names = [name for name in names if name not in fixed]
        _check_groups(classes[label], len(names), needed, config.folds)
        order = np.random.default_rng([config.seed, label]).permutation(len(names))
        dealt = fractions
        if config.folds:
            parts = np.array_split(order, config.folds)
            split_of.update((names[slot], "test") for slot in parts.pop(config.fold))
            order = np.concatenate(parts)
            rest = 1 - fractions["test"]
            dealt = {split: part / rest for split, part in fractions.items() if split != "test"}
        ends = np.cumsum(_apportion(list(dealt.values()), len(order)))
        for split, slots in zip(dealt, np.split(order, ends[:-1]), strict=True):
            split_of.update((names[slot], split) for slot in slots)
    return tuple(split_of[group] for group in groups)


def _fixed(
    labels: np.ndarray,
    groups: Sequence[str],
    config: SplitConfig,
    classes: Sequence[str],
    named: np.ndarray | None,
) -> set[str]:
    """The groups that are test whatever is drawn."""
    if named is None:
        return set()
    for label, name in enumerate(classes):
        if not (labels[named] == label).any():
            raise SplitError(
                f"config.data.split.test_where: {config.test_where!r} names no image of class "
                f"{name!r}; leave the class out, or name other images"
            )
    return {groups[row] for row in np.flatnonzero(named).tolist()}


def _check_groups(name: str, count: int, splits: int, folds: int) -> None:
    if count < splits:
        raise SplitError(
            f"class {name!r} has {count} group(s), and {splits} splits each "
            "need one: gather more images of it, leave the class out, or set "
            "config.data.split.policy_val or config.data.split.val to 0"
        )
    if count < folds or (folds and count - -(-count // folds) < splits - 1):
        raise SplitError(
            f"class {name!r} has {count} group(s), too few to be in the test split of {folds} "
            f"folds and in the {splits - 1} other splits of each: lower config.data.split.folds, "
            "gather more images of it, or leave the class out"
        )


def _fractions(config: SplitConfig) -> dict[str, float]:
    held_out = {"policy_val": config.policy_val, "val": config.val, "test": config.test}
    if config.test_where:
        if config.folds:
            raise SplitError(
                f"config.data.split.test_where: got {config.test_where!r} with folds = "
                f"{config.folds}; folds draw test splits of their own, leave it empty"
            )
        del held_out["test"]
    if config.folds:
        if config.folds == 1 or config.fold >= config.folds:
            raise SplitError(
                f"config.data.split: got fold {config.fold} of folds = {config.folds}; takes 2 or "
                "more folds, numbered from 0, or folds = 0 for one test split"
            )
        held_out["test"] = 1 / config.folds
    train = 1.0 - sum(held_out.values())
    if train < 1e-6:
        raise SplitError(
            f"config.data.split: {' + '.join(held_out)} come to "
            f"{sum(held_out.values()):g}; takes less than 1, what they leave over is train"
        )
    return {"train": train, **held_out}


def _groups_of_class(labels: np.ndarray, groups: Sequence[str], k: int) -> list[list[str]]:
    """Sorted group names of each class; each group once, under the rarest of its labels."""
    labels_of = collections.defaultdict(set)
    for group, label in zip(groups, labels.tolist(), strict=True):
        labels_of[group].add(label)
    sizes = collections.Counter(label for held in labels_of.values() for label in held)
    members: list[list[str]] = [[] for _ in range(k)]
    for group in sorted(labels_of):
        members[min(labels_of[group], key=lambda label: (sizes[label], label))].append(group)
    return members


def _apportion(fractions: Sequence[float], total: int) -> Int[np.ndarray, "s"]:
    """Largest remainder, then at least one for each fraction above zero, taken from the largest."""
    quota = np.array(fractions) * total
    seats = np.floor(quota).astype(int)
    largest = np.argsort(-(quota - seats), kind="stable")[: total - seats.sum()]
    seats[largest] += 1
    while (short := np.flatnonzero((seats == 0) & (quota > 0))).size:
        seats[short[0]] += 1
        seats[seats.argmax()] -= 1
    return seats
