"""A map of points by their neighbours, with UMAP's objective (McInnes, Healy and Melville 2018,
arXiv:1802.03426).

Of each point's k nearest ones, with rho_i the distance to the nearest that is not itself and
sigma_i such that the weights sum to log2(k), directed edges and their fuzzy union are

  v_j|i = exp(-max(0, d_ij - rho_i) / sigma_i)                                            (1)
  v_ij  = v_j|i + v_i|j - v_j|i v_i|j                                                     (2)

and a map y in the plane, where w_ij = 1 / (1 + a |y_i - y_j|^2b), is to have little cross-entropy

  C = sum_ij v_ij log(v_ij / w_ij) + (1 - v_ij) log((1 - v_ij) / (1 - w_ij))              (3)

a and b are those by which w is nearest to 1 up to MIN_DIST and to exp(-(d - MIN_DIST)) beyond. (3)
goes down by stochastic steps: an edge is drawn in proportion to v and pulls its ends together by
the gradient of log w, and NEGATIVES points drawn at random push its head away by the gradient of
log(1 - w), all cut off at CLIP, at a rate that falls linearly from 1 to 0.

What differs from the package umap-learn: neighbours are exact, the map starts from the first two
principal components (as Kobak and Linderman 2021, doi:10.1038/s41587-020-00809-z, advise) and not
from a spectral embedding, and edges are drawn at random in batches of one a point on average, whose
steps are taken at once, rather than one after the other by a fixed schedule; a point may be pushed
from itself or a neighbour by chance, as there. There are about as many draws of an edge. Maps are
thus alike in kind and not in coordinates. All draws are NumPy's, by seed, and the arithmetic is the
host's: one seed gives one map.
"""

import functools

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from lt_jax.runtime import faults

NEIGHBOURS = 15
MIN_DIST = 0.1
NEGATIVES = 5
CLIP = 4.0
EPOCHS = 300  # draws of the heaviest edge
EXTENT = 10.0  # of the start: from -EXTENT to EXTENT
TOLERANCE = 1e-5
STEPS = 64  # of bisection


@functools.cache
def curve(min_dist: float = MIN_DIST, spread: float = 1.0) -> tuple[float, float]:
    """a and b of w, by least squares over distances up to three spreads."""
    from scipy.optimize import curve_fit

    d = np.linspace(0, 3 * spread, 300)
    wanted = np.where(d < min_dist, 1.0, np.exp(-(d - min_dist) / spread))
    (a, b), _ = curve_fit(lambda d, a, b: 1 / (1 + a * d ** (2 * b)), d, wanted)
    return float(a), float(b)


def graph(features: Float[np.ndarray, "n d"], k: int = NEIGHBOURS) -> scipy.sparse.csr_matrix:
    """Equations (1) and (2): symmetric weights [n, n] in (0, 1], without a diagonal.

    Args:
      features: of n > k points.
      k: neighbours, the point itself not counted; at least 2.
    """
    from sklearn.neighbors import NearestNeighbors

    n = len(features)
    if not 2 <= k < n:
        raise ValueError(f"{n} points and {k} neighbours; takes 2 to {n - 1} neighbours")
    distances, nearest = NearestNeighbors(n_neighbors=k).fit(features).kneighbors()
    weights = memberships(distances)
    heads = np.repeat(np.arange(n), k)
    directed = scipy.sparse.csr_matrix((weights.ravel(), (heads, nearest.ravel())), shape=(n, n))
    other = directed.T.tocsr()
    union = scipy.sparse.csr_matrix(directed + other - directed.multiply(other))
    union.eliminate_zeros()
    return union


def memberships(distances: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Equation (1): of each point to its k neighbours; rows sum to log2(k) where they can.

    Where more than log2(k) neighbours are as near as the nearest, they all have 1.
    """
    apart = np.where(distances > 0, distances, np.inf)
    nearest = apart.min(axis=1)
    rho = np.where(np.isfinite(nearest), nearest, 0.0)
    beyond = np.maximum(distances - rho[:, None], 0.0)
    target = np.log2(distances.shape[1])
    # In logarithms, as scales of features are not known.
    scale = max(float(beyond.mean()), 1e-12)
    low, high = np.full(len(beyond), scale * 1e-6), np.full(len(beyond), scale * 1e6)
    for _ in range(STEPS):
        middle = np.sqrt(low * high)
        above = np.exp(-beyond / middle[:, None]).sum(axis=1) > target
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.exp(-beyond / high[:, None])


def embed(
    features: Float[np.ndarray, "n d"], k: int = NEIGHBOURS, seed: int = 0, epochs: int = EPOCHS
) -> Float[np.ndarray, "n 2"]:
    """A map of n > k points.

    Args:
      features: of the points; euclidean distances count.
      k: neighbours, as of `graph`.
      seed: of all draws.
      epochs: how often the heaviest edge is drawn, on average.

    Raises:
      ValueError: too few points for k.
    """
    edges = graph(features, k).tocoo()
    rng = np.random.default_rng(seed)
    placed = start(features, rng)
    weights = edges.data / edges.data.sum()
    n = len(features)
    batches = max(1, int(epochs * (edges.data / edges.data.max()).sum() / n))
    cumulated = np.cumsum(weights)
    for step in range(batches):
        faults.check("a map of features")
        drawn = np.minimum(np.searchsorted(cumulated, rng.random(n)), len(weights) - 1)
        head, tail = edges.row[drawn], edges.col[drawn]
        other = rng.integers(n, size=(NEGATIVES, n))
        placed += (1 - step / batches) * _moves(placed, head, tail, other)
    return placed


def start(features: Float[np.ndarray, "n d"], rng: np.random.Generator) -> Float[np.ndarray, "n 2"]:
    """The first two principal components, the longer from -EXTENT to EXTENT, and a little noise,
    without which equal points would stay together."""
    centred = features - features.mean(axis=0, keepdims=True)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    first = np.zeros((len(features), 2))
    rank = min(2, len(values))
    # The sign of a component is arbitrary: its largest entry is made positive.
    top = left[np.abs(left[:, :rank]).argmax(axis=0), np.arange(rank)]
    first[:, :rank] = left[:, :rank] * (values[:rank] * np.sign(top))[None]
    first *= EXTENT / max(float(np.abs(first).max()), 1e-12)
    return first + rng.normal(scale=1e-3 * EXTENT, size=first.shape)


def attraction(apart: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "... 2"]:
    """The gradient of log w with respect to y_i, by y_i - y_j."""
    a, b = curve()
    square = np.maximum((apart**2).sum(axis=-1, keepdims=True), 1e-12)
    return -2 * a * b * square ** (b - 1) / (1 + a * square**b) * apart


def repulsion(apart: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "... 2"]:
    """The gradient of log(1 - w) with respect to y_i, by y_i - y_j, kept finite near 0."""
    a, b = curve()
    square = (apart**2).sum(axis=-1, keepdims=True)
    return 2 * b / ((1e-3 + square) * (1 + a * square**b)) * apart


def _moves(
    placed: Float[np.ndarray, "n 2"],
    head: Int[np.ndarray, "e"],
    tail: Int[np.ndarray, "e"],
    other: Int[np.ndarray, "m e"],
) -> Float[np.ndarray, "n 2"]:
    """What a batch of edges and their random points does to all points, at rate 1."""
    at = placed[head]
    pull = np.clip(attraction(at - placed[tail]), -CLIP, CLIP)
    push = np.clip(repulsion(at[None] - placed[other]), -CLIP, CLIP).sum(axis=0)
    n = len(placed)
    summed = lambda rows, values: np.stack(
        [np.bincount(rows, weights=values[:, i], minlength=n) for i in range(2)], axis=1
    )
    return summed(head, pull + push) - summed(tail, pull)
