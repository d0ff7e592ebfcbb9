"""Which synthetic images are accepted: the gates, and the verdict on each image.

Three gates, each with one number an image and a limit of its class:

  ood        the out-of-distribution score is at most the threshold (`calibration`)
  label      the extractor gives the intended class at least a given probability
  memorised  no train image is as near as only few held-out images have one (`memorization`)

An image is accepted if it passes all. Every number is kept, also of images that fail.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.config import MemorizationConfig, SelectionConfig
from lt_jax.selection import calibration, memorization
from lt_jax.selection.ensemble import Ensemble, score_rows
from lt_jax.selection.ood import Evidence
from lt_jax.shapes import Array, Float, ImagesU8, Int


@flax.struct.dataclass
class Gates:
    """What `judge` needs.

    Attributes:
      ensemble, fitted: the scores, and what they have learned of train images.
      thresholds: [k], on the combined score.
      label_probability: [], the least.
      memorization, bank: how copies are told, and the train images; no bank: no such gate.
    """

    ensemble: Ensemble = flax.struct.field(pytree_node=False)
    memorization: MemorizationConfig = flax.struct.field(pytree_node=False)
    fitted: Any
    thresholds: Any
    label_probability: Any
    bank: Any = None


@flax.struct.dataclass
class Verdict:
    """What the gates say of b images.

    Attributes:
      score: [b], combined; `scores`: [b m], of each member of the ensemble.
      label_probability: [b], of the intended class.
      cosine, ms_ssim: [b], likeness to the nearest train image, NaN without a bank; `nearest`: [b]
        its row in the bank, -1 without one.
      passed: [b 3] bool, each of `lt_jax.data.pool.GATES`; `accepted`: [b] bool, all of them.
    """

    score: Any
    scores: Any
    label_probability: Any
    cosine: Any
    ms_ssim: Any
    nearest: Any
    passed: Any
    accepted: Any


def calibrate(
    ensemble: Ensemble,
    train: Evidence,
    held_out: Evidence | None,
    config: SelectionConfig,
    seed: int,
) -> tuple[Any, Float[np.ndarray, "k"]]:
    """Fits the scores to real train images, and their thresholds to images held out.

    Args:
      train: real train images.
      held_out: those of `policy_val`, which neither scores nor extractor have seen; None: train
        images are held out in turn, by `config.folds`.
      config: of the selection.
      seed: of the folds.

    Returns:
      The fitted state, and a threshold [k] for each class.

    Raises:
      FitError: a class has no train image, or a feature is not finite.
      CalibrationError: no image could be held out.
    """
    train, held_out = jax.tree.map(np.asarray, (train, held_out))
    fitted = ensemble.fit(train)
    if not ensemble.members:  # every image passes
        return fitted, np.full(ensemble.num_classes, np.inf)
    if held_out is None:
        labels = train.labels

        def score(rest: np.ndarray, held: np.ndarray) -> np.ndarray:
            state = ensemble.fit(jax.tree.map(lambda leaf: leaf[rest], train))
            combined = lambda taken: ensemble.score(state, taken)[0]
            width = ensemble.largest_fold(labels)
            return score_rows(combined, train, np.flatnonzero(held), width)

        scores = calibration.held_out_scores(score, labels, config.folds, seed)
    else:
        labels = held_out.labels
        combined = lambda taken: ensemble.score(fitted, taken)[0]
        scores = score_rows(combined, held_out, np.arange(len(labels)))
    limits = calibration.thresholds(
        scores, labels, ensemble.num_classes, config.keep_rate, config.pooling
    )
    return fitted, limits


def judge(
    gates: Gates, images: ImagesU8, evidence: Evidence, own_groups: Int[Array, "b"]
) -> Verdict:
    """Passes each image through the gates. Pure: meant to be fused into the sampling program.

    Args:
      gates: see `Gates`.
      images: as they are stored.
      evidence: what scores are made of; its labels are the intended classes.
      own_groups: of the train image that each was made from, which it may be like; -1: none.
    """
    labels = evidence.labels
    score, scores = gates.ensemble.score(gates.fitted, evidence)
    probabilities = jax.nn.softmax(evidence.logits.astype(jnp.float32), axis=1)
    probability = jnp.take_along_axis(probabilities, labels[:, None], axis=1)[:, 0]
    inside = score <= gates.thresholds[labels]  # false for NaN
    plausible = probability >= gates.label_probability
    if gates.bank is None:
        cosine = ms_ssim = jnp.full(labels.shape, jnp.nan)
        nearest = jnp.full(labels.shape, -1, jnp.int32)
        new = jnp.ones(labels.shape, bool)
    else:
        found = memorization.nearest(
            gates.memorization, gates.bank, images, evidence.features, own_groups
        )
        cosine, ms_ssim, nearest = found.cosine, found.ms_ssim, found.ms_ssim_rows
        new = ~memorization.is_copy(gates.memorization, gates.bank, found, labels)
    passed = jnp.stack([inside, plausible, new], axis=1)
    return Verdict(
        score=score,
        scores=scores,
        label_probability=probability,
        cosine=cosine,
        ms_ssim=ms_ssim,
        nearest=nearest.astype(jnp.int32),
        passed=passed,
        accepted=jnp.all(passed, axis=1),
    )
