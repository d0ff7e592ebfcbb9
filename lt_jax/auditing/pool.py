"""Audits of the pool: its accepted images' likeness to train, what betrays them, their variety."""

import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lt_jax import synthesis
from lt_jax.auditing.generator import HELD_OUT
from lt_jax.context import Context
from lt_jax.data.images import Images
from lt_jax.data.pool import PoolReader
from lt_jax.evaluate.images import artefacts, privacy
from lt_jax.evaluate.images import diversity as diversity_lib
from lt_jax.runtime import mesh, spmd
from lt_jax.runtime.ledger import Clock, Ledger
from lt_jax.runtime.progress import Progress
from lt_jax.selection import memorization, registration, similarity
from lt_jax.selection.memorization import Bank, Nearest
from lt_jax.selection.ood import Evidence
from lt_jax.shapes import Array, Float, Int, UInt8

CLOSEST = 12  # pairs of each kind
PIXELS = 1 << 22  # of the pairs that are compared at once
MEASURES = ("cosine", "ms_ssim")


def open_pool(context: Context) -> PoolReader:
    """The run's pool."""
    return PoolReader(context.folder("synthesize"), context.data[0].sha256)


def accepted(pool: PoolReader) -> Int[np.ndarray, "n"]:
    """Rows of the accepted images."""
    return np.flatnonzero(pool.columns["verdict"] == "accepted")


def nearness(folder: pathlib.Path, context: Context) -> tuple[dict[str, Any], Ledger]:
    """What `privacy.nearness` finds of "accepted" images and of all "candidates".

    Where the gate of copies was on, accepted images are below its limits by design, and candidates
    show what the generator does without it; None where the gate was off, since the images of
    rejected candidates are gone. "closest" names the pairs most alike, by measure, of accepted and
    of val images.

    Raises PrivacyError without an accepted or a val image.
    """
    del folder
    costs = Ledger()
    clock = Clock(costs)
    manifest = context.data[0]
    pool = open_pool(context)
    rows, val_rows = accepted(pool), manifest.rows("val")
    if not len(rows) or not len(val_rows):
        raise privacy.PrivacyError(
            f"audit nearness: {len(rows)} accepted synthetic and {len(val_rows)} val images; takes "
            "one at least of both (config.data.split.val above 0, and a pool)"
        )
    bank = synthesis.bank_of(context)
    own = _source_groups(context, pool, rows)
    made = _nearest(context, bank, pool, rows, _features(context, pool, rows), own)
    val = {name: np.asarray(getattr(bank.val, name), float) for name in MEASURES}
    compare = functools.partial(
        privacy.nearness,
        val=val,
        val_labels=manifest.labels[val_rows],
        val_groups=manifest.group_numbers[val_rows],
        classes=manifest.classes,
        seed=context.config.audit.seed,
    )
    labels = pool.columns["label"]
    measured = {name: np.asarray(pool.columns[name], float) for name in MEASURES}
    gated = context.config.synthesize.selection.memorization.gate
    ids = [manifest.ids[row] for row in val_rows]
    names = lambda label: manifest.classes[label]
    found = {
        "gate": gated,
        "accepted": compare({name: getattr(made, name) for name in MEASURES}, labels[rows]),
        "candidates": compare(measured, labels) if gated else None,
        "closest": {
            "accepted": _closest(context, made, pool.columns["index"][rows], labels[rows], names),
            "val": _closest(context, bank.val, ids, manifest.labels[val_rows], names),
        },
    }
    costs.images = len(rows)
    clock.read()
    return found, costs


def _source_groups(
    context: Context, pool: PoolReader, rows: Int[np.ndarray, "n"]
) -> Int[np.ndarray, "n"]:
    """The group of the train image that each was made from, and is like by design; -1: none."""
    manifest = context.data[0]
    group_of = dict(zip(manifest.ids, manifest.group_numbers.tolist(), strict=True))
    notes = [json.loads(note) for note in pool.columns["conditions"][rows]]
    return np.array([group_of.get(note.get("source"), -1) for note in notes], np.int32)


def _nearest(
    context: Context,
    bank: Bank,
    images: Images,
    rows: Int[np.ndarray, "n"],
    features: Float[np.ndarray, "n d"],
    own: Int[np.ndarray, "n"],
) -> Nearest:
    """`memorization.nearest` of `images[rows]`, shared by the devices."""
    config = context.config.synthesize.selection.memorization
    program = spmd.jit_rows(functools.partial(memorization.nearest, config), context.mesh)
    read = lambda at: (images[rows[at]], features[at], own[at])
    found, done = [], 0
    with Progress("audit nearness", len(rows), "image") as bar:
        for part in spmd.over_rows(program, bank, np.arange(len(rows)), memorization.BATCH, read):
            found.append(part)
            done += len(part.cosine)
            bar.update(done)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def _closest(
    context: Context, found: Nearest, names: Any, labels: Int[np.ndarray, "n"], of: Any
) -> dict[str, list[dict[str, Any]]]:
    """By measure, the pairs most alike: {"image": index in the pool or id, "class", "nearest": id
    of the train image, "value"}, at most CLOSEST."""
    manifest = context.data[0]
    train = manifest.rows("train")
    pairs = {}
    for measure in MEASURES:
        values = np.asarray(getattr(found, measure), float)
        at = np.asarray(getattr(found, f"{measure}_rows"))
        known = np.flatnonzero(~np.isnan(values))
        order = known[np.argsort(-values[known], kind="stable")][:CLOSEST]
        pairs[measure] = [
            {
                "image": names[i] if isinstance(names[i], str) else int(names[i]),
                "class": of(labels[i]),
                "nearest": manifest.ids[train[at[i]]],
                "value": float(values[i]),
            }
            for i in order.tolist()
        ]
    return pairs


def _features(
    context: Context, pool: PoolReader, rows: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "n d"]:
    """The extractor's features of images of the pool."""
    params = context.classifier_params("extractor", context.config.extractor.model)
    return context.features(params, pool, rows)


def probe(folder: pathlib.Path, context: Context) -> tuple[dict[str, Any], Ledger]:
    """What `artefacts.probe` finds: accepted images against val and policy_val images."""
    del folder
    costs = Ledger()
    clock = Clock(costs)
    config = context.config.audit
    manifest = context.data[0]
    pool = open_pool(context)
    rows = accepted(pool)
    held = [part for split in HELD_OUT if (part := _real(context, split)) is not None]
    train = _real(context, "train")
    assert train is not None  # a manifest without train images is refused
    empty = train.at(np.arange(0))
    made = empty
    if len(rows):
        features = _features(context, pool, rows)
        made = artefacts.Part(features, pool.columns["label"][rows], np.arange(len(rows)))
    sets = {
        "synthetic": made,
        "held_out": artefacts.joined(held) if held else empty,
        "train": train,
    }
    found = artefacts.probe(sets, manifest.classes, config.folds, config.images, config.seed)
    costs.images = len(rows)
    clock.read()
    return {**found, "held_out": list(HELD_OUT)}, costs


def _real(context: Context, split: str) -> artefacts.Part | None:
    """Features, labels and groups of a split's images; None where it is empty."""
    manifest = context.data[0]
    held: Evidence | None = context.evidence(split)
    if held is None:
        return None
    groups = manifest.group_numbers[manifest.rows(split)]
    return artefacts.Part(held.features, held.labels, groups)


def diversity(folder: pathlib.Path, context: Context) -> tuple[dict[str, Any], Ledger]:
    """{"pairs": of a class at most, "classes": [{"class", what `diversity.compared` says
    of accepted and of train images}], "macro": {"synthetic", "real", "difference", "std": of each,
    "classes"}}, means and deviations over the classes that have both."""
    del folder
    costs = Ledger()
    clock = Clock(costs)
    config = context.config.audit
    manifest, images = context.data
    pool = open_pool(context)
    entries = []
    for k, name in enumerate(manifest.classes):
        rng = np.random.default_rng((config.seed, k))
        real, made = context.train_rows[k], pool.rows(k)
        sides = []
        for store, rows, groups in (
            (pool, made, np.arange(len(made))),
            (images, real, manifest.group_numbers[real]),
        ):
            chosen = diversity_lib.subset(len(rows), config.pairs, rng)
            likeness = np.ones((len(chosen), len(chosen)))
            if len(chosen) > 1:
                most = diversity_lib.largest(config.pairs)
                likeness = pairwise(store[rows[chosen]], most, context.mesh)
            seed = int(rng.integers(2**31))
            side = diversity_lib.summarise(likeness, groups[chosen], config.resamples, seed)
            sides.append(side)
            costs.images += len(chosen)
        entries.append({"class": name, **diversity_lib.compared(*sides)})
    both = [entry for entry in entries if entry["difference"] is not None]
    means = {side: [entry[side]["mean"] for entry in both] for side in ("synthetic", "real")}
    means["difference"] = [entry["difference"] for entry in both]
    macro = {
        **{name: float(np.mean(values)) if values else None for name, values in means.items()},
        "std": {
            name: float(np.std(values, ddof=1)) if len(values) > 1 else None
            for name, values in means.items()
        },
        "classes": len(both),
    }
    clock.read()
    return {"pairs": config.pairs, "classes": entries, "macro": macro}, costs


def pairwise(
    images: UInt8[np.ndarray, "n h w c"], most: int, device_mesh: Mesh
) -> Float[np.ndarray, "n n"]:
    """MS-SSIM of each pair of images, in [0, 1], 1 with itself; n <= most, for which it compiles.

    Of gray pictures as they are: neither aligned nor stretched. The devices share the pairs.
    """
    told = _describe(mesh.pad(images, most))
    first, second = np.triu_indices(len(images), 1)
    size = max(16, PIXELS // int(np.prod(images.shape[1:3])))
    likeness = np.eye(len(images))
    read = lambda at: (first[at].astype(np.int32), second[at].astype(np.int32))
    pairs = np.arange(len(first))
    found = spmd.over_rows(_comparison(device_mesh, most), told, pairs, size, read)
    likeness[first, second] = likeness[second, first] = np.concatenate([np.zeros(0), *found])
    return likeness


@jax.jit
def _describe(images: UInt8[Array, "n h w c"]) -> tuple[similarity.Scale, ...]:
    return similarity.describe(jnp.swapaxes(registration.gray(images), 0, 1))


@functools.cache
def _comparison(device_mesh: Mesh, most: int) -> spmd.Program:
    """`_compare` of pairs among `most` images."""
    del most
    return spmd.jit_rows(_compare, device_mesh)


def _compare(
    told: tuple[similarity.Scale, ...], first: Int[Array, "p"], second: Int[Array, "p"]
) -> Float[Array, "p"]:
    take = lambda rows: jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=1), told)
    return similarity.compare(take(first), take(second))
