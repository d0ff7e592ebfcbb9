"""Long-tail profiles of the train split: how many images a class keeps, and which.

With r_k the share of class k of the first class's count and K classes,

  exponential  r_k = IF^(-k / (K - 1))
  Pareto       r_k = x_k^(-(a + 1)),  x_k = 1 + k / (K - 1) (IF^(1 / (a + 1)) - 1)

The first is CIFAR-LT's (Cui et al., CVPR 2019; Cao et al., NeurIPS 2019). The second is the density
of a Pareto law of shape a, the law that ImageNet-LT is cut by with a = 6 (Liu et al., CVPR 2019).
Both run by class index, as CIFAR-LT does, from r_0 = 1 to r_{K-1} = 1 / IF (the imbalance factor).
Pareto falls faster at the head than exponential, and tends to it as a grows. ImageNet-LT itself is
a published list of files; to use it, give that list as a manifest.
"""

import math

import numpy as np
from jaxtyping import Int

from lt_jax.config import ConfigError


def profile_counts(
    counts: Int[np.ndarray, "k"],
    profile: str,
    imbalance_factor: float = 1.0,
    pareto_shape: float = 6.0,
    shots: int = 1,
) -> Int[np.ndarray, "k"]:
    """Train images that each class keeps.

    n_k = floor(n_0 r_k), with n_0 the largest head for which no class is asked for more than it
    has: the imbalance factor is kept exactly also where the classes do not start out equal.

    Args:
      counts: train images at hand a class.
      profile: "natural" (all), "exponential", "pareto", or "few_shot" (`shots` of each class).
      imbalance_factor: IF >= 1, first class's count over the last's.
      pareto_shape: a > 0.
      shots: images that each class keeps under "few_shot".

    Raises:
      ConfigError: a class would keep nothing, or has fewer images than `shots`.
    """
    if profile == "natural":
        return counts.copy()
    if profile == "few_shot":
        if (counts < shots).any():
            raise ConfigError(
                f"config.data.shots: got {shots}; class {int(np.argmin(counts))} has "
                f"{counts.min()} train images, takes at most that"
            )
        return np.full_like(counts, shots)
    position = np.linspace(0.0, 1.0, len(counts))
    if profile == "exponential":
        shares = imbalance_factor**-position
    else:
        exponent = pareto_shape + 1.0
        shares = (1 + position * (imbalance_factor ** (1 / exponent) - 1)) ** -exponent
    head = math.floor((counts / shares).min())
    # The hair keeps a product such as 5000 * 0.01 from falling just below its whole number.
    target = np.minimum(np.floor(head * shares + 1e-6).astype(counts.dtype), counts)
    if not target.all():
        raise ConfigError(
            f"config.data.imbalance_factor: got {imbalance_factor:g}; with a head of {head} train "
            f"images it leaves class {int(np.argmin(target))} none, takes at most {max(head, 1)}"
        )
    return target


def groups_by_count(
    counts: Int[np.ndarray, "k"], head_above: int = 100, tail_below: int = 20, by: str = "counts"
) -> dict[str, tuple[int, ...]]:
    """Class indices of head, medium and tail.

    Args:
      counts: train images of each class.
      head_above: a head class has more than this ("counts").
      tail_below: a tail class has fewer than this ("counts").
      by: "counts", or "thirds": equal numbers of classes in descending order of count, any left
        over going to the head first.
    """
    if by == "thirds":
        parts = np.array_split(np.argsort(-counts, kind="stable"), 3)
    else:
        head, tail = counts > head_above, counts < tail_below
        parts = [np.flatnonzero(part) for part in (head, ~head & ~tail, tail & ~head)]
    return {
        name: tuple(sorted(part.tolist()))
        for name, part in zip(("head", "medium", "tail"), parts, strict=True)
    }


def subsample(
    labels: Int[np.ndarray, "n"],
    groups: tuple[str, ...],
    target: Int[np.ndarray, "k"],
    seed: int,
) -> Int[np.ndarray, "m"]:
    """Row indices (ascending) of the examples that are kept, `target[k]` of class k.

    Whole groups are taken in a random order until the count is reached, so that a tail class is
    poor in lesions, as in life, and not only in pictures of them; the last group may be cut.
    """
    names = np.array(groups, dtype=object)
    kept = []
    for label, wanted in enumerate(target.tolist()):
        rows = np.flatnonzero(labels == label)
        unique = sorted(set(names[rows]))
        order = np.random.default_rng([seed, label]).permutation(len(unique))
        rank = dict(zip(unique, order.tolist(), strict=True))
        rows = rows[np.argsort([rank[name] for name in names[rows]], kind="stable")]
        kept.append(rows[:wanted])
    return np.sort(np.concatenate(kept))
