"""Which synthetic images are accepted: thresholds calibrated on real train images, and the verdict.

Real images are accepted or rejected by scores from a fit that has not seen them (cross-fitting):
train rows are dealt into folds, each fold is scored by a scorer fitted to the others, and the
threshold of class k is the score below which a share `keep_rate` of its held-out images lies:

  own_k = the ceil((m_k + 1) keep_rate)-th lowest of the m_k held-out scores, or the highest  (1)
  c_k = m_k / (m_k + pooling)                                                             (2)
  threshold_k = c_k own_k + (1 - c_k) pooled                                              (3)

(1) is the conformal quantile (Vovk et al. 2005, Algorithmic Learning in a Random World), by which a
fresh image of the class is accepted with probability at least keep_rate, as far as m_k can tell.
(2) is Buhlmann's credibility (1967, ASTIN Bulletin 4, 199-207). `pooled` is the keep_rate quantile
of all held-out scores, in which class k weighs c_k in sum: classes with many images weigh alike,
however many, and a class of two hardly counts. pooling = 0 leaves each class its own threshold; a
large pooling gives all of them the quantile of all images.

A class of one image cannot be held out: the image stays in every fit, and the class's threshold is
`pooled`. Nothing here takes more than arrays of train rows, so nothing can be calibrated on others
by mistake of type.
"""

import enum
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.config import SelectionConfig
from lt_jax.selection.ood import FitError, Scorer
from lt_jax.shapes import Array, Features, Float, Int, Labels, Logits


class Reason(enum.IntEnum):
    """Why an image was rejected; the first gate that it fails."""

    ACCEPTED = 0
    OOD = 1  # its score exceeds its class's threshold, or is not a number
    LABEL = 2  # the extractor gives its intended class too little probability


@flax.struct.dataclass
class Gates:
    """What `judge` needs: scorer and its state, thresholds [k], least label probability []."""

    scorer: Scorer = flax.struct.field(pytree_node=False)
    fitted: Any
    thresholds: Any
    label_probability: Any


@flax.struct.dataclass
class Verdict:
    """Of each image, [b]: OOD score, probability of its label, whether accepted, a `Reason`."""

    scores: Any
    label_probability: Any
    accepted: Any
    reason: Any


def calibrate(
    scorer: Scorer,
    features: Float[np.ndarray | Array, "n d"],
    logits: Float[np.ndarray | Array, "n k"],
    labels: Int[np.ndarray | Array, "n"],
    config: SelectionConfig,
    seed: int,
) -> Gates:
    """Gates from real train images. Runs on host; the scorer is fitted `folds` + 1 times.

    Raises:
      ValueError: a class has no image, no class has two, or a feature is not finite.
    """
    labels = np.asarray(labels)
    scores = held_out_scores(scorer, features, logits, labels, config.folds, seed)
    limits = thresholds(scores, labels, scorer.num_classes, config.keep_rate, config.pooling)
    return Gates(
        scorer=scorer,
        fitted=scorer.fit(features, logits, labels),
        thresholds=jnp.asarray(limits, jnp.float32),
        label_probability=jnp.asarray(config.label_probability, jnp.float32),
    )


def judge(gates: Gates, features: Features, logits: Logits, labels: Labels) -> Verdict:
    """Passes each image through the gates. Pure: meant to be fused into the sampling program."""
    scores = gates.scorer.score(gates.fitted, features, logits, labels)
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=1)
    probability = jnp.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    inside = scores <= gates.thresholds[labels]  # false for NaN
    plausible = probability >= gates.label_probability
    reason = jnp.where(inside, jnp.where(plausible, Reason.ACCEPTED, Reason.LABEL), Reason.OOD)
    return Verdict(scores, probability, inside & plausible, reason.astype(jnp.int32))


def held_out_scores(
    scorer: Scorer,
    features: Float[np.ndarray | Array, "n d"],
    logits: Float[np.ndarray | Array, "n k"],
    labels: Int[np.ndarray | Array, "n"],
    folds: int,
    seed: int,
) -> Float[np.ndarray, "n"]:
    """Each train image's score by a fit without its fold; NaN for the only image of a class."""
    features, logits, labels = np.asarray(features), np.asarray(logits), np.asarray(labels)
    fold = stratified_folds(labels, folds, seed)
    scores = np.full(len(labels), np.nan, np.float32)
    for held_out in (fold == number for number in range(folds)):
        if not held_out.any():
            continue
        rest = ~held_out
        state = scorer.fit(features[rest], logits[rest], labels[rest])
        rows = (jnp.asarray(array[held_out]) for array in (features, logits, labels))
        scores[held_out] = np.asarray(scorer.score(state, *rows))
    return scores


def stratified_folds(labels: Int[np.ndarray, "n"], folds: int, seed: int) -> Int[np.ndarray, "n"]:
    """The fold of each row; -1 for the only image of a class, which no fold holds out.

    A class's rows, shuffled, are dealt to the folds in turn, and the next class goes on where it
    ended, so that folds differ by one row at most, in each class and in sum.
    """
    generator = np.random.default_rng(seed)
    fold = np.full(len(labels), -1)
    dealt = 0
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        if len(rows) > 1:
            fold[rows] = (dealt + np.arange(len(rows))) % folds
            dealt += len(rows)
    return fold


def thresholds(
    scores: Float[np.ndarray, "n"],
    labels: Int[np.ndarray, "n"],
    num_classes: int,
    keep_rate: float,
    pooling: float,
) -> Float[np.ndarray, "k"]:
    """Equations (1)-(3) from held-out scores, in which NaN stands for "not held out".

    Raises:
      ValueError: no image was held out.
    """
    known = ~np.isnan(scores)
    scores, labels = scores[known].astype(np.float64), labels[known]
    if not len(scores):
        raise FitError(
            "selection: no class has two train images, so none can be held out to calibrate a "
            "threshold; lower imbalance_factor or train on more images"
        )
    counts = np.bincount(labels, minlength=num_classes)
    credibility = np.where(counts > 0, counts / np.maximum(counts + pooling, 1), 0.0)
    pooled = np.quantile(
        scores,
        keep_rate,
        method="inverted_cdf",
        weights=(credibility / np.maximum(counts, 1))[labels],
    )
    own = np.full(num_classes, pooled)
    for label in np.flatnonzero(counts):
        rank = int(np.ceil((counts[label] + 1) * keep_rate - 1e-9))  # 1e-9: 10 * 0.9 is 9
        own[label] = np.sort(scores[labels == label])[min(max(rank, 1), counts[label]) - 1]
    return credibility * own + (1 - credibility) * pooled
