"""The stage audit: measurements of the generator and of its pool, each a part with its artifact.

  nearness        synthetic and held-out images' likeness to train      evaluate.images.privacy
  membership      who was in train, by the generator's loss             evaluate.images.privacy
  probe           whether a classifier sees that an image is synthetic  evaluate.images.artefacts
  diversity       MS-SSIM between images of a class                     evaluate.images.diversity
  accuracy_score  what a classifier learns from synthetic images alone  auditing.accuracy_score
  inception       FD, KID and manifolds on Inception's features         evaluate.images.fidelity

None of them is read by another stage but the report. They see train, policy_val and val images; the
test split's labels are masked here as everywhere, and predictions of its images are judged by the
report alone.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from lt_jax.auditing import accuracy_score, generator, inception, pool
from lt_jax.config import Config, ConfigError, key_fields
from lt_jax.context import Context
from lt_jax.runtime import files
from lt_jax.runtime.ledger import Ledger

RESULT = "audit.json"
# What each part reads: artifacts, and fields of config.audit.
INPUTS: dict[str, tuple[str, ...]] = {
    "nearness": ("prepare", "extractor", "synthesize"),
    "membership": ("prepare", "generator"),
    "probe": ("prepare", "extractor", "synthesize"),
    "diversity": ("prepare", "synthesize"),
    "accuracy_score": ("prepare", "synthesize"),
    "inception": ("prepare", "synthesize"),
}
_FIELDS: dict[str, tuple[str, ...]] = {
    "nearness": ("seed",),
    "membership": ("seed", "images", "folds", "noise_times", "draws"),
    "probe": ("seed", "images", "folds"),
    "diversity": ("seed", "pairs", "resamples"),
    "accuracy_score": (),
    "inception": (),
}
_PARTS: dict[str, Callable[[pathlib.Path, Context], tuple[dict[str, Any], Ledger]]] = {
    "nearness": pool.nearness,
    "membership": generator.membership,
    "probe": pool.probe,
    "diversity": pool.diversity,
    "accuracy_score": accuracy_score.measure,
    "inception": inception.measure,
}


def fields(config: Config, part: str) -> dict[str, Any]:
    """What decides a part's result, besides its inputs: of a file of weights its content.

    Raises ConfigError where there is no such file.
    """
    held = key_fields(config.audit)
    found = {"part": part, **{name: held[name] for name in _FIELDS[part]}}
    if part == "membership":
        found["ema_length"] = config.synthesize.ema_length
    if part == "accuracy_score":
        recipe = key_fields(config.classify)
        del recipe["arms"], recipe["logit_adjustment"]
        found |= recipe
    if part == "inception":
        path = pathlib.Path(config.audit.inception_weights)
        if not path.is_file():
            raise ConfigError(
                f"config.audit.inception_weights: got {config.audit.inception_weights!r}, which is "
                "no file; give Inception's weights as .npz or .safetensors (how to convert them "
                "stands in lt_jax/models/inception_weights.py), or take `inception` out of "
                "config.audit.parts"
            )
        found["weights"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def run(folder: pathlib.Path, context: Context, part: str) -> Ledger:
    """Runs one part, from where it was left, and writes its `audit.json`."""
    found, costs = _PARTS[part](folder, context)
    files.write_atomically(folder / RESULT, json.dumps(_plain(found), indent=1), "an audit")
    return costs


def gather(
    context: Context, test_ids: tuple[str, ...], test_labels: np.ndarray
) -> dict[str, Any] | None:
    """What the parts of a run have found, by name; None where there are none.

    Each with its "cost": seconds, images and FLOPs. Without the histograms of single classes, which
    many classes would fill a report with. Test labels [n], opened by the report, judge what
    `accuracy_score` has predicted.

    Raises ManifestError where its predictions are of other images than `test_ids`.
    """
    parts = context.config.audit.parts
    if not parts:
        return None
    found = {}
    for part in parts:
        folder = context.folder(f"audit/{part}")
        found[part] = json.loads((folder / RESULT).read_text())
        cost = context.store.ledger(context.specs[f"audit/{part}"])
        found[part]["cost"] = {name: getattr(cost, name) for name in ("seconds", "images", "flops")}
        if part == "nearness":
            for kind in ("accepted", "candidates"):
                for held in (found[part][kind] or {}).values():
                    for entry in held["classes"]:
                        for side in ("synthetic", "val"):
                            del entry[side]["histogram"]
        if part == "accuracy_score":
            accuracy_score.test(found[part], folder, test_ids, test_labels)
    return found


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays, and tuples, as JSON has them."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _plain(value.tolist()) if isinstance(value, np.ndarray | np.generic) else value
