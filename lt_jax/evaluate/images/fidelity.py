"""How near synthetic images come to real ones, on an extractor's features, class by class.

With reference features X (train) [n d] of mean mu and covariance S, and others Y [m d]:

  FD   = |mu_X - mu_Y|^2 + tr(S_X) + tr(S_Y) - 2 tr((S_X S_Y)^(1/2))                      (1)
  KID  = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j),
         k(x, y) = (x . y / d + 1)^3                                                      (2)

(1) is the Frechet distance of two Gaussians (Heusel et al. 2017, arXiv:1706.08500; Dowson and
Landau 1982). The last trace is the sum of the singular values of A B^T, where A^T A = S_X and
B^T B = S_Y, so that no root is taken of a matrix that is singular for n <= d. FD is biased upward,
by about tr(S) (1 / n + 1 / m) from the means and more from the covariances: of two sets, only those
of equal size can be compared. (2) is the unbiased estimate of the squared maximum mean discrepancy
(Binkowski et al. 2018, arXiv:1801.01401), and can be negative; its standard error is the jackknife
over images of both sides, at most about twice too large where X and Y are of one distribution
(Efron and Stein 1981).

The rest counts neighbours. A ball about each image of a set, with its k-th neighbour in the set on
the rim, makes up the set's manifold:

  precision: share of Y in the manifold of X;  recall: share of X in that of Y            (3)
  density: mean over Y of the balls of X that it is in, over k;
  coverage: share of X with an image of Y in its ball                                     (4)

(3) Kynkaanniemi et al. 2019 (arXiv:1904.06991), (4) Naeem et al. 2020 (arXiv:2002.09797). Last, the
cosine distance of an image to the nearest in train: synthetic images nearer to train than
held-out real ones are copies.

A number that too few images would make is None, with the reason beside it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from lt_jax.errors import UserError
from lt_jax.runtime import faults

MEASURES = ("fd", "kid", "precision", "recall", "density", "coverage")
FD_LEAST = 10  # images a side: below, (1) is its bias and little else
NEAREST_LEAST = 20  # held-out images whose 5% quantile is a threshold
BLOCK = 1024  # rows of a matrix between all pairs that are held at once
DRAWS = 10  # random subsets that a measure at a smaller size is averaged over
LARGEST = 10_000  # images of a set; a larger one is cut to a random subset

Features = Float[np.ndarray, "n d"]
Others = Float[np.ndarray, "m d"]


class FidelityError(UserError, ValueError):
    """Features or labels that nothing can be measured on."""


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """Measures of one set against a reference; None where `reasons` says why.

    fd, kid: >= 0 and about >= 0, lower is nearer. kid_std: standard error of kid. precision,
    recall, coverage in [0, 1], density >= 0: higher is nearer, 1 is that of equal distributions
    for density alone.
    """

    n_reference: int
    n: int
    fd: float | None = None
    kid: float | None = None
    kid_std: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Reference:
    """A set with what every comparison needs of it, from `reference`."""

    features: Features
    k: int
    radii: Float[np.ndarray, "n"] | None  # None for k images or fewer


def reference(features: Features, k: int) -> Reference:
    """Prepares train features to be compared with; k >= 1 neighbours of (3) and (4)."""
    if k < 1:
        raise FidelityError(f"fidelity: got k={k} neighbours; takes an integer >= 1")
    features = np.asarray(features, np.float64)
    return Reference(features, k, radii(features, k) if len(features) > k else None)


def compare(train: Reference, features: Others) -> Fidelity:
    """All measures of a set against train features; see `Fidelity`."""
    features = np.asarray(features, np.float64)
    n, m, k = len(train.features), len(features), train.k
    sides = f"{n} train and {m} other images"
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    if min(n, m) >= FD_LEAST:
        values["fd"] = frechet(train.features, features)
    else:
        reasons["fd"] = f"{sides}; FD takes {FD_LEAST} a side"
    if min(n, m) >= 2:
        values["kid"], values["kid_std"] = kid(train.features, features)
    else:
        reasons["kid"] = f"{sides}; KID takes 2 a side"
    if values.get("kid_std") is None:
        reasons["kid_std"] = f"{sides}; the jackknife takes 3 a side"
    if train.radii is not None and m > k:
        values |= _manifolds(train, features)
    else:
        reasons |= dict.fromkeys(MEASURES[2:], f"{sides}; {k} neighbours take {k + 1} a side")
    return Fidelity(n, m, **values, reasons=reasons)  # type: ignore[arg-type]


def frechet(first: Features, second: Others) -> float:
    """Equation (1), >= 0. Raises FidelityError for fewer than two images a side."""
    if min(len(first), len(second)) < 2:
        raise FidelityError(f"FD: got {len(first)} and {len(second)} images; takes 2 a side")
    roots, traces = [], []
    for x in (first, second):
        centred = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
        roots.append(np.linalg.qr(centred, mode="r"))
        traces.append(np.square(centred).sum())
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    distance = np.square(first.mean(axis=0) - second.mean(axis=0)).sum()
    return float(max(distance + sum(traces) - 2 * shared, 0.0))  # rounding may fall below


def kid(first: Features, second: Others) -> tuple[float, float | None]:
    """Equation (2) and its standard error, None for two images a side.

    Raises FidelityError for fewer than two images a side.
    """
    n, m, d = len(first), len(second), first.shape[1]
    if min(n, m) < 2:
        raise FidelityError(f"KID: got {n} and {m} images; takes 2 a side")
    kernel = lambda x, y: (x @ y.T / d + 1) ** 3
    own = lambda x: _row_sums(kernel, x, x)[0] - (np.square(x).sum(axis=1) / d + 1) ** 3
    xx, yy = own(first), own(second)
    x_to_y, y_to_x = _row_sums(kernel, first, second)

    def estimate(xx: Any, yy: Any, xy: Any, n: int, m: int) -> Any:
        return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)

    value = estimate(xx.sum(), yy.sum(), x_to_y.sum(), n, m)
    if min(n, m) < 3:
        return float(value), None
    # Without x_i, the sum over pairs of x loses its row and its column, and that of x, y its row.
    without_x = estimate(xx.sum() - 2 * xx, yy.sum(), x_to_y.sum() - x_to_y, n - 1, m)
    without_y = estimate(xx.sum(), yy.sum() - 2 * yy, y_to_x.sum() - y_to_x, n, m - 1)
    variance = (n - 1) * without_x.var() + (m - 1) * without_y.var()
    return float(value), float(np.sqrt(variance))


def radii(features: Features, k: int) -> Float[np.ndarray, "n"]:
    """Distance of each image to its k-th nearest other one. Needs more than k images."""
    if len(features) <= k:
        raise FidelityError(f"neighbours: got {len(features)} images; k={k} takes {k + 1}")
    # The image itself, at distance 0, is among the k + 1 nearest.
    blocks = _distances(features, features, "euclidean")
    return np.concatenate([np.partition(block, k, axis=1)[:, k] for _, block in blocks])


def nearest(features: Others, train: Features) -> Float[np.ndarray, "m"]:
    """Cosine distance of each image to the nearest one in train, in [0, 2]; 0 for a copy."""
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    # |u - v|^2 / 2 = 1 - u . v, and exactly zero where u = v.
    blocks = _distances(unit(features), unit(train), "sqeuclidean")
    return np.concatenate([np.zeros(0), *(block.min(axis=1) / 2 for _, block in blocks)])


def report(
    train: Features,
    train_labels: Int[np.ndarray, "n"],
    val: Float[np.ndarray, "v d"],
    val_labels: Int[np.ndarray, "v"],
    synthetic: Others,
    synthetic_labels: Int[np.ndarray, "m"],
    k: int = 3,
    seed: int = 0,
) -> dict[str, Any]:
    """Synthetic images against train, beside held-out real ones against train: the floor.

    Args:
      train, val, synthetic: features of one extractor, finite. val must hold no image of a
        train group (patient, lesion), or the floor is too low.
      train_labels, val_labels, synthetic_labels: classes from 0; of synthetic images, as asked for.
      k: neighbours of the manifolds.
      seed: of the subsets that are drawn where sets of equal size are needed.

    Returns:
      JSON-able: {"k", "seed", "classes": [one entry a class], "overall": an entry of all classes
      together, "macro": {"synthetic" | "matched" | "floor": {measure: see `macro`}}}, means
      over the classes in which all three have the measure. An entry is {"label" (of a class),
      "n_train", "n_val", "n_synthetic", "synthetic": all synthetic images, "matched" and "floor":
      synthetic and val ones at equal size, a `Fidelity` as a dict each, "nearest": see `_copies`}.
      Compare "matched" with "floor", since FD, recall and coverage follow the size of a set.
      "overall" also sees that synthetic classes are mixed otherwise than those of train.

    Raises:
      FidelityError: features that are not finite or of several dimensions, labels that do not
        fit them or are negative, no train image, k < 1.
    """
    sets = {
        "train": _checked("train", train, train_labels, train.shape[1]),
        "val": _checked("val", val, val_labels, train.shape[1]),
        "synthetic": _checked("synthetic", synthetic, synthetic_labels, train.shape[1]),
    }
    if not len(train):
        raise FidelityError("fidelity: no train images to compare with")
    classes = 1 + max(int(labels.max(initial=-1)) for _, labels in sets.values())
    entries = [
        {"label": label}
        | _entry(
            {name: x[labels == label] for name, (x, labels) in sets.items()},
            sets["train"][0],
            k,
            np.random.default_rng((seed, label)),
        )
        for label in range(classes)
    ]
    together = {name: x for name, (x, _) in sets.items()}
    overall = _entry(together, sets["train"][0], k, np.random.default_rng((seed, classes)))
    return {"k": k, "seed": seed, "classes": entries, "overall": overall, "macro": macro(entries)}


def _entry(
    sets: Mapping[str, np.ndarray], everything: Features, k: int, rng: np.random.Generator
) -> dict[str, Any]:
    """One class's part of `report`; `everything` are the train images of all classes."""
    counts = {f"n_{name}": len(x) for name, x in sets.items()}
    sets = {name: _subset(x, LARGEST, rng) for name, x in sets.items()}
    train, n = reference(sets["train"], k), min(len(sets["val"]), len(sets["synthetic"]))
    return counts | {
        "synthetic": dataclasses.asdict(compare(train, sets["synthetic"])),
        "matched": dataclasses.asdict(_at_size(train, sets["synthetic"], n, rng)),
        "floor": dataclasses.asdict(_at_size(train, sets["val"], n, rng)),
        "nearest": _copies(sets["synthetic"], sets["val"], everything),
    }


def _at_size(train: Reference, features: Others, n: int, rng: np.random.Generator) -> Fidelity:
    """`compare` with subsets of n images, averaged over DRAWS of them where there is a choice."""
    if len(features) <= n:
        return compare(train, features)
    drawn = [compare(train, _subset(features, n, rng)) for _ in range(DRAWS)]
    names = [name for name in (*MEASURES, "kid_std") if getattr(drawn[0], name) is not None]
    means = {name: float(np.mean([getattr(each, name) for each in drawn])) for name in names}
    return dataclasses.replace(drawn[0], **means)


def _copies(synthetic: Others, val: Float[np.ndarray, "v d"], train: Features) -> dict[str, Any]:
    """Distances to the nearest train image of any class, of synthetic and of held-out images.

    "closer_than_val" is the share of synthetic images nearer to train than 95% of the held-out
    ones: 0.05 if they are alike, towards 1 for copies, None for too few held-out images.
    """
    to_train = {"synthetic": nearest(synthetic, train), "val": nearest(val, train)}
    out: dict[str, Any] = {}
    for name, distance in to_train.items():
        at = np.quantile(distance, (0, 0.05, 0.5)).tolist() if len(distance) else (None,) * 3
        out[name] = dict(zip(("min", "p5", "median"), at, strict=True))
    if len(val) >= NEAREST_LEAST and len(synthetic):
        threshold = np.quantile(to_train["val"], 0.05)
        out["closer_than_val"] = float(np.mean(to_train["synthetic"] < threshold))
        out["reasons"] = {}
    else:
        reason = f"{len(val)} val and {len(synthetic)} synthetic images; takes {NEAREST_LEAST}, 1"
        out["closer_than_val"], out["reasons"] = None, {"closer_than_val": reason}
    return out


def macro(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Means of each part and measure over the classes that have it in all parts: {"mean", "std"
    over these classes (None of fewer than two), "classes": their number}."""
    parts = ("synthetic", "matched", "floor")

    def mean(part: str, measure: str) -> dict[str, Any]:
        rows = [e for e in entries if all(e[p][measure] is not None for p in parts)]
        values = [row[part][measure] for row in rows]
        return {
            "mean": float(np.mean(values)) if values else None,
            "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "classes": len(values),
        }

    return {part: {measure: mean(part, measure) for measure in MEASURES} for part in parts}


def _manifolds(train: Reference, features: Others) -> dict[str, float | None]:
    """Equations (3) and (4). On the rim is inside, so that a set is in its own manifold."""
    own_radii = radii(features, train.k)
    assert train.radii is not None
    balls = np.zeros(len(features))  # of X, that each of Y is in
    recalled = np.zeros(len(train.features), bool)
    covered = np.zeros(len(train.features), bool)
    for rows, distance in _distances(train.features, features, "euclidean"):
        inside: Bool[np.ndarray, "block m"] = distance <= train.radii[rows, None]
        balls += inside.sum(axis=0)
        covered[rows] = inside.any(axis=1)
        recalled[rows] = (distance <= own_radii[None]).any(axis=1)
    return {
        "precision": float((balls > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(balls.mean() / train.k),
        "coverage": float(covered.mean()),
    }


def _distances(x: Features, y: Others, metric: str) -> Iterator[tuple[slice, np.ndarray]]:
    """Distances of all pairs, some rows at a time. By differences: equal images are at 0."""
    import scipy.spatial.distance

    for start in range(0, len(x), BLOCK):
        faults.check("a measure of fidelity")
        rows = slice(start, min(start + BLOCK, len(x)))
        yield rows, scipy.spatial.distance.cdist(x[rows], y, metric)  # type: ignore[call-overload]


def _row_sums(
    kernel: Callable[[np.ndarray, np.ndarray], np.ndarray], x: Features, y: Others
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "m"]]:
    """Sums of k(x_i, y_j) over j and over i."""
    over_y, over_x = np.zeros(len(x)), np.zeros(len(y))
    for start in range(0, len(x), BLOCK):
        faults.check("a measure of fidelity")
        block = kernel(x[start : start + BLOCK], y)
        over_y[start : start + BLOCK] = block.sum(axis=1)
        over_x += block.sum(axis=0)
    return over_y, over_x


def _subset(features: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    if len(features) <= n:
        return features
    return features[rng.choice(len(features), n, replace=False)]


def _checked(
    name: str, features: np.ndarray, labels: np.ndarray, dimension: int
) -> tuple[np.ndarray, np.ndarray]:
    if features.shape != (len(labels), dimension):
        raise FidelityError(
            f"fidelity, {name}: got features {features.shape} for {len(labels)} labels; takes "
            f"({len(labels)}, {dimension}), from the extractor that train's are from"
        )
    if bad := np.flatnonzero(~np.isfinite(features).all(axis=1)).tolist():
        raise FidelityError(
            f"fidelity, {name}: the features of {len(bad)} images are not finite (first: row "
            f"{bad[0]}); the extractor or the generator diverged: lower its learning rate"
        )
    if bad := np.flatnonzero(labels < 0).tolist():
        got = f"got label {labels[bad[0]]}; takes 0 and above"
        raise FidelityError(f"fidelity, {name}, row {bad[0]}: {got}")
    return np.asarray(features, np.float64), labels
