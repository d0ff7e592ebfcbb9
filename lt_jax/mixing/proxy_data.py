"""What a proxy classifier trains on and is measured by: train, pool and policy_val.

Each image is either a row of an extractor's features or the image itself, uint8. A feature is
standardised by its mean and deviation over real train images, and one that does not vary there is
0 everywhere; pixels are left as they are. Synthetic images are accepted ones. With m_k and g_k the
mean features (or pixels) of real and synthetic images of class k, and s^2 the mean squared distance
of real images to their class's mean, fidelity is, unless it is given,

    fidelity_k = 1 / (1 + |m_k - g_k|^2 / s^2)    in (0, 1]; 0 without synthetic images     (1)

There is no place here for validation and test images, which a policy must not learn from.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from lt_jax.errors import UserError
from lt_jax.mixing.mixture import require_seen
from lt_jax.shapes import Array, Bool, Float, Int, UInt8

# Deviation of a feature, over the largest of any, from which on it varies: below is rounding.
LEAST_DEVIATION = 1e-5
AT_ONCE = 2**22  # pixels that are made numbers of double precision at once: 32 MiB

# Features [n d], or images [n h w c]; `_check` says what is wrong with others.
Inputs = Float[np.ndarray, "..."] | UInt8[np.ndarray, "..."]


class ProxyError(UserError, ValueError):
    """Features, images or labels that no proxy classifier can be trained on or measured by."""


@struct.dataclass
class ProxyData:
    """Device-resident, a pytree of arrays; made by `collect`.

    Attributes:
      features: what the classifier sees of real and then synthetic images, each by class:
        standardised features float32 [n d], or images uint8 [n h w c].
      starts: first row of each class, real and synthetic, int32 [2 k].
      sizes: rows of each class, real and synthetic, int32 [2 k]; the real ones at least 1.
      policy_val: likewise [v d] or [v h w c]; policy_val_labels: int32 [v].
      head: classes of the head, bool [k].
      ood: mean out-of-distribution score of the synthetic images, standardised over the
        classes that have any; 0 for others; float32 [k].
      fidelity: higher is better; float32 [k].
    """

    features: Any
    starts: Any
    sizes: Any
    policy_val: Any
    policy_val_labels: Any
    head: Any
    ood: Any
    fidelity: Any

    @property
    def kind(self) -> str:
        """Which of "features" and "images"."""
        return "images" if self.features.dtype == jnp.uint8 else "features"

    @property
    def counts(self) -> Float[Array, "k"]:
        """Real train images of each class, n_k."""
        return self.sizes[0].astype(jnp.float32)

    @property
    def pool(self) -> Float[Array, "k"]:
        """Accepted synthetic images of each class."""
        return self.sizes[1].astype(jnp.float32)


def collect(
    real: Inputs,
    real_labels: Int[np.ndarray, "n"],
    synthetic: Inputs,
    synthetic_labels: Int[np.ndarray, "m"],
    scores: Float[np.ndarray, "m"],
    policy_val: Inputs,
    policy_val_labels: Int[np.ndarray, "v"],
    *,
    classes: Sequence[str],
    head: Bool[np.ndarray, "k"],
    fidelity: Float[np.ndarray, "k"] | None = None,
) -> ProxyData:
    """Checks, standardises features, and sorts, on host.

    Args:
      real: train images, as features [n d] or as uint8 images [n h w c], and their labels.
      synthetic: accepted synthetic images, in the same form, and their labels; may be empty.
      scores: their out-of-distribution scores, higher is further out.
      policy_val: its images, in the same form, and their labels.
      classes: names, in the order of labels; K >= 2.
      head: which classes must keep their recall.
      fidelity: of each class's synthetic images, higher is better; None is equation (1).

    Raises:
      ProxyError: a class has no image in train, a label is of no class, a feature or score is
        not finite, or the sets have not the same features, or images of the same size.
      MixtureError: a class has no image in policy_val.
    """
    sets = {
        "train": (real, real_labels),
        "the pool": (synthetic, synthetic_labels),
        "policy_val": (policy_val, policy_val_labels),
    }
    for where, (inputs, labels) in sets.items():
        _check(where, inputs, labels, len(classes), real)
    if not np.isfinite(scores).all():
        raise ProxyError(
            "proxy: an out-of-distribution score of the pool is not finite; run synthesize again"
        )
    counts, pool, seen = (np.bincount(each, minlength=len(classes)) for _, each in sets.values())
    if absent := [classes[label] for label in np.flatnonzero(counts == 0).tolist()]:
        raise ProxyError(
            f"proxy: train has no image of {', '.join(absent)}; lower config.data.imbalance_factor "
            "or drop the class from the data set"
        )
    require_seen(seen, classes)
    standard = [real, synthetic, policy_val]
    if real.dtype != np.uint8:
        mean, inverse = _standardisation(real)
        standard = [((each - mean[None]) * inverse[None]) for each in standard]
    kept = np.uint8 if real.dtype == np.uint8 else np.float32
    features = np.empty((len(real) + len(synthetic), *real.shape[1:]), kept)
    features[: len(real)] = standard[0][np.argsort(real_labels, kind="stable")]
    features[len(real) :] = standard[1][np.argsort(synthetic_labels, kind="stable")]
    sizes = np.stack([counts, pool])
    starts = np.cumsum(sizes.ravel()) - sizes.ravel()
    if fidelity is None:
        fidelity = _fidelity(standard[0], real_labels, standard[1], synthetic_labels, pool)
    return ProxyData(
        features=jnp.asarray(features),
        starts=jnp.asarray(starts.reshape(sizes.shape), jnp.int32),
        sizes=jnp.asarray(sizes, jnp.int32),
        policy_val=jnp.asarray(standard[2], kept),
        policy_val_labels=jnp.asarray(policy_val_labels, jnp.int32),
        head=jnp.asarray(head, bool),
        ood=jnp.asarray(_standard_scores(scores, synthetic_labels, pool), jnp.float32),
        fidelity=jnp.asarray(np.where(pool > 0, fidelity, 0.0), jnp.float32),
    )


def _check(
    where: str, inputs: np.ndarray, labels: np.ndarray, num_classes: int, real: np.ndarray
) -> None:
    if num_classes < 2:
        raise ProxyError(f"proxy: got {num_classes} classes; takes 2 or more")
    images = inputs.dtype == np.uint8
    if inputs.ndim != (4 if images else 2):
        raise ProxyError(
            f"proxy: {inputs.dtype} of shape {inputs.shape} in {where}; takes features, float "
            "[n d], or images, uint8 [n h w c] in 0 to 255"
        )
    if images != (real.dtype == np.uint8):
        kinds = ("images", "features") if images else ("features", "images")
        raise ProxyError(f"proxy: {kinds[0]} in {where} and {kinds[1]} in train; take one for all")
    if inputs.shape[1:] != real.shape[1:]:
        sizes = ["x".join(map(str, each.shape[1:])) for each in (inputs, real)]
        what, remedy = "features", "take all from one extractor"
        if images:
            what, remedy = "pixels", "resize all to config.data.image_size"
        raise ProxyError(f"proxy: {sizes[0]} {what} in {where} and {sizes[1]} in train; {remedy}")
    if np.any(bad := (labels < 0) | (labels >= num_classes)):
        row = int(np.flatnonzero(bad)[0])
        raise ProxyError(
            f"proxy: label {labels[row]} in {where}, row {row}; takes 0 to {num_classes - 1}"
        )
    if not images and not np.isfinite(inputs).all():
        raise ProxyError(
            f"proxy: the features of {where} are not finite; the extractor diverged: lower its "
            "learning rate"
        )


def _standardisation(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    exact = features.astype(np.float64)
    deviation = exact.std(axis=0)
    varies = deviation > LEAST_DEVIATION * deviation.max()
    return exact.mean(axis=0), varies / np.where(varies, deviation, 1.0)


def _parts(features: np.ndarray) -> list[slice]:
    """Rows [n d] to calculate with at once: pixels some at a time, as they grow eightfold."""
    size = AT_ONCE // features.shape[1] if features.dtype == np.uint8 else len(features)
    return [slice(at, at + max(1, size)) for at in range(0, len(features), max(1, size))]


def _class_means(features: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    sums = np.zeros((num_classes, features.shape[1]))
    for rows in _parts(features):
        sums += np.eye(num_classes)[labels[rows]].T @ features[rows]
    return sums / np.maximum(np.bincount(labels, minlength=num_classes), 1)[:, None]


def _fidelity(
    real: np.ndarray,
    real_labels: np.ndarray,
    synthetic: np.ndarray,
    synthetic_labels: np.ndarray,
    pool: np.ndarray,
) -> np.ndarray:
    """Equation (1); of images, the pixels are the features."""
    real, synthetic = (each.reshape(len(each), real[0].size) for each in (real, synthetic))
    means = _class_means(real, real_labels, len(pool))
    parts = _parts(real)
    squares = [np.square(real[rows] - means[real_labels[rows]]).sum(-1) for rows in parts]
    spread = np.concatenate(squares).mean()
    away = np.square(means - _class_means(synthetic, synthetic_labels, len(pool))).sum(-1)
    return 1 / (1 + away / (spread or 1.0))  # 0 where each class has a single image


def _standard_scores(scores: np.ndarray, labels: np.ndarray, pool: np.ndarray) -> np.ndarray:
    mean = np.bincount(labels, scores, len(pool)) / np.maximum(pool, 1)
    has = pool > 0
    if not has.any():
        return np.zeros(len(pool))
    away = np.where(has, mean - mean[has].mean(), 0.0)
    deviation = mean[has].std()
    equal = deviation <= 1e-9 * np.abs(mean).max()  # but for rounding
    return np.zeros(len(pool)) if equal else away / deviation
