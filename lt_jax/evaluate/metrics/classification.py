"""Classification metrics on host, from probabilities [n, k] or [m, n, k] stacked over seeds.

A class without a labelled image has no recall, AUROC or average precision. Per class these are
NaN; a macro average leaves such classes out (`absent_classes` names them, the report prints them)
and is NaN itself where no class is left. A class that is labelled but never predicted counts with
recall and F1 of zero. Classes that are predicted but not labelled stay out of macro-F1's average,
while the images lost to them lower the recall of the classes they came from.

Everything but ECE, the Brier score and the ranking figures is a function of three counts per class
(true positives, predictions, labels), which is also what a bootstrap resample changes: see `sums`.

The Brier score is Brier's own (1950), the sum over classes of the squared error,
  mean_i sum_c (p_ic - [y_i = c])^2  in [0, 2],
which for two classes is twice the form that counts the positive class alone. Log loss is in nats.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.special
from jaxtyping import Float, Int

from lt_jax.evaluate.errors import EvaluationError
from lt_jax.evaluate.metrics import ranking

METRICS = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "auroc_macro",
    "auprc_macro",
    "ece",
    "recall_head",
    "recall_medium",
    "recall_tail",
    "brier",
    "log_loss",
    "sensitivity_at_specificity",
)
PER_CLASS = ("auroc", "auprc", "sensitivity", "sensitivity_at_specificity", "f1")
PRIMARY = "balanced_accuracy"  # the metric that the report speaks of first
LOWER_IS_BETTER = frozenset({"ece", "brier", "log_loss"})
LEAST_PROBABILITY = 1e-12  # in a logarithm, so that one sure mistake costs 28 nats and not all
SPECIFICITY = 0.9  # at which sensitivity is read off the ROC curve, unless told otherwise

Probabilities = Float[np.ndarray, "*m n k"]
PerRun = Float[np.ndarray, "*m"]
PerClass = Float[np.ndarray, "*m k"]


def softmax(logits: Probabilities, where: str = "logits") -> Probabilities:
    """Class probabilities in float64.

    Raises:
      EvaluationError: a NaN or infinite logit; the message holds `where` (the arm, say), the seed's
        position where logits are stacked, and the row.
    """
    bad = ~np.isfinite(logits).all(axis=-1)
    if bad.any():
        *run, row = np.argwhere(bad)[0].tolist()
        place = f"{where}, run {run[0]}, row {row}" if run else f"{where}, row {row}"
        value = logits[(*run, row)]
        raise EvaluationError(
            f"{place}: logits must be finite, got {value.tolist()} ({int(bad.sum())} such rows); "
            "the classifier diverged or its predictions are damaged: train that run again"
        )
    return scipy.special.softmax(np.asarray(logits, np.float64), axis=-1)


def logit_adjust(
    logits: Probabilities, log_prior: Float[np.ndarray, "*n k"], tau: float
) -> Probabilities:
    """Post-hoc logit adjustment, f_y(x) - tau log pi_y (Menon et al., ICLR 2021, equation 9).

    Args:
      logits: any leading axes, classes last.
      log_prior: log pi [k], the label distribution that training saw and its loss did not correct;
        or one for each image [n k].
      tau: strength; 1 is Bayes-consistent for the balanced error, 0 changes nothing.
    """
    if not np.isfinite(log_prior).all():
        empty = np.unique(np.argwhere(~np.isfinite(log_prior))[:, -1]).tolist()
        raise EvaluationError(f"log_prior of classes {empty} is not finite: no train images there?")
    return logits - tau * np.broadcast_to(log_prior, logits.shape)


def absent_classes(labels: Int[np.ndarray, "n"], k: int) -> list[int]:
    """Classes without a label, which macro averages leave out."""
    return np.flatnonzero(np.bincount(labels, minlength=k) == 0).tolist()


@dataclasses.dataclass(frozen=True)
class Counts:
    """Weighted counts per class: hits, predictions, labels."""

    hits: PerClass
    predicted: PerClass
    labelled: PerClass


def count(probabilities: Probabilities, labels: Int[np.ndarray, "n"]) -> Counts:
    """Counts of the top-1 prediction; of equal probabilities the first class wins."""
    k = probabilities.shape[-1]
    _check(probabilities, labels)
    predicted = np.eye(k)[probabilities.argmax(axis=-1)]
    labelled = np.eye(k)[labels]
    axes = (1,) * (predicted.ndim - 2) + labelled.shape
    return Counts(
        (predicted * labelled.reshape(axes)).sum(axis=-2),
        predicted.sum(axis=-2),
        np.broadcast_to(labelled.sum(axis=0), (*predicted.shape[:-2], k)),
    )


def _check(probabilities: np.ndarray, labels: np.ndarray) -> None:
    k = probabilities.shape[-1]
    if len(labels) == 0:
        raise EvaluationError("no labelled images: metrics need at least one")
    if labels.min() < 0 or labels.max() >= k:
        row = int(np.flatnonzero((labels < 0) | (labels >= k))[0])
        raise EvaluationError(f"labels, row {row}: got {labels[row]}; takes 0 to {k - 1}")
    if np.isnan(probabilities).any():
        at = np.argwhere(np.isnan(probabilities))[0].tolist()
        raise ValueError(f"probabilities at {at} are NaN; take them from `softmax`, which says why")


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    out = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def mean_defined(values: PerClass) -> PerRun:
    """Mean over the classes (last axis) that are not NaN; NaN where none is."""
    defined = ~np.isnan(values)
    total = np.where(defined, values, 0.0).sum(axis=-1)
    return _ratio(np.asarray(total), np.asarray(defined.sum(axis=-1)))


def accuracy_of(counts: Counts) -> PerRun:
    """Fraction of labels predicted right."""
    return _ratio(np.asarray(counts.hits.sum(axis=-1)), np.asarray(counts.labelled.sum(axis=-1)))


def recall_of(counts: Counts) -> PerClass:
    """Recall of every class, NaN where it has no label."""
    return _ratio(counts.hits, counts.labelled)


def f1_of(counts: Counts) -> PerClass:
    """F1 of every class, NaN where it has no label."""
    f1 = _ratio(2 * counts.hits, counts.predicted + counts.labelled)
    return np.where(counts.labelled > 0, f1, np.nan)


def recall_per_class(probabilities: Probabilities, labels: Int[np.ndarray, "n"]) -> PerClass:
    """Recall of every class in [0, 1], NaN for an absent class."""
    return recall_of(count(probabilities, labels))


def balanced_accuracy(probabilities: Probabilities, labels: Int[np.ndarray, "n"]) -> PerRun:
    """Mean recall over the classes present in the labels, in [0, 1]."""
    return mean_defined(recall_per_class(probabilities, labels))


def confidence_gaps(
    probabilities: Probabilities, labels: Int[np.ndarray, "n"], bins: int
) -> tuple[Int[np.ndarray, "*m n"], Float[np.ndarray, "*m n"]]:
    """Each image's confidence bin, and its hit (0 or 1) minus its confidence.

    Bins have equal width on (0, 1], closed above (Guo et al., ICML 2017).
    """
    _check(probabilities, labels)
    confidence = probabilities.max(axis=-1)
    predicted = probabilities.argmax(axis=-1)
    hit = predicted == labels.reshape((1,) * (predicted.ndim - 1) + (-1,))
    inner_edges = np.linspace(0.0, 1.0, bins + 1)[1:-1]
    return np.searchsorted(inner_edges, confidence, side="left"), hit - confidence


def ece(probabilities: Probabilities, labels: Int[np.ndarray, "n"], bins: int = 15) -> PerRun:
    """Expected calibration error of the top-1 class, in [0, 1] (Guo et al., 2017, equation 3).

    sum_b (n_b / n) |acc_b - conf_b| = sum_b |sum_{i in b} (hit_i - confidence_i)| / n.
    """
    bin_of, gap = confidence_gaps(probabilities, labels, bins)
    member = np.eye(bins)[bin_of]
    return np.asarray(np.abs((member * gap[..., None]).sum(axis=-2)).sum(axis=-1) / len(labels))


def brier_per_image(
    probabilities: Probabilities, labels: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "*m n"]:
    """Each image's sum over classes of squared errors, in [0, 2]."""
    _check(probabilities, labels)
    k = probabilities.shape[-1]
    truth = np.eye(k)[labels].reshape((1,) * (probabilities.ndim - 2) + (-1, k))
    return np.asarray(((probabilities - truth) ** 2).sum(axis=-1))


def brier(probabilities: Probabilities, labels: Int[np.ndarray, "n"]) -> PerRun:
    """Brier score, summed over classes, in [0, 2]; lower is better."""
    return np.asarray(brier_per_image(probabilities, labels).mean(axis=-1))


def nats(probabilities: Probabilities, labels: Int[np.ndarray, "n"]) -> Float[np.ndarray, "*m n"]:
    """Each image's -log p of its class, at most -log LEAST_PROBABILITY."""
    _check(probabilities, labels)
    own = probabilities[..., np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.maximum(own, LEAST_PROBABILITY)))


def log_loss(probabilities: Probabilities, labels: Int[np.ndarray, "n"]) -> PerRun:
    """Mean cross-entropy in nats; lower is better."""
    return np.asarray(nats(probabilities, labels).mean(axis=-1))


@dataclasses.dataclass(frozen=True)
class Parts:
    """What all metrics are made of, of one run or resample, or of several along leading axes.

    auroc, auprc, sensitivity: one-vs-rest of every class, see `ranking`; sensitivity is the one at
    a fixed specificity.
    """

    counts: Counts
    auroc: PerClass
    auprc: PerClass
    sensitivity: PerClass
    ece: PerRun
    brier: PerRun
    log_loss: PerRun


def parts(
    probabilities: Probabilities,
    labels: Int[np.ndarray, "n"],
    bins: int = 15,
    specificity: float = SPECIFICITY,
) -> Parts:
    """The parts of all metrics, from probabilities [n, k], or [m, n, k] over seeds."""
    counts = count(probabilities, labels)
    auroc, auprc, sensitivity = ranking.per_class(probabilities, labels, specificity)
    return Parts(
        counts,
        auroc,
        auprc,
        sensitivity,
        ece(probabilities, labels, bins),
        brier(probabilities, labels),
        log_loss(probabilities, labels),
    )


def evaluate(
    probabilities: Probabilities,
    labels: Int[np.ndarray, "n"],
    class_groups: Mapping[str, Sequence[int]],
    bins: int = 15,
    specificity: float = SPECIFICITY,
) -> dict[str, PerRun]:
    """All of METRICS by name.

    Args:
      probabilities: [n, k], or [m, n, k] over seeds.
      labels: class indices.
      class_groups: class indices of "head", "medium" and "tail"; an empty group's recall is NaN.
      bins: confidence bins of ECE.
      specificity: of `sensitivity_at_specificity`, in [0, 1].
    """
    return from_parts(parts(probabilities, labels, bins, specificity), class_groups)


def from_parts(found: Parts, class_groups: Mapping[str, Sequence[int]]) -> dict[str, PerRun]:
    """All of METRICS by name, in that order."""
    recall = recall_of(found.counts)
    values = {
        "accuracy": accuracy_of(found.counts),
        "balanced_accuracy": mean_defined(recall),
        "macro_f1": mean_defined(f1_of(found.counts)),
        "auroc_macro": mean_defined(found.auroc),
        "auprc_macro": mean_defined(found.auprc),
        "ece": found.ece,
    }
    for name in ("head", "medium", "tail"):
        values[f"recall_{name}"] = mean_defined(recall[..., list(class_groups[name])])
    values["brier"], values["log_loss"] = found.brier, found.log_loss
    values["sensitivity_at_specificity"] = mean_defined(found.sensitivity)
    return values


def per_class(found: Parts) -> dict[str, PerClass]:
    """All of PER_CLASS by name, in that order; sensitivity is recall of the top-1 class."""
    return {
        "auroc": found.auroc,
        "auprc": found.auprc,
        "sensitivity": recall_of(found.counts),
        "sensitivity_at_specificity": found.sensitivity,
        "f1": f1_of(found.counts),
    }
