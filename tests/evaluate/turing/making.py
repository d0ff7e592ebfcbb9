"""A small finished run for the tests: a prepared folder and a pool of its generator."""

import dataclasses
import json
import pathlib

import numpy as np

from lt_jax.data.manifest import SplitManifest
from lt_jax.data.pool import PoolWriter
from tests.data.pool.making import INFO, columns

CLASSES = ("naevus", "melanoma", "dermatofibroma")
VAL = (20, 12, 3)  # images of each class; other splits have half, rounded up
ACCEPTED = (15, 16, 9)
SIDE = 8


def run(workdir: pathlib.Path, **changes) -> pathlib.Path:
    """Writes `prepare` and `synthesize` into a workdir; see `real` and `pool` for the changes."""
    manifest = real(workdir / "prepare", **changes.pop("real", {}))
    pool(workdir / "synthesize", manifest, **changes)
    return workdir


def real(folder: pathlib.Path, groups=None, copies=(), protocol=None) -> SplitManifest:
    """Images of noise, two of a group nowhere but where `groups` says so.

    Args:
      groups: by row.
      copies: pairs (row, of row).
      protocol: of the near-duplicate scan.
    """
    folder.mkdir(parents=True)
    rows = []
    for split, share in (("train", 2), ("val", 1), ("test", 2), ("policy_val", 2)):
        for k, count in enumerate(VAL):
            rows += [(split, k)] * -(-count // share)
    n = len(rows)
    images = np.random.default_rng(5).integers(0, 256, (n, SIDE, SIDE, 3), np.uint8)
    for row, of in copies:
        images[row] = images[of]
    groups = {} if groups is None else groups
    scan = {} if protocol is None else {"near_duplicates": protocol}
    manifest = SplitManifest(
        ids=tuple(f"ISIC_{row:04d}" for row in range(n)),
        images=tuple(f"images/ISIC_{row:04d}.jpg" for row in range(n)),
        labels=np.array([k for _, k in rows], np.int32),
        groups=tuple(groups.get(row, f"lesion {row}") for row in range(n)),
        splits=tuple(split for split, _ in rows),
        masks=((),) * n,
        boxes=((),) * n,
        devices=(None,) * n,
        attributes=({},) * n,
        image_sha256=tuple(f"{row:064x}" for row in range(n)),
        classes=CLASSES,
        protocol={"source": "test", **scan},
    )
    np.save(folder / "images.npy", images)
    manifest.save(folder)
    return manifest


def pool(folder, manifest, accepted=ACCEPTED, sources=None, side=SIDE, sha256=None, seed=9) -> None:
    """Accepted images of noise, and one of each class that was stopped.

    Args:
      accepted: images of each class.
      sources: by index: the id of the real image that it was made from.
      side: of the images.
      sha256: of another manifest.
      seed: of the pixels.
    """
    labels = np.concatenate([np.repeat(k, count + 1) for k, count in enumerate(accepted)])
    n = len(labels)
    stopped = np.append(labels[:-1] != labels[1:], True)
    template = {name: [column[0]] * n for name, column in columns([0]).items()}
    told = {
        **template,
        "index": np.arange(n),
        "label": labels.astype(np.int32),
        "source_label": labels.astype(np.int32),
        "conditions": [
            json.dumps({"source": sources[i]} if sources and i in sources else {}) for i in range(n)
        ],
        "failed": ["ood" if s else "" for s in stopped],
        "verdict": ["ood" if s else "accepted" for s in stopped],
    }
    info = dataclasses.replace(
        INFO,
        classes=CLASSES,
        manifest_sha256=sha256 or manifest.sha256,
        thresholds=(1.0,) * 3,
        cosine_thresholds=(),
        ms_ssim_thresholds=(),
    )
    images = np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), np.uint8)
    with PoolWriter(folder, info) as writer:
        writer.write(0, images, told, np.arange(n))
        writer.finish(np.array(accepted))


def results(key, answers, confidence=None, **reader) -> dict:
    """What the page downloads; `answers`: "real", "synthetic" or None by image."""
    entries = []
    for number, (item, answer) in enumerate(zip(key.items, answers, strict=True)):
        if answer is not None:
            sure = None if confidence is None else int(confidence[number])
            entry = {"id": item.id, "answer": answer, "confidence": sure}
            entries.append({**entry, "milliseconds": 1000 + number, "time": "2025-01-01T00:00:00Z"})
    return {
        "version": 1,
        "study": key.study,
        "images": len(key.items),
        "reader": {"token": "", "name": "", "years": None, **reader},
        "started": "2025-01-01T00:00:00Z",
        "finished": None,
        "answers": entries,
    }
