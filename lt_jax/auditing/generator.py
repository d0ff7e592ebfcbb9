"""Audits of the generator: which images it was trained on, by its losses."""

import pathlib
from typing import Any

import numpy as np

from lt_jax.context import Context
from lt_jax.data.manifest import SplitManifest
from lt_jax.diffusion import membership as losses_lib
from lt_jax.diffusion import trained
from lt_jax.evaluate.images import privacy
from lt_jax.runtime import mesh
from lt_jax.runtime.ledger import Ledger
from lt_jax.shapes import Bool, Int

HELD_OUT = ("val", "policy_val")


def membership(folder: pathlib.Path, context: Context) -> tuple[dict[str, Any], Ledger]:
    """What `privacy.attack` finds, of as many train as held-out images of each class.

    The parameters are those that images are sampled from, an adapter merged into its base.

    Raises PrivacyError where no class has both.
    """
    config = context.config.audit
    manifest, images = context.data
    rows, member = sides(manifest, config.images, config.seed)
    params = trained.load(
        context.folder("generator"), context.generator, context.config.synthesize.ema_length
    )
    program = losses_lib.make_program(
        context.generator, config.noise_times, config.draws, config.seed, context.mesh
    )
    found = losses_lib.measure(
        program,
        mesh.distribute(params, context.mesh),
        images,
        manifest.labels[rows],
        rows,
        config.batch_size,
        len(config.noise_times) * config.draws,
        folder=folder,
    )
    attack = privacy.attack(
        found.values.astype(np.float64),
        member,
        manifest.labels[rows],
        manifest.group_numbers[rows],
        config.noise_times,
        manifest.classes,
        config.folds,
        config.seed,
    )
    return {**attack, "draws": config.draws, "held_out": list(HELD_OUT)}, found.cost


def sides(
    manifest: SplitManifest, most: int, seed: int
) -> tuple[Int[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Rows of members (train) and non-members (val, policy_val), and which are members.

    As many of both in each class, drawn at random, at most `most` a side: where there are more,
    every class keeps about the same part, and one at least.

    Raises PrivacyError where no class has both.
    """
    train = manifest.rows("train")
    held = np.concatenate([manifest.rows(split) for split in HELD_OUT])
    classes = len(manifest.classes)
    own = [[side[manifest.labels[side] == k] for k in range(classes)] for side in (train, held)]
    counts = np.array([min(len(a), len(b)) for a, b in zip(*own, strict=True)])
    if not counts.any():
        raise privacy.PrivacyError(
            f"audit membership: {len(train)} train and {len(held)} held-out images, and no class "
            "has both; raise config.data.split.val"
        )
    if counts.sum() > most:
        counts = np.where(counts > 0, np.maximum(counts * most // counts.sum(), 1), 0)
    rng = np.random.default_rng(seed)
    drawn = [
        np.concatenate([rng.permutation(rows)[:n] for rows, n in zip(side, counts, strict=True)])
        for side in own
    ]
    return np.concatenate(drawn), np.arange(2 * counts.sum()) < counts.sum()
