"""Does a classifier see that an image is synthetic? A linear probe on features, class by class.

A regularised logistic regression (`cross_fitting`) is to tell accepted synthetic images of a class
from held-out real ones (val, policy_val) by the extractor's features. Its AUROC, on images that it
was not fitted on, is 1/2 where nothing tells them apart, and 1 where every synthetic image bears a
mark. An augmentation that the generator has learned (shifts, rotations) is a mark, too, as far as
the extractor sees it. Two things would raise it without any mark, and are measured beside it:

  floor  the same probe of train against held-out real images. The extractor has been trained on
         the former, so that their features may lie otherwise; synthetic images come from a
         generator that has seen the same ones.
  n      the probe learns from as many images of both kinds, and the floor's from as many as there
         are; few images make a weak probe, whose 1/2 says little: see the interval.

A class with fewer than `cross_fitting.LEAST` groups of either kind has a reason, not a number.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lt_jax.errors import UserError
from lt_jax.evaluate.images import cross_fitting
from lt_jax.evaluate.images.privacy import area_entry, correct


class ProbeError(UserError, ValueError):
    """Features that no probe can be fitted to."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Images of one kind: features of one extractor, classes from 0, codes of groups.

    A synthetic image is its own group.
    """

    features: Float[np.ndarray, "n d"]
    labels: Int[np.ndarray, "n"]
    groups: Int[np.ndarray, "n"]

    def at(self, rows: np.ndarray) -> "Part":
        """Some of the images."""
        return Part(self.features[rows], self.labels[rows], self.groups[rows])

    def whole(self) -> "Part":
        """The same images, as of one class."""
        return dataclasses.replace(self, labels=np.zeros_like(self.labels))


def joined(parts: Sequence[Part]) -> Part:
    """Several kinds as one."""
    names = [field.name for field in dataclasses.fields(Part)]
    return Part(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def probe(
    sets: Mapping[str, Part],
    classes: Sequence[str],
    folds: int = 5,
    most: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """AUROC of synthetic against held-out real images, and of train against these.

    Args:
      sets: "synthetic", "held_out" and "train" images.
      classes: names.
      folds: of the probe, by group; at most.
      most: images of a class and kind; of more, a random subset.
      seed: of subsets and folds.

    Returns:
      JSON-able {"least": groups of a kind that a probe takes, "classes": [{"class", "n_synthetic",
      "n_held_out", "n_train": images there are, "probe" and "floor": {"auroc", "ci95", "p" (against
      1/2), Holm's "p_holm" over the classes, images and groups of both kinds} or None, "reasons":
      {what is None: why}}], "overall": the same of all classes, as many images of each class of
      both kinds, "p_holm" None}.

    Raises:
      ProbeError: features that are not finite, or of several dimensions.
    """
    _check(sets)
    entries = []
    for k, name in enumerate(classes):
        mine = {part: held.at(held.labels == k) for part, held in sets.items()}
        entries.append({"class": name, **_entry(mine, folds, most, np.random.default_rng(seed))})
    for name in ("probe", "floor"):
        correct(entry[name] for entry in entries)
    overall = {**_counts(sets), "reasons": {}}
    for name, first in (("probe", "synthetic"), ("floor", "train")):
        rng = np.random.default_rng(seed)
        both = _alike(sets[first], sets["held_out"], len(classes), most, rng)
        overall[name], reason = _judge(*both, folds, seed)
        if reason:
            overall["reasons"][name] = reason
    return {"least": cross_fitting.LEAST, "classes": entries, "overall": overall}


def _entry(
    sets: Mapping[str, Part], folds: int, most: int, rng: np.random.Generator
) -> dict[str, Any]:
    entry: dict[str, Any] = {**_counts(sets), "reasons": {}}
    seed = int(rng.integers(2**31))
    for name, first in (("probe", "synthetic"), ("floor", "train")):
        one, other = _alike(sets[first].whole(), sets["held_out"].whole(), 1, most, rng)
        entry[name], reason = _judge(one, other, folds, seed)
        if reason:
            entry["reasons"][name] = reason
    return entry


def _judge(
    first: Part, second: Part, folds: int, seed: int
) -> tuple[dict[str, Any] | None, str | None]:
    if not len(first.labels):
        return None, "no images of one kind"
    features = np.concatenate([first.features, second.features]).astype(np.float64)
    positive = np.arange(len(features)) < len(first.labels)
    # Codes of both kinds may be equal, and mean other groups: synthetic images have their own.
    groups = np.concatenate([2 * first.groups, 2 * second.groups + 1])
    fitted = cross_fitting.fit(features, positive, groups, folds, seed)
    if fitted is None:
        kinds = [len(np.unique(part.groups)) for part in (first, second)]
        return None, f"{kinds[0]} and {kinds[1]} groups; takes {cross_fitting.LEAST} of both kinds"
    found = area_entry(cross_fitting.area(fitted.scores, positive, groups, fitted.fold))
    return {**found, "folds": len(fitted.strengths)}, None


def _alike(
    first: Part, second: Part, classes: int, most: int, rng: np.random.Generator
) -> tuple[Part, Part]:
    """As many images of both kinds, class by class, at most `most` of each."""
    chosen: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for k in range(classes):
        rows = [np.flatnonzero(part.labels == k) for part in (first, second)]
        count = min(most, *map(len, rows))
        for own, into in zip(rows, chosen, strict=True):
            into.append(np.sort(rng.permutation(own)[:count]))
    at = [np.concatenate(rows) for rows in chosen]
    return first.at(at[0]), second.at(at[1])


def _counts(sets: Mapping[str, Part]) -> dict[str, int]:
    return {f"n_{name}": len(part.labels) for name, part in sets.items()}


def _check(sets: Mapping[str, Part]) -> None:
    dimensions = {part.features.shape[1] for part in sets.values() if len(part.labels)}
    if len(dimensions) > 1:
        raise ProbeError(f"audit probe: features of {sorted(dimensions)} dimensions; takes one")
    for name, part in sets.items():
        if bad := np.flatnonzero(~np.isfinite(part.features).all(axis=1)).tolist():
            raise ProbeError(
                f"audit probe, {name}: the features of {len(bad)} images are not finite (first: "
                f"row {bad[0]}); the extractor or the generator diverged: lower its learning rate"
            )
