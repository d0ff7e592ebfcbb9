"""Maps of features in the plane: t-SNE and a UMAP-like one, each with how far it can be trusted.

A map shows which images lie beside which, and no distances between groups of them: what it says is
measured by the trustworthiness (Venna and Kaski 2001), for k neighbours of n points

  T = 1 - 2 / (n k (2 n - 3 k - 1)) sum_i sum_{j in U_i} (r(i, j) - k)                     (1)

with U_i the k nearest on the map that are not among the k nearest by features, r their rank there:
1 where nothing is beside a stranger, about 1/2 for points strewn at random.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lt_jax.errors import UserError
from lt_jax.evaluate.images import umap

POINTS = 2000  # at most, of all kinds together
KINDS = ("train", "val", "synthetic")
PERPLEXITY = 30.0
ITERATIONS = 500  # of t-SNE, half of them with early exaggeration
COMPONENTS = 50  # principal ones, of which distances are taken
LEAST = 8  # points that a map takes


class MapsError(UserError, ValueError):
    """Features that no map can be made of."""


@dataclasses.dataclass(frozen=True, eq=False)
class Map:
    """Places [n 2] of the points, and equation (1) with its k."""

    places: Float[np.ndarray, "n 2"]
    trustworthiness: float
    k: int


@dataclasses.dataclass(frozen=True, eq=False)
class Maps:
    """Maps by name ("tsne", "umap") of the same n points.

    kinds: indices of KINDS. labels: classes. names: of images, where they are known. available:
    images of each kind that there were, of which these are a part.
    """

    maps: Mapping[str, Map]
    kinds: Int[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]
    names: tuple[str, ...]
    available: Mapping[str, int]


def subset(
    labels: Int[np.ndarray, "n"], kinds: Int[np.ndarray, "n"], seed: int, most: int = POINTS
) -> Int[np.ndarray, "m"]:
    """Sorted places of at most `most` points; where there are more, of each kind and class as many
    as every one of them can have, all of those that have fewer."""
    if len(labels) <= most:
        return np.arange(len(labels))
    strata = np.unique(np.stack([kinds, labels]), axis=1, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(strata)
    low, high = 0, int(sizes.max())
    while low < high:  # the highest limit at which no more than `most` stay
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= most else (low, middle - 1)
    rng = np.random.default_rng((seed, 7))
    order = rng.permutation(len(labels))
    own = [order[strata[order] == s][:low] for s in range(len(sizes))]
    return np.sort(np.concatenate(own))


def compute(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    kinds: Int[np.ndarray, "n"],
    names: tuple[str, ...],
    available: Mapping[str, int],
    seed: int,
) -> Maps | None:
    """Both maps of all points; choose them by `subset` where they are many.

    Args:
      features: of one extractor.
      labels, kinds, names, available: as of `Maps`.
      seed: of all draws: one seed gives one map.

    Returns:
      None with fewer than LEAST points.

    Raises:
      MapsError: features that are not finite.
    """
    if len(bad := np.flatnonzero(~np.isfinite(features).all(axis=1))):
        counts = np.bincount(kinds[bad], minlength=len(KINDS)).tolist()
        of = ", ".join(
            f"{count} {kind}" for kind, count in zip(KINDS, counts, strict=True) if count
        )
        raise MapsError(
            f"maps: the extractor's features of {len(bad)} of {len(features)} images are not "
            f"finite ({of}; the first: {names[bad[0]]!r}); the extractor or the generator "
            "diverged: lower its learning rate, or take `maps` out of config.evaluate.pictures"
        )
    if len(features) < LEAST:
        return None
    reduced = principal(features.astype(np.float64), COMPONENTS)
    k = min(umap.NEIGHBOURS, (len(features) - 1) // 2)
    placed = {"tsne": tsne(reduced, seed), "umap": umap.embed(reduced, k, seed)}
    from sklearn.manifold import trustworthiness

    return Maps(
        maps={
            name: Map(places, float(trustworthiness(reduced, places, n_neighbors=k)), k)
            for name, places in placed.items()
        },
        kinds=kinds,
        labels=labels,
        names=names,
        available=available,
    )


def principal(features: Float[np.ndarray, "n d"], most: int) -> Float[np.ndarray, "n p"]:
    """At most so many principal components: distances in them are those of the features, less what
    the others hold."""
    centred = features - features.mean(axis=0, keepdims=True)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    p = min(most, len(values))
    return left[:, :p] * values[:p][None]


def tsne(features: Float[np.ndarray, "n d"], seed: int) -> Float[np.ndarray, "n 2"]:
    """scikit-learn's Barnes-Hut t-SNE (van der Maaten 2014), started from principal components."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    n, d = features.shape
    made = TSNE(
        perplexity=min(PERPLEXITY, (n - 1) / 3),
        init="pca" if d > 1 else "random",
        max_iter=ITERATIONS,
        random_state=seed,
    )
    # Its threads wait for each other at every step: on busy cores, one alone is faster.
    with threadpool_limits(1):
        return made.fit_transform(features).astype(np.float64)


def summary(found: Maps | None) -> dict[str, Any] | None:
    """What report.json keeps; None where there are no maps.

    Returns:
      {"n", "points": {kind: on the maps}, "available": {kind: images there were},
       "maps": {name: {"trustworthiness", "k"}}}
    """
    if found is None:
        return None
    shown = {kind: int((found.kinds == i).sum()) for i, kind in enumerate(KINDS)}
    maps = {
        name: {"trustworthiness": held.trustworthiness, "k": held.k}
        for name, held in found.maps.items()
    }
    n = len(found.labels)
    return {"n": n, "points": shown, "available": dict(found.available), "maps": maps}
