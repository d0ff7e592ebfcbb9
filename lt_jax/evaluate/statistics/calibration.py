"""Reliability of an arm's probabilities by bins of confidence (Niculescu-Mizil and Caruana, 2005).

For images (of all runs) whose highest probability falls into a bin of equal width on (0, 1], as in
ECE (`metrics.ece`): how often the class of that probability is the right one, against the mean of
the probabilities. The interval is Wilson's of the share of hits, with an effective number

  n = (sum_g w_g)^2 / sum_g w_g^2                                                          (1)

of units (Kish, 1965), w_g being how many images of group g, each counted once a run, are in the
bin: groups whose images all fare alike count once, and a further run of the same images is no
further image. It speaks of the trained runs, and holds up in a bin of few images.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from lt_jax.evaluate import metrics
from lt_jax.evaluate.metrics.grouping import Truth
from lt_jax.evaluate.statistics import intervals


@dataclasses.dataclass(frozen=True)
class Reliability:
    """By bin [b], of all runs together: NaN where it holds no image.

    edges: [b + 1] in [0, 1]. images: mean number over runs. confidence, hits: means in [0, 1].
    low, high: 95% interval of hits. effective: equation (1), 0 in an empty bin.
    """

    edges: Float[np.ndarray, "edges"]
    images: Float[np.ndarray, "b"]
    confidence: Float[np.ndarray, "b"]
    hits: Float[np.ndarray, "b"]
    low: Float[np.ndarray, "b"]
    high: Float[np.ndarray, "b"]
    effective: Float[np.ndarray, "b"]


def reliability(probabilities: Float[np.ndarray, "m n k"], truth: Truth) -> Reliability:
    """Hits and confidence in `truth.bins` bins.

    Raises ValueError as `metrics.ece` does.
    """
    bins, m = truth.bins, len(probabilities)
    at, gap = metrics.confidence_gaps(probabilities, truth.labels, bins)
    confidence = probabilities.max(axis=-1)
    hit = gap + confidence
    weight = np.zeros((bins, truth.n_groups))
    np.add.at(weight, (at.reshape(-1), np.tile(truth.groups, m)), 1.0)
    total, squares = weight.sum(axis=1), (weight**2).sum(axis=1)
    held = total > 0

    def mean(values: np.ndarray) -> np.ndarray:
        sums = np.bincount(at.reshape(-1), weights=values.reshape(-1), minlength=bins)
        return np.divide(sums, total, out=np.full(bins, np.nan), where=held)

    effective = np.divide(total**2, squares, out=np.zeros(bins), where=held)
    hits = np.clip(mean(hit), 0.0, 1.0)
    ends = np.full((bins, 2), np.nan)
    for b in np.flatnonzero(held):
        ends[b] = intervals.wilson(float(hits[b]), float(effective[b]))
    edges = np.linspace(0.0, 1.0, bins + 1)
    low, high = ends.T
    return Reliability(edges, total / m, mean(confidence), hits, low, high, effective)
