"""Which images of a source stay, in which group and split: drawn, saved before, or all test."""

import collections
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from lt_jax.config import ConfigError, DataConfig, key_fields
from lt_jax.data import duplicates, longtail, sources
from lt_jax.data.decoding import Decoded
from lt_jax.data.manifest import ManifestError, SplitManifest
from lt_jax.data.splits import split_groups


@dataclasses.dataclass(frozen=True)
class Draw:
    """Which records stay (ascending), and the group and split of each of those."""

    rows: Int[np.ndarray, "m"]
    groups: Sequence[str]
    splits: Sequence[str]
    protocol: Mapping[str, Any]


def draw(
    data: DataConfig, classes: Sequence[str], records: Sequence[sources.Record], decoded: Decoded
) -> Draw:
    """Groups, splits and the long tail of the records whose images are sound.

    Where config names the test images, others of their groups, near-duplicates among them, are
    dropped: test stays as it is named, and nothing is trained on what is like it.
    """
    rows = decoded.rows
    labels = np.array([records[row].label for row in rows], np.int32)
    groups = tuple(records[row].group for row in rows)
    pairs = np.empty((0, 2), np.int64)
    if data.near_duplicates != "off":
        pairs = duplicates.near_duplicates(decoded.thumbnails[rows], data.duplicate_distance)
    move = data.near_duplicates == "move"
    joined = duplicates.join_groups(groups, pairs) if move else groups
    named = named_test(data, [records[row] for row in rows])
    splits = split_groups(labels, joined, data.split, classes, named)

    stay, dropped = _thinned(data, len(classes), labels, joined, splits)
    beside: dict[str, Any] = {}
    if named is not None:
        others = (np.array(splits) == "test") & ~named
        beside = {"dropped_beside_test": np.bincount(labels[others], minlength=len(classes))}
        beside = {name: counts.tolist() for name, counts in beside.items()}
        stay = stay[~others[stay]]
    protocol = {
        **_protocol_of_reader(data, decoded),
        **_profile(data),
        "split": key_fields(data.split),
        "near_duplicates": {
            "mode": data.near_duplicates,
            "distance": data.duplicate_distance,
            **_scan_report([records[row].id for row in rows], groups, joined, splits, pairs),
        },
        "dropped_by_profile": dropped,
        **beside,
    }
    return Draw(rows[stay], [joined[i] for i in stay], [splits[i] for i in stay], protocol)


def named_test(data: DataConfig, records: Sequence[sources.Record]) -> Bool[np.ndarray, "n"] | None:
    """Which records `data.split.test_where` names; None where it is empty.

    Raises ConfigError where it is no "column=value", or names none.
    """
    if not (where := data.split.test_where):
        return None
    column, assigned, value = (part.strip() for part in where.partition("="))
    if not (column and assigned and value):
        raise ConfigError(
            f'config.data.split.test_where: got {where!r}; takes "column=value", such as '
            '"official_split=test"'
        )
    found = [sources.text_of(record, column) for record in records]
    named = np.array([text == value for text in found], bool)
    if not named.any():
        held = ", ".join(sorted(set(found) - {""})[:10])
        told = f"has {held}" if held else "is a column of no image"
        raise ConfigError(
            f"config.data.split.test_where: got {where!r}, which names no image; {column!r} {told}"
        )
    return named


def _thinned(
    data: DataConfig,
    num_classes: int,
    labels: Int[np.ndarray, "m"],
    groups: Sequence[str],
    splits: Sequence[str],
) -> tuple[Int[np.ndarray, "s"], list[int]]:
    """Rows that stay once train has its profile, ascending; and how many each class has lost."""
    train = np.flatnonzero(np.array(splits) == "train")
    counts = np.bincount(labels[train], minlength=num_classes)
    target = longtail.profile_counts(
        counts, data.profile, data.imbalance_factor, data.pareto_shape, data.shots
    )
    if data.train_fraction < 1:
        target = np.maximum(np.round(target * data.train_fraction).astype(target.dtype), 1)
    kept = train[
        longtail.subsample(
            labels[train], tuple(groups[i] for i in train.tolist()), target, data.split.seed
        )
    ]
    held_out = np.flatnonzero(np.array(splits) != "train")
    return np.sort(np.concatenate([kept, held_out])), (counts - target).tolist()


def _scan_report(
    ids: Sequence[str],
    groups: Sequence[str],
    joined: Sequence[str],
    splits: Sequence[str],
    pairs: Int[np.ndarray, "p 2"],
) -> dict[str, Any]:
    """What the near-duplicate scan found; pairs are listed where they still stand across splits."""
    across = duplicates.pairs_across(splits, pairs)
    return {
        "pairs": len(pairs),
        "pairs_across_groups": len(duplicates.pairs_across(groups, pairs)),
        "groups_joined": len(set(groups)) - len(set(joined)),
        "largest_group": max(collections.Counter(joined).values()),
        "across_splits": [
            {"ids": [ids[i], ids[j]], "splits": [splits[i], splits[j]]} for i, j in across.tolist()
        ],
    }


def frozen_records(
    frozen: SplitManifest,
    classes: Sequence[str],
    records: Sequence[sources.Record],
    data: DataConfig,
) -> list[sources.Record]:
    """The records that a saved manifest holds and the task asks for, in the source's order."""
    here = {record.id for record in records}
    if tuple(classes) != frozen.classes:
        if not sources.is_task(data):
            raise ManifestError(
                f"config.data.manifest: its classes are {', '.join(frozen.classes)}; the source "
                f"has {', '.join(classes)}"
            )
        # What the task leaves out is not missing.
        whole = sources.load(dataclasses.replace(data, label="label", classes=()))
        here = {record.id for record in whole.records()}
    known = set(frozen.ids)
    kept = [record for record in records if record.id in known]
    if missing := known - here:
        raise ManifestError(
            f"config.data.manifest: {len(missing)} of its images are not in the source, the first "
            f"is {min(missing)!r}; check config.data.root"
        )
    return kept


def redraw(
    frozen: SplitManifest,
    classes: Sequence[str],
    records: Sequence[sources.Record],
    decoded: Decoded,
    data: DataConfig,
) -> Draw:
    """The groups and splits of a saved manifest, for images that are still the same.

    Under other labels train gets the profile that `data` asks for; under the same ones it has its
    own. A fraction is taken in any case.
    """
    relabelled = tuple(classes) != frozen.classes
    row_of = {name: row for row, name in enumerate(frozen.ids)}
    theirs = [row_of[records[row].id] for row in decoded.rows]
    for row, old in zip(decoded.rows.tolist(), theirs, strict=True):
        record = records[row]
        if decoded.image_sha256[row] != frozen.image_sha256[old]:
            raise ManifestError(
                f"config.data.manifest: image {record.id!r} has other pixels than when it was saved"
            )
        if not relabelled and record.label != frozen.labels[old]:
            raise ManifestError(
                f"config.data.manifest: image {record.id!r} was "
                f"{frozen.classes[frozen.labels[old]]!r}, the source now says "
                f"{frozen.classes[record.label]!r}"
            )
    protocol = {**frozen.protocol, **_protocol_of_reader(data, decoded), "reused": frozen.sha256}
    groups = [frozen.groups[old] for old in theirs]
    splits = [frozen.splits[old] for old in theirs]
    labels = np.array([records[row].label for row in decoded.rows], np.int32)
    if relabelled:
        _check_splits(classes, labels, splits)
        protocol |= _profile(data)
    else:
        data = dataclasses.replace(data, profile="natural")
    stay, dropped = _thinned(data, len(classes), labels, groups, splits)
    if relabelled or data.train_fraction < 1:
        protocol |= {"dropped_by_profile": dropped, "train_fraction": data.train_fraction}
    return Draw(decoded.rows[stay], [groups[i] for i in stay], [splits[i] for i in stay], protocol)


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """Images that a run has had: their sha256, and thumbnails of its square images (none: copies
    alone are looked for); and sha256 of what its generator has seen, which may be more."""

    image_sha256: Collection[str]
    thumbnails: Float[np.ndarray, "m s s"]
    seen_by_generator: Collection[str] = frozenset()


def all_test(
    known: Known,
    records: Sequence[sources.Record],
    decoded: Decoded,
    data: DataConfig,
) -> Draw:
    """Every image that is neither among those of `known` nor a near-duplicate of one, as test.

    `decoded` has thumbnails of squares.
    """
    rows = decoded.rows
    hashes = [decoded.image_sha256[row] for row in rows.tolist()]
    copied = np.array([sha256 in known.image_sha256 for sha256 in hashes])
    seen = np.array([sha256 in known.seen_by_generator for sha256 in hashes]) & ~copied
    near = duplicates.among(decoded.thumbnails[rows], known.thumbnails, data.duplicate_distance)
    near &= ~(copied | seen)
    new = rows[~(copied | seen | near)].tolist()
    if not new:
        raise ManifestError(
            f"all {len(decoded.rows)} images of {data.source} are among those that the run has "
            "had, near-duplicates of them, or have trained its generator's base"
        )
    protocol = {
        **_protocol_of_reader(data, decoded),
        "external": True,
        "left_out_as_known": int(copied.sum()),
        "left_out_as_near_duplicates": {
            "images": int(near.sum()),
            "distance": data.duplicate_distance if len(known.thumbnails) else None,
        },
        # Of a base's images no more than hashes is known: near-duplicates are not looked for.
        "left_out_as_seen_by_generator": {"images": int(seen.sum()), "near_duplicates": None},
    }
    groups = [records[row].group for row in new]
    return Draw(np.array(new), groups, ["test"] * len(new), protocol)


def _check_splits(classes: Sequence[str], labels: np.ndarray, splits: Sequence[str]) -> None:
    """Refuses a task that leaves a class without images to train on, or to be tested on."""
    for split in ("train", "test"):
        held = set(labels[np.array(splits) == split].tolist())
        if absent := [name for k, name in enumerate(classes) if k not in held]:
            raise ManifestError(
                f"config.data.manifest: its split {split} has no image of class {absent[0]!r}, "
                "which config.data.label and config.data.classes ask for; leave the class out, or "
                "draw new splits"
            )


def _profile(data: DataConfig) -> dict[str, Any]:
    fields = ("profile", "imbalance_factor", "pareto_shape", "shots", "train_fraction")
    return {name: getattr(data, name) for name in fields}


def _protocol_of_reader(data: DataConfig, decoded: Decoded) -> dict[str, Any]:
    task = {"label": data.label, "classes": list(data.classes)} if sources.is_task(data) else {}
    return {"source": data.source, **task, "skipped": list(decoded.skipped)}
