"""What a training step minimises: augmented images, labels that may be mixed, a loss for them.

An image may be of several classes at once: a synthetic one still partly of its source's (edited
images), or one mixed with another of the batch. Its loss is the convex combination of the losses
that each label alone would have, whichever loss that is; of cross-entropy and all losses made of it
this is what soft labels give.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from lt_jax.classify import experts, losses
from lt_jax.config import AugmentConfig, ClassifierConfig, ExpertsConfig
from lt_jax.data import augment
from lt_jax.data.batch_mixing import BatchMixing
from lt_jax.data.randaugment import RandAugment
from lt_jax.runtime import keys
from lt_jax.shapes import Array, Float, Images, ImagesU8, PRNGKey


class Target(NamedTuple):
    """A label [b] of each image, and its weight [b] in [0, 1]; None: 1 for all."""

    label: Any
    weight: Any = None


def has_experts(model: ClassifierConfig) -> bool:
    """Whether a network has experts, whose logits are to be had each by itself."""
    return isinstance(model, ExpertsConfig)


def make(model: ClassifierConfig, loss: str, expert_loss: str, tau: float) -> Any:
    """A `losses.Loss` of a network's logits: [b k], or [b e k] where it has experts.

    Raises:
      ValueError: no such loss.
    """
    single = losses.make(loss, tau)
    return experts.make(expert_loss, single) if has_experts(model) else single


def augmented(
    images: ImagesU8, key: PRNGKey, config: AugmentConfig, strong: RandAugment | None
) -> Images:
    """A step's images, float32 [-1, 1]; each by itself."""
    floats = augment.augment(images, keys.stream(key, "augment"), config)
    return strong(floats, keys.stream(key, "randaugment")) if strong else floats


def targets(batch: Mapping[str, Array]) -> list[Target]:
    """The labels of a batch: one an image, or two where it holds weights of them."""
    if "label_weight" not in batch:
        return [Target(batch["label"])]
    weight = batch["label_weight"]
    return [Target(batch["label"], weight), Target(batch["other_label"], 1 - weight)]


def mixed(
    images: Images, own: Sequence[Target], key: PRNGKey, mixing: BatchMixing
) -> tuple[Images, list[Target]]:
    """Images mixed with each other, with all labels of both."""
    images, partner, weight = mixing(images, keys.stream(key, "mixing"))
    others = [Target(t.label[partner], _times(t.weight, partner, 1 - weight)) for t in own]
    everyone = jnp.arange(len(weight))
    return images, [*(Target(t.label, _times(t.weight, everyone, weight)) for t in own), *others]


def combined(
    loss: Any,
    logits: Float[Array, "b ..."],
    own: Sequence[Target],
    counts: Float[Array, "k"],
    progress: losses.Scalar,
) -> Float[Array, "b"]:
    """Each image's loss: of its labels' losses, the sum by their weights."""
    terms = []
    for target in own:
        value = loss(logits, target.label, counts, progress)
        terms.append(value if target.weight is None else target.weight * value)
    return functools.reduce(jnp.add, terms)


def _times(weight: Any, rows: Array, share: Float[Array, "b"]) -> Float[Array, "b"]:
    return share if weight is None else share * weight[rows]
