"""What networks show of themselves, for the report: maps of features, saliency, denoising strips.

Arrays and names alone; `lt_jax.picturing` makes them from a run's finished artifacts.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from lt_jax.evaluate.images import maps as maps_lib
from lt_jax.evaluate.images.maps import Maps
from lt_jax.runtime.ledger import Ledger


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What an arm says of an image, and why.

    predicted: class index, with its probability. attribution: integrated gradients of its logit,
    summed over channels; `difference` is the logit less that of a black image, `gap` by how much
    the attributions miss it. rollout: of attention, by patch, summing to 1; None of a network
    without attention.
    """

    predicted: int
    probability: float
    attribution: Float[np.ndarray, "h w"]
    difference: float
    gap: float
    rollout: Float[np.ndarray, "_ _"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """A val image of class `label`, and each arm's answer, in the order of `Saliency.arms`."""

    name: str
    label: int
    image: UInt8[np.ndarray, "h w c"]
    answers: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Saliency:
    """Examples by class, the rarest first; arms with the seed of the run that answers."""

    arms: tuple[tuple[str, int], ...]
    examples: tuple[Example, ...]
    steps: int


@dataclasses.dataclass(frozen=True, eq=False)
class Strip:
    """Estimates of x_0 of an image of class `label`, and the image that the pool has of it.

    index: of the candidate in the pool.
    """

    label: int
    index: int
    estimates: UInt8[np.ndarray, "l h w c"]
    kept: UInt8[np.ndarray, "h w c"]


@dataclasses.dataclass(frozen=True, eq=False)
class Strips:
    """Strips by class, the rarest first, at the same levels [l] of log-SNR, of `steps` steps.

    pool: in words, how the pool's own images were sampled.
    """

    log_snr: Float[np.ndarray, "l"]
    steps: int
    pool: str
    strips: tuple[Strip, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """All of it; None where there was nothing to make it from, or it was not asked for.

    costs: of each part that was made.
    """

    maps: Maps | None = None
    saliency: Saliency | None = None
    strips: Strips | None = None
    costs: Mapping[str, Ledger] = dataclasses.field(default_factory=dict)


def summary(found: Pictures | None, classes: tuple[str, ...]) -> dict[str, Any] | None:
    """What report.json keeps of them; None where there are none.

    Returns:
      {"maps": see `maps.summary`, "saliency": {"arms", "steps", "images", "largest_gap": of
       completeness, over the largest difference of logits} or None, "strips": {"classes",
       "log_snr"} or None, "costs": {part: {"seconds", "images"}}}
    """
    if found is None:
        return None
    saliency, strips = None, None
    if held := found.saliency:
        answers = [answer for example in held.examples for answer in example.answers]
        largest = max(abs(answer.difference) for answer in answers)
        saliency = {
            "arms": [{"name": name, "seed": seed} for name, seed in held.arms],
            "steps": held.steps,
            "images": len(held.examples),
            "largest_gap": max(abs(answer.gap) for answer in answers) / max(largest, 1e-12),
        }
    if found.strips:
        strips = {
            "classes": [classes[strip.label] for strip in found.strips.strips],
            "log_snr": found.strips.log_snr,
        }
    return {
        "maps": maps_lib.summary(found.maps),
        "saliency": saliency,
        "strips": strips,
        "costs": {
            name: {"seconds": cost.seconds, "images": cost.images}
            for name, cost in found.costs.items()
        },
    }
